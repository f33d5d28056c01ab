//! A port in memory that notes when each cell is handed to it, and lets cells arrive when they are due.

use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use relay_user::engine::time::Nanos;
use relay_user::port::{MemoryPort, Peer, Port, PortCounters, PortMode, Received, TransmitError};
use relay_user::worker::Clock;
use relay_user::xsk::{Frame, FramePool};
use std::sync::Arc;

/// Datagrams that one direction of the wire holds: more than a worker moves in a turn.
const WIRE: usize = 256;
/// A turn that took longer was interrupted, and says nothing of the worker.
const INTERRUPTED: Nanos = Nanos(200_000);

/// A cell on its way to the relay.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) at: Nanos,
    pub(super) datagram: Received,
}

/// What the port saw until its end.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Link, and when a cell of it was handed over.
    pub(super) sent: Vec<(u32, Nanos)>,
    /// Cells that arrived.
    pub(super) arrived: u64,
    /// Turns of the worker between two instants, without those that were interrupted.
    pub(super) turns: u64,
    /// The time that those turns took.
    pub(super) turning: Nanos,
    /// The cells that arrived in them.
    pub(super) taken: u64,
    /// The longest of them.
    pub(super) longest_turn: Nanos,
}

/// The port.
pub(super) struct PacedPort {
    wire: MemoryPort,
    clock: Clock,
    arrivals: Arc<ArrayQueue<Arrival>>,
    next: Option<Arrival>,
    /// Turns count from here.
    from: Nanos,
    /// Nothing counts from here.
    until: Nanos,
    last_turn: Nanos,
    /// Cells that arrived in this turn.
    taken: u64,
    notes: Notes,
    handover: Sender<Notes>,
}

impl PacedPort {
    /// A port that notes up to `room` cells until `until`, and turns from `from`; the notes go to `handover` when the
    /// port is closed.
    pub(super) fn new(
        peers: &[Peer],
        clock: Clock,
        arrivals: Arc<ArrayQueue<Arrival>>,
        (from, until): (Nanos, Nanos),
        room: usize,
        handover: Sender<Notes>,
    ) -> Self {
        let mut wire = MemoryPort::new(WIRE);
        for (slot, peer) in (0..).zip(peers) {
            wire.set_peer(slot, Some(*peer));
        }
        // Written once, so that no note costs the worker a page fault.
        let mut sent = vec![(u32::MAX, Nanos(u64::MAX)); room];
        sent.clear();
        let notes = Notes { sent, ..Notes::default() };
        Self {
            wire,
            clock,
            arrivals,
            next: None,
            from,
            until,
            last_turn: Nanos(0),
            taken: 0,
            notes,
            handover,
        }
    }

    fn turn(&mut self, now: Nanos) {
        let took = now.since(self.last_turn);
        if self.last_turn >= self.from && now < self.until && took < INTERRUPTED {
            self.notes.turns += 1;
            self.notes.taken += self.taken;
            self.notes.turning = self.notes.turning + took;
            self.notes.longest_turn = self.notes.longest_turn.max(took);
        }
        self.last_turn = now;
        self.taken = 0;
    }
}

impl Port for PacedPort {
    fn receive(&mut self, pool: &mut FramePool, out: &mut Vec<Received>, max: usize) -> usize {
        let now = self.clock.now();
        self.turn(now);
        for _ in 0..max {
            let Some(arrival) = self.next.take().or_else(|| self.arrivals.pop()) else { break };
            if arrival.at > now {
                self.next = Some(arrival);
                break;
            }
            self.notes.arrived += u64::from(now < self.until);
            self.taken += 1;
            self.wire.deliver(arrival.datagram);
        }
        self.wire.receive(pool, out, max)
    }

    fn set_peer(&mut self, slot: u32, peer: Option<Peer>) {
        self.wire.set_peer(slot, peer);
    }

    fn transmit(&mut self, slot: u32, frame: Frame) -> Result<(), TransmitError> {
        let now = self.clock.now();
        if now < self.until && self.notes.sent.len() < self.notes.sent.capacity() {
            self.notes.sent.push((slot, now));
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

impl Drop for PacedPort {
    fn drop(&mut self) {
        // Whoever started the worker waits for this, unless it failed meanwhile.
        let _ = self.handover.send(std::mem::take(&mut self.notes));
    }
}
