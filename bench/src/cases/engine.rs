//! What a cell costs in the engine, beside what its three AEAD passes cost alone in the same run; what a slot costs the
//! wheel; what links and circuits take of memory.

pub mod memory;
mod passes;
mod relay;
mod wheel;

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use passes::Passes;
use relay::{BATCH, Relay};

use crate::figure::Target;
use crate::session::{Series, Session};

/// Rounds; each measures everything once, so that a slow moment of the machine meets all alike.
const ROUNDS: usize = 20_000;
/// Links that the wheel is measured with.
const LINKS: [u32; 3] = [1_000, 100_000, 1_000_000];
/// Events of the wheel between two looks at the clock: few enough that most samples pass without a gap of the machine.
const EVENTS: u32 = 1_000;
/// Links, and circuits, whose memory is measured.
const MEASURED: u32 = 50_000;

/// Measures.
///
/// # Errors
/// Where the machine has no memory for the frames, or this program cannot be started again.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    cells(session);
    wheel(session);
    memory(session)
}

fn cells(session: &mut Session) {
    const ROWS: [&str; 8] = [
        "forwarded cell, in and out",
        "  payload in: open, hop, queue",
        "  payload out: choose, seal, emit",
        "cover in: open, dummy hop",
        "cover out: make, seal, emit",
        "three AES-256-GCM passes",
        "  link open and hop open alone",
        "  link seal alone",
    ];
    session.progress("cells");
    let rounds = if session.quick { ROUNDS / 10 } else { ROUNDS };
    let (mut relay, mut passes) = (Relay::new(), Passes::new());
    let mut rows: [Vec<f64>; ROWS.len()] = Default::default();
    for _ in 0..rounds {
        let (payload, cover, bare) = (relay.forward(), relay.cover(), passes.batch());
        let times = [
            payload.receive + payload.send,
            payload.receive,
            payload.send,
            cover.receive,
            cover.send,
            bare.receive + bare.send,
            bare.receive,
            bare.send,
        ];
        for (row, time) in rows.iter_mut().zip(times) {
            row.push(per_cell(time));
        }
    }
    let ratios: Vec<f64> = rows[0].iter().zip(&rows[5]).map(|(cell, bare)| cell / bare).collect();
    let medians = rows.each_mut().map(|row| median(row));
    for (name, value) in ROWS.iter().zip(medians) {
        session.measured(*name, value, "ns", None);
    }
    let ratio = medians[0] / medians[5];
    session.measured("forwarded cell / three AEAD passes", ratio, "ratio", Some(Target::AtMost(1.15)));
    session.plot(
        "A forwarded cell over three AEAD passes, batch by batch",
        "share of batches",
        "ratio",
        false,
        vec![Series { name: "ratio".into(), points: quantiles(ratios) }],
    );
}

fn wheel(session: &mut Session) {
    session.progress("wheel");
    let mut wheels = LINKS.map(wheel::Links::new);
    let rounds = if session.quick { 5 } else { 50 };
    let mut times: [Vec<f64>; LINKS.len()] = Default::default();
    for _ in 0..rounds {
        for (wheel, times) in wheels.iter_mut().zip(&mut times) {
            times.extend(std::iter::repeat_with(|| wheel.run(EVENTS)).take(200));
        }
    }
    let medians = times.each_mut().map(|times| median(times));
    for (links, time) in LINKS.iter().zip(medians) {
        let target = (*links == LINKS[2]).then_some(Target::AtMost(60.0));
        session.measured(format!("wheel event at {links} links"), time, "ns", target);
    }
    session.measured(
        "wheel event at 1M links / at 1k links",
        medians[2] / medians[0],
        "ratio",
        Some(Target::AtMost(3.0)),
    );
}

fn memory(session: &mut Session) -> anyhow::Result<()> {
    session.progress("memory");
    let own = std::env::current_exe().context("this program's own path")?;
    let output = Command::new(own)
        .args(["--measure-memory", &MEASURED.to_string()])
        .output()
        .context("cannot start this program again")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let bytes: Option<Vec<f64>> = text.split_whitespace().map(|number| number.parse().ok()).collect();
    let rows = [("memory per idle link", 4096.0), ("memory per circuit", 2048.0)];
    match bytes.as_deref() {
        Some([link, circuit]) if output.status.success() => {
            for ((name, bound), bytes) in rows.into_iter().zip([link, circuit]) {
                session.measured(name, *bytes, "bytes", Some(Target::AtMost(bound)));
            }
        }
        _ => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            for (name, bound) in rows {
                session.invalid(name, Some(Target::AtMost(bound)), why.clone());
            }
        }
    }
    Ok(())
}

fn per_cell(batch: Duration) -> f64 {
    batch.as_secs_f64() * 1e9 / BATCH as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A hundred points of the distribution's inverse, without the extremes.
fn quantiles(mut values: Vec<f64>) -> Vec<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    (1..100)
        .filter_map(|q| Some((f64::from(q) / 100.0, *values.get(values.len() * q as usize / 100)?)))
        .collect()
}
