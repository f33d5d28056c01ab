//! How often, and for how long, something takes a core away from a thread that never yields it.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

/// A turn of the loop that took longer is a gap: many times what reading the clock takes.
const GAP: Duration = Duration::from_micros(10);

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

/// Spins for `duration` on `cpu`, or wherever the scheduler puts it. `None` where `cpu` may not be used.
pub(crate) fn watch(cpu: Option<usize>, duration: Duration) -> Option<Gaps> {
    let spin = move || {
        if let Some(cpu) = cpu {
            let mut set = CpuSet::new();
            if cpu >= CpuSet::MAX_CPU {
                return None;
            }
            set.set(cpu);
            sched_setaffinity(None, &set).ok()?;
        }
        Some(spin(duration))
    };
    // On a thread of its own: the affinity goes with it.
    std::thread::Builder::new().name("gaps".to_owned()).spawn(spin).ok()?.join().ok()?
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_as_long_as_asked_and_nowhere_else() {
        let gaps = watch(None, Duration::from_millis(5)).expect("any CPU will do");
        assert!(gaps.watched >= Duration::from_millis(5));
        assert!(gaps.lost <= gaps.watched && gaps.longest <= gaps.lost);
        assert_eq!(watch(Some(CpuSet::MAX_CPU), Duration::ZERO), None);
    }
}
