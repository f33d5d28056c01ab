//! One stretch of a worker on its core, with or without cells that arrive.

use super::compare::match_slots;
use super::feeder::{Fed, Feeder};
use super::port::{Notes, PacedPort};
use super::relay::{Cells, IDLE_LINKS, POOL, RATE, Relay};
use crate::rig::seat;
use anyhow::Context as _;
use crossbeam::channel::bounded;
use crossbeam::queue::ArrayQueue;
use relay_user::engine::time::Nanos;
use relay_user::engine::{Counters, DropReason};
use relay_user::worker::{Clock, Poll, Worker};
use relay_user::xsk::{Arena, FramePool};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// From the start of the worker to its first slots, at least: the feeder works ahead meanwhile.
const HEAD_START: Nanos = Nanos(100 * Nanos::MILLISECOND.0);
/// From the first slots until measuring begins.
const WARM_UP: Nanos = Nanos(20 * Nanos::MILLISECOND.0);
/// How often the worker's totals are looked at, and how long for them to change: many times what lies between two
/// publications.
const LOOK: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(1);
/// Cells sealed ahead, at most: they must outlast a pause of the feeder's core.
const AHEAD: usize = 16_384;
/// Frames for those, and for what waits inside the relay.
pub(super) const FRAMES: u32 = 49_152;
/// Cells, in each direction, that may be counted on one side of an instant by one and on the other by another.
const EDGE: u64 = 64;

/// Where things run.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) arena: &'static Arena,
    /// The worker, the gap probe and the loops beside it.
    pub(super) worker: usize,
    /// The feeder.
    pub(super) feeder: usize,
}

/// What a worker is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) poll: Poll,
    /// Circuits, each with [`RATE`] cells per second; none for an idle relay.
    pub(super) circuits: u32,
    pub(super) cells: Cells,
}

impl Task {
    /// Whether its time at work is the load that is spoken of.
    pub(super) fn is_the_load(self) -> bool {
        self.circuits > 0 && self.poll == Poll::Busy && self.cells == Cells::Payload
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Phase {
    /// Lateness of every slot, in nanoseconds.
    pub(super) lateness: Vec<u32>,
    /// Slots left empty after the warm-up; once in a while one too many, where a cell left on the edge of tolerance.
    pub(super) missed: u64,
    turns: u64,
    turning: Nanos,
    taken: u64,
    /// The longest turn that was not interrupted, in nanoseconds.
    pub(super) longest_turn: Nanos,
    pub(super) fed: Fed,
    /// What does not add up.
    pub(super) contradiction: Option<String>,
}

impl Phase {
    /// Runs a worker for `duration` after its warm-up.
    pub(super) fn run(place: Place, task: Task, duration: Duration) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let (start, relay) = prepare(place.arena, task.circuits, clock)?;
        let from = start + WARM_UP;
        let until = from + Nanos(u64::try_from(duration.as_nanos())?);
        let Relay { engine, clients, peers, slots } = relay;
        let arrivals = Arc::new(ArrayQueue::new(AHEAD));
        let (handover, notes) = bounded(1);
        let links = if task.circuits == 0 { IDLE_LINKS } else { 2 * task.circuits };
        let expected = u64::from(links) * u64::from(RATE) * until.since(start).0 / Nanos::SECOND.0;
        let room = usize::try_from(expected)? + 8 * links as usize;
        let port = PacedPort::new(&peers, clock, Arc::clone(&arrivals), (from, until), room, handover);
        let feeder =
            Feeder::start(place.arena, place.feeder, clients, task.cells, arrivals, clock, (start, until))?;
        let pool = FramePool::new(place.arena, POOL);
        let seat = seat(engine, port, place.worker);
        let mut worker = Worker::start(seat, pool, clock, task.poll).context("the worker does not start")?;
        let before = last_totals(&worker, clock, until);
        let after = next_totals(&worker)?;
        worker.stop();
        let fed = feeder.stop();
        let notes = notes.recv_timeout(Duration::from_secs(1)).context("the worker kept its notes")?;

        let Notes { turns, turning, taken, longest_turn, .. } = notes;
        let mut phase = Self { fed, turns, turning, taken, longest_turn, ..Self::default() };
        let mut sent = vec![Vec::new(); links as usize];
        for &(link, at) in &notes.sent {
            sent.get_mut(link as usize).context("a cell of no link")?.push(at);
        }
        let (mut empty, mut astray) = (0, 0);
        for (slots, sent) in slots.into_iter().zip(sent) {
            let matched = match_slots(slots, sent.into_iter(), from);
            phase.lateness.extend(matched.lateness);
            phase.missed += matched.missed;
            empty += matched.empty;
            astray += matched.astray;
        }
        phase.contradiction = contradiction(&notes, task, empty.saturating_sub(astray), &before, &after);
        Ok(phase)
    }

    /// Mean time of a turn of the worker's loop, in nanoseconds.
    pub(super) fn turn(&self) -> f64 {
        self.turning.0 as f64 / self.turns.max(1) as f64
    }

    /// The share of its time that a spinning worker works: what a cell of a circuit costs beyond turns without work,
    /// `idle_turn` nanoseconds each, times the cells that `task` brings. Interruptions do not count.
    pub(super) fn load(&self, task: Task, idle_turn: f64) -> f64 {
        let work = self.turning.0 as f64 - self.turns as f64 * idle_turn;
        let per_cell = work / self.taken as f64;
        per_cell * f64::from(task.circuits) * f64::from(RATE) / Nanos::SECOND.0 as f64
    }
}

/// A relay whose slots begin in [`HEAD_START`] or a little more.
fn prepare(arena: &'static Arena, circuits: u32, clock: Clock) -> anyhow::Result<(Nanos, Relay)> {
    const ATTEMPTS: usize = 5;
    // The keys of a circuit take about 50 µs.
    let mut patience = Nanos(2 * HEAD_START.0 + u64::from(circuits) * 100 * Nanos::MICROSECOND.0);
    for _ in 0..ATTEMPTS {
        let now = clock.now();
        let start = now + patience;
        let relay = Relay::new(arena, circuits, start, now)?;
        if start.since(clock.now()) >= HEAD_START {
            return Ok((start, relay));
        }
        patience = patience + patience;
    }
    anyhow::bail!("the machine is too busy to set {circuits} circuits up")
}

/// What the worker's own totals before and after the end say against the notes.
fn contradiction(
    notes: &Notes,
    task: Task,
    missed: u64,
    before: &Counters,
    after: &Counters,
) -> Option<String> {
    // One cell of each circuit came before the worker began.
    let arrived = notes.arrived + u64::from(task.circuits);

    let checks = [
        ("cells handed to the port", notes.sent.len() as u64, before.sent, after.sent),
        ("cells that arrived", arrived, before.received, after.received),
        ("slots without a cell", missed, before.missed_slots, after.missed_slots),
    ];
    for (what, noted, least, most) in checks {
        if noted + EDGE < least || noted > most + EDGE {
            return Some(format!("{noted} {what} noted, {least} to {most} counted by the worker"));
        }
    }
    // A queue that overflows after an interruption is no contradiction; that a cell was not understood is.
    let expected = [DropReason::QueueFull, DropReason::NoFrame];
    let mut others = DropReason::ALL.iter().filter(|reason| !expected.contains(reason));
    let dropped = others.find(|&&reason| after.dropped(reason) > 0)?;
    Some(format!("{} cells dropped: {}", after.dropped(*dropped), dropped.name()))
}

/// The totals that were published last before `end`, as far as this thread got to see them.
fn last_totals(worker: &Worker, clock: Clock, end: Nanos) -> Counters {
    let mut last = Counters::default();
    loop {
        let seen = worker.totals().engine;
        let now = clock.now();
        if now >= end {
            return last;
        }
        last = seen;
        std::thread::sleep(Duration::from_nanos(end.since(now).0).min(LOOK));
    }
}

/// Totals that are published from now on: slots never stop, so they differ from those that stand there.
fn next_totals(worker: &Worker) -> anyhow::Result<Counters> {
    let before = worker.totals().engine;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        std::thread::sleep(LOOK);
        let seen = worker.totals().engine;
        if seen != before {
            return Ok(seen);
        }
    }
    anyhow::bail!(
        "the worker published nothing for {} s: its core is busy with something else",
        PATIENCE.as_secs()
    )
}
