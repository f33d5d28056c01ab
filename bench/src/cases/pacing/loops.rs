//! What a program without this project would pace itself with, at the same rate.

use super::relay::PERIOD;
use relay_user::engine::time::Nanos;
use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::{Timespec, clock_gettime};
use std::time::{Duration, Instant};

/// Lateness in nanoseconds of each turn of a loop that sleeps until absolute instants.
pub(super) fn nanosleep(duration: Duration) -> anyhow::Result<Vec<u32>> {
    let mut late = Vec::new();
    let mut deadline = monotonic() + PERIOD;
    let end = deadline.0 + u64::try_from(duration.as_nanos())?;
    while deadline.0 < end {
        let timespec = Timespec {
            tv_sec: i64::try_from(deadline.0 / Nanos::SECOND.0)?,
            tv_nsec: i64::try_from(deadline.0 % Nanos::SECOND.0)?,
        };
        clock_nanosleep_absolute(ClockId::Monotonic, &timespec)?;
        late.push(nanos(Duration::from_nanos(monotonic().since(deadline).0)));
        deadline = deadline + PERIOD;
    }
    Ok(late)
}

fn monotonic() -> Nanos {
    let now = clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value| u64::try_from(value).unwrap_or(0);
    Nanos(part(now.tv_sec) * Nanos::SECOND.0 + part(now.tv_nsec))
}

/// Lateness in nanoseconds of each tick of tokio's interval, on a runtime with nothing else to do.
pub(super) fn tokio_interval(duration: Duration) -> anyhow::Result<Vec<u32>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let late = runtime.block_on(async {
        let mut late = Vec::new();
        let mut interval = tokio::time::interval(Duration::from_nanos(PERIOD.0));
        let end = Instant::now() + duration;
        // The first tick is due at once.
        interval.tick().await;
        loop {
            let due = interval.tick().await.into_std();
            let now = Instant::now();
            late.push(nanos(now.saturating_duration_since(due)));
            if now >= end {
                return late;
            }
        }
    });
    Ok(late)
}

fn nanos(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}
