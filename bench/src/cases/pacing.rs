//! How late a worker's slots are, idle and while its core works for 80 % of the time, beside the loops that a program
//! would otherwise pace itself with, and beside an empty loop on the same core. All of it in turns.
//!
//! Lateness is the time at which a cell is handed to the port, less the deadline of its slot, which the schedule's
//! seed gives. The relay is a middle one on a port in memory; load is links, since a link's rate never changes: each
//! circuit brings 1000 cells per second in over one link and out over another, and both links send at all their slots.

mod compare;
mod feeder;
mod loops;
mod phase;
mod port;
mod relay;

use std::time::Duration;

use anyhow::Context as _;
use relay_user::engine::time::Nanos;
use relay_user::worker::Poll;
use relay_user::xsk::Arena;

use crate::cpu;
use crate::figure::Target;
use crate::probe::GapProbe;
use crate::session::{Series, Session};
use compare::{cdf, histogram, ks_distance, quantile_us};
use phase::{Phase, Place, Task};
use relay::{Cells, MAX_CIRCUITS};

/// What is asked for, and how far from it a load may lie that goes by its name.
const LOAD: f64 = 0.8;
const LOAD_ERROR: f64 = 0.1;
/// Circuits to begin the search for the load with: about a third of it on a core of 2025.
const FIRST_GUESS: u32 = 150;
/// Steps of that search.
const STEPS: usize = 3;
/// Share of the cells that may come late out of the feeder.
const FED_LATE: f64 = 0.02;
const WORKER_RATIO: &str = "slot lateness p99.9, busy, at 80 % load / the gap probe's p99.9 on the same core";
const DISTANCE: &str = "slot lateness, 80 % load against idle: KS distance";
const COVER_DISTANCE: &str = "  payload against cover on the same links, 80 % load: KS distance";

/// What keeps the slots.
#[derive(Clone, Copy)]
enum Keeper {
    Worker(Task),
    Loop(fn(Duration) -> anyhow::Result<Vec<u32>>),
}

/// Conditions, and what was measured under them.
struct Condition {
    name: &'static str,
    keeper: Keeper,
    lateness: Vec<u32>,
    /// Where the sample of each round ends.
    rounds: Vec<usize>,
    missed: u64,
    longest_turn: Nanos,
    invalid: Option<String>,
}

impl Condition {
    const fn worker(name: &'static str, poll: Poll, circuits: u32, cells: Cells) -> Self {
        Self::new(name, Keeper::Worker(Task { poll, circuits, cells }))
    }

    const fn new(name: &'static str, keeper: Keeper) -> Self {
        let longest_turn = Nanos(0);
        Self {
            name,
            keeper,
            lateness: Vec::new(),
            rounds: Vec::new(),
            missed: 0,
            longest_turn,
            invalid: None,
        }
    }

    fn add(&mut self, sample: Vec<u32>) {
        self.lateness.extend(sample);
        self.rounds.push(self.lateness.len());
    }

    fn add_phase(&mut self, phase: Phase) {
        if phase.fed.late as f64 > FED_LATE * phase.fed.cells as f64 {
            self.invalid = Some(format!(
                "the relay waited for {} of {} cells, since the other core was busy with something else",
                phase.fed.late, phase.fed.cells
            ));
        }
        self.invalid = phase.contradiction.or(self.invalid.take());
        self.missed += phase.missed;
        self.longest_turn = self.longest_turn.max(phase.longest_turn);
        self.add(phase.lateness);
    }

    /// The sample of every other round, sorted.
    fn half(&self, odd: usize) -> Vec<u32> {
        let starts = std::iter::once(0).chain(self.rounds.iter().copied());
        let rounds = starts.zip(&self.rounds).enumerate().filter(|(at, _)| at % 2 == odd);
        let mut half: Vec<u32> =
            rounds.flat_map(|(_, (start, &end))| &self.lateness[start..end]).copied().collect();
        half.sort_unstable();
        half
    }
}

/// Measures.
///
/// # Errors
/// Where the worker does not start, or there is no memory for its frames.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    let cpus = cpu::allowed()?;
    let [feeder, .., worker] = cpus[..] else {
        session.skip(
            WORKER_RATIO,
            Some(Target::AtMost(1.5)),
            "needs two processors, one of them to seal cells on",
        );
        return Ok(());
    };
    let arena = Arena::anonymous(phase::FRAMES).context("no memory for frames")?;
    let place = Place { arena, worker, feeder };
    let (rounds, length) = if session.quick { (2, 250) } else { (8, 500) };
    let length = Duration::from_millis(length);

    let (circuits, idle_turn) = calibrate(session, place)?;
    let mut conditions = [
        Condition::worker("busy, idle", Poll::Busy, 0, Cells::Payload),
        Condition::worker("busy, 80 % load", Poll::Busy, circuits, Cells::Payload),
        Condition::worker("busy, 80 % load of cover", Poll::Busy, circuits, Cells::Cover),
        Condition::worker("adaptive, idle", Poll::Adaptive, 0, Cells::Payload),
        Condition::worker("adaptive, 80 % load", Poll::Adaptive, circuits, Cells::Payload),
        Condition::new("clock_nanosleep loop", Keeper::Loop(loops::nanosleep)),
        Condition::new("tokio interval loop", Keeper::Loop(loops::tokio_interval)),
    ];
    let mut probe = GapProbe::new();
    let mut loads = Vec::new();
    for round in 1..=rounds {
        for condition in &mut conditions {
            session.progress(&format!("round {round} of {rounds}: {}", condition.name));
            match condition.keeper {
                Keeper::Worker(task) => {
                    let phase = Phase::run(place, task, length)?;
                    loads.extend(task.is_the_load().then(|| phase.load(task, idle_turn)));
                    condition.add_phase(phase);
                }
                Keeper::Loop(keep) => condition.add(cpu::on(worker, || keep(length))?),
            }
            cpu::on(worker, || {
                cpu::prefer_like_a_worker();
                probe.watch(length / 2);
                Ok(())
            })?;
        }
    }
    loads.sort_by(f64::total_cmp);
    let load = loads.get(loads.len() / 2).copied().unwrap_or(f64::NAN);
    report(session, &mut conditions, &probe, circuits, load)
}

/// How many circuits make up the load, and what a turn without work takes, in nanoseconds.
fn calibrate(session: &mut Session, place: Place) -> anyhow::Result<(u32, f64)> {
    const LENGTH: Duration = Duration::from_millis(150);
    session.progress("how many circuits are 80 % load");
    let task = |circuits| Task { poll: Poll::Busy, circuits, cells: Cells::Payload };
    let idle_turn = Phase::run(place, task(0), LENGTH)?.turn();
    let mut circuits = FIRST_GUESS;
    for _ in 0..STEPS {
        let task = task(circuits);
        let load = Phase::run(place, task, LENGTH)?.load(task, idle_turn);
        // Truncation costs less than a circuit; where nothing was forwarded, the guess stands.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most MAX_CIRCUITS")]
        let better = (f64::from(circuits) * LOAD / load).min(f64::from(MAX_CIRCUITS)) as u32;
        circuits = if load > 0.0 { better.max(1) } else { circuits };
    }
    Ok((circuits, idle_turn))
}

fn report(
    session: &mut Session,
    conditions: &mut [Condition],
    probe: &GapProbe,
    circuits: u32,
    load: f64,
) -> anyhow::Result<()> {
    session.measured("circuits (1000 cells/s each) that are 80 % load", f64::from(circuits), "", None);
    session.measured("  share of its time that the busy worker works then", 100.0 * load, "%", None);
    let wrong_load = (load.is_nan() || (load - LOAD).abs() > LOAD_ERROR)
        .then(|| format!("the worker worked {:.0} % of its time, not 80 %", 100.0 * load));
    let idle_halves = conditions.first().map(|idle| [idle.half(0), idle.half(1)]).unwrap_or_default();
    for condition in &mut *conditions {
        condition.lateness.sort_unstable();
        if matches!(condition.keeper, Keeper::Worker(task) if task.circuits > 0) {
            condition.invalid = condition.invalid.take().or_else(|| wrong_load.clone());
        }
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
            let row = format!("slot lateness {name}, {}", condition.name);
            give(session, row, quantile_us(&condition.lateness, quantile), "µs", None, &[condition]);
        }
        if matches!(condition.keeper, Keeper::Worker(_)) {
            let share = 100.0 * condition.missed as f64 / condition.lateness.len().max(1) as f64;
            give(session, format!("  slots missed, {}", condition.name), share, "%", None, &[condition]);
        }
        if matches!(condition.keeper, Keeper::Worker(task) if task.is_the_load()) {
            let turn = condition.longest_turn.0 as f64 / 1e3;
            let row = "  longest turn of the worker's loop that nothing interrupted for long, 80 % load";
            give(session, row, turn, "µs", None, &[condition]);
        }
        session.distribution(format!("lateness {}", condition.name), histogram(&condition.lateness)?);
    }
    let [idle, loaded, cover, ..] = &*conditions else { anyhow::bail!("a condition is missing") };
    let gap = probe.lateness(0.999) as f64 / 1e3;
    session.measured("the gap probe's p99.9 on the same core, in between", gap, "µs", None);
    let ratio = quantile_us(&loaded.lateness, 0.999) / gap;
    give(session, WORKER_RATIO, ratio, "ratio", Some(Target::AtMost(1.5)), &[loaded]);
    let distance = ks_distance(&idle.lateness, &loaded.lateness);
    give(session, DISTANCE, distance, "", Some(Target::Below(0.05)), &[idle, loaded]);
    let distance = ks_distance(&cover.lateness, &loaded.lateness);
    give(session, COVER_DISTANCE, distance, "", None, &[cover, loaded]);
    let distance = ks_distance(&idle_halves[0], &idle_halves[1]);
    give(session, "  idle against itself, every other round: KS distance", distance, "", None, &[idle]);
    let lines = conditions
        .iter()
        .map(|condition| Series { name: condition.name.into(), points: cdf(&condition.lateness) })
        .collect();
    session.plot("Lateness of slots", "lateness, µs", "share of slots no later", true, lines);
    Ok(())
}

/// A row, unless something about the conditions that it comes from is wrong.
fn give(
    session: &mut Session,
    row: impl Into<String>,
    value: f64,
    unit: &'static str,
    target: Option<Target>,
    from: &[&Condition],
) {
    match from.iter().find_map(|condition| condition.invalid.as_ref()) {
        Some(reason) => session.invalid(row, target, reason.as_str()),
        None => session.measured(row, value, unit, target),
    }
}
