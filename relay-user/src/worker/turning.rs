//! A worker's loop: in pieces, so that the cells of slots that come due leave between any two of them.

use super::crossing::{Crossing, Owner};
use super::grid::{Given, Grid};
use super::lead::{LONGEST, Lead, SHORTEST};
use super::watch::{Watch, Watched};
use super::{Clock, Events, NodeEdge, Poll, Report, Seat, Snapshot, ToWorker, Totals};
use crate::engine::schedule::Offsets;
use crate::engine::time::Nanos;
use crate::engine::{Command, Engine, Unwatched, Witness};
use crate::observe::live::Pace;
use crate::port::{BindMode, Port, Received};
use crate::xsk::{Frame, FramePool};
use crossbeam::channel::{Receiver, TryRecvError};
use rand_chacha::ChaCha20Rng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Commands, datagrams and packets that one turn takes at most, so that no slot waits long for them.
const TURN: usize = 32;
/// How late the staging of a cell may run, well inside the engine's lead.
const STAGING_SLACK: Nanos = Nanos(120_000);
/// Longest sleep: bounds how long a datagram, a packet or a command waits for a worker with nothing to send.
const MAX_SLEEP: Nanos = Nanos::MILLISECOND;
/// How often totals are published and stale reassembly is given up.
const HOUSEKEEPING: Nanos = Nanos(20 * Nanos::MILLISECOND.0);

/// Cells leave at moments some so far apart, at the first one after their slot. How late they are then follows from where
/// their slot lies in between, whatever the worker does meanwhile. Prime numbers, so that the slots of a class whose period
/// is a round one do not lie at the same few places for long, whatever is drawn.
const GRID: Nanos = Nanos(8_009);
/// The same where the kernel copies, on UDP sockets too: there a system call costs as much as opening and sealing a cell, and
/// is for more of them. In nanoseconds, and nominal: a worker draws its own, up to 200 ppm off.
pub const COPYING_GRID: Nanos = Nanos(32_003);
/// Before a moment at which cells leave, no work is begun for so long: the time of the pieces below.
const GUARD: Nanos = Nanos(1_000);
/// The same on a UDP socket, at most: one call takes in all that waits, 8 µs as a rule, and a worker that woke for a slot
/// begins nothing until its cell has left. Longer than any lead by what a wake takes.
const UDP_GUARD: Nanos = Nanos(LONGEST.0 + READY_ROOM.0 + 4_000);
/// A piece of what a port does to be ready for a moment is begun no later than this before it: it takes some 3 µs, but one
/// in 300 takes longer than this. Begun up to 10 µs before, a dozen of them made 2 to 4 of 100 cells late.
const READY_PIECE: Nanos = Nanos(25_000);
/// What a wake must leave of the lead where the port makes ready: a piece, and time to hand the cells over.
const READY_ROOM: Nanos = Nanos(READY_PIECE.0 + 5_000);
/// Of the time since cells last left, no more than one part in so many goes to a guard: what a socket with cells at every
/// moment may lose.
const GUARDED_SHARE: u64 = 4;
/// A worker that comes to a moment later than this lets cells leave late.
const PUNCTUAL: Nanos = Nanos(1_000);
/// Slots staged in one turn, at most: more than datagrams, so that a worker that was held up first catches up with what
/// leaves. Datagrams wait in the port's ring meanwhile.
const STAGE_TURN: usize = 128;
/// Slots staged between two looks at the clock.
const STAGE_PIECE: usize = 4;
/// Datagrams received between two looks at the clock.
const RECEIVE_PIECE: usize = 2;
/// Packets moved from an edge between two looks at the clock.
const PUMP_PIECE: usize = 2;
/// Cells handed to the port before they are sent for: less than any port queues.
const FLUSH: usize = 128;

/// Moments of the grid at which cells left, since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// All of them.
    pub all: u64,
    /// Those at which the first cell was sent for more than 1 µs late, or whose cells should have left at one before: by
    /// how much, the worker's work or whoever had its processor decides.
    pub late: u64,
}

impl Ticks {
    pub(super) fn count(&mut self, late: Nanos) {
        self.all += 1;
        self.late += u64::from(late > PUNCTUAL);
    }
}

/// How long before a moment no work is begun, where cells last left so long ago.
pub(super) fn guard(since_departure: Nanos, longest: Nanos) -> Nanos {
    Nanos(since_departure.0 / GUARDED_SHARE).clamp(GUARD, longest)
}

/// What joins a worker to the control plane and to other workers.
pub(super) struct Joint {
    pub(super) inbox: Receiver<ToWorker>,
    pub(super) events: Arc<Events>,
    pub(super) snapshot: Arc<Snapshot>,
    /// Its number among the workers.
    pub(super) number: u16,
    /// `None` where it is the only one.
    pub(super) crossing: Option<Crossing>,
}

/// A worker's thread, from inside.
pub(super) struct Turning<P, W = Unwatched> {
    engine: Engine<W>,
    port: P,
    edge: NodeEdge,
    pool: FramePool,
    clock: Clock,
    poll: Poll,
    lead: Lead,
    joint: Joint,
    pub(super) watch: Watch,
    received: Vec<Received>,
    housekeeping: Nanos,
    pub(super) grid: Grid,
    /// The grid's width, before it is drawn.
    width: Nanos,
    offsets: Offsets,
    rng: ChaCha20Rng,
    longest_guard: Nanos,
    /// The port has something to do before a cell's moment.
    makes_ready: bool,
    ticks: Ticks,
    /// The port holds cells that the kernel could not take.
    unsent: bool,
    /// The last session that no worker had and that the control plane was asked for.
    asked_for: u32,
}

impl<P: Port, W: Witness> Turning<P, W> {
    /// A thread's state before its first turn.
    pub(super) fn new(seat: Seat<P, W>, pool: FramePool, clock: Clock, poll: Poll, joint: Joint) -> Self {
        let Seat { engine, port, edge, cpu: _, mut rng } = seat;
        let watch = Watch::new(engine.limits().links, clock, Pace::default());
        let (width, longest_guard, makes_ready) = match port.mode().bind {
            BindMode::Udp => (COPYING_GRID, UDP_GUARD, true),
            BindMode::Copy => (COPYING_GRID, GUARD, false),
            BindMode::ZeroCopy | BindMode::Memory => (GRID, GUARD, false),
        };
        let (now, mut offsets) = (clock.now(), Offsets::default());
        let grid = Grid::draw(width, offsets.draw(now, &mut rng), now, &mut rng);
        Self {
            engine,
            port,
            edge,
            pool,
            clock,
            poll,
            lead: Lead::new(if makes_ready { READY_ROOM } else { Nanos(0) }),
            joint,
            watch,
            received: Vec::with_capacity(TURN),
            housekeeping: Nanos(0),
            grid,
            width,
            offsets,
            rng,
            longest_guard,
            makes_ready,
            ticks: Ticks::default(),
            unsent: false,
            asked_for: 0,
        }
    }

    /// Turns until it is told to stop.
    pub(super) fn run(&mut self) {
        loop {
            let now = self.stage();
            if !self.obey(now) {
                return;
            }
            self.take_in();
            let now = self.pump();
            self.pass_events();
            if now >= self.housekeeping {
                self.housekeeping = now + HOUSEKEEPING;
                self.edge.housekeep(now);
                self.watch.look(now);
                self.publish();
            }
            if self.poll == Poll::Adaptive {
                self.sleep();
            }
        }
    }

    /// Sends the cells that are due where their moment has come, or waits for it where it is so close that another piece of
    /// work might miss it. Called between any two pieces of work. Returns the time.
    fn keep_slots(&mut self) -> Nanos {
        let mut now = self.clock.now();
        let soon = now + guard(now.since(self.grid.given()), self.longest_guard);
        let given = self.engine.next_slot().and_then(|slot| self.grid.give(slot, now, soon));
        if let Some(Given { due, at }) = given {
            let ready = if self.makes_ready { self.make_ready(at, now) } else { 0 };
            while now < at {
                std::hint::spin_loop();
                now = self.clock.now();
            }
            self.ticks.count(now.since(due));
            self.send_due(at, ready);
        } else if self.unsent && self.grid.reach(now) {
            self.unsent = self.port.flush(&mut self.pool);
        }
        now
    }

    /// Hands the cells of a moment to the port before it, and lets the port make ready while there is time. Returns how
    /// many they are.
    fn make_ready(&mut self, moment: Nanos, now: Nanos) -> usize {
        if moment.since(now) < READY_PIECE {
            return 0;
        }
        self.watch.begin();
        let mut outlet = Watched { port: &mut self.port, watch: &mut self.watch, ahead: true };
        let handed = self.engine.emit_to(moment, &mut outlet);
        while moment.since(self.clock.now()) >= READY_PIECE && self.port.make_ready() {}
        handed
    }

    /// Sends the cells of a moment, `ready` of which the port has.
    fn send_due(&mut self, moment: Nanos, ready: usize) {
        if ready > 0 {
            self.watch.let_go();
            self.unsent = self.port.flush(&mut self.pool);
        } else {
            self.watch.begin();
        }
        let mut queued = 0;
        loop {
            let mut outlet = Watched { port: &mut self.port, watch: &mut self.watch, ahead: false };
            let sent = self.engine.emit_to(moment, &mut outlet);
            queued += sent;
            if queued >= FLUSH || (sent == 0 && queued > 0) {
                self.unsent = self.port.flush(&mut self.pool);
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

    /// Carries out what waits of the control plane's commands. Returns whether it is to go on.
    pub(super) fn obey(&mut self, now: Nanos) -> bool {
        for _ in 0..TURN {
            match self.joint.inbox.try_recv() {
                Ok(ToWorker::Engine(command)) => {
                    // A client's next session must not be known by the moments of its last one. Where other links are
                    // left they keep theirs.
                    if let Command::AddLink { link, .. } = command {
                        self.watch.begin_link(link);
                        if !self.engine.has_links() {
                            let offset = self.offsets.draw(now, &mut self.rng);
                            self.grid = Grid::draw(self.width, offset, now, &mut self.rng);
                        }
                    }
                    self.engine.apply(command, &mut self.edge, now);
                }
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
        if let Some(crossing) = &mut self.joint.crossing {
            crossing.publish();
            for _ in 0..TURN / RECEIVE_PIECE {
                let Self { engine, edge, joint: Joint { crossing: Some(crossing), .. }, .. } = self else {
                    break;
                };
                let taken =
                    crossing.take(RECEIVE_PIECE, |frame, source| engine.receive(frame, source, edge, now));
                now = self.keep_slots();
                if taken == 0 {
                    break;
                }
            }
        }
    }

    /// Moves packets between the edge and the engine. Returns the time.
    fn pump(&mut self) -> Nanos {
        let mut now = self.keep_slots();
        for _ in 0..TURN / PUMP_PIECE {
            if self.edge.pump(&mut self.engine, now, PUMP_PIECE) < PUMP_PIECE {
                break;
            }
            now = self.keep_slots();
        }
        now
    }

    fn take_one(&mut self, frame: Frame, source: SocketAddr, now: Nanos) {
        let Some(crossing) = &mut self.joint.crossing else {
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
            let report = Report::Unowned { receive_index, worker: self.joint.number };
            if self.joint.events.queue.push(report).is_err() {
                self.asked_for = 0;
            }
            self.joint.events.arrived.notify_one();
        }
    }

    fn pass_events(&mut self) {
        let mut passed = false;
        while let Some(event) = self.engine.pop_event() {
            if let Err(report) = self.joint.events.queue.push(Report::Engine(event)) {
                if let Report::Engine(event) = report {
                    self.engine.unpop_event(event);
                }
                break;
            }
            passed = true;
        }
        if passed {
            self.joint.events.arrived.notify_one();
        }
    }

    fn publish(&self) {
        self.joint.snapshot.publish(&Totals {
            engine: *self.engine.counters(),
            port: self.port.counters(),
            mode: Some(self.port.mode()),
            circuits: self.engine.circuit_count() as u64,
            crossing: self.joint.crossing.as_ref().map(|crossing| crossing.counters).unwrap_or_default(),
            edge: self.edge.drops(),
            payload: self.edge.payload(),
            last_delivery: self.edge.last_delivery(),
            last_of_decoys: self.edge.last_of_decoys(),
            wakes: self.lead.wakes(),
            ticks: self.ticks,
            audit: self.watch.state(),
        });
    }

    fn sleep(&mut self) {
        let now = self.clock.now();
        let slot = self
            .engine
            .next_slot()
            .map(|at| Nanos(self.grid.first_from(at).0.saturating_sub(self.lead.get().0)));
        let staging = self.engine.next_deadline().map(|at| at + STAGING_SLACK);
        let wake = slot.into_iter().chain(staging).min().unwrap_or(now + MAX_SLEEP).min(now + MAX_SLEEP);
        let span = wake.since(now);
        if span > SHORTEST {
            std::thread::sleep(Duration::from_nanos(span.0));
            self.lead.learn(self.clock.now().since(wake));
        }
    }
}
