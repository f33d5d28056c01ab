//! Which processors there are, and whose time is whose.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The processors that this process may use.
#[derive(Clone, Debug)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// Those of the process's main thread, which pins itself nowhere.
    pub fn available() -> Self {
        let main = rustix::process::getpid();
        let set = sched_getaffinity(Some(main)).unwrap_or_default();
        Self((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The one for the load: the first, where the system's own work mostly is.
    pub fn loader(&self) -> Option<usize> {
        self.0.first().copied()
    }

    /// The one for the `number`th piece of work under test.
    pub fn worker(&self, number: usize) -> Option<usize> {
        self.0.get(number + 1).copied()
    }

    /// The `number`th of all.
    pub fn any(&self, number: usize) -> Option<usize> {
        self.0.get(number).copied()
    }
}

/// The highest priority that is not real-time, that of a busy worker.
const BUSY_NICE: i32 = -20;

/// Pins the calling thread to `cpu` and puts it in front of other programs, as a busy worker is.
///
/// # Errors
/// When the process may not use that processor. Without the right to a priority the thread keeps its own.
pub fn pin(cpu: usize) -> Result<()> {
    // Only noise is at stake, and the gap probe shows it.
    let _ = rustix::process::setpriority_process(None, BUSY_NICE);
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot pin a thread to CPU {cpu}"))
}

/// CPU time that the calling thread has used, in the kernel and outside it.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
