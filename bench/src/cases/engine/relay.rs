//! A middle relay in memory: cells in from the entry's side, cells out at the slots of the exit's side.

use relay_common::wire::{
    BODY_OFFSET, CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand, HopCommand,
    LAYER_FIELDS_LEN, LINK_HEADER_LEN, LayerFields, LinkHeader, TAG_LEN, layer_len,
};
use relay_user::crypto::{HopKeys, LinkKeys, Split, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, Engine, Event, Limits, NoEdge, Session, Side, blank_cell};
use relay_user::xsk::{Arena, Frame, FramePool};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Cells per measurement; half of what a circuit's queue holds.
pub(super) const BATCH: usize = 32;

const BACK: Side = Side { link: 0, circ_id: 5 };
const AHEAD: Side = Side { link: 1, circ_id: 6 };
/// Slots that come due in one turn of the worker.
const TURN: usize = 8;
/// Slots per second towards the exit: the engine's highest, so that a batch is over before the clock means anything.
const RATE: u32 = 200_000;
const PERIOD: Nanos = Nanos(Nanos::SECOND.0 / RATE as u64);
/// The place of the relay on the circuit.
const DEPTH: usize = 1;

/// Times of the two halves of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halves {
    /// Link open, hop layer, queue.
    pub(super) receive: Duration,
    /// Slots: choose, seal, hand over.
    pub(super) send: Duration,
}

/// The relay, and the keys of those around it.
pub(super) struct Relay {
    engine: Engine,
    pool: FramePool,
    entry: LinkKeys,
    hop: HopKeys,
    source: SocketAddr,
    counter: u64,
    hop_seq: u64,
    now: Nanos,
    frames: Vec<Frame>,
}

impl Default for Relay {
    fn default() -> Self {
        Self::new()
    }
}

impl Relay {
    /// A relay with two links and one circuit that is ready to carry cells towards the exit.
    ///
    /// # Panics
    /// Where the machine has no memory for 1024 frames.
    pub(super) fn new() -> Self {
        let arena = Arena::anonymous(1024).expect("2 MiB of frames");
        let now = Nanos(Nanos::SECOND.0);
        let source = SocketAddr::from(([192, 0, 2, 1], 7443));
        let limits = Limits { links: 2, circuits: 4, ..Limits::default() };
        let mut relay = Self {
            engine: Engine::new(limits),
            pool: FramePool::new(arena, 256),
            entry: LinkKeys::derive(&split(1), Suite::Aes256Gcm, true),
            hop: HopKeys::derive(&split(3), Suite::Aes256Gcm),
            source,
            counter: 0,
            hop_seq: 0,
            now,
            frames: Vec::with_capacity(BATCH),
        };
        // Towards the entry one slot per second: what is sent there must not count.
        for (link, rate, initiator) in [(BACK.link, 1, false), (AHEAD.link, RATE, true)] {
            let schedule = Box::new(Schedule::without_offset(Law::Constant, rate, now, [7; 32]));
            relay.apply(Command::AddLink { link, schedule });
            let keys = LinkKeys::derive(&split(1 + u8::from(initiator)), Suite::Aes256Gcm, initiator);
            let session = Box::new(Session::new(link, link, link, keys, source, now));
            relay.apply(Command::InstallSession { session, send_now: initiator });
        }
        let keys = Box::new(HopKeys::derive(&split(3), Suite::Aes256Gcm));
        relay.apply(Command::AddCarried { circuit: 0, back: BACK, depth: DEPTH, keys, seq: 1 });
        relay.prepare(|relay| relay.layered(HopCommand::Extend));
        relay.batch();
        while let Some(event) = relay.engine.pop_event() {
            if let Event::Extend { circuit, frame, .. } = event {
                relay.apply(Command::Extend { circuit, ahead: AHEAD, frame });
            }
        }
        // Slots begin a lead after the session: let them run evenly first.
        for _ in 0..4 {
            relay.batch();
        }
        relay
    }

    /// Forwards one batch of cells of the circuit.
    pub(super) fn forward(&mut self) -> Halves {
        for _ in 0..BATCH {
            self.prepare(|relay| relay.layered(HopCommand::Forward));
        }
        let sent = self.engine.counters().sent;
        let halves = self.batch();
        self.check(sent);
        halves
    }

    /// Takes one batch of cover in, and sends one batch of cover.
    pub(super) fn cover(&mut self) -> Halves {
        for _ in 0..BATCH {
            self.prepare(Self::link_cover);
        }
        let sent = self.engine.counters().sent;
        let halves = self.batch();
        self.check(sent);
        halves
    }

    fn check(&self, sent_before: u64) {
        let counters = self.engine.counters();
        let sent = counters.sent - sent_before;
        assert!(sent.abs_diff(BATCH as u64) <= 2, "{sent} cells sent in a batch");
        let dropped: u64 = relay_user::engine::DropReason::ALL.iter().map(|&r| counters.dropped(r)).sum();
        assert_eq!((dropped, counters.missed_slots), (0, 0), "a benchmark of cells that were dropped");
    }

    fn batch(&mut self) -> Halves {
        let start = Instant::now();
        for frame in self.frames.drain(..) {
            self.engine.receive(frame, self.source, &mut NoEdge, self.now);
        }
        let received = Instant::now();
        for _ in 0..BATCH / TURN {
            self.now = self.now + Nanos(TURN as u64 * PERIOD.0);
            self.engine.stage(self.now, BATCH, &mut self.pool, &mut NoEdge);
            let pool = &mut self.pool;
            self.engine.emit(self.now, |_, frame| {
                pool.put(frame);
                Ok(())
            });
        }
        Halves { receive: received - start, send: received.elapsed() }
    }

    fn prepare(&mut self, cell: impl FnOnce(&mut Self) -> [u8; CELL_LEN]) {
        let cell = cell(self);
        let mut frame = self.pool.take().expect("more frames than a batch");
        *blank_cell(&mut frame).expect("a cell fits a frame") = cell;
        self.frames.push(frame);
    }

    fn layered(&mut self, command: HopCommand) -> [u8; CELL_LEN] {
        self.hop_seq += 1;
        let mut cell = self.plain(BACK.circ_id, CellCommand::Relay, self.hop_seq);
        let layer = &mut cell[BODY_OFFSET..BODY_OFFSET + layer_len(DEPTH)];
        let fields = LayerFields { command: command as u8, flags: 0, length: 0 };
        let at = layer.len() - TAG_LEN - LAYER_FIELDS_LEN;
        layer[at..at + LAYER_FIELDS_LEN].copy_from_slice(&fields.encode());
        self.hop.forward.seal_layer(self.hop_seq, layer);
        self.entry.send.seal_cell(&mut cell);
        cell
    }

    fn link_cover(&mut self) -> [u8; CELL_LEN] {
        let mut cell = self.plain(0, CellCommand::Cover, 0);
        self.entry.send.seal_cell(&mut cell);
        cell
    }

    fn plain(&mut self, circ_id: u32, command: CellCommand, hop_seq: u64) -> [u8; CELL_LEN] {
        let mut cell = [0; CELL_LEN];
        let header = LinkHeader { receiver_index: BACK.link, counter: self.counter };
        self.counter += 1;
        cell[..LINK_HEADER_LEN].copy_from_slice(&header.encode());
        let header = CircuitHeader { circ_id, command: command as u8, key_epoch: 0, hop_seq };
        cell[LINK_HEADER_LEN..LINK_HEADER_LEN + CIRCUIT_HEADER_LEN].copy_from_slice(&header.encode());
        cell
    }

    fn apply(&mut self, command: Command) {
        self.engine.apply(command, &mut NoEdge, self.now);
    }
}

/// Secrets that two ends share without a handshake.
pub(super) fn split(fill: u8) -> Split {
    Split { initiator_to_responder: [fill; 32], responder_to_initiator: [!fill; 32] }
}
