//! The one place that joins engine, port, edge and clock: a pinned thread with a short loop.

mod crossing;
mod edge;
mod grid;
mod lead;
mod pool;
mod snapshot;
mod turning;
mod watch;

pub use crossing::{CrossingCounters, Owners};
pub use edge::{NodeEdge, OWN_CIRCUITS};
pub(crate) use lead::LONGEST as LONGEST_LEAD;
pub use lead::Wakes;
pub use pool::{Seat, Workers, frames_for_events};
pub use snapshot::{Snapshot, Totals};
pub use turning::{COPYING_GRID, Ticks};

use crate::engine::time::Nanos;
use crate::engine::{Command, Event, Witness};
use crate::port::{Peer, Port};
use crate::xsk::FramePool;
use crossbeam::channel::{Sender, bounded};
use crossbeam::queue::ArrayQueue;
use crossing::Crossing;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use turning::{Joint, Turning};

/// Commands that may wait for a worker.
const COMMANDS: usize = 1024;
/// Events that may wait for the control plane, at most.
const EVENTS: usize = 1024;
/// Nice value of a spinning worker: the highest priority that is not real-time.
const BUSY_NICE: i32 = -20;
/// Nice value of this process's session among others: sched(7), autogroups.
const AUTOGROUP: &str = "/proc/self/autogroup";

/// How a worker waits for its next slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Spins; for a core of its own.
    Busy,
    /// Sleeps until shortly before the next slot, then spins.
    Adaptive,
}

/// What the control plane tells a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// For the engine.
    Engine(Command),
    /// For the port: where a link's cells go.
    SetPeer {
        /// Link number.
        link: u32,
        /// `None` forgets it.
        peer: Option<Peer>,
    },
    /// Ends the thread after the cells already due.
    Stop,
}

/// What a worker tells the control plane.
#[derive(Debug)]
pub enum Report {
    /// Of its engine.
    Engine(Event),
    /// A cell came that no worker has the session of.
    Unowned {
        /// The receive index in the cell.
        receive_index: u32,
        /// The worker whose queue it came by.
        worker: u16,
    },
}

/// The command queue was full or the worker is gone.
#[derive(Debug, thiserror::Error)]
#[error("the worker does not take commands: {0}")]
pub struct WorkerBusy(&'static str);

/// Turns the process's monotonic clock into [`Nanos`]; copies share their origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that reads one second now, so that differences never run below zero.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Time on this clock.
    pub fn now(&self) -> Nanos {
        let elapsed = self.origin.elapsed();
        Nanos(Nanos::SECOND.0 + u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The control plane's end of a worker.
#[derive(Debug)]
pub struct Worker {
    commands: Sender<ToWorker>,
    events: Arc<Events>,
    snapshot: Arc<Snapshot>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Events {
    queue: ArrayQueue<Report>,
    arrived: tokio::sync::Notify,
}

impl Events {
    /// Room for as many events, at least one.
    fn holding(events: usize) -> Self {
        Self { queue: ArrayQueue::new(events.max(1)), arrived: tokio::sync::Notify::new() }
    }

    async fn next(&self) -> Report {
        loop {
            if let Some(report) = self.queue.pop() {
                return report;
            }
            self.arrived.notified().await;
        }
    }
}

impl Worker {
    /// Starts the thread, pinned to the seat's processor where it has one.
    ///
    /// # Errors
    /// Where the thread cannot be made or pinned.
    pub fn start<P: Port + Send + 'static, W: Witness>(
        seat: Seat<P, W>,
        pool: FramePool,
        clock: Clock,
        poll: Poll,
    ) -> std::io::Result<Self> {
        Self::launch(0, seat, pool, clock, poll, None, Arc::new(Events::holding(EVENTS)))
    }

    fn launch<P: Port + Send + 'static, W: Witness>(
        number: u16,
        seat: Seat<P, W>,
        pool: FramePool,
        clock: Clock,
        poll: Poll,
        crossing: Option<Crossing>,
        events: Arc<Events>,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = bounded(COMMANDS);
        let snapshot = Arc::new(Snapshot::default());
        let joint =
            Joint { events: Arc::clone(&events), snapshot: Arc::clone(&snapshot), inbox, number, crossing };
        let cpu = seat.cpu;
        let mut turning = Turning::new(seat, pool, clock, poll, joint);
        let (pinned, pin_result) = bounded(1);
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let result = pin(cpu, poll);
            let failed = result.is_err();
            let _ = pinned.send(result);
            if !failed {
                turning.run();
            }
        })?;
        pin_result.recv().map_err(std::io::Error::other)??;
        Ok(Self { commands, events, snapshot, thread: Some(thread) })
    }

    /// Queues a command.
    ///
    /// # Errors
    /// Where the queue is full or the worker has ended; the command is lost then.
    pub fn tell(&self, command: ToWorker) -> Result<(), WorkerBusy> {
        self.commands
            .try_send(command)
            .map_err(|error| WorkerBusy(if error.is_full() { "its queue is full" } else { "it has ended" }))
    }

    /// The next event, when there is one.
    pub async fn event(&self) -> Report {
        self.events.next().await
    }

    /// What the worker last published.
    pub fn totals(&self) -> Totals {
        self.snapshot.read()
    }

    /// Whether the thread still runs.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the thread and waits for it. The port is closed when this returns.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let patience = Duration::from_secs(1);
        if self.commands.send_timeout(ToWorker::Stop, patience).is_ok() && thread.join().is_err() {
            log::error!("the worker thread ended in a panic");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pin(cpu: Option<usize>, poll: Poll) -> std::io::Result<()> {
    // The default of 50 µs would be added to every sleep.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    if let Err(error) = prefer(poll) {
        log::warn!("the worker runs at ordinary priority, so other programs can make it miss slots: {error}");
    }
    if let Some(cpu) = cpu {
        let mut set = rustix::thread::CpuSet::new();
        if cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(std::io::Error::other(format!("worker.cpus: {cpu}: no such CPU")));
        }
        set.set(cpu);
        rustix::thread::sched_setaffinity(None, &set)?;
    }
    Ok(())
}

/// Moves the calling thread, and those that it starts, off the processors of workers. Where no others are left, it stays.
///
/// # Errors
/// What the kernel said.
pub fn leave_to_workers(cpus: &[usize]) -> std::io::Result<()> {
    let mut set = rustix::thread::sched_getaffinity(None)?;
    for &cpu in cpus.iter().filter(|cpu| **cpu < rustix::thread::CpuSet::MAX_CPU) {
        set.unset(cpu);
    }
    if !cpus.is_empty() && set.count() > 0 {
        rustix::thread::sched_setaffinity(None, &set)?;
    }
    Ok(())
}

/// The calling thread goes ahead of whatever is not a worker, for as long as it is awake.
pub(crate) fn ahead_of_all() -> Result<(), Box<dyn std::error::Error>> {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let lowest = ThreadPriority::Crossplatform(1u8.try_into()?);
    Ok(set_thread_priority_and_policy(thread_native_id(), lowest, policy)?)
}

/// A worker that sleeps goes ahead of everything else while it is awake: what other programs do, payload's own among
/// them, must not decide when a slot is met. One that spins would lock its core up that way.
fn prefer(poll: Poll) -> Result<(), Box<dyn std::error::Error>> {
    match poll {
        Poll::Adaptive => ahead_of_all()?,
        Poll::Busy => {
            rustix::process::setpriority_process(None, BUSY_NICE)?;
            // A nice value counts among the programs of one session only. The session's own counts among sessions, where
            // the kernel has them in groups at all.
            match std::fs::write(AUTOGROUP, BUSY_NICE.to_string()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
