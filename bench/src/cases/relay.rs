//! What a relay of the real engine on real workers carries over the rig, and what a relayed cell costs there.
//!
//! CPU time is that of the worker's thread, with its crossing of the wire (`sendto` runs the other end's XDP program and
//! the copy into its frame) and without that of the load, which pays for the crossing towards the relay. Turns in which
//! a spinning worker neither received nor sent are counted, and taken out at what such a turn costs without links. The
//! raw l2fwd beside it moves packets of the same size over the same wire in the same run, in whole batches of 32, counts
//! the same thread's time, and does no cryptography.
//!
//! A rate is carried when so many trials neither missed a slot nor lost a cell nor let cells pile up in a ring. Where something was missed or
//! lost while the machine had taken a core away (the worker had less than 99.8 % of it, or the load fell behind), the
//! trial says nothing about the relay and is taken again.

mod memory;
mod metered;
mod search;
mod subject;
mod trial;

use std::time::Duration;

use anyhow::Result;

use crate::figure::Target;
use crate::rig::{Cores, Rig, Wire};
use crate::session::Session;
use search::{Carried, Verdict};
use subject::{PortKind, Subject};
use trial::{Disagreement, Load, Trial};

const SCALING: &str = "two workers / one worker, engine in memory (no shared state)";
const SCALING_TARGET: Option<Target> = Some(Target::AtLeast(1.9));
const COST: &str = "relay, CPU per cell / raw l2fwd of the same run";
const COST_TARGET: Option<Target> = Some(Target::AtMost(1.35));

/// Length of a trial, and of raw forwarding, whose CPU time counts.
const COST_TRIAL: Duration = Duration::from_millis(100);

/// Rates at which the relay's CPU time is taken, in percent of the greatest that it carries. The first only shows what
/// small batches cost.
const RATES: [u32; 6] = [50, 100, 110, 120, 130, 140];

/// What can carry cells: a port and a number of workers.
const SUBJECTS: [(&str, PortKind, u32); 3] = [
    ("XDP port, 1 worker", PortKind::Xdp, 1),
    ("XDP port, 2 workers", PortKind::Xdp, 2),
    ("UDP port, 1 worker", PortKind::Udp, 1),
];

/// Measures.
///
/// # Errors
/// Where the kernel refuses a part of the rig.
pub fn run(session: &mut Session) -> Result<()> {
    in_memory(session)?;
    let rate = |name| format!("{name}, greatest constant rate without loss");
    if let Some(missing) = Rig::missing() {
        session.skip(COST, COST_TARGET, missing);
        for (name, ..) in SUBJECTS {
            session.skip(rate(name), None, missing);
        }
        return Ok(());
    }
    let mut greatest = Vec::new();
    for (name, kind, workers) in SUBJECTS {
        let cores = workers as usize + 1;
        if Cores::available().count() < cores {
            let why = format!("needs {cores} cores, one for each worker and one for the load");
            session.skip(rate(name), None, why);
            continue;
        }
        let rig = Rig::build(workers)?;
        match search::greatest_rate(session, name, &rig, kind, workers)? {
            Verdict::Carried(carried) => {
                session.measured(rate(name), f64::from(carried.rate), "cells/s", None);
                session.measured(
                    format!("{name}, loss there: bound at 95 % from {} cells", carried.cells),
                    // The rule of three.
                    3e6 / carried.cells as f64,
                    "ppm",
                    None,
                );
                session.measured(
                    format!("{name}, trials taken again for a disturbed core"),
                    f64::from(carried.disturbed),
                    "trials",
                    None,
                );
                greatest.push((kind, workers, carried));
            }
            Verdict::Disturbed => session.skip(
                rate(name),
                None,
                "the machine took the cores away in nearly every trial: measure while nothing else runs",
            ),
            Verdict::Nothing => {
                session.skip(
                    rate(name),
                    None,
                    "cells were lost even at the lowest rate that is tried, 10,000/s",
                );
            }
            Verdict::Invalid(why) => session.invalid(rate(name), None, why),
        }
    }
    let carried = |kind| {
        greatest
            .iter()
            .find(|(port, workers, _)| *port == kind && *workers == 1)
            .map(|(.., carried)| *carried)
    };
    if let (Some(xdp), Some(udp)) = (carried(PortKind::Xdp), carried(PortKind::Udp)) {
        let ratio = f64::from(xdp.rate) / f64::from(udp.rate);
        session.measured("greatest rate, XDP port / UDP port", ratio, "ratio", None);
    }
    match carried(PortKind::Xdp) {
        Some(carried) => cost(session, carried),
        None => {
            session.skip(
                COST,
                COST_TARGET,
                "no rate was found at which the relay neither idles nor loses cells",
            );
            Ok(())
        }
    }
}

fn in_memory(session: &mut Session) -> Result<()> {
    session.progress("two workers in memory");
    let cores = Cores::available();
    let (Some(first), Some(second)) = (cores.any(0), cores.any(1)) else {
        session.skip(SCALING, SCALING_TARGET, "needs two cores: give the process another one");
        return Ok(());
    };
    let scaling = memory::scaling([first, second], if session.quick { 400 } else { 4000 })?;
    if let Some(why) = scaling.disagreement {
        session.invalid(SCALING, SCALING_TARGET, why);
        return Ok(());
    }
    let (one, two) = (median(scaling.one), median(scaling.two));
    session.measured("one worker, engine in memory", one, "cells/s", None);
    session.measured(SCALING, two / one, "ratio", SCALING_TARGET);
    Ok(())
}

/// Relay and raw l2fwd by turns, around the greatest rate that the relay carries. Its cost is that of the cheapest of
/// these rates: below, turns have few cells; above, cells are opened that are dropped then.
fn cost(session: &mut Session, carried: Carried) -> Result<()> {
    let rounds = if session.quick { 3 } else { 15 };
    let most = search::MAX_LINK_RATE * subject::PAIRS;
    let rates = RATES.map(|percent| (carried.rate / 100 * percent).min(most));
    let mut raw = Vec::new();
    let mut trials: [Vec<Trial>; RATES.len()] = Default::default();
    let mut ratios: [Vec<f64>; RATES.len()] = Default::default();
    let rig = Rig::build(1)?;
    for round in 0..rounds {
        session.progress(&format!("CPU per cell beside l2fwd, round {} of {rounds}", round + 1));
        let mut wire = Wire::open(&rig)?;
        let floor = wire.l2fwd(COST_TRIAL)?;
        if let Some(why) = wire.disagreement() {
            session.invalid(COST, COST_TARGET, why);
            return Ok(());
        }
        drop(wire);
        raw.push(floor.nanos());
        for ((rate, trials), ratios) in rates.iter().zip(&mut trials).zip(&mut ratios) {
            match costly(&rig, *rate) {
                Ok(trial) => {
                    ratios.push(trial.nanos / floor.nanos());
                    trials.push(trial);
                }
                Err(error) => {
                    session.invalid(COST, COST_TARGET, error.downcast::<Disagreement>()?.to_string());
                    return Ok(());
                }
            }
        }
    }
    session.measured("raw l2fwd, CPU per packet", median(raw), "ns", None);
    let of = |trials: &[Trial], value: fn(&Trial) -> f64| median(trials.iter().map(value).collect());
    let nanos = trials.each_ref().map(|trials| of(trials, |trial| trial.nanos));
    let cheapest = (1..RATES.len()).min_by(|a, b| nanos[*a].total_cmp(&nanos[*b])).unwrap_or(1);
    let [half, ..] = nanos;
    session.measured("relay, CPU per relayed cell at half its greatest rate", half, "ns", None);
    session.measured("relay, CPU per relayed cell where it is cheapest", nanos[cheapest], "ns", None);
    let rate = f64::from(rates[cheapest]);
    session.measured("relay, rate at which it is cheapest", rate, "cells/s", None);
    let batch = of(&trials[cheapest], |trial| trial.batch);
    session.measured("relay, cells per system call there", batch, "cells", None);
    let cover = of(&trials[cheapest], |trial| trial.cover_nanos);
    session.measured("relay, CPU per cell of cover sent there", cover, "ns", None);
    session.measured(COST, median(std::mem::take(&mut ratios[cheapest])), "ratio", COST_TARGET);
    Ok(())
}

/// A trial of a relay with one worker, started for it.
fn costly(rig: &Rig, rate: u32) -> Result<Trial> {
    let mut load = Load::open(rig, 1)?;
    let subject = Subject::start(rig, PortKind::Xdp, 1)?;
    let idle = search::idle_turn(&subject)?;
    load.connect(&subject, rate)?;
    load.trial(&subject, rate, COST_TRIAL, idle)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
