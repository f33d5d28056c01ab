//! Which processor a measurement runs on, and with what priority.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use relay_user::worker::leave_to_workers;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

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

/// Nanoseconds on a processor, from a thread's `schedstat` file.
///
/// # Errors
/// Where the kernel does not tell.
pub fn processor_time(schedstat: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(schedstat).with_context(|| {
        format!("cannot read {}; was the kernel built with SCHED_INFO?", schedstat.display())
    })?;
    let nanos = text.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
    nanos.with_context(|| format!("{} says {text:?}", schedstat.display()))
}

/// While it lives, processors that are never idle, though everything else goes before what keeps them awake. A hypervisor gives a
/// processor that halted back when it likes; milliseconds later, where it has others to serve.
#[derive(Debug)]
pub struct Awake {
    stop: Arc<AtomicBool>,
    spinners: Vec<(JoinHandle<()>, u32)>,
    since: Instant,
}

impl Awake {
    /// Keeps `cpus` awake.
    ///
    /// # Errors
    /// Where a thread cannot be started, bound, or put behind all others.
    pub fn keep(cpus: &[usize]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut awake = Self { stop: Arc::clone(&stop), spinners: Vec::new(), since: Instant::now() };
        for &cpu in cpus {
            let (ready, started) = mpsc::sync_channel(1);
            let stop = Arc::clone(&stop);
            let spin = move || {
                let placed = pin(cpu).and_then(|()| yield_to_all());
                let may_spin = placed.is_ok();
                // Whoever starts it waits for this.
                let _ = ready.send(placed.map(|()| gettid().as_raw_nonzero().get().unsigned_abs()));
                while may_spin && !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let thread = std::thread::Builder::new().name("awake".to_owned()).spawn(spin)?;
            awake.spinners.push((thread, started.recv().context("a thread ended")??));
        }
        Ok(awake)
    }

    /// The share of the time since, 0 to 1, in which the processors had something else to do; nothing where there are none.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn busy(&self) -> anyhow::Result<Option<f64>> {
        let mut spun = 0;
        for (_, thread) in &self.spinners {
            spun += processor_time(Path::new(&format!("/proc/self/task/{thread}/schedstat")))?;
        }
        let all = self.since.elapsed().as_nanos() as f64 * self.spinners.len() as f64;
        Ok((all > 0.0).then(|| (1.0 - spun as f64 / all).clamp(0.0, 1.0)))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (thread, _) in self.spinners.drain(..) {
            // A spinner has nothing to panic about.
            let _ = thread.join();
        }
    }
}

/// The calling thread runs where nothing else wants to.
fn yield_to_all() -> anyhow::Result<()> {
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy)
        .map_err(|error| anyhow!("a thread cannot be put behind all others: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_processor_that_is_kept_awake_is_busy_with_whatever_else_runs_there() {
        let here = allowed().unwrap()[0];
        let busy_beside = |work: &dyn Fn(Duration)| {
            let awake = Awake::keep(&[here]).unwrap();
            work(Duration::from_millis(400));
            awake.busy().unwrap().unwrap()
        };
        let spin = |span| {
            on(here, || {
                let start = Instant::now();
                while start.elapsed() < span {
                    std::hint::spin_loop();
                }
                Ok(())
            })
            .unwrap();
        };
        let busy = busy_beside(&spin);
        assert!(busy > 0.7, "{busy} beside a thread that spins");
        // Other tests may have it for a while.
        let is_left = |_| busy_beside(&std::thread::sleep) < 0.9;
        assert!((0..100).any(is_left), "what keeps it awake is taken for work");
        assert!(Awake::keep(&[]).unwrap().busy().unwrap().is_none());
    }
}
