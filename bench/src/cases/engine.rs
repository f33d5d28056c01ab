//! What a cell costs in the engine, beside what its three AEAD passes cost alone in the same run.

mod passes;
mod relay;

use std::time::Duration;

use passes::Passes;
use relay::{BATCH, Relay};

use crate::figure::Target;
use crate::session::Session;

/// Rounds; each measures everything once, so that a slow moment of the machine meets all alike.
const ROUNDS: usize = 20_000;

/// Measures.
///
/// # Errors
/// Where the machine has no memory for the frames.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    const ROWS: [&str; 6] = [
        "forwarded cell, in and out",
        "  payload in: open, hop, queue",
        "  payload out: choose, seal, emit",
        "cover in: open, dummy hop",
        "cover out: make, seal, emit",
        "three AES-256-GCM passes",
    ];
    session.progress("cells");
    let rounds = if session.quick { ROUNDS / 10 } else { ROUNDS };
    let (mut relay, mut passes) = (Relay::new(), Passes::new());
    let mut rows: [Vec<f64>; ROWS.len()] = Default::default();
    for _ in 0..rounds {
        let (payload, cover, bare) = (relay.forward(), relay.cover(), passes.batch());
        let times =
            [payload.receive + payload.send, payload.receive, payload.send, cover.receive, cover.send, bare];
        for (row, time) in rows.iter_mut().zip(times) {
            row.push(per_cell(time));
        }
    }
    let medians = rows.each_mut().map(|row| median(row));
    for (name, value) in ROWS.iter().zip(medians) {
        session.measured(*name, value, "ns", None);
    }
    let ratio = medians[0] / medians[5];
    session.measured("forwarded cell / three AEAD passes", ratio, "ratio", Some(Target::AtMost(1.15)));
    Ok(())
}

fn per_cell(batch: Duration) -> f64 {
    batch.as_secs_f64() * 1e9 / BATCH as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
