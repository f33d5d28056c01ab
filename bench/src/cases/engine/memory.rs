//! What a link and a circuit take of memory, measured as what the process grows by. It runs in a process of its own,
//! where nothing that was freed before can hide what is taken.

use super::relay::split;
use anyhow::Context as _;
use relay_user::crypto::{HopKeys, LinkKeys, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, Engine, Limits, NoEdge, Session, Side};
use std::net::SocketAddr;

/// Bytes that one link, and one circuit, take in an engine with `count` of each.
///
/// # Errors
/// Where the kernel does not tell how large the process is.
pub fn measure(count: u32) -> anyhow::Result<[f64; 2]> {
    let now = Nanos(Nanos::SECOND.0);
    let at_start = resident()?;
    let limits = Limits { links: count, circuits: 0, events: 0, waiting: 0, ..Limits::default() };
    let mut engine = Engine::new(limits);
    add_links(&mut engine, count, now);
    let with_links = resident()?;
    let limits = Limits { links: 1, circuits: count, events: 0, waiting: 0, ..Limits::default() };
    let mut other = Engine::new(limits);
    add_links(&mut other, 1, now);
    for circuit in 0..count {
        let keys = Box::new(HopKeys::derive(&split(3), Suite::Aes256Gcm));
        let back = Side { link: 0, circ_id: circuit + 1 };
        other.apply(Command::AddCarried { circuit, back, depth: 1, keys, seq: 1 }, &mut NoEdge, now);
    }
    let with_circuits = resident()?;
    anyhow::ensure!(other.circuit_count() == count as usize, "{} circuits", other.circuit_count());
    drop(engine);
    let each = |bytes: u64| bytes as f64 / f64::from(count);
    Ok([each(with_links - at_start), each(with_circuits - with_links)])
}

fn add_links(engine: &mut Engine, count: u32, now: Nanos) {
    let source = SocketAddr::from(([192, 0, 2, 1], 7443));
    for link in 0..count {
        let schedule = Box::new(Schedule::new(Law::Jittered, 1000, now, [7; 32]));
        engine.apply(Command::AddLink { link, schedule }, &mut NoEdge, now);
        let keys = LinkKeys::derive(&split(1), Suite::Aes256Gcm, true);
        let session = Box::new(Session::new(link, link, link, keys, source, now));
        engine.apply(Command::InstallSession { session, send_now: true }, &mut NoEdge, now);
    }
}

/// Bytes of this process that are in memory.
fn resident() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).context("/proc/self/statm has no second field")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}
