//! The greatest constant rate that a relay carries without loss, by halving the interval.

use std::time::Duration;

use anyhow::Result;

use super::subject::{PAIRS, PortKind, Subject};
use super::trial::{Disagreement, Load};
use crate::rig::Rig;
use crate::session::Session;

/// Length of a trial: short, so that even on a machine with gaps some trials meet none.
const TRIAL: Duration = Duration::from_millis(20);
/// Slots per second of a link, at most.
pub(super) const MAX_LINK_RATE: u32 = 200_000;
/// Lowest rate looked at, in cells per second.
const MIN_RATE: u32 = 10_000;
/// The interval is halved until its ends are this close, relative to the upper.
const RESOLUTION: f64 = 0.03;
/// Trials in a row that must be clean.
const CLEAN: u32 = 40;
const CLEAN_QUICK: u32 = 4;
/// Trials taken at one rate, disturbed ones included, per clean one that is asked for.
const TRIES: u32 = 8;

/// A rate that was carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carried {
    /// Cells per second, over all links.
    pub(super) rate: u32,
    /// Cells sent in clean trials at this rate.
    pub(super) cells: u64,
    /// Trials of the whole search that said nothing, since the machine disturbed them.
    pub(super) disturbed: u32,
}

/// What a search ends with.
pub(super) enum Verdict {
    /// A rate.
    Carried(Carried),
    /// Too few trials were undisturbed, even at the lowest rate.
    Disturbed,
    /// Not even the lowest rate was carried.
    Nothing,
    /// Counters of the two ends disagree.
    Invalid(String),
}

/// What trials at one rate came to.
enum Outcome {
    Clean(u64),
    Dirty,
    Unknown,
}

/// Searches between 10,000 cells per second and the engine's highest rate.
///
/// # Errors
/// Where a part of the rig fails.
pub(super) fn greatest_rate(
    session: &mut Session,
    name: &str,
    rig: &Rig,
    kind: PortKind,
    workers: u32,
) -> Result<Verdict> {
    let (mut low, mut high) = (MIN_RATE, MAX_LINK_RATE * PAIRS * workers);
    let mut disturbed = 0;
    let mut best = None;
    let mut rate = low;
    loop {
        session.progress(&format!("{name}, {rate} cells/s"));
        let wanted = if session.quick { CLEAN_QUICK } else { CLEAN };
        match attempt(rig, kind, workers, rate, wanted, &mut disturbed) {
            Ok(Outcome::Clean(cells)) => {
                best = Some((rate, cells));
                low = rate;
            }
            // Whoever cannot tell must not claim.
            Ok(Outcome::Dirty | Outcome::Unknown) if best.is_some() => high = rate,
            Ok(Outcome::Dirty) => return Ok(Verdict::Nothing),
            Ok(Outcome::Unknown) => return Ok(Verdict::Disturbed),
            Err(error) => return error.downcast().map(|Disagreement(why)| Verdict::Invalid(why)),
        }
        if f64::from(high - low) <= RESOLUTION * f64::from(high) {
            break;
        }
        rate = low + (high - low) / 2;
    }
    Ok(match best {
        Some((rate, cells)) => Verdict::Carried(Carried { rate, cells, disturbed }),
        None => Verdict::Disturbed,
    })
}

fn attempt(
    rig: &Rig,
    kind: PortKind,
    workers: u32,
    rate: u32,
    wanted: u32,
    disturbed: &mut u32,
) -> Result<Outcome> {
    let mut load = Load::open(rig, workers)?;
    let subject = Subject::start(rig, kind, workers)?;
    let idle = idle_turn(&subject)?;
    load.connect(&subject, rate)?;
    let (mut clean, mut cells) = (0, 0);
    for _ in 0..wanted * TRIES {
        let trial = load.trial(&subject, rate, TRIAL, idle)?;
        if trial.is_clean() && trial.kept_up() {
            clean += 1;
            cells += trial.sent;
        } else if trial.is_undisturbed() {
            return Ok(Outcome::Dirty);
        } else {
            *disturbed += 1;
        }
        if clean == wanted {
            return Ok(Outcome::Clean(cells));
        }
    }
    Ok(Outcome::Unknown)
}

/// What a turn without work costs a worker without links, in CPU nanoseconds.
///
/// # Errors
/// Where a worker stands still.
pub(super) fn idle_turn(subject: &Subject) -> Result<f64> {
    let before = subject.sample()?;
    std::thread::sleep(Duration::from_millis(20));
    let after = subject.sample()?;
    Ok((after.cpu - before.cpu).as_secs_f64() * 1e9 / (after.turns - before.turns) as f64)
}
