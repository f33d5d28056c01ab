//! What users would pick instead: processor time per 1240-byte payload that a hub forwards from client A to client B,
//! by userspace WireGuard and by Evenwire's relay, in turn, on the same cores. Module `cpu` says what is counted.
//!
//! Every hub climbs the same ladder of rates, until payloads are lost or the clients, all on one core, send no more. A
//! rung counts where at most 0.1 % is lost, and a hub's figure is that of the rung where it is cheapest: one that waits
//! between packets pays for that, one that is loaded does not.

mod cpu;
mod install;
mod neighbours;
mod record;
mod relay;
mod tor;
mod traffic;
mod wireguard;
mod wires;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use cpu::{CLIENT_CORE, Threads, Used, move_to, watch};
use install::Source;
use record::{Record, per_packet};
use relay::Evenwire;
use traffic::Tally;
use wireguard::{Implementation, WireGuard};
use wires::Wires;

use crate::figure::Target;
use crate::session::Session;

/// Payloads per second.
const LADDER: [u32; 14] = [
    5000, 10_000, 20_000, 40_000, 60_000, 80_000, 120_000, 160_000, 200_000, 240_000, 280_000, 320_000,
    360_000, 400_000,
];
/// The same for a first look.
const QUICK_LADDER: [u32; 3] = [20_000, 60_000, 280_000];
const RATIO: &str = "CPU per relayed cell / the best userspace WireGuard hub's CPU per packet";
const TARGET: Target = Target::AtMost(0.2);

const TOR: &str = "tor, CPU seconds per GiB over three relays";
const LIKE_TOR: &str = "evenwire, the same: computed, three times the CPU per relayed cell";

/// Share of payloads lost above which a hub climbs no higher in this round.
const FALLEN: f64 = 0.05;
/// Share of a rung's rate below which it climbs no higher either.
const REACHED: f64 = 0.8;

/// Something that forwards payloads.
trait Hub {
    /// As its figures call it.
    fn name(&self) -> &'static str;

    /// Forwards `rate` payloads a second, measured for `span`.
    ///
    /// # Errors
    /// Where it cannot be measured.
    fn forward(&mut self, rate: u32, span: Duration) -> Result<Outcome>;
}

/// What came of a hub on a rung.
#[derive(Clone, Debug)]
struct Outcome {
    /// While it was measured.
    used: Used,
    /// Payloads that arrived while it was measured.
    forwarded: u64,
    /// Of the whole flow, from before the measurement until after it.
    tally: Tally,
    /// What is wrong where the counts do not add up.
    contradiction: Option<String>,
}

impl Outcome {
    /// Payloads that arrived per second.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 payloads")]
    fn rate(&self) -> f64 {
        self.forwarded as f64 / self.used.wall.as_secs_f64()
    }

    /// Microseconds per payload of a `total` time.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 payloads")]
    fn each(&self, total: f64) -> f64 {
        total * 1e6 / self.forwarded as f64
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tally { sent, .. } = self.tally;
        let each = self.each(self.used.cpu.as_secs_f64());
        write!(f, "{:.0}/s arrive, {each:.2} µs each, {} of {sent} lost", self.rate(), self.tally.lost())
    }
}

/// Measures.
///
/// # Errors
/// Where the processor's own accounting cannot be read.
pub fn run(session: &mut Session) -> Result<()> {
    if !relay_tests::privilege::is_root() {
        skip_all(session, "namespaces and TUN devices need root: run it with sudo");
        return Ok(());
    }
    let mut programs = Vec::new();
    for implementation in wireguard::ALL {
        let built = matches!(implementation.source, Source::Crate { .. });
        if built && !session.quick && implementation.source.find().is_none() {
            session.progress(&format!("building {} (once, some minutes)", implementation.name));
        }
        match implementation.source.get(!session.quick) {
            Ok(program) => programs.push((implementation, program)),
            Err(reason) => session.skip(per_packet(implementation.name), None, reason),
        }
    }
    // On a thread of its own, which takes its core and priority with it when it ends.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("peers".into());
        let case = thread.spawn_scoped(scope, || measure(session, programs))?;
        case.join().map_err(|_| anyhow!("the case panicked"))?
    })
}

fn skip_all(session: &mut Session, why: &str) {
    let names = wireguard::ALL.map(|implementation| implementation.name);
    for name in names.into_iter().chain([relay::NAME]) {
        session.skip(per_packet(name), None, why);
    }
    session.skip(RATIO, Some(TARGET), why);
    session.skip(TOR, None, why);
}

fn measure(session: &mut Session, programs: Vec<(Implementation, PathBuf)>) -> Result<()> {
    let ready = install::end_leftovers().and_then(|()| move_to(CLIENT_CORE)).and_then(|()| Wires::new());
    let wires = match ready {
        Ok(wires) => wires,
        Err(error) => {
            skip_all(session, &format!("{error:#}"));
            return Ok(());
        }
    };
    let mut hubs: Vec<Box<dyn Hub + '_>> = Vec::new();
    for (implementation, program) in programs {
        session.progress(&format!("starting {}", implementation.name));
        match WireGuard::start(implementation, &program, &wires) {
            Ok(hub) => hubs.push(Box::new(hub)),
            Err(error) => session.skip(per_packet(implementation.name), None, format!("{error:#}")),
        }
    }
    match Evenwire::new(&wires) {
        Ok(relay) => hubs.push(Box::new(relay)),
        Err(error) => session.skip(per_packet(relay::NAME), None, format!("{error:#}")),
    }
    let records = climb(session, &mut hubs)?;
    let (mut lines, mut best, mut own) = (Vec::new(), None::<f64>, None);
    for record in &records {
        lines.push(record.line());
        let cost = record.report(session);
        if record.name() == relay::NAME {
            own = cost;
        } else {
            best = best.into_iter().chain(cost).min_by(f64::total_cmp);
        }
    }
    match (own, best) {
        (Some(own), Some(best)) => session.measured(RATIO, own / best, "ratio", Some(TARGET)),
        _ => session.skip(
            RATIO,
            Some(TARGET),
            "the relay, or every WireGuard hub, was not measured; see above",
        ),
    }
    session.plot("a hub's CPU by rate", "payloads per second", "CPU µs per payload", true, lines);
    drop(hubs);
    beside_tor(session, own);
    install::end_leftovers()
}

/// Tor's figure, and what the relay's comes to for as much data.
fn beside_tor(session: &mut Session, own: Option<f64>) {
    #[expect(clippy::cast_precision_loss, reason = "1 GiB, and a cell's 1248 bytes")]
    const CELLS_PER_GIB: f64 = (1u64 << 30) as f64 / relay_common::wire::DATA_LEN as f64;
    if session.quick {
        session.skip(TOR, None, "its network takes half a minute to come up: run this case without --quick");
    } else {
        match tor::seconds_per_gib(session) {
            Ok(seconds) => session.measured(TOR, seconds, "s", None),
            Err(error) => session.skip(TOR, None, format!("{error:#}")),
        }
    }
    match own {
        Some(own) => session.measured(LIKE_TOR, own * 1e-6 * 3.0 * CELLS_PER_GIB, "s", None),
        None => session.skip(LIKE_TOR, None, "the CPU per relayed cell was not measured; see above"),
    }
}

/// Measures every hub on every rung, in turn, in rounds.
fn climb(session: &mut Session, hubs: &mut [Box<dyn Hub + '_>]) -> Result<Vec<Record>> {
    let (rounds, span, ladder) = if session.quick {
        (1, Duration::from_millis(300), &QUICK_LADDER[..])
    } else {
        (5, Duration::from_millis(800), &LADDER[..])
    };
    let mut records: Vec<Record> = hubs.iter().map(|hub| Record::new(hub.name())).collect();
    for round in 1..=rounds {
        let at_rest = at_rest(span)?;
        let mut climbing = vec![true; hubs.len()];
        for &rate in ladder {
            for ((hub, record), climbs) in hubs.iter_mut().zip(&mut records).zip(&mut climbing) {
                if !*climbs || record.failure.is_some() {
                    continue;
                }
                session.progress(&format!("round {round} of {rounds}: {} at {rate}/s", hub.name()));
                match hub.forward(rate, span) {
                    Ok(outcome) => {
                        session.progress(&format!("{} at {rate}/s: {outcome}", hub.name()));
                        let reached = outcome.rate() / f64::from(rate);
                        *climbs = outcome.tally.loss() < FALLEN && reached >= REACHED;
                        record.add(rate, at_rest, outcome);
                    }
                    Err(error) => record.failure = Some(format!("{error:#}")),
                }
            }
        }
    }
    Ok(records)
}

/// Share of the time in which the hub's core is not idle while every hub rests.
fn at_rest(span: Duration) -> Result<f64> {
    let (used, ()) = watch(&Threads::none(), || std::thread::sleep(span))?;
    Ok(used.core.as_secs_f64() / used.wall.as_secs_f64())
}
