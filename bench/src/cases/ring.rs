//! What a packet costs on the project's own AF_XDP rings when nobody looks into it, with frames of a cell's size.
//!
//! CPU time is that of the one thread named. Over veth in copy mode the sender pays for the whole crossing (socket
//! buffer, the peer's XDP program, the copy into the peer's frame), so `rxdrop` is ring work alone, `txonly` is a
//! crossing, and `l2fwd` is a crossing and both rings.

use std::time::Duration;

use crate::rig::{Rig, Wire, Work};
use crate::session::Session;

const ROWS: [&str; 3] = ["rxdrop", "txonly", "l2fwd"];

/// Measures.
///
/// # Errors
/// Where the kernel refuses a part of the rig.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    if let Some(missing) = Rig::missing() {
        for row in ROWS {
            session.skip(row, None, missing);
        }
        return Ok(());
    }
    session.progress("rig");
    let rig = Rig::build(1)?;
    let mut wire = Wire::open(&rig)?;
    let rounds = if session.quick { 5 } else { 51 };
    let forwarding = Duration::from_millis(if session.quick { 50 } else { 100 });
    let mut works: [Vec<Work>; ROWS.len()] = Default::default();
    for round in 0..rounds {
        session.progress(&format!("round {} of {rounds}", round + 1));
        let round = [wire.rxdrop()?, wire.txonly()?, wire.l2fwd(forwarding)?];
        for (works, work) in works.iter_mut().zip(round) {
            works.push(work);
        }
    }
    let disagreement = wire.disagreement();
    for (row, works) in ROWS.iter().zip(&works) {
        let nanos = median(works.iter().map(Work::nanos));
        let rate = median(works.iter().map(Work::rate));
        for (what, value, unit) in [("CPU per packet", nanos, "ns"), ("packets per second", rate, "1/s")] {
            let figure = format!("{row}, {what}");
            match &disagreement {
                Some(why) => session.invalid(figure, None, why.as_str()),
                None => session.measured(figure, value, unit, None),
            }
        }
    }
    session.measured("packets dropped on the way", wire.dropped() as f64, "packets", None);
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
