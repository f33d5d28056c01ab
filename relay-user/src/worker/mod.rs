//! The one place that joins engine, port, edge and clock: a pinned thread with a short loop.

mod crossing;
mod edge;
mod pool;
mod snapshot;

pub use crossing::{CrossingCounters, Owners};
pub use edge::NodeEdge;
pub use pool::{Seat, Workers};
pub use snapshot::{Snapshot, Totals};

use crate::engine::time::Nanos;
use crate::engine::{Command, Engine, Event};
use crate::port::{BindMode, Peer, Port, Received};
use crate::xsk::{Frame, FramePool};
use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use crossbeam::queue::ArrayQueue;
use crossing::{Crossing, Owner};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// Commands that may wait for a worker.
const COMMANDS: usize = 1024;
/// Events that may wait for the control plane.
const EVENTS: usize = 1024;
/// Commands, datagrams and packets that one turn takes at most, so that no slot waits long for them.
const TURN: usize = 32;
/// How long before a slot an adaptive worker stops sleeping and spins.
const SPIN: Nanos = Nanos(15_000);
/// How late the staging of a cell may run, well inside the engine's lead.
const STAGING_SLACK: Nanos = Nanos(120_000);
/// Longest sleep: bounds how long a datagram, a packet or a command waits for a worker with nothing to send.
const MAX_SLEEP: Nanos = Nanos::MILLISECOND;
/// How often totals are published and stale reassembly is given up.
const HOUSEKEEPING: Nanos = Nanos(20 * Nanos::MILLISECOND.0);

/// Cells leave at multiples of this on the worker's clock, at the first one after their slot. How late they are then
/// follows from where their slot lies in between, whatever the worker does meanwhile. Prime numbers, so that the slots of
/// a class whose period is a round one do not always lie at the same few places.
const GRID: Nanos = Nanos(8_009);
/// The same where the kernel copies: there a system call costs as much as opening and sealing a cell, and is for more of them.
const COPYING_GRID: Nanos = Nanos(32_003);
/// Before a multiple at which cells leave, no work is begun for so long: the time of the pieces below.
const GUARD: Nanos = Nanos(1_000);
/// Slots staged in one turn, at most: more than datagrams, so that a worker that was held up first catches up with what
/// leaves. Datagrams wait in the port's ring meanwhile.
const STAGE_TURN: usize = 128;
/// Slots staged between two looks at the clock.
const STAGE_PIECE: usize = 4;
/// Datagrams received between two looks at the clock.
const RECEIVE_PIECE: usize = 2;
/// Cells handed to the port before they are sent for: less than any port queues.
const FLUSH: usize = 128;

/// Nice value of a spinning worker: the highest priority that is not real-time.
const BUSY_NICE: i32 = -20;

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
    fn new() -> Self {
        Self { queue: ArrayQueue::new(EVENTS), arrived: tokio::sync::Notify::new() }
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
    /// Starts the thread, pinned to `cpu` where one is given.
    ///
    /// # Errors
    /// Where the thread cannot be made or pinned.
    pub fn start<P: Port + Send + 'static>(
        engine: Engine,
        port: P,
        edge: NodeEdge,
        pool: FramePool,
        clock: Clock,
        poll: Poll,
        cpu: Option<usize>,
    ) -> std::io::Result<Self> {
        let events = Arc::new(Events::new());
        Self::launch(0, engine, port, edge, pool, clock, poll, cpu, None, events)
    }

    #[expect(clippy::too_many_arguments, reason = "what `start` takes, and what joins it to other workers")]
    fn launch<P: Port + Send + 'static>(
        number: u16,
        engine: Engine,
        port: P,
        edge: NodeEdge,
        pool: FramePool,
        clock: Clock,
        poll: Poll,
        cpu: Option<usize>,
        crossing: Option<Crossing>,
        events: Arc<Events>,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = bounded(COMMANDS);
        let snapshot = Arc::new(Snapshot::default());
        let grid = match port.mode().bind {
            BindMode::Copy | BindMode::Udp => COPYING_GRID,
            BindMode::ZeroCopy | BindMode::Memory => GRID,
        };
        let mut turning = Turning {
            engine,
            port,
            edge,
            pool,
            clock,
            poll,
            inbox,
            events: Arc::clone(&events),
            snapshot: Arc::clone(&snapshot),
            received: Vec::with_capacity(TURN),
            housekeeping: Nanos(0),
            tick: Nanos(0),
            grid,
            number,
            crossing,
            asked_for: 0,
        };
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

/// A worker that sleeps goes ahead of everything else while it is awake: what other programs do, payload's own among
/// them, must not decide when a slot is met. One that spins would lock its core up that way.
fn prefer(poll: Poll) -> Result<(), Box<dyn std::error::Error>> {
    match poll {
        Poll::Adaptive => {
            let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
            let lowest = ThreadPriority::Crossplatform(1u8.try_into()?);
            set_thread_priority_and_policy(thread_native_id(), lowest, policy)?;
        }
        Poll::Busy => rustix::process::setpriority_process(None, BUSY_NICE)?,
    }
    Ok(())
}

struct Turning<P> {
    engine: Engine,
    port: P,
    edge: NodeEdge,
    pool: FramePool,
    clock: Clock,
    poll: Poll,
    inbox: Receiver<ToWorker>,
    events: Arc<Events>,
    snapshot: Arc<Snapshot>,
    received: Vec<Received>,
    housekeeping: Nanos,
    /// The grid's multiple up to which cells have left.
    tick: Nanos,
    grid: Nanos,
    number: u16,
    crossing: Option<Crossing>,
    /// The last session that no worker had and that the control plane was asked for.
    asked_for: u32,
}

impl<P: Port> Turning<P> {
    fn run(&mut self) {
        loop {
            let now = self.stage();
            if !self.obey(now) {
                return;
            }
            self.take_in();
            let now = self.keep_slots();
            self.edge.pump(&mut self.engine, now, TURN);
            self.pass_events();
            if now >= self.housekeeping {
                self.housekeeping = now + HOUSEKEEPING;
                self.edge.housekeep(now);
                self.publish();
            }
            if self.poll == Poll::Adaptive {
                self.sleep();
            }
        }
    }

    /// Sends the cells that are due where the grid's next multiple has come, or waits for it where it is so close that
    /// another piece of work might miss it. Called between any two pieces of work. Returns the time.
    fn keep_slots(&mut self) -> Nanos {
        let mut now = self.clock.now();
        let tick = Nanos((now.0 + GUARD.0) / self.grid.0 * self.grid.0);
        if tick <= self.tick {
            return now;
        }
        self.tick = tick;
        if self.engine.next_slot().is_some_and(|slot| slot <= tick) {
            while now < tick {
                std::hint::spin_loop();
                now = self.clock.now();
            }
            self.send_due(tick);
        }
        now
    }

    fn send_due(&mut self, tick: Nanos) {
        let mut queued = 0;
        loop {
            let port = &mut self.port;
            let sent = self
                .engine
                .emit(tick, |link, frame| port.transmit(link, frame).map_err(|refused| refused.frame));
            queued += sent;
            if queued >= FLUSH || (sent == 0 && queued > 0) {
                port.flush(&mut self.pool);
                queued = 0;
            }
            if sent == 0 {
                return;
            }
        }
    }

    /// Seals what comes due within the lead, [`STAGE_TURN`] slots at most. Returns the time.
    fn stage(&mut self) -> Nanos {
        let mut now = self.keep_slots();
        for _ in 0..STAGE_TURN / STAGE_PIECE {
            let staged = self.engine.stage(now, STAGE_PIECE, &mut self.pool, &mut self.edge);
            now = self.keep_slots();
            if staged < STAGE_PIECE {
                break;
            }
        }
        now
    }

    fn obey(&mut self, now: Nanos) -> bool {
        for _ in 0..TURN {
            match self.inbox.try_recv() {
                Ok(ToWorker::Engine(command)) => self.engine.apply(command, &mut self.edge, now),
                Ok(ToWorker::SetPeer { link, peer }) => self.port.set_peer(link, peer),
                Ok(ToWorker::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => break,
            }
        }
        true
    }

    fn take_in(&mut self) {
        self.port.receive(&mut self.pool, &mut self.received, TURN);
        let mut now = self.keep_slots();
        for datagram in &self.received {
            self.engine.prefetch(&datagram.frame);
        }
        let mut received = std::mem::take(&mut self.received);
        for (number, Received { frame, source }) in received.drain(..).enumerate() {
            if number % RECEIVE_PIECE == RECEIVE_PIECE - 1 {
                now = self.keep_slots();
            }
            self.take_one(frame, source, now);
        }
        // The emptied vector keeps its room for the next batch.
        self.received = received;
        if let Some(crossing) = &mut self.crossing {
            crossing.publish();
            for _ in 0..TURN / RECEIVE_PIECE {
                let Self { engine, edge, crossing: Some(crossing), .. } = self else { break };
                let taken =
                    crossing.take(RECEIVE_PIECE, |frame, source| engine.receive(frame, source, edge, now));
                now = self.keep_slots();
                if taken == 0 {
                    break;
                }
            }
        }
    }

    fn take_one(&mut self, frame: Frame, source: SocketAddr, now: Nanos) {
        let Some(crossing) = &mut self.crossing else {
            return self.engine.receive(frame, source, &mut self.edge, now);
        };
        match crossing.owner(&frame) {
            Owner::Me => self.engine.receive(frame, source, &mut self.edge, now),
            Owner::Other(worker) => crossing.give(worker, frame, source),
            Owner::Nobody(receive_index) => {
                crossing.counters.unowned += 1;
                self.ask_for(receive_index);
            }
        }
    }

    /// Asks the control plane whose the session is; once, until it is another's turn.
    fn ask_for(&mut self, receive_index: u32) {
        if std::mem::replace(&mut self.asked_for, receive_index) != receive_index {
            let report = Report::Unowned { receive_index, worker: self.number };
            if self.events.queue.push(report).is_err() {
                self.asked_for = 0;
            }
            self.events.arrived.notify_one();
        }
    }

    fn pass_events(&mut self) {
        let mut passed = false;
        while let Some(event) = self.engine.pop_event() {
            if let Err(report) = self.events.queue.push(Report::Engine(event)) {
                if let Report::Engine(event) = report {
                    self.engine.unpop_event(event);
                }
                break;
            }
            passed = true;
        }
        if passed {
            self.events.arrived.notify_one();
        }
    }

    fn publish(&self) {
        self.snapshot.publish(&Totals {
            engine: *self.engine.counters(),
            port: self.port.counters(),
            mode: Some(self.port.mode()),
            circuits: self.engine.circuit_count() as u64,
            crossing: self.crossing.as_ref().map(|crossing| crossing.counters).unwrap_or_default(),
            edge: self.edge.drops(),
            last_delivery: self.edge.last_delivery(),
        });
    }

    fn sleep(&self) {
        let now = self.clock.now();
        let slot = self
            .engine
            .next_slot()
            .map(|at| Nanos(at.0.next_multiple_of(self.grid.0).saturating_sub(SPIN.0)));
        let staging = self.engine.next_deadline().map(|at| at + STAGING_SLACK);
        let wake = slot.into_iter().chain(staging).min().unwrap_or(now + MAX_SLEEP).min(now + MAX_SLEEP);
        let span = wake.since(now);
        if span > SPIN {
            std::thread::sleep(Duration::from_nanos(span.0));
        }
    }
}
