//! An established link while the kernel's packet generator floods its receiver at full rate, beside the same link while
//! the same flood goes to a neighbouring interface of the same host whose XDP program drops everything: what that
//! costs the link is the flood's share of the processor, and only what is lost beyond it is ours.
//!
//! ```text
//!   sender                                   relay
//!   AF_XDP port  --cells-->  ewb0 ====== ewb0  our XDP program --> AF_XDP port, counts cells by number
//!   pktgen       --A------>  ewb0 ====== ewb0  our XDP program: dropped and counted by reason (another queue)
//!   pktgen       --B------>  ewb1 ====== ewb1  a program of two instructions: dropped
//! ```
//!
//! A veth queue holds 256 packets and drops what comes when it is full, before any program runs. So the flood that is
//! compared takes another queue than the link, as most flows do where a card spreads them; what it does in the
//! link's own queue is shown beside it.
//!
//! pktgen's payload starts with its own magic number, whose first byte is no datagram type. For the flood of
//! valid-looking cells a traffic control action on the sending interface rewrites those four bytes to a cell's first four;
//! pktgen's sequence number, which follows them, then stands where a cell has its receiver index.

mod emulated;
mod flood;
mod floor;
mod link;
mod wiring;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use relay_common::abi::Counter;
use relay_common::classify::DropReason;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::figure::Target;
use crate::session::Session;
use flood::{Aim, Flood, Kind};
use link::{Link, Tally};
use wiring::Wiring;

/// How long each phase lasts, and how often the phases are gone through.
const PHASE: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 8;
const QUICK_PHASE: Duration = Duration::from_millis(700);
const QUICK_ROUNDS: usize = 2;
/// Cells per second that are tried for the link, the fastest first.
const RATES: [u32; 6] = [8000, 4000, 2000, 1000, 500, 250];
/// How long each is tried.
const CALIBRATION: Duration = Duration::from_millis(500);
/// 95 % of a normal distribution lie below the mean and this many standard deviations.
const ONE_SIDED_95: f64 = 1.645;
/// Where none of n was lost, fewer than 3/n are, with 95 % confidence.
const RULE_OF_THREE: f64 = 3.0;

const KINDS: [Kind; 2] = [Kind::Junk, Kind::Cells];

/// Measures, here where the kernel has pktgen, else in an emulated machine.
///
/// # Errors
/// Where neither is possible, and why.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    ensure!(relay_tests::privilege::is_root(), "namespaces, XDP and pktgen need root");
    if flood::is_there() {
        return here(session);
    }
    emulated::run(session)
}

/// Where each kind of flood goes in a round; the first two are compared.
const AIMS: [Aim; 3] = [Aim::Relay, Aim::Floor, Aim::LinkQueue];

/// What one kind of flood did at each of [`AIMS`].
#[derive(Default)]
struct Rows([Row; AIMS.len()]);

#[derive(Default)]
struct Row {
    /// Cells lost, by round.
    lost: Vec<u64>,
    /// Packets per second, by round.
    rate: Vec<f64>,
    /// Cells sent, in all.
    cells: u64,
    /// Cells dropped at the wire's entrance, in all.
    at_wire: u64,
}

fn here(session: &mut Session) -> anyhow::Result<()> {
    // The link's processor is set for this thread, and the thread ends with the case.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| measure(session));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn measure(session: &mut Session) -> anyhow::Result<()> {
    let cpus = std::thread::available_parallelism().context("the number of processors")?.get();
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).context("cannot stay on processor 0")?;
    let (rounds, phase) = if session.quick { (QUICK_ROUNDS, QUICK_PHASE) } else { (ROUNDS, PHASE) };

    let wiring = Wiring::new()?;
    let _floor = wiring.relay_side(floor::attach)?;
    let mut link = Link::open(&wiring)?;
    let flood = Flood::new(&wiring, cpus - 1)?;
    session.progress("a rate that the quiet link carries");
    let rate = calibrate(&mut link)?;
    session.measured("cells per second on the link", f64::from(rate), "cells/s", None);

    let mut quiet = (0, 0);
    let mut rows = KINDS.map(|_| Rows::default());
    for round in 0..rounds {
        session.progress(&format!("round {} of {rounds}: quiet", round + 1));
        let tally = link.run(rate, phase)?;
        add(session, "cells lost, quiet", &tally);
        quiet = (quiet.0 + tally.lost(), quiet.1 + tally.sent);
        for (kind, rows) in KINDS.into_iter().zip(&mut rows) {
            for (aim, row) in AIMS.into_iter().zip(&mut rows.0) {
                session.progress(&format!("round {} of {rounds}: {} {}", round + 1, kind.name(), aim.name()));
                let before = link.steering().counters()?;
                let (tally, flooded) = flood.during(kind, aim, || link.run(rate, phase))?;
                let after = link.steering().counters()?;
                let reason = kind.reason();
                let dropped = after.get(Counter::Dropped(reason)) - before.get(Counter::Dropped(reason));
                let expected = if aim == Aim::Floor { 0 } else { flooded.sent };
                if dropped != expected {
                    let text = format!(
                        "pktgen sent {}, of which {expected} to the relay, whose program dropped {dropped} as {}",
                        flooded.sent,
                        reason.name()
                    );
                    session.invalid(format!("flood of {} {}", kind.name(), aim.name()), None, text);
                }
                add(session, "cells sent and received", &tally);
                row.lost.push(tally.lost());
                row.rate.push(flooded.per_second);
                row.cells += tally.sent;
                row.at_wire += tally.at_wire;
            }
        }
    }
    if quiet.0 > 0 {
        session.invalid(
            "cells lost, quiet",
            None,
            format!(
                "{} of {} are lost without any flood: the machine cannot carry this link",
                quiet.0, quiet.1
            ),
        );
    } else {
        session.measured("cells lost, quiet", 0.0, "cells", None);
    }
    for (kind, mut rows) in KINDS.into_iter().zip(rows) {
        report(session, kind, &mut rows);
    }
    Ok(())
}

fn add(session: &mut Session, what: &str, tally: &Tally) {
    if let Some(contradiction) = tally.contradiction() {
        session.invalid(what, None, contradiction);
    }
}

fn report(session: &mut Session, kind: Kind, rows: &mut Rows) {
    let name = kind.name();
    let mut rates = [f64::NAN; AIMS.len()];
    for ((aim, row), rate) in AIMS.into_iter().zip(&mut rows.0).zip(&mut rates) {
        *rate = median(&mut row.rate);
        let mut measured = |what: &str, value: f64, unit| {
            session.measured(format!("{name} {}: {what}", aim.name()), value, unit, None);
        };
        measured("flood", *rate, "packets/s");
        measured("cells sent", row.cells as f64, "cells");
        measured("cells lost", sum(row) as f64, "cells");
        measured("cells lost, worst round", most(&row.lost), "cells");
        measured("cells lost before any program", row.at_wire as f64, "cells");
    }
    let [relay, floor, _] = &rows.0;
    session.measured(format!("{name}: flood, relay / bare drop"), rates[0] / rates[1], "ratio", None);
    let beyond = sum(relay).saturating_sub(sum(floor));
    let target = Some(Target::AtMost(0.0));
    session.measured(format!("{name}: cells lost beyond the bare drop"), beyond as f64, "cells", target);
    let bound = bound(relay, floor);
    session.measured(format!("{name}: share lost beyond it, 95 % bound"), bound, "ppm", None);
}

fn sum(row: &Row) -> u64 {
    row.lost.iter().sum()
}

/// What share of the cells is lost beyond the floor at most, with 95 % confidence, in millionths: from the spread
/// of the rounds' differences, and no less than what so many cells can show at all.
fn bound(relay: &Row, floor: &Row) -> f64 {
    let differences: Vec<f64> =
        relay.lost.iter().zip(&floor.lost).map(|(relay, floor)| *relay as f64 - *floor as f64).collect();
    let count = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / count;
    let variance = differences.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let cells = mean * count + ONE_SIDED_95 * (variance * count).sqrt();
    cells.max(RULE_OF_THREE) / relay.cells as f64 * 1e6
}

/// The highest rate at which the quiet link loses nothing, halved so that the machine's own noise does not decide.
fn calibrate(link: &mut Link) -> anyhow::Result<u32> {
    for rate in RATES {
        let tally = link.run(rate, CALIBRATION)?;
        if tally.lost() == 0 && tally.contradiction().is_none() && tally.kept_up(rate, CALIBRATION) {
            return Ok(rate / 2);
        }
    }
    anyhow::bail!("even {} cells per second are lost without a flood on this machine", RATES[RATES.len() - 1])
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn most(values: &[u64]) -> f64 {
    values.iter().max().map_or(f64::NAN, |most| *most as f64)
}

impl Aim {
    const fn name(self) -> &'static str {
        match self {
            Self::Relay => "at the relay",
            Self::Floor => "at a bare drop",
            Self::LinkQueue => "in the link's own queue",
        }
    }
}

impl Kind {
    /// How the program counts it.
    const fn reason(self) -> DropReason {
        match self {
            Self::Junk => DropReason::PayloadLength,
            Self::Cells => DropReason::NoSession,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Junk => "junk",
            Self::Cells => "cells of unknown index",
        }
    }
}
