//! A worker on a port in memory. Its links carry bursts of payload: its own audit sees a delay that the port puts on
//! payload, and nothing where there is none. Where the port makes ready: cells come before their moment, and leave at it.

use super::turning::{Joint, Turning, guard};
use super::watch::Watch;
use super::*;
use crate::crypto::{LinkKeys, Split, Suite};
use crate::engine::schedule::{Law, Schedule};
use crate::engine::{Engine, Limits, Session};
use crate::observe::live::{AuditState, Pace};
use crate::port::{BindMode, MemoryPort, PortCounters, PortMode, Received, TransmitError};
use crate::xsk::{Arena, Frame};
use crossbeam::channel::Receiver;
use rand_chacha::{ChaCha8Rng, ChaCha20Rng};
use rand_core::{Rng, SeedableRng};
use relay_common::wire::{CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand, LINK_HEADER_LEN};
use std::net::SocketAddr;

const LINKS: u32 = 16;
const RATE: u32 = 1000;
/// Short, so that a test has many.
const PACE: Pace = Pace { cluster: 64, cells: 1 << 13, span: 1 };

/// A port that holds payload up, and knows it as the peers do: by opening each cell. It orders the payload too, in bursts
/// that begin at a slot of their link: ordered by a thread, they would pause while the machine is busy, as cells are late.
struct Delaying {
    wire: MemoryPort,
    clock: Clock,
    peers: Vec<LinkKeys>,
    delay: Nanos,
    arena: &'static Arena,
    commands: Sender<ToWorker>,
    rng: ChaCha8Rng,
    /// Of each link: cells until its next burst is ordered.
    until: [u64; LINKS as usize],
}

impl Delaying {
    /// Orders a burst of a link. Returns how many cells there are from here to the next order.
    fn order(&mut self, link: u32) -> u64 {
        let [burst, pause] = [0; 2].map(|_| 1 + self.rng.next_u64() % 40);
        for frame in (0..burst).map_while(|_| self.arena.take()) {
            let command = CellCommand::RekeyInit;
            let send = Command::SendCell { link, circ_id: 0, command, hop_seq: 0, frame };
            self.commands.try_send(ToWorker::Engine(send)).expect("room for a burst of each link");
        }
        burst + pause
    }
}

impl Port for Delaying {
    fn receive(&mut self, pool: &mut FramePool, out: &mut Vec<Received>, max: usize) -> usize {
        self.wire.receive(pool, out, max)
    }

    fn set_peer(&mut self, slot: u32, peer: Option<Peer>) {
        self.wire.set_peer(slot, peer);
    }

    fn transmit(&mut self, slot: u32, frame: Frame) -> Result<(), TransmitError> {
        let mut cell = *frame.cell().expect("a cell");
        self.peers[slot as usize].receive.open_cell(&mut cell).expect("of this link");
        let header: [u8; CIRCUIT_HEADER_LEN] = *cell[LINK_HEADER_LEN..].first_chunk().unwrap();
        let command = CircuitHeader::decode(&header).map(|header| header.command);
        if command != Some(CellCommand::Cover as u8) {
            let from = self.clock.now();
            while self.clock.now().since(from) < self.delay {
                std::hint::spin_loop();
            }
        }
        self.until[slot as usize] -= 1;
        if self.until[slot as usize] == 0 {
            self.until[slot as usize] = self.order(slot);
        }
        self.wire.transmit(slot, frame)
    }

    fn flush(&mut self, pool: &mut FramePool) -> bool {
        self.wire.flush_away(pool)
    }

    fn counters(&self) -> PortCounters {
        self.wire.counters()
    }

    fn mode(&self) -> PortMode {
        self.wire.mode()
    }
}

fn split(link: u32) -> Split {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&link.to_be_bytes());
    Split { initiator_to_responder: bytes, responder_to_initiator: bytes.map(|byte| !byte) }
}

/// Links with a session each, and a wire for their cells.
fn links(clock: Clock) -> (Engine, MemoryPort) {
    let mut wire = MemoryPort::new(512);
    let address = SocketAddr::from(([192, 0, 2, 1], 7443));
    let mut engine = Engine::new(Limits { links: LINKS, circuits: 1, ..Limits::default() });
    for link in 0..LINKS {
        wire.set_peer(link, Some(Peer { local: address, remote: address, macs: None, vlan: None }));
        let mut seed = [3; 32];
        seed[..4].copy_from_slice(&link.to_be_bytes());
        let schedule = Box::new(Schedule::new(Law::Constant, RATE, clock.now(), seed));
        engine.apply(Command::AddLink { link, schedule }, &mut NodeEdge::None, clock.now());
        let keys = LinkKeys::derive(&split(link), Suite::Aes256Gcm, true);
        let session = Box::new(Session::new(link, link, link, keys, address, clock.now()));
        let install = Command::InstallSession { session, send_now: true };
        engine.apply(install, &mut NodeEdge::None, clock.now());
    }
    (engine, wire)
}

/// A worker's thread from inside, and what it tells.
fn turning<P: Port>(
    engine: Engine,
    port: P,
    arena: &'static Arena,
    clock: Clock,
    poll: Poll,
    inbox: Receiver<ToWorker>,
) -> (Turning<P>, Arc<Snapshot>) {
    let snapshot = Arc::new(Snapshot::default());
    let joint = Joint {
        inbox,
        events: Arc::new(Events::holding(EVENTS)),
        snapshot: Arc::clone(&snapshot),
        number: 0,
        crossing: None,
    };
    let pool = FramePool::new(arena, 256);
    let rng = ChaCha20Rng::seed_from_u64(1);
    let seat = Seat { engine, port, edge: NodeEdge::None, cpu: None, rng };
    (Turning::new(seat, pool, clock, poll, joint), snapshot)
}

/// What a worker tells once its audit is as wanted, or after a minute.
fn audited(delay: Nanos, wanted: impl Fn(&AuditState) -> bool) -> Totals {
    let arena = Arena::anonymous(8192).unwrap();
    let clock = Clock::start();
    let (engine, wire) = links(clock);
    let (commands, inbox) = bounded(COMMANDS);
    let port = Delaying {
        wire,
        clock,
        peers: (0..LINKS).map(|link| LinkKeys::derive(&split(link), Suite::Aes256Gcm, false)).collect(),
        delay,
        arena,
        commands: commands.clone(),
        rng: ChaCha8Rng::seed_from_u64(1),
        until: [1; LINKS as usize],
    };
    let (mut turning, snapshot) = turning(engine, port, arena, clock, Poll::Adaptive, inbox);
    turning.watch = Watch::new(LINKS, clock, PACE);
    std::thread::scope(|scope| {
        scope.spawn(|| turning.run());
        let started = Instant::now();
        while !wanted(&snapshot.read().audit) && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        commands.send(ToWorker::Stop).unwrap();
    });
    snapshot.read()
}

#[test]
fn a_delay_on_payload_raises_the_alarm_and_nothing_else_does() {
    let Totals { audit: clean, ticks, .. } = audited(Nanos(0), |audit| audit.epochs >= 2);
    assert!(clean.epochs >= 2, "{clean:?}");
    assert_eq!(clean.breaches, 0, "{clean:?}");
    assert!(ticks.all > 0 && ticks.late <= ticks.all, "{ticks:?}");
    let large = |audit: &AuditState| audit.last.is_some_and(|(_, last)| last.at_least >= 0.05);
    let delayed = audited(Nanos(8_000), large).audit;
    assert!(large(&delayed), "{delayed:?}");
}

/// A port that has something to do before cells leave, and holds their slots against the time at which they are sent for.
struct Readying {
    wire: MemoryPort,
    clock: Clock,
    waiting: Vec<Nanos>,
    /// Pieces done while cells waited, since they last left.
    pieces: u32,
    seen: Sender<Flushed>,
}

struct Flushed {
    slots: Vec<Nanos>,
    pieces: u32,
    at: Nanos,
}

impl Port for Readying {
    fn receive(&mut self, _pool: &mut FramePool, _out: &mut Vec<Received>, _max: usize) -> usize {
        0
    }

    fn set_peer(&mut self, slot: u32, peer: Option<Peer>) {
        self.wire.set_peer(slot, peer);
    }

    fn announce(&mut self, slot: Nanos) {
        self.waiting.push(slot);
    }

    fn transmit(&mut self, slot: u32, frame: Frame) -> Result<(), TransmitError> {
        self.wire.transmit(slot, frame)
    }

    fn make_ready(&mut self) -> bool {
        assert!(!self.waiting.is_empty(), "there is something to make ready");
        self.pieces += 1;
        true
    }

    fn flush(&mut self, pool: &mut FramePool) -> bool {
        let at = self.clock.now();
        let slots = std::mem::take(&mut self.waiting);
        let _ = self.seen.try_send(Flushed { slots, pieces: std::mem::take(&mut self.pieces), at });
        self.wire.flush_away(pool)
    }

    fn counters(&self) -> PortCounters {
        self.wire.counters()
    }

    fn mode(&self) -> PortMode {
        PortMode { bind: BindMode::Udp, ..self.wire.mode() }
    }
}

#[test]
fn cells_are_made_ready_before_their_moment_and_leave_at_it() {
    let arena = Arena::anonymous(2048).unwrap();
    let clock = Clock::start();
    let (engine, wire) = links(clock);
    let (seen, flushes) = bounded(1 << 12);
    let port = Readying { wire, clock, waiting: Vec::new(), pieces: 0, seen };
    let (commands, inbox) = bounded(COMMANDS);
    let (mut turning, _) = turning(engine, port, arena, clock, Poll::Busy, inbox);
    std::thread::scope(|scope| {
        scope.spawn(|| turning.run());
        let mut readied = 0;
        while readied < 100 {
            let Flushed { slots, pieces, at } =
                flushes.recv_timeout(Duration::from_secs(10)).expect("cells leave");
            assert!(slots.iter().all(|slot| *slot <= at), "{slots:?} left at {at:?}");
            readied += u32::from(pieces > 0);
        }
        commands.send(ToWorker::Stop).unwrap();
    });
}

#[test]
fn a_first_link_draws_the_grid_and_others_keep_it() {
    let arena = Arena::anonymous(512).unwrap();
    let clock = Clock::start();
    let engine = Engine::new(Limits { links: LINKS, circuits: 1, ..Limits::default() });
    let (commands, inbox) = bounded(COMMANDS);
    let (mut turning, _) = turning(engine, MemoryPort::new(512), arena, clock, Poll::Busy, inbox);
    let mut grids = vec![turning.grid];
    let mut after = |command| {
        commands.send(ToWorker::Engine(command)).unwrap();
        assert!(turning.obey(clock.now()));
        grids.push(turning.grid);
    };
    let add = |link| {
        let schedule = Box::new(Schedule::new(Law::Constant, RATE, clock.now(), [3; 32]));
        Command::AddLink { link, schedule }
    };
    after(add(0));
    after(add(1));
    after(Command::RemoveLink { link: 0 });
    after(add(0));
    after(Command::RemoveLink { link: 0 });
    after(Command::RemoveLink { link: 1 });
    after(add(1));
    let draws: Vec<bool> = grids.windows(2).map(|grids| grids[0] != grids[1]).collect();
    assert_eq!(draws, [true, false, false, false, false, false, true]);
}

#[test]
fn a_guard_leaves_most_of_the_time_to_work() {
    let longest = Nanos(16_000);
    assert_eq!(guard(Nanos(500_000), longest), longest);
    assert_eq!(guard(Nanos(32_003), longest), Nanos(8_000), "cells at every moment");
    assert_eq!(guard(Nanos(0), longest), Nanos(1_000));
    assert_eq!(guard(Nanos(500_000), Nanos(1_000)), Nanos(1_000), "a port whose pieces are short");
}

#[test]
fn a_microsecond_is_not_late() {
    let mut ticks = Ticks::default();
    [0, 1_000, 1_001, 50_000].into_iter().for_each(|late| ticks.count(Nanos(late)));
    assert_eq!(ticks, Ticks { all: 4, late: 2 });
}
