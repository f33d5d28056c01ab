//! What a packet costs at the TUN edges, with segments in one piece and one by one: a TCP transfer each way through a
//! client's and an exit's edge, joined in memory, so that nothing but the edges and the kernel behind them is measured.
//! A packet's cost is the processor time of the thread that moves packets, within the calls that read or write them.

mod rig;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use relay_common::wire::DATA_LEN;
use relay_user::edge::ip::INNER_MTU;
use relay_user::edge::{BlockKind, EdgeDrop, Offload, Packer, Reassembler, TunCounters};
use rig::{CIRCUIT, Edges, Rig};
use rustix::time::{ClockId, clock_gettime};

use crate::figure::Target;
use crate::session::Session;

/// Bytes of each transfer.
const BYTES: usize = 64 << 20;
/// Pairs of transfers without and with offload, each way.
const ROUNDS: usize = 7;
/// Packets that go through in a turn: what a worker takes at most, and what is left of that when each turn brings one
/// cell, so that there is nothing to join.
const TURNS: [(usize, &str); 2] = [(32, "32 a turn"), (1, "1 a turn")];
/// How long the mover sleeps when nothing waits, about as long as a worker at 10 000 cells a second.
const IDLE: Duration = Duration::from_micros(100);
/// Bytes of a write of the sending program.
const CHUNK: usize = 128 << 10;

/// The four places where packets pass, as in the figures' names.
const PLACES: [&str; 4] = ["client read", "exit write", "exit read", "client write"];

/// What passed one place.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    calls: u64,
    packets: u64,
    cpu: Duration,
}

/// Measures.
///
/// # Errors
/// Where namespaces, devices or NAT cannot be made: without root, or without `nft`.
pub fn run(session: &mut Session) -> Result<()> {
    ensure!(relay_tests::privilege::is_root(), "namespaces and TUN devices need root; run it as root");
    let rig = Rig::build()?;
    for (turn, name) in TURNS {
        measure(session, &rig, turn, name)?;
    }
    Ok(())
}

fn measure(session: &mut Session, rig: &Rig, turn: usize, name: &str) -> Result<()> {
    let (bytes, rounds) = if session.quick { (BYTES / 8, 3) } else { (BYTES, ROUNDS) };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // By offload, place and round.
    let mut all: [[Vec<Passed>; PLACES.len()]; 2] = Default::default();
    for round in 1..=rounds {
        for (offload, rows) in [Offload::Off, Offload::Auto].into_iter().zip(&mut all) {
            session.progress(&format!("{name}, round {round} of {rounds}, offload {offload:?}"));
            let mut edges = rig.open(offload, &mut rng)?;
            if offload == Offload::Auto && !edges.client.tun().has_offload() {
                session.skip(name, None, "this kernel's TUN has no offload; use Linux 2.6.32 or later");
                return rig.close(edges);
            }
            let passed = transfers(rig, &mut edges, bytes, turn);
            rig.close(edges)?;
            for (row, place) in rows.iter_mut().zip(passed?) {
                row.push(place);
            }
        }
    }
    for (at, place) in PLACES.into_iter().enumerate() {
        let [off, on] = all.each_ref().map(|rows| median(&rows[at], Passed::packets_per_call));
        session.measured(format!("{place}, {name}: packets per call without"), off, "packets", None);
        session.measured(format!("{place}, {name}: packets per call with offload"), on, "packets", None);
        let [off, on] = all.each_ref().map(|rows| median(&rows[at], Passed::cpu_us));
        session.measured(format!("{place}, {name}: CPU per packet without"), off, "us", None);
        session.measured(format!("{place}, {name}: CPU per packet with offload"), on, "us", None);
        // With one packet a turn nothing can be saved at writing; the figure says what trying costs.
        let target = (turn > 1).then_some(Target::Below(1.0));
        session.measured(format!("{place}, {name}: CPU with / without"), on / off, "ratio", target);
    }
    Ok(())
}

/// Transfers `bytes` to the service and as many back.
fn transfers(rig: &Rig, edges: &mut Edges, bytes: usize, turn: usize) -> Result<[Passed; PLACES.len()]> {
    let listener = rig.listen()?;
    let mut leg = |to_service: bool| -> Result<[Passed; PLACES.len()]> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| join(edges, turn, &done));
            let sent = rig.connect(&listener).and_then(|(near, far)| {
                if to_service { transfer(near, far, bytes) } else { transfer(far, near, bytes) }
            });
            done.store(true, Ordering::Relaxed);
            let passed = mover.join().ok().context("the thread that moves packets ended in a panic")?;
            sent.map(|()| passed)
        })
    };
    let (up, down) = (leg(true)?, leg(false)?);
    let passed = [up[0], up[1], down[2], down[3]];
    for (place, passed) in PLACES.into_iter().zip(passed) {
        let least = (bytes / usize::from(INNER_MTU)) as u64;
        ensure!(
            passed.packets >= least,
            "{place}: {} packets cannot have carried {bytes} bytes",
            passed.packets
        );
    }
    for (edge, drops) in [("client", edges.client.drops()), ("exit", edges.exit.drops())] {
        for reason in [EdgeDrop::QueueFull, EdgeDrop::TunFull, EdgeDrop::TunFailed, EdgeDrop::Length] {
            let count = drops.get(reason);
            ensure!(count == 0, "the {edge}'s edge dropped {count} packets: {}", reason.name());
        }
    }
    Ok(passed)
}

/// Sends `bytes` and waits until all have arrived.
fn transfer(mut from: TcpStream, mut to: TcpStream, bytes: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            let chunk = vec![0x5A; CHUNK];
            for _ in 0..bytes / CHUNK {
                from.write_all(&chunk).context("the transfer stands still")?;
            }
            Ok(from.shutdown(Shutdown::Write)?)
        });
        let (mut buffer, mut got) = (vec![0; CHUNK], 0);
        loop {
            match to.read(&mut buffer).context("the transfer stands still")? {
                0 => break,
                length => got += length,
            }
        }
        sender.join().ok().context("the sender ended in a panic")??;
        if got != bytes {
            bail!("{got} of {bytes} bytes arrived");
        }
        Ok(())
    })
}

/// Moves packets both ways until `done`, as two workers would; says what passed each place.
fn join(edges: &mut Edges, turn: usize, done: &AtomicBool) -> [Passed; PLACES.len()] {
    let Edges { client, exit } = edges;
    let (mut up, mut down) = (Way::new(), Way::new());
    let clock = clock_cost();
    let mut cpu = [Duration::ZERO; PLACES.len()];
    let before = (*client.tun().counters(), *exit.tun().counters());
    while !done.load(Ordering::Relaxed) {
        let read = timed(&mut cpu[0], clock, || client.pump(&mut up.packer, 0, turn));
        let waiting = up.carry();
        if !waiting.ends.is_empty() {
            timed(&mut cpu[1], clock, || {
                waiting.each(|kind, packet| exit.deliver(CIRCUIT, kind, packet));
                exit.flush();
                waiting.ends.len()
            });
        }
        let answers = timed(&mut cpu[2], clock, || {
            let mut budget = turn;
            let mut moved = 0;
            while let Some((_, kind, packet)) = exit.read(&mut budget) {
                moved += 1;
                if down.packer.push(kind, packet, 0).is_err() {
                    exit.refused();
                }
            }
            moved
        });
        let waiting = down.carry();
        if !waiting.ends.is_empty() {
            timed(&mut cpu[3], clock, || {
                waiting.each(|kind, packet| client.deliver(kind, packet));
                client.flush();
                waiting.ends.len()
            });
        }
        if read + answers == 0 {
            std::thread::sleep(IDLE);
        }
    }
    let after = (*client.tun().counters(), *exit.tun().counters());
    let reads = |before: TunCounters, after: TunCounters| {
        (after.reads - before.reads, after.packets_read - before.packets_read)
    };
    let writes = |before: TunCounters, after: TunCounters| {
        (after.writes - before.writes, after.packets_written - before.packets_written)
    };
    let counted = [
        reads(before.0, after.0),
        writes(before.1, after.1),
        reads(before.1, after.1),
        writes(before.0, after.0),
    ];
    let mut passed = [Passed::default(); PLACES.len()];
    for ((place, (calls, packets)), cpu) in passed.iter_mut().zip(counted).zip(cpu) {
        *place = Passed { calls, packets, cpu };
    }
    passed
}

/// Adds the thread's processor time within `work`, less what reading the clock takes, where that moved any packet.
fn timed(cpu: &mut Duration, clock: Duration, work: impl FnOnce() -> usize) -> usize {
    let start = thread_time();
    let moved = work();
    if moved > 0 {
        *cpu += thread_time().saturating_sub(start + clock);
    }
    moved
}

/// What reading the clock adds to a measured span: the median of empty spans.
fn clock_cost() -> Duration {
    let mut spans: Vec<_> = (0..1001)
        .map(|_| {
            let start = thread_time();
            thread_time().saturating_sub(start)
        })
        .collect();
    spans.sort_unstable();
    spans[spans.len() / 2]
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// One direction: packets into cells, and out of them to where they wait.
struct Way {
    packer: Packer,
    reassembler: Reassembler,
    next: u64,
    waiting: Waiting,
}

/// Packets out of cells, one behind another; memory is kept from turn to turn.
struct Waiting {
    bytes: Vec<u8>,
    ends: Vec<(BlockKind, usize)>,
}

impl Waiting {
    fn each(&self, mut sink: impl FnMut(BlockKind, &[u8])) {
        let mut start = 0;
        for &(kind, end) in &self.ends {
            sink(kind, &self.bytes[start..end]);
            start = end;
        }
    }
}

impl Way {
    fn new() -> Self {
        let waiting = Waiting { bytes: Vec::with_capacity(1 << 16), ends: Vec::with_capacity(64) };
        Self { packer: Packer::new(1 << 16), reassembler: Reassembler::new(64), next: 0, waiting }
    }

    fn carry(&mut self) -> &Waiting {
        let Self { packer, reassembler, next, waiting } = self;
        waiting.bytes.clear();
        waiting.ends.clear();
        let mut data = [0; DATA_LEN];
        while !packer.is_empty() {
            let fill = packer.fill(&mut data, 0);
            reassembler.accept(*next, &data, fill.block_offset, &mut |kind, packet| {
                waiting.bytes.extend_from_slice(packet);
                waiting.ends.push((kind, waiting.bytes.len()));
            });
            *next += 1;
        }
        waiting
    }
}

impl Passed {
    fn packets_per_call(&self) -> f64 {
        self.packets as f64 / self.calls as f64
    }

    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.packets as f64
    }
}

fn median(rounds: &[Passed], of: impl Fn(&Passed) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
