//! A port that notes each cell that it is handed, and holds payload back where a leak is planted.

use crossbeam::channel::Sender;
use relay_common::wire::{LINK_HEADER_LEN, LinkHeader};
use relay_user::engine::time::Nanos;
use relay_user::port::{Peer, Port, PortCounters, PortMode, Received, TransmitError};
use relay_user::worker::Clock;
use relay_user::xsk::{Frame, FramePool};

use crate::cells::{Downstream, Opened, Pair};

/// A cell of a link towards the exit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) at: Nanos,
    /// When it was due.
    pub(super) slot: Nanos,
    pub(super) pair: u32,
    /// The link's counter, which a run does not wrap.
    pub(super) counter: u32,
    /// Cells of the same batch before it.
    pub(super) place: u32,
}

/// Which cells are held back, and how long.
pub(super) struct Leak {
    /// By pair: what opens its cells, since a port does not know what it is handed.
    pub(super) keys: Vec<Downstream>,
    pub(super) delay: Nanos,
}

/// `port`, watched.
pub(super) struct Noting<P> {
    port: P,
    clock: Clock,
    leak: Option<Leak>,
    place: u32,
    /// Of the cell that comes next.
    slot: Nanos,
    notes: Vec<Note>,
    handover: Sender<Vec<Note>>,
}

impl<P: Port> Noting<P> {
    /// Room for so many notes is written once here, so that none costs the worker a page fault. They go to `handover`
    /// when the port is closed.
    pub(super) fn new(
        port: P,
        clock: Clock,
        leak: Option<Leak>,
        room: usize,
        handover: Sender<Vec<Note>>,
    ) -> Self {
        let never = Nanos(u64::MAX);
        let blank = Note { at: never, slot: never, pair: u32::MAX, counter: u32::MAX, place: u32::MAX };
        let mut notes = vec![blank; room];
        notes.clear();
        Self { port, clock, leak, place: 0, slot: Nanos(0), notes, handover }
    }

    fn note(&mut self, frame: &Frame) {
        let header = frame.data().first_chunk::<LINK_HEADER_LEN>().and_then(LinkHeader::decode);
        let Some(header) = header else { return };
        let Some(Pair(pair)) = Pair::ahead_of(header.receiver_index) else { return };
        if let Some(leak) = &self.leak {
            leak.hold(pair, frame, self.clock);
        }
        if self.notes.len() < self.notes.capacity() {
            let counter = u32::try_from(header.counter).unwrap_or(u32::MAX);
            let (at, slot, place) = (self.clock.now(), self.slot, self.place);
            self.notes.push(Note { at, slot, pair, counter, place });
        }
        self.place += 1;
    }
}

impl Leak {
    fn hold(&self, pair: u32, frame: &Frame, clock: Clock) {
        let (Some(keys), Some(cell)) = (self.keys.get(pair as usize), frame.cell()) else { return };
        // Cover takes the same time to tell, and waits for nothing.
        let (opened, _) = keys.open(&mut cell.clone());
        if matches!(opened, Opened::Payload(_)) {
            let told = clock.now();
            while clock.now().since(told) < self.delay {
                std::hint::spin_loop();
            }
        }
    }
}

impl<P: Port> Port for Noting<P> {
    fn receive(&mut self, pool: &mut FramePool, out: &mut Vec<Received>, max: usize) -> usize {
        self.port.receive(pool, out, max)
    }

    fn set_peer(&mut self, slot: u32, peer: Option<Peer>) {
        self.port.set_peer(slot, peer);
    }

    fn announce(&mut self, slot: Nanos) {
        self.slot = slot;
    }

    fn transmit(&mut self, slot: u32, frame: Frame) -> Result<(), TransmitError> {
        self.note(&frame);
        self.port.transmit(slot, frame)
    }

    fn flush(&mut self, pool: &mut FramePool) -> bool {
        self.place = 0;
        self.port.flush(pool)
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }

    fn mode(&self) -> PortMode {
        self.port.mode()
    }
}

impl<P> Drop for Noting<P> {
    fn drop(&mut self) {
        // Whoever started the worker waits for this, unless it failed meanwhile.
        let _ = self.handover.send(std::mem::take(&mut self.notes));
    }
}
