//! Attack 10 on the real kernel: every cell that a relay's worker sends, with the truth about it.
//!
//! ```text
//!   ewb-gen                                       ewb-relay
//!   neighbours on one UDP socket ==== veth ====   AF_XDP port that notes -- worker, as in the relay
//!    seal cells for the relay,                      link, counter, time of every cell handed over;
//!    open what comes, with the kernel's stamp       a planted delay, where one is wanted
//! ```
//!
//! As many cells go in at any time, payload or cover: a link's rate never changes. Payload comes in bursts of chance
//! length. What a cell carries is known from opening it behind the wire, so the worker that is measured runs as ever; when
//! its slot was, the worker says; and a cell handed over is found again on the wire by its link's counter, which is in the
//! clear.

mod neighbours;
mod port;
mod subject;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use relay_user::engine::schedule::Law;
use relay_user::engine::time::Nanos;
use relay_user::observe::attacks::cover::{Emission, cover};
use relay_user::observe::finding::Finding;
use relay_user::observe::live::AuditState;
use relay_user::worker::{Poll, Totals};

use crate::rig::{Cores, Rig};
use neighbours::{Arrival, Neighbours};
use port::Note;
use subject::Subject;

/// From the start until slots begin, at least.
const HEAD_START: Nanos = Nanos(300 * Nanos::MILLISECOND.0);
/// From then until cells count.
const WARM_UP: Nanos = Nanos(200 * Nanos::MILLISECOND.0);
/// How much longer than the cells asked for take: a stalled machine misses slots.
const SPARE: u64 = 50;
/// Links, at most: each takes two of the XDP program's sessions, and a relay has no more.
const MAX_LINKS: u32 = 128;
/// Cells of a run, at most.
const MAX_CELLS: u64 = 20_000_000;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How the links' slots are laid.
    pub law: Law,
    /// Slots per second of each link, 1 to 10,000.
    pub rate: u32,
    /// Links, 1 to 128. All of them together must be a rate that the machine carries: about 60,000 per second.
    pub links: u32,
    /// Share of the cells that carry payload, 0.05 to 0.95.
    pub share: f64,
    /// Cells to record, up to 20 million.
    pub cells: u64,
    /// How long a cell of payload is held back before it goes to the port.
    pub planted: Duration,
    /// How the worker waits.
    pub poll: Poll,
    /// Decides when payload comes.
    pub seed: u64,
}

impl Plan {
    /// A little more than a million cells in 18 s: 60 links of 1000 cells per second, a third of them payload.
    pub const fn quick(law: Law) -> Self {
        Self {
            law,
            rate: 1000,
            links: 60,
            share: 0.35,
            cells: 1_020_000,
            planted: Duration::ZERO,
            poll: Poll::Adaptive,
            seed: 1,
        }
    }

    /// The same run with `delay` on payload.
    #[must_use]
    pub const fn planted(self, delay: Duration) -> Self {
        Self { planted: delay, ..self }
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (1..=10_000).contains(&self.rate),
            "{} slots per second: 1 to 10,000 are possible",
            self.rate
        );
        ensure!((1..=MAX_LINKS).contains(&self.links), "{} links: 1 to {MAX_LINKS} are possible", self.links);
        ensure!((0.05..=0.95).contains(&self.share), "a share of {}: 0.05 to 0.95 is possible", self.share);
        ensure!(self.cells <= MAX_CELLS, "{} cells: {MAX_CELLS} are possible", self.cells);
        Ok(())
    }

    /// How long cells are recorded.
    fn span(&self) -> Nanos {
        let each_second = u64::from(self.rate) * u64::from(self.links);
        Nanos(self.cells * (1000 + SPARE) / 1000 * Nanos::SECOND.0 / each_second)
    }
}

/// What was recorded.
#[derive(Debug)]
pub struct Recorded {
    /// Cells by when the worker handed them to its port.
    pub handed: Vec<Emission>,
    /// The same cells by the kernel's stamps at the other end of the wire.
    pub wire: Vec<Emission>,
    /// Cells that were handed over and did not arrive.
    pub unmatched: u64,
    /// Slots that the worker missed.
    pub missed: u64,
    /// What the worker found of itself meanwhile: something after a minute at the earliest.
    pub audit: AuditState,
}

impl Recorded {
    /// Attack 10 on what was handed over.
    pub fn attack_handed(&self, planted: bool, seed: u64) -> Vec<Finding> {
        cover(&self.handed, planted, &mut ChaCha8Rng::seed_from_u64(seed))
    }

    /// Attack 10 on the wire.
    pub fn attack_wire(&self, planted: bool, seed: u64) -> Vec<Finding> {
        cover(&self.wire, planted, &mut ChaCha8Rng::seed_from_u64(seed))
    }
}

/// Runs a worker on `rig`, which needs one queue, and records what it sends.
///
/// # Errors
/// Where the plan is impossible, the kernel refuses a part of it, or less than half of the cells are seen at both ends.
pub fn run(rig: &Rig, plan: &Plan) -> Result<Recorded> {
    plan.check()?;
    let cores = Cores::available();
    let loader = cores.loader().context("needs a core for the load")?;
    let worker = cores.worker(0).context("needs a core for the worker beside that for the load")?;
    let neighbours = Neighbours::open(rig, plan)?;
    let subject = Subject::start(rig, plan, worker)?;
    let (from, until) = subject.window();
    let clock = subject.clock();
    let arrivals = std::thread::scope(|scope| {
        let thread = scope.spawn(|| neighbours.run(loader, clock, (from, until)));
        thread.join().map_err(|_| anyhow::anyhow!("the neighbours' thread panicked"))?
    })?;
    let (notes, Totals { engine, audit, .. }) = subject.finish()?;
    let missed = engine.missed_slots;
    let recorded = Recorded { missed, audit, ..join(plan, (from, until), &notes, &arrivals) };
    let seen = recorded.handed.len() as u64;
    ensure!(
        2 * seen >= plan.cells,
        "only {seen} of {} cells were seen at both ends ({} sent, {} arrived, {missed} slots missed): the machine is too \
         slow or too busy for {} cells/s",
        plan.cells,
        notes.len(),
        arrivals.len(),
        plan.rate * plan.links
    );
    Ok(recorded)
}

/// What is known of one cell, by its link's counter.
#[derive(Clone, Copy)]
struct Truth {
    at: Nanos,
    payload: bool,
}

/// Brings both ends together.
fn join(plan: &Plan, (from, until): (Nanos, Nanos), notes: &[Note], arrivals: &[Arrival]) -> Recorded {
    let mut truths: Vec<Vec<Option<Truth>>> = vec![Vec::new(); plan.links as usize];
    for arrival in arrivals {
        let Some(truths) = truths.get_mut(arrival.pair as usize) else { continue };
        let counter = arrival.counter as usize;
        if counter >= truths.len() {
            truths.resize(counter + 1, None);
        }
        truths[counter] = Some(Truth { at: arrival.at, payload: arrival.payload });
    }
    // Each link's cell before, at both ends, and the cell before of whichever link.
    let mut last: Vec<Option<(Nanos, Nanos)>> = vec![None; plan.links as usize];
    let mut before = None;
    let expected = usize::try_from(plan.cells).unwrap_or(0);
    let (mut handed, mut wire) = (Vec::with_capacity(expected), Vec::with_capacity(expected));
    let mut unmatched = 0;
    for note in notes {
        let Some(last) = last.get_mut(note.pair as usize) else { continue };
        let counts = note.at >= from + WARM_UP && note.at < until;
        let truth = truths.get(note.pair as usize).and_then(|it| *it.get(note.counter as usize)?);
        let Some(truth) = truth else {
            unmatched += u64::from(counts);
            (*last, before) = (None, None);
            continue;
        };
        let same_batch = before.filter(|_| note.place > 0);
        let emission = |at: Nanos, last: Option<Nanos>, neighbour: Option<Nanos>| Emission {
            at: at.0,
            link: note.pair,
            payload: truth.payload,
            lateness: between(note.slot, at),
            place: f64::from(note.place),
            service: neighbour.map_or(f64::NAN, |neighbour| between(neighbour, at)),
            gap: last.map_or(f64::NAN, |last| between(last, at)),
        };
        if counts {
            handed.push(emission(note.at, last.map(|it| it.0), same_batch.map(|it: (Nanos, Nanos)| it.0)));
            wire.push(emission(truth.at, last.map(|it| it.1), same_batch.map(|it| it.1)));
        }
        *last = Some((note.at, truth.at));
        before = *last;
    }
    Recorded { handed, wire, unmatched, missed: 0, audit: AuditState::default() }
}

/// Nanoseconds from one instant to another, which may lie before it.
fn between(from: Nanos, to: Nanos) -> f64 {
    to.since(from).0 as f64 - from.since(to).0 as f64
}

#[cfg(test)]
mod tests;
