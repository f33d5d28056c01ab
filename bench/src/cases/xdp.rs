//! What the XDP program costs beside one that only returns a verdict: a packet at a time in the kernel's test
//! runner, and under a flood over a veth pair.

mod flood;
mod frames;
mod programs;

use frames::Kind;
use programs::{Floor, Relay};

use crate::figure::Target;
use crate::session::Session;

/// Rounds; each measures everything once, so that a slow moment of the machine meets all alike.
const ROUNDS: usize = 41;
/// Runs of a program in one measurement, all in one system call.
const RUNS: u32 = 500_000;
/// A flood is dropped at no less than this share of the rate at which a bare `XDP_DROP` drops it.
const TARGET: Target = Target::AtLeast(0.9);

/// Measures.
///
/// # Errors
/// Where the kernel refuses the programs, the maps or the veth pair.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        let reason = "loading XDP programs needs root; run it as root";
        session.skip("ns per packet", None, reason);
        for kind in flood::Flood::ALL {
            session.skip(kind.figure(), Some(TARGET), reason);
        }
        return Ok(());
    }
    let (mut relay, mut floor) = (Relay::load()?, Floor::load()?);
    one_at_a_time(session, &relay, &floor)?;
    flood::run(session, &mut relay, &mut floor)
}

/// ns per packet by BPF_PROG_TEST_RUN, whole ones: the kernel rounds its own average down. The runner's own turn is in
/// every row, the bare ones' included.
fn one_at_a_time(session: &mut Session, relay: &Relay, floor: &Floor) -> anyhow::Result<()> {
    let kinds = Kind::ALL.map(|kind| (kind, kind.frame()));
    for (kind, frame) in &kinds {
        relay.check(*kind, frame)?;
    }
    let rounds = if session.quick { ROUNDS / 8 } else { ROUNDS };
    let mut ours = [const { Vec::new() }; Kind::ALL.len()];
    let (mut drop, mut pass) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        session.progress(&format!("ns per packet, round {} of {rounds}", round + 1));
        for ((_, frame), times) in kinds.iter().zip(&mut ours) {
            times.push(relay.run(frame, RUNS)?);
            drop.push(floor.run(programs::DROP, frame, RUNS)?);
        }
        pass.push(floor.run(programs::PASS, &kinds[0].1, RUNS)?);
    }
    for ((kind, _), times) in kinds.iter().zip(&mut ours) {
        session.measured(kind.name(), median(times), "ns", None);
    }
    session.measured("a program that only returns XDP_DROP", median(&mut drop), "ns", None);
    session.measured("a program that only returns XDP_PASS", median(&mut pass), "ns", None);
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
