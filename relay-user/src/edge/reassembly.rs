//! Cells back into packets, whatever the network did to the cells' order.
//!
//! Cells are consumed in the order of their `hop_seq`. One that comes early waits in a window of slots allocated once;
//! a missing one is given up when the window runs full behind it or [`Reassembler::flush`] finds that it has been
//! missing for too long. A cell given up costs the packets that it carried a part of, and no other.

use relay_common::wire::DATA_LEN;

use super::packing::{BLOCK_HEADER_LEN, BlockKind, MAX_PACKET};

/// Nanoseconds after which [`Reassembler::flush`] gives a missing cell up. RFC 9347, section 2.2.3, leaves the time to
/// the receiver; 20 ms are the 30 next cells of the slowest class in use (1500 per second), more than paths reorder.
pub const REORDER_TIMEOUT: u64 = 20_000_000;

/// Why a cell or a block was not delivered.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReassemblyDrop {
    /// The cell came twice, or after it had been given up.
    LateCell,
    /// A cell never came, or not in time.
    LostCell,
    /// A packet lost a part with such a cell.
    CutPacket,
    /// The block offset contradicts what the cells before announced.
    BlockOffset,
    /// The kind byte names nothing.
    BlockKind,
    /// The length is zero or above [`MAX_PACKET`].
    BlockLength,
    /// The header would straddle two cells.
    BlockHeader,
}

impl ReassemblyDrop {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 7] = [
        Self::LateCell,
        Self::LostCell,
        Self::CutPacket,
        Self::BlockOffset,
        Self::BlockKind,
        Self::BlockLength,
        Self::BlockHeader,
    ];

    /// The reason's name in status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LateCell => "late_cell",
            Self::LostCell => "lost_cell",
            Self::CutPacket => "cut_packet",
            Self::BlockOffset => "block_offset",
            Self::BlockKind => "block_kind",
            Self::BlockLength => "block_length",
            Self::BlockHeader => "block_header",
        }
    }
}

type Counts = [u64; ReassemblyDrop::ALL.len()];

/// The receiving end of one circuit.
#[derive(Debug)]
pub struct Reassembler {
    slots: Box<[Slot]>,
    /// Slots in use.
    held: usize,
    /// The `hop_seq` to be consumed next; none before the first cell.
    next: Option<u64>,
    /// The gap that the last flush saw, and when it saw it first.
    gap: Option<(u64, u64)>,
    assembly: Assembly,
}

#[derive(Clone, Debug)]
struct Slot {
    hop_seq: u64,
    block_offset: u16,
    used: bool,
    data: [u8; DATA_LEN],
}

impl Reassembler {
    /// A reassembler that lets cells be up to `window_cells` (at least one) out of order. The first cell that comes
    /// sets where the sequence starts, unless [`Reassembler::expect`] does.
    pub fn new(window_cells: usize) -> Self {
        let slot = Slot { hop_seq: 0, block_offset: 0, used: false, data: [0; DATA_LEN] };
        Self {
            slots: vec![slot; window_cells.max(1)].into_boxed_slice(),
            held: 0,
            next: None,
            gap: None,
            assembly: Assembly::default(),
        }
    }

    /// Sets the `hop_seq` of the first cell, so that even the first ones may come out of order. Without effect once a
    /// cell has come.
    pub fn expect(&mut self, hop_seq: u64) {
        self.next.get_or_insert(hop_seq);
    }

    /// Takes one cell and hands every packet that it completes to `sink`, in order.
    pub fn accept(
        &mut self,
        hop_seq: u64,
        data: &[u8; DATA_LEN],
        block_offset: u16,
        sink: &mut dyn FnMut(BlockKind, &[u8]),
    ) {
        let next = *self.next.get_or_insert(hop_seq);
        let ahead = hop_seq.wrapping_sub(next);
        if ahead > u64::MAX / 2 {
            self.assembly.count(ReassemblyDrop::LateCell);
            return;
        }
        let window = self.slots.len() as u64;
        if ahead >= window {
            self.advance_to(hop_seq.wrapping_sub(window - 1), sink);
            self.drain(sink);
        }
        if self.next == Some(hop_seq) {
            self.assembly.consume(data, block_offset, sink);
            self.next = Some(hop_seq.wrapping_add(1));
            self.drain(sink);
            return;
        }
        let at = self.slot_of(hop_seq);
        let slot = &mut self.slots[at];
        if slot.used {
            self.assembly.count(ReassemblyDrop::LateCell);
            return;
        }
        slot.used = true;
        slot.hop_seq = hop_seq;
        slot.block_offset = block_offset;
        slot.data.copy_from_slice(data);
        self.held += 1;
    }

    /// Gives a gap up that was there at a flush [`REORDER_TIMEOUT`] or more before `now` (monotonic nanoseconds), and
    /// hands what waited behind it to `sink`. To be called every few milliseconds.
    pub fn flush(&mut self, now: u64, sink: &mut dyn FnMut(BlockKind, &[u8])) {
        let (Some(next), true) = (self.next, self.held > 0) else {
            self.gap = None;
            return;
        };
        match self.gap {
            Some((at, since)) if at == next => {
                if now.saturating_sub(since) < REORDER_TIMEOUT {
                    return;
                }
                let first_held = self
                    .slots
                    .iter()
                    .filter(|slot| slot.used)
                    .map(|slot| slot.hop_seq.wrapping_sub(next))
                    .min()
                    .unwrap_or(0);
                self.gap = None;
                self.advance_to(next.wrapping_add(first_held), sink);
                self.drain(sink);
            }
            _ => self.gap = Some((next, now)),
        }
    }

    /// How often each reason occurred since this was last asked, in the order of [`ReassemblyDrop::ALL`].
    pub fn take_drops(&mut self) -> [u64; ReassemblyDrop::ALL.len()] {
        std::mem::take(&mut self.assembly.counts)
    }

    /// How often `reason` occurred, since [`Self::take_drops`].
    pub fn dropped(&self, reason: ReassemblyDrop) -> u64 {
        self.assembly.counts[reason as usize]
    }

    /// Cells that wait behind a gap.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Consumes what is held before `target` and gives up what is missing before it.
    fn advance_to(&mut self, target: u64, sink: &mut dyn FnMut(BlockKind, &[u8])) {
        let Some(mut next) = self.next else { return };
        while next != target && self.held > 0 {
            if !self.consume_slot(next, sink) {
                self.assembly.lose_cells(1);
            }
            next = next.wrapping_add(1);
        }
        // Nothing is held any more: the rest is one gap, however long.
        let missing = target.wrapping_sub(next);
        if missing > 0 {
            self.assembly.lose_cells(missing);
        }
        self.next = Some(target);
    }

    fn drain(&mut self, sink: &mut dyn FnMut(BlockKind, &[u8])) {
        while let Some(next) = self.next
            && self.held > 0
            && self.consume_slot(next, sink)
        {
            self.next = Some(next.wrapping_add(1));
        }
    }

    fn consume_slot(&mut self, hop_seq: u64, sink: &mut dyn FnMut(BlockKind, &[u8])) -> bool {
        let at = self.slot_of(hop_seq);
        let slot = &mut self.slots[at];
        if !slot.used || slot.hop_seq != hop_seq {
            return false;
        }
        slot.used = false;
        self.held -= 1;
        self.assembly.consume(&slot.data, slot.block_offset, sink);
        true
    }

    /// Where `hop_seq` waits: two of one window never meet, but for a wrap of the number itself, which
    /// [`Reassembler::accept`] treats as a late cell.
    fn slot_of(&self, hop_seq: u64) -> usize {
        usize::try_from(hop_seq % self.slots.len() as u64).unwrap_or(0)
    }
}

/// The packet that the cells consumed so far have begun.
#[derive(Debug)]
struct Assembly {
    kind: BlockKind,
    have: usize,
    /// Bytes of the whole packet; zero when none is begun.
    want: usize,
    bytes: [u8; MAX_PACKET],
    counts: Counts,
}

impl Default for Assembly {
    fn default() -> Self {
        let counts = Counts::default();
        Self { kind: BlockKind::Control, have: 0, want: 0, bytes: [0; MAX_PACKET], counts }
    }
}

impl Assembly {
    fn count(&mut self, reason: ReassemblyDrop) {
        self.counts[reason as usize] += 1;
    }

    fn lose_cells(&mut self, cells: u64) {
        let lost = &mut self.counts[ReassemblyDrop::LostCell as usize];
        *lost = lost.saturating_add(cells);
        self.cut();
    }

    fn cut(&mut self) {
        if self.want > 0 {
            self.want = 0;
            self.count(ReassemblyDrop::CutPacket);
        }
    }

    /// Reads the cell that follows the last one consumed or given up.
    fn consume(&mut self, data: &[u8; DATA_LEN], block_offset: u16, sink: &mut dyn FnMut(BlockKind, &[u8])) {
        let start = usize::from(block_offset);
        if start > DATA_LEN {
            self.count(ReassemblyDrop::BlockOffset);
            self.cut();
            return;
        }
        if self.want > 0 {
            let rest = (self.want - self.have).min(DATA_LEN);
            if start == rest {
                self.bytes[self.have..self.have + rest].copy_from_slice(&data[..rest]);
                self.have += rest;
                if self.have == self.want {
                    sink(self.kind, &self.bytes[..self.want]);
                    self.want = 0;
                }
            } else {
                self.count(ReassemblyDrop::BlockOffset);
                self.cut();
            }
        }
        self.blocks(&data[start..], sink);
    }

    /// Reads `rest`, which starts with a block's header or padding. After a bad header nothing in this cell can be
    /// trusted any more; the next one's block offset sets in again.
    fn blocks(&mut self, mut rest: &[u8], sink: &mut dyn FnMut(BlockKind, &[u8])) {
        while let Some(&kind) = rest.first()
            && kind != 0
        {
            let Some((&[_, high, low], body)) = rest.split_first_chunk::<BLOCK_HEADER_LEN>() else {
                return self.count(ReassemblyDrop::BlockHeader);
            };
            let Some(kind) = BlockKind::from_byte(kind) else {
                return self.count(ReassemblyDrop::BlockKind);
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length == 0 || length > MAX_PACKET {
                return self.count(ReassemblyDrop::BlockLength);
            }
            if length > body.len() {
                self.kind = kind;
                self.want = length;
                self.have = body.len();
                self.bytes[..body.len()].copy_from_slice(body);
                return;
            }
            let (packet, behind) = body.split_at(length);
            sink(kind, packet);
            rest = behind;
        }
    }
}

#[cfg(test)]
mod tests;
