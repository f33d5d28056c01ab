//! Bytes on their way from one thread to another, in buffers that go round: taken empty, passed full, given back.

use crossbeam::queue::ArrayQueue;

/// A buffer and how much of it is of use.
pub(super) struct Piece {
    /// As long as all pieces of its round.
    pub(super) bytes: Box<[u8]>,
    pub(super) len: usize,
    /// Packets in it.
    pub(super) packets: u64,
}

impl Piece {
    /// What it carries; may be changed in place.
    pub(super) fn content(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

/// A way with room for so many pieces as were made with it.
pub(super) struct Round {
    full: ArrayQueue<Piece>,
    empty: ArrayQueue<Piece>,
}

impl Round {
    /// `count` pieces, at least one, of up to `longest` bytes.
    pub(super) fn new(count: usize, longest: usize) -> Self {
        let count = count.max(1);
        let round = Self { full: ArrayQueue::new(count), empty: ArrayQueue::new(count) };
        for _ in 0..count {
            round.give_back(Piece { bytes: vec![0; longest].into(), len: 0, packets: 0 });
        }
        round
    }

    /// Copies `bytes`, which are `packets` packets, into a piece and passes it. False when all pieces are on their way, or
    /// none is so long.
    pub(super) fn pass(&self, bytes: &[u8], packets: u64) -> bool {
        let Some(mut piece) = self.empty.pop() else { return false };
        let Some(room) = piece.bytes.get_mut(..bytes.len()) else {
            self.give_back(piece);
            return false;
        };
        room.copy_from_slice(bytes);
        self.pass_piece(Piece { len: bytes.len(), packets, ..piece });
        true
    }

    /// Passes a piece of this round.
    pub(super) fn pass_piece(&self, piece: Piece) {
        // Each piece is in one of the two queues or in one hand, so that both always have a place for it.
        let _ = self.full.push(piece);
    }

    /// The next full piece, to be given back.
    pub(super) fn take(&self) -> Option<Piece> {
        self.full.pop()
    }

    /// An empty piece, to be passed or given back.
    pub(super) fn spare(&self) -> Option<Piece> {
        self.empty.pop()
    }

    /// Makes a piece of this round empty again.
    pub(super) fn give_back(&self, piece: Piece) {
        let _ = self.empty.push(piece);
    }
}
