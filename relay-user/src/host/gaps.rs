//! How often, and for how long, something takes a core away from a thread that never yields it; and how late one that sleeps
//! gets it back.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::worker::ahead_of_all;

/// A turn of the loop that took longer is a gap: many times what reading the clock takes.
const GAP: Duration = Duration::from_micros(10);

/// How long an adaptive worker sleeps between the slots of some thousand cells per second.
const SLEEP: Duration = Duration::from_micros(300);

/// What a spinning loop saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    /// How long it looked.
    pub(crate) watched: Duration,
    /// Time in gaps.
    pub(crate) lost: Duration,
    /// The longest.
    pub(crate) longest: Duration,
}

/// What a thread that sleeps as an adaptive worker does saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wakes {
    /// How often it slept.
    pub(crate) count: usize,
    /// How late 99 of 100 wakes were at most.
    pub(crate) p99: Duration,
    /// The latest.
    pub(crate) longest: Duration,
}

/// What somebody saw of a core who first spun on it and then slept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Spinning.
    pub(crate) gaps: Gaps,
    /// Sleeping, where that was asked for.
    pub(crate) wakes: Option<Wakes>,
}

/// Spins for `duration` on `cpu`, or wherever the scheduler puts it, and where it `sleeps`, does that there by bits for as long. `None`
/// where `cpu` may not be used.
pub(crate) fn watch(cpu: Option<usize>, duration: Duration, sleeps: bool) -> Option<Seen> {
    let look = move || {
        if let Some(cpu) = cpu {
            let mut set = CpuSet::new();
            if cpu >= CpuSet::MAX_CPU {
                return None;
            }
            set.set(cpu);
            sched_setaffinity(None, &set).ok()?;
        }
        let gaps = spin(duration);
        Some(Seen { gaps, wakes: sleeps.then(|| sleep(duration)) })
    };
    // On a thread of its own: the affinity goes with it.
    std::thread::Builder::new().name("gaps".to_owned()).spawn(look).ok()?.join().ok()?
}

fn spin(duration: Duration) -> Gaps {
    let mut gaps = Gaps::default();
    let start = Instant::now();
    let mut last = start;
    while last - start < duration {
        let now = Instant::now();
        let turn = now - last;
        if turn > GAP {
            gaps.lost += turn;
            gaps.longest = gaps.longest.max(turn);
        }
        last = now;
    }
    gaps.watched = last - start;
    gaps
}

/// Sleeps by bits, as an adaptive worker does, until `duration` has passed.
fn sleep(duration: Duration) -> Wakes {
    // Without the right to it, what else runs makes wakes late, as it does a worker's.
    let _ = ahead_of_all();
    let start = Instant::now();
    let mut late = Vec::new();
    loop {
        let slept = Instant::now();
        if slept - start >= duration {
            break;
        }
        std::thread::sleep(SLEEP);
        late.push(slept.elapsed().saturating_sub(SLEEP));
    }
    late.sort_unstable();
    let count = late.len();
    let of = |place: usize| late.get(place).copied().unwrap_or_default();
    Wakes { count, p99: of(count * 99 / 100), longest: of(count.saturating_sub(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_as_long_as_asked_and_nowhere_else() {
        let Seen { gaps, wakes } = watch(None, Duration::from_millis(5), true).expect("any CPU will do");
        let wakes = wakes.expect("it was asked for");
        assert!(wakes.count > 0 && wakes.p99 <= wakes.longest, "{wakes:?}");
        assert!(gaps.watched >= Duration::from_millis(5));
        assert!(gaps.lost <= gaps.watched && gaps.longest <= gaps.lost);
        assert_eq!(watch(Some(CpuSet::MAX_CPU), Duration::ZERO, false), None);
    }
}
