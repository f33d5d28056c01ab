//! How late a worker's slots are, idle and while its core works for 80 % of the time, beside the loops that a program
//! would otherwise pace itself with, and beside an empty loop on the same core. All of it in turns.
//!
//! Lateness is the time at which a cell is handed to the port, less the deadline of its slot, which the schedule's
//! seed gives; a slot that the worker came too late for counts as late as the link's next cell. The relay is a middle one on a port in memory; load is links, since a link's rate never changes: each
//! circuit brings 1000 cells per second in over one link and out over another, and both links send at all their slots.

mod compare;
mod condition;
mod feeder;
mod loops;
mod phase;
mod port;
mod relay;

use std::time::Duration;

use anyhow::Context as _;
use relay_user::worker::Poll;
use relay_user::xsk::Arena;

use crate::cpu;
use crate::figure::Target;
use crate::probe::GapProbe;
use crate::session::{Series, Session};
use compare::{cdf, histogram, ks_distance};
use condition::{Condition, Keeper, median};
use phase::{Phase, Place, Task};
use relay::{Cells, MAX_CIRCUITS};

/// What is asked for, and how far from it a load may lie that goes by its name.
const LOAD: f64 = 0.8;
const LOAD_ERROR: f64 = 0.15;
/// Circuits to begin the search for the load with: about a third of it on a core of 2025.
const FIRST_GUESS: u32 = 150;
/// Steps of that search, and stretches whose median decides each.
const STEPS: usize = 3;
const STRETCHES: usize = 3;
const WORKER_RATIO: &str = "slot lateness p99.9, busy, at 80 % load / the gap probe's p99.9 on the same core";
const DISTANCE: &str = "slot lateness, 80 % load against idle: KS distance";
const COVER_DISTANCE: &str = "  payload against cover on the same links, 80 % load: KS distance";

/// Measures.
///
/// # Errors
/// Where the worker does not start, or there is no memory for its frames.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    let cpus = cpu::allowed()?;
    let [feeder, .., worker] = cpus[..] else {
        let reason = "needs two processors, one of them to seal cells on";
        session.skip(WORKER_RATIO, Some(Target::AtMost(1.5)), reason);
        session.skip(DISTANCE, Some(Target::Below(0.05)), reason);
        return Ok(());
    };
    let arena = Arena::anonymous(phase::FRAMES).context("no memory for frames")?;
    let place = Place { arena, worker, feeder };
    let (rounds, length) = if session.quick { (3, 150) } else { (9, 500) };
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
    let mut gaps = Vec::new();
    for round in 1..=rounds {
        let mut probe = GapProbe::new();
        for condition in &mut conditions {
            session.progress(&format!("round {round} of {rounds}: {}", condition.name));
            match condition.keeper {
                Keeper::Worker(task) => {
                    let phase = Phase::run(place, task, length)?;
                    let load = task.is_the_load().then(|| phase.load(task, idle_turn));
                    condition.add_phase(phase, load, (LOAD - LOAD_ERROR, LOAD + LOAD_ERROR));
                }
                Keeper::Loop(keep) => condition.add(cpu::on(worker, || keep(length))?),
            }
            cpu::on(worker, || {
                cpu::prefer_like_a_worker();
                probe.watch(length / 2);
                Ok(())
            })?;
        }
        gaps.push(probe.lateness(0.999) as f64 / 1e3);
    }
    session.measured("circuits (1000 cells/s each) that are 80 % load", f64::from(circuits), "", None);
    report(session, &conditions, &gaps)
}

/// How many circuits make up the load, and what a turn without work takes, in nanoseconds.
fn calibrate(session: &mut Session, place: Place) -> anyhow::Result<(u32, f64)> {
    const LENGTH: Duration = Duration::from_millis(80);
    session.progress("how many circuits are 80 % load");
    let task = |circuits| Task { poll: Poll::Busy, circuits, cells: Cells::Payload };
    let idle_turn = Phase::run(place, task(0), LENGTH)?.turn();
    let mut circuits = FIRST_GUESS;
    for _ in 0..STEPS {
        let task = task(circuits);
        let mut loads = Vec::with_capacity(STRETCHES);
        for _ in 0..STRETCHES {
            loads.push(Phase::run(place, task, LENGTH)?.load(task, idle_turn));
        }
        let load = median(loads.into_iter().filter(|load| load.is_finite() && *load > 0.0));
        // Truncation costs less than a circuit; where nothing was forwarded, the guess stands.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most MAX_CIRCUITS")]
        let better = (f64::from(circuits) * LOAD / load).min(f64::from(MAX_CIRCUITS)) as u32;
        circuits = if load.is_nan() { circuits } else { better.max(1) };
    }
    Ok((circuits, idle_turn))
}

fn report(session: &mut Session, conditions: &[Condition; 7], gaps: &[f64]) -> anyhow::Result<()> {
    let [idle, loaded, cover, ..] = conditions;
    let row = "  share of its time that the busy worker works then";
    give(session, row, 100.0 * loaded.load(), "%", None, &[loaded]);
    let row = "  its longest turn that nothing interrupted for long";
    give(session, row, loaded.longest_turn.0 as f64 / 1e3, "µs", None, &[loaded]);
    let mut lines = Vec::new();
    for condition in conditions {
        let name = condition.name;
        for (label, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let row = format!("slot lateness {label}, {name}");
            give(session, row, condition.quantile_us(quantile), "µs", None, &[condition]);
        }
        give(session, format!("slot lateness max, {name}"), condition.max_us(), "µs", None, &[condition]);
        if matches!(condition.keeper, Keeper::Worker(_)) {
            let row = format!("  slots missed, {name}");
            give(session, row, condition.missed_percent(), "%", None, &[condition]);
        }
        let pooled = condition.pooled();
        lines.push(Series { name: name.into(), points: cdf(&pooled) });
        session.distribution(
            format!("lateness {}", name.replace(['%', ','], "").replace('_', "-")),
            histogram(&pooled)?,
        );
    }
    let gap = median(gaps.iter().copied());
    session.measured("the gap probe's p99.9 on the same core, in between", gap, "µs", None);
    give(session, WORKER_RATIO, loaded.ratio(0.999, gaps), "ratio", Some(Target::AtMost(1.5)), &[loaded]);
    let distance = idle.against(loaded, ks_distance);
    give(session, DISTANCE, distance, "", Some(Target::Below(0.05)), &[idle, loaded]);
    give(session, COVER_DISTANCE, cover.against(loaded, ks_distance), "", None, &[cover, loaded]);
    let row = "  idle against itself, round by round: KS distance";
    give(session, row, idle.against_itself(ks_distance), "", None, &[idle]);
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
    match from.iter().find_map(|condition| condition.invalid()) {
        Some(reason) => session.invalid(row, target, reason),
        None => session.measured(row, value, unit, target),
    }
}
