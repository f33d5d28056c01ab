//! Which processor a measurement runs on, and with what priority.

use anyhow::Context as _;
use relay_user::worker::leave_to_workers;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Nice value of a spinning worker, and so of what is compared with it.
const BUSY_NICE: i32 = -20;

/// The processors that this process may use, in their order.
///
/// # Errors
/// Where the kernel does not tell.
pub fn allowed() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("cannot read which processors are allowed")?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Binds the calling thread to `cpu`.
///
/// # Errors
/// Where this process may not use it.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on processor {cpu}"))
}

/// While it lives, the calling thread and those that it starts, programs included, leave processors to others.
#[derive(Debug)]
pub struct Left {
    before: CpuSet,
}

/// Leaves `cpus` to others. Where no other is allowed, the thread stays.
///
/// # Errors
/// What the kernel said.
pub fn leave(cpus: &[usize]) -> anyhow::Result<Left> {
    let before = sched_getaffinity(None).context("cannot read which processors are allowed")?;
    leave_to_workers(cpus).with_context(|| format!("cannot leave processors {cpus:?}"))?;
    Ok(Left { before })
}

impl Drop for Left {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Gives the calling thread the priority that a spinning worker asks for. Where that is not allowed both do without.
pub fn prefer_like_a_worker() {
    let _ = rustix::process::setpriority_process(None, BUSY_NICE);
}

/// Runs `work` on a thread of its own that is bound to `cpu`.
///
/// # Errors
/// Those of `work`, and where the thread cannot be bound.
pub fn on<T: Send>(cpu: usize, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(cpu)?;
            work()
        });
        thread.join().map_err(|_| anyhow::anyhow!("a measuring thread panicked"))?
    })
}
