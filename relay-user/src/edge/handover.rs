//! Packets that came to another worker's queue than that of their circuit.

use std::sync::Arc;

use super::packing::MAX_PACKET;
use super::pieces::{Piece, Round};

/// Packets that may wait for a worker: eight turns of it.
const WAITING: usize = 256;

/// The inboxes of `workers` workers, each with room for [`WAITING`] packets; none for a single worker.
pub(super) fn inboxes(workers: u32) -> Arc<[Round]> {
    (0..workers).filter(|_| workers > 1).map(|_| Round::new(WAITING, MAX_PACKET)).collect()
}

/// One worker's way to the others.
pub(super) struct Handover {
    inboxes: Arc<[Round]>,
    own: u32,
    /// The packet that was taken last.
    current: Option<Piece>,
}

impl Handover {
    pub(super) fn new(inboxes: Arc<[Round]>, own: u32) -> Self {
        Self { inboxes, own, current: None }
    }

    /// The worker whose end this is.
    pub(super) fn own(&self) -> u32 {
        self.own
    }

    /// Passes a packet to the worker `to`. False when too many wait there.
    pub(super) fn pass(&self, to: u32, packet: &[u8]) -> bool {
        self.inboxes.get(to as usize).is_some_and(|inbox| inbox.pass(packet, 1))
    }

    /// Goes to the next packet from another worker: [`Handover::packet`]. False when none waits.
    pub(super) fn take(&mut self) -> bool {
        let Some(inbox) = self.inboxes.get(self.own as usize) else { return false };
        if let Some(done) = self.current.take() {
            inbox.give_back(done);
        }
        self.current = inbox.take();
        self.current.is_some()
    }

    /// The packet taken last; may be changed in place.
    pub(super) fn packet(&mut self) -> &mut [u8] {
        self.current.as_mut().map_or(&mut [], Piece::content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_arrive_in_order_and_a_full_inbox_refuses() {
        assert_eq!(inboxes(1).len(), 0);
        let inboxes = inboxes(2);
        let mut ends = [0, 1].map(|own| Handover::new(Arc::clone(&inboxes), own));
        let packet = |value: usize| vec![u8::try_from(value).unwrap(); 1400 - value];
        for value in 0..WAITING {
            assert!(ends[0].pass(1, &packet(value)), "{value}");
        }
        assert!(!ends[0].pass(1, &[1]), "more than there is room for");
        assert!(!ends[0].pass(2, &[1]), "nobody is there");
        assert!(!ends[0].take(), "nothing came back");
        for value in 0..WAITING {
            assert!(ends[1].take());
            assert_eq!(ends[1].packet(), packet(value));
        }
        assert!(!ends[1].take());
        // All are free again, round after round.
        for _ in 0..3 {
            for _ in 0..WAITING {
                assert!(ends[0].pass(1, &[7; MAX_PACKET]));
            }
            assert!(!ends[0].pass(1, &[7]));
            assert!((0..WAITING).all(|_| ends[1].take()));
            assert!(!ends[1].take());
        }
        assert!(!ends[0].pass(1, &[0; MAX_PACKET + 1]));
    }
}
