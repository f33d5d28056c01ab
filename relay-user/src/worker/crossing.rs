//! Cells that arrive at another worker than the one whose session they belong to: the kernel hands a packet only to the
//! queue it came in by, and it is the NIC that chooses the queue.

use crate::xsk::{Arena, Frame, Giver, Taker, handover};
use relay_common::abi::{SESSION_SLOTS, session_slot};
use relay_common::wire::{DatagramType, LinkHeader};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Cells that may wait between two workers; a power of two.
const RING: u32 = 1024;
/// Stands for no worker.
const NOBODY: u8 = u8::MAX;

/// Which worker has the session of each slot of the XDP program's map. Written by the control plane, read by workers
/// for each cell.
#[derive(Debug)]
pub struct Owners(Box<[AtomicU8]>);

impl Owners {
    pub(super) fn new() -> Self {
        Self((0..SESSION_SLOTS).map(|_| AtomicU8::new(NOBODY)).collect())
    }

    /// Notes who has the session with `receive_index`; `None` where nobody has it yet or any more.
    pub fn set(&self, receive_index: u32, worker: Option<u16>) {
        let worker = worker.and_then(|worker| u8::try_from(worker).ok()).unwrap_or(NOBODY);
        self.0[session_slot(receive_index) as usize].store(worker, Ordering::Relaxed);
    }

    /// Who has the session with `receive_index`. Only a hint: the engine that gets the cell looks for itself.
    pub fn get(&self, receive_index: u32) -> Option<u16> {
        let worker = self.0[session_slot(receive_index) as usize].load(Ordering::Relaxed);
        (worker != NOBODY).then_some(worker.into())
    }
}

/// What a worker's queue had to do with other workers, in cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrossingCounters {
    /// Handed to the worker that has the session.
    pub given: u64,
    /// Taken from another worker's queue.
    pub taken: u64,
    /// Dropped since the ring to that worker was full.
    pub full: u64,
    /// Dropped since no worker has the session: the first of a new link, or of one just removed.
    pub unowned: u64,
}

/// Whose an arrived cell is.
pub(super) enum Owner {
    Me,
    Other(u16),
    Nobody(u32),
}

/// One worker's ends of the rings between it and all others.
pub(super) struct Crossing {
    me: u16,
    owners: Arc<Owners>,
    givers: Vec<Option<Giver>>,
    takers: Vec<Taker>,
    pub(super) counters: CrossingCounters,
}

impl Crossing {
    /// The ends of `count` workers, in their order.
    pub(super) fn among(count: u16, arena: &'static Arena, owners: &Arc<Owners>) -> Vec<Self> {
        let mut all: Vec<Self> = (0..count)
            .map(|me| Self {
                me,
                owners: Arc::clone(owners),
                givers: Vec::with_capacity(count.into()),
                takers: Vec::with_capacity(count.into()),
                counters: CrossingCounters::default(),
            })
            .collect();
        for from in 0..usize::from(count) {
            for to in 0..usize::from(count) {
                let giver = (from != to).then(|| {
                    let (giver, taker) = handover(arena, RING);
                    all[to].takers.push(taker);
                    giver
                });
                all[from].givers.push(giver);
            }
        }
        all
    }

    pub(super) fn owner(&self, frame: &Frame) -> Owner {
        // What is no cell is the engine's to count.
        let header = frame.data().first_chunk().filter(|bytes| bytes[0] == DatagramType::Cell as u8);
        let Some(LinkHeader { receiver_index, .. }) = header.and_then(LinkHeader::decode) else {
            return Owner::Me;
        };
        match self.owners.get(receiver_index) {
            Some(worker) if worker == self.me => Owner::Me,
            Some(worker) => Owner::Other(worker),
            None => Owner::Nobody(receiver_index),
        }
    }

    /// Hands a cell over, for its owner to see after [`Self::publish`].
    pub(super) fn give(&mut self, to: u16, frame: Frame, source: SocketAddr) {
        let giver = self.givers.get_mut(usize::from(to)).and_then(Option::as_mut);
        match giver.map(|giver| giver.give(frame, source)) {
            Some(Ok(())) => self.counters.given += 1,
            _ => self.counters.full += 1,
        }
    }

    pub(super) fn publish(&mut self) {
        for giver in self.givers.iter_mut().flatten() {
            giver.publish();
        }
    }

    /// Passes up to `max` cells from each other worker to `receive`.
    pub(super) fn take(&mut self, max: usize, mut receive: impl FnMut(Frame, SocketAddr)) {
        for taker in &mut self.takers {
            for _ in 0..max {
                let Some((frame, source)) = taker.take() else { break };
                self.counters.taken += 1;
                receive(frame, source);
            }
            taker.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(arena: &'static Arena, receiver_index: u32) -> Frame {
        let mut frame = arena.take().unwrap();
        let header = LinkHeader { receiver_index, counter: 7 }.encode();
        frame.data_mut()[..header.len()].copy_from_slice(&header);
        frame
    }

    #[test]
    fn cells_reach_whoever_has_their_session_and_no_frame_is_lost() {
        let arena = Arena::anonymous(64).unwrap();
        let owners = Arc::new(Owners::new());
        let mut all = Crossing::among(3, arena, &owners);
        let source = SocketAddr::from(([192, 0, 2, 1], 7443));
        owners.set(0x4001, Some(2));
        owners.set(0x8002, Some(0));
        assert!(matches!(all[0].owner(&cell(arena, 0x4001)), Owner::Other(2)));
        assert!(matches!(all[0].owner(&cell(arena, 0x8002)), Owner::Me));
        assert!(matches!(all[0].owner(&cell(arena, 0x8003)), Owner::Nobody(0x8003)));
        all[0].give(2, cell(arena, 0x4001), source);
        all[1].give(2, cell(arena, 0x4001), source);
        for crossing in &mut all {
            crossing.publish();
        }
        let mut taken = 0;
        all[2].take(8, |frame, from| {
            assert_eq!((frame.cell().is_some(), from), (true, source));
            taken += 1;
        });
        assert_eq!(taken, 2);
        assert_eq!((all[0].counters.given, all[2].counters.taken), (1, 2));
        all[0].give(0, cell(arena, 1), source);
        assert_eq!(all[0].counters.full, 1, "there is no ring to oneself");
        owners.set(0x4001, None);
        assert!(matches!(all[1].owner(&cell(arena, 0x4001)), Owner::Nobody(_)));
        all[0].give(1, cell(arena, 0x4001), source);
        drop(all);
        assert_eq!(arena.free_frames(), 64);
    }
}
