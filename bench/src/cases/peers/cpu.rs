//! Processor time, counted the same way for every hub.
//!
//! - *CPU*, which the figures are made of: what the scheduler charged the hub's threads (`schedstat`, in nanoseconds):
//!   their own code, their system calls, and the softirq work that their sending sets off on the spot; and what it
//!   charged `ksoftirqd` of the hub's core meanwhile, which takes that work over where there is much of it.
//! - *core time*, beside it: how long the hub's core was not idle (`/proc/stat`), less what it was not idle with every
//!   hub at rest. It holds besides what kernel workers and other programs did on the core.
//!
//! On a veth pair the sender's softirq carries a packet through the receiving side: the packets that the hub gets have
//! been taken through its namespace on the *clients'* core, and the hub's core takes those that it sends through the
//! namespace of the next. That holds for every hub, so each is charged one such passage per packet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::CpuSet;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use crate::cpu::processor_time;

/// Where the hub runs.
pub(super) const HUB_CORE: usize = 0;
/// Where clients, traffic and everything else of this case run.
pub(super) const CLIENT_CORE: usize = 1;

/// Moves the calling thread, and with it what it starts from now on, to `core` and the lowest real-time priority. All
/// that takes part runs at that, as a relay's adaptive worker does by itself: what other programs do on the cores shall
/// disturb no hub, and none more than another. By turns, so that nobody who spins shuts the others out.
///
/// # Errors
/// Where the core is not there, or the right to the priority is not.
pub(super) fn move_to(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("core {core} cannot be used, and this case needs cores 0 and 1"))?;
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let lowest = ThreadPriority::Crossplatform(1u8.try_into().map_err(anyhow::Error::msg)?);
    set_thread_priority_and_policy(thread_native_id(), lowest, policy)
        .map_err(|error| anyhow!("no real-time priority, which needs CAP_SYS_NICE: {error}"))
}

/// The threads of one hub.
#[derive(Debug)]
pub(super) struct Threads {
    tasks: Vec<PathBuf>,
    only: Option<BTreeSet<u32>>,
    /// What the scheduler says of `ksoftirqd`; in a container its process may be hidden, and is not counted then.
    softirq: Option<PathBuf>,
}

impl Threads {
    /// All threads of these processes, those that they start later included.
    pub(super) fn of_processes(pids: impl IntoIterator<Item = u32>) -> Self {
        let tasks = pids.into_iter().map(|pid| Path::new("/proc").join(pid.to_string()).join("task"));
        Self { tasks: tasks.collect(), only: None, softirq: ksoftirqd() }
    }

    /// No threads: for the core alone.
    pub(super) fn none() -> Self {
        Self { tasks: Vec::new(), only: None, softirq: None }
    }

    /// The threads of this process that `start` starts, and what it returns.
    pub(super) fn started_by<T>(start: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let tasks = PathBuf::from("/proc/self/task");
        let before = list(&tasks)?;
        let started = start()?;
        let only: BTreeSet<u32> = list(&tasks)?.difference(&before).copied().collect();
        ensure!(!only.is_empty(), "no thread was started");
        Ok((Self { tasks: vec![tasks], only: Some(only), softirq: ksoftirqd() }, started))
    }

    /// Nanoseconds on a processor so far, by thread.
    fn times(&self) -> Result<BTreeMap<u32, u64>> {
        let mut times = BTreeMap::new();
        for tasks in &self.tasks {
            for thread in list(tasks)? {
                if self.only.as_ref().is_some_and(|only| !only.contains(&thread)) {
                    continue;
                }
                // One that has just ended is missed by `watch`.
                if let Ok(time) = processor_time(&tasks.join(thread.to_string()).join("schedstat")) {
                    times.insert(thread, time);
                }
            }
        }
        Ok(times)
    }
}

/// Where the kernel tells of `ksoftirqd` of the hub's core.
fn ksoftirqd() -> Option<PathBuf> {
    let name = format!("ksoftirqd/{HUB_CORE}\n");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut paths = processes.map(|entry| entry.path());
    let of = paths.find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name))?;
    Some(of.join("schedstat"))
}

fn list(tasks: &Path) -> Result<BTreeSet<u32>> {
    let entries = std::fs::read_dir(tasks).with_context(|| format!("cannot list {}", tasks.display()))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// The clocks at one moment.
#[derive(Debug)]
struct Moment {
    at: Instant,
    threads: BTreeMap<u32, u64>,
    softirq: u64,
    idle: Duration,
}

impl Moment {
    fn now(threads: &Threads) -> Result<Self> {
        let softirq = threads.softirq.as_deref().map_or(Ok(0), processor_time)?;
        Ok(Self { at: Instant::now(), threads: threads.times()?, softirq, idle: idle(HUB_CORE)? })
    }
}

/// What a hub used in a span of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// The span.
    pub(super) wall: Duration,
    /// Of the hub's threads and of `ksoftirqd`.
    pub(super) cpu: Duration,
    /// Time in which the hub's core was not idle.
    pub(super) core: Duration,
}

/// Watches a hub for as long as `meanwhile` takes.
pub(super) fn watch<T>(threads: &Threads, meanwhile: impl FnOnce() -> T) -> Result<(Used, T)> {
    let start = Moment::now(threads)?;
    let result = meanwhile();
    let end = Moment::now(threads)?;
    let mut cpu = end.softirq - start.softirq;
    for (thread, time) in &end.threads {
        cpu += time - start.threads.get(thread).unwrap_or(&0).min(time);
    }
    let ended = start.threads.keys().filter(|thread| !end.threads.contains_key(thread)).count();
    ensure!(ended == 0, "{ended} threads of the hub ended while it was measured, and their time is lost");
    let wall = end.at - start.at;
    let core = wall.saturating_sub(end.idle.saturating_sub(start.idle));
    Ok((Used { wall, cpu: Duration::from_nanos(cpu), core }, result))
}

/// How long `core` was idle since boot. The kernel measures it (no sampling by ticks) and tells it in ticks of 10 ms.
fn idle(core: usize) -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let name = format!("cpu{core} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name)).context("/proc/stat lacks the core")?;
    // user, nice, system, idle, iowait: proc_stat(5).
    let ticks: Vec<u64> = line.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    let idle = ticks.get(3..5).context("/proc/stat has too few fields")?.iter().sum::<u64>();
    Ok(Duration::from_nanos(idle.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spinning_thread_is_charged_and_a_sleeping_one_is_not() {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let spin = || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let (threads, _) = Threads::started_by(|| Ok(scope.spawn(spin))).unwrap();
            let sleep = || std::thread::sleep(Duration::from_millis(100));
            let (busy, ()) = watch(&threads, sleep).unwrap();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(busy.cpu > Duration::ZERO && busy.wall >= Duration::from_millis(100), "{busy:?}");
        });
        let own = Threads::of_processes([std::process::id()]);
        assert!(own.times().unwrap().contains_key(&std::process::id()));
    }
}
