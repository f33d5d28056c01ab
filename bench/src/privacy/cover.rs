//! Attack 10 as rows: the schedules as they are, and the same with a leak planted, which it must find.

use std::time::Duration;

use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;
use relay_user::engine::schedule::Law;
use relay_user::observe::finding::{Finding, Target};

use super::row::{Row, Status};
use super::truth::{Plan, run};
use crate::rig::Rig;

/// What payload is held back by, where a leak is planted.
const PLANTED: Duration = Duration::from_micros(5);

/// Cells that a row needs at least.
const CELLS: usize = 1_000_000;

/// Records a million cells of a worker that sends by `law`, and as many with a leak.
///
/// # Errors
/// Where the kernel refuses a part of it, or the machine is too slow.
pub(super) fn measure(law: Law, name: &str, quick: bool, rng: &mut ChaCha8Rng) -> Result<Vec<Row>> {
    let rig = Rig::build(1)?;
    let cells = if quick { 1 } else { 5 };
    let plan = Plan { cells: Plan::quick(law).cells * cells, seed: rng.next_u64(), ..Plan::quick(law) };
    let mut rows = Vec::new();
    for (plan, planted) in [(plan, false), (plan.planted(PLANTED), true)] {
        let recorded = run(&rig, &plan)?;
        let defence = if planted { format!("{name}, planted 5 µs") } else { name.to_owned() };
        let row = |finding: &Finding, place: &str| Row {
            statistic: format!("{}, {place}", finding.statistic),
            note: format!("{} cells unmatched, {} slots missed", recorded.unmatched, recorded.missed),
            ..Row::new(finding, "bursts of chance length", defence.as_str())
        };
        let row = |finding: &Finding, place: &str| {
            let row = row(finding, place);
            // A bound of 0.02 is for as many cells as show it, and for all of the interval.
            let within = match finding.target {
                Target::Between { low, high } => low <= finding.interval.low && finding.interval.high <= high,
                _ => true,
            };
            let few = finding.samples < CELLS;
            if row.status == Status::Met && (few || !within) {
                Row { status: Status::NoPower, ..row }
            } else {
                row
            }
        };
        let seed = rng.next_u64();
        rows.extend(recorded.attack_handed(planted, seed).iter().map(|finding| row(finding, "handed over")));
        rows.extend(recorded.attack_wire(planted, seed).iter().map(|finding| row(finding, "wire")));
    }
    Ok(rows)
}
