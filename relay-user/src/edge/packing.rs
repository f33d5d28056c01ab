//! Packets into cells: a bounded queue whose head is cut into the data of one cell after another.
//!
//! ```text
//! data  | rest of the block begun before | block | block | .. | first part of a block, or padding |
//!                                        ^ block offset
//! block | kind 1 | length 2 | packet |        padding | 0 | anything, to the end of the cell |
//! ```
//!
//! The idea is that of RFC 9347 (AGGFRAG). A block's three header bytes always stand in one cell: where fewer than
//! three are left, the cell ends in padding. A kind byte of zero therefore needs no length: it turns everything up to
//! the end of the cell into padding, even if it is the cell's last byte. Whoever lost a cell finds its way back at the
//! next one's block offset, without trusting any length that it has not seen.

use relay_common::wire::DATA_LEN;

/// Bytes of the longest packet that a block carries: Ethernet's MTU, above which no edge sends.
pub const MAX_PACKET: usize = 1500;
/// Bytes of a block's header: kind 1, length 2.
pub const BLOCK_HEADER_LEN: usize = 3;

/// Sojourn time in nanoseconds that CoDel tolerates for good (RFC 8289, section 4.4: 5 ms). At the slowest class in use
/// (1500 cells per second) it is the time of seven cells, so that a large packet alone does not reach it.
pub const CODEL_TARGET: u64 = 5_000_000;
/// Nanoseconds for which the sojourn time must stay above [`CODEL_TARGET`] before CoDel drops (RFC 8289, section 4.3:
/// 100 ms, a round trip of the longer kind that three hops over the Internet make).
pub const CODEL_INTERVAL: u64 = 100_000_000;

const STAMP_LEN: usize = 8;
const RECORD_OVERHEAD: usize = STAMP_LEN + BLOCK_HEADER_LEN;
const DATA_LEN_U16: u16 = 1248;
const _: () = assert!(DATA_LEN == DATA_LEN_U16 as usize);

/// What a block carries; the byte on the wire is the discriminant.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// A message between client and exit.
    Control = 1,
    /// An IPv4 packet.
    Ipv4 = 4,
    /// An IPv6 packet.
    Ipv6 = 6,
}

impl BlockKind {
    /// The kind that `byte` names. Zero is padding and no block, thus `None` like every unknown byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Control),
            4 => Some(Self::Ipv4),
            6 => Some(Self::Ipv6),
            _ => None,
        }
    }
}

/// Why [`Packer::push`] took no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The queue has no room for the packet now.
    #[error("the circuit's queue is full")]
    QueueFull,
    /// The packet is empty or longer than [`MAX_PACKET`].
    #[error("a block carries 1 to {MAX_PACKET} bytes")]
    Length,
}

/// What [`Packer::fill`] put into a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Where the first new block or the padding starts, 0..=[`DATA_LEN`]; [`DATA_LEN`] when the whole cell continues a
    /// block.
    pub block_offset: u16,
    /// Whether any byte is part of a block. A cell without is cover.
    pub payload: bool,
}

/// The queue in front of one circuit.
///
/// A ring of bytes, allocated once, holds records of enqueue time, block header and packet. Packets leave whole or
/// not at all: CoDel (RFC 8289) judges a packet at the moment it would become the head, before its first byte is sent.
#[derive(Debug)]
pub struct Packer {
    ring: Box<[u8]>,
    head: usize,
    used: usize,
    /// Bytes of the begun block that stand at `head`, its time stamp already taken off.
    unsent: usize,
    /// Bytes of the packets behind the begun block.
    waiting: usize,
    codel: Codel,
    dropped: u64,
}

impl Packer {
    /// A queue of `capacity_bytes`, at least enough for one packet of [`MAX_PACKET`]. Each packet takes eleven bytes
    /// more than its length.
    pub fn new(capacity_bytes: usize) -> Self {
        let capacity = capacity_bytes.max(MAX_PACKET + RECORD_OVERHEAD);
        Self {
            ring: vec![0; capacity].into_boxed_slice(),
            head: 0,
            used: 0,
            unsent: 0,
            waiting: 0,
            codel: Codel::default(),
            dropped: 0,
        }
    }

    /// Queues `packet` at `now` (monotonic nanoseconds).
    ///
    /// # Errors
    /// [`PushError::Length`] for a packet that no block can carry, [`PushError::QueueFull`] for lack of room.
    pub fn push(&mut self, block: BlockKind, packet: &[u8], now: u64) -> Result<(), PushError> {
        let length =
            u16::try_from(packet.len()).ok().filter(|&length| length > 0).ok_or(PushError::Length)?;
        if packet.len() > MAX_PACKET {
            return Err(PushError::Length);
        }
        if self.ring.len() - self.used < RECORD_OVERHEAD + packet.len() {
            return Err(PushError::QueueFull);
        }
        let [high, low] = length.to_be_bytes();
        self.append(&now.to_be_bytes());
        self.append(&[block as u8, high, low]);
        self.append(packet);
        self.waiting += packet.len();
        Ok(())
    }

    /// Fills the data of one cell at `now`: the rest of the block begun in the cell before, then as many blocks as fit,
    /// the last possibly in part, then zeros.
    pub fn fill(&mut self, data: &mut [u8; DATA_LEN], now: u64) -> Fill {
        let mut at = self.send(data.as_mut_slice());
        let block_offset = at;
        while DATA_LEN - at >= BLOCK_HEADER_LEN && self.begin_block(now) {
            at += self.send(&mut data[at..]);
        }
        data[at..].fill(0);
        Fill { block_offset: u16::try_from(block_offset).unwrap_or(DATA_LEN_U16), payload: at > 0 }
    }

    /// Whether a [`Packer::fill`] would produce cover only.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Bytes of packets that wait, block headers not counted; of the packet being sent, what is left of it.
    pub fn len_bytes(&self) -> usize {
        self.waiting + self.unsent
    }

    /// Packets that CoDel has dropped since the start, or since [`Self::take_dropped`].
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The same, which begins anew.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Empties the queue of a circuit that is gone. Returns how many packets nobody gets whole.
    pub fn abandon(&mut self) -> u64 {
        let mut packets = u64::from(self.unsent > 0);
        self.discard(self.unsent);
        self.unsent = 0;
        while self.used > 0 {
            let mut record = [0; RECORD_OVERHEAD];
            self.peek(&mut record);
            let [.., l0, l1] = record;
            self.discard(RECORD_OVERHEAD + usize::from(u16::from_be_bytes([l0, l1])));
            packets += 1;
        }
        self.waiting = 0;
        packets
    }

    /// Makes the next packet that CoDel lets live the begun block. False when none is left.
    fn begin_block(&mut self, now: u64) -> bool {
        // Each turn takes a record out, so the loop ends with the queue.
        while self.used > 0 {
            let mut record = [0; RECORD_OVERHEAD];
            self.peek(&mut record);
            let [t0, t1, t2, t3, t4, t5, t6, t7, kind, l0, l1] = record;
            let enqueued = u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
            let packet_len = usize::from(u16::from_be_bytes([l0, l1]));
            let over = self.codel.drops(now, now.saturating_sub(enqueued), self.waiting);
            self.waiting -= packet_len;
            if over && kind != BlockKind::Control as u8 {
                self.discard(RECORD_OVERHEAD + packet_len);
                self.dropped += 1;
                continue;
            }
            self.discard(STAMP_LEN);
            self.unsent = BLOCK_HEADER_LEN + packet_len;
            return true;
        }
        self.codel.emptied();
        false
    }

    /// Moves bytes of the begun block into `out`; returns how many.
    fn send(&mut self, out: &mut [u8]) -> usize {
        let count = self.unsent.min(out.len());
        self.peek(&mut out[..count]);
        self.discard(count);
        self.unsent -= count;
        count
    }

    fn append(&mut self, bytes: &[u8]) {
        let capacity = self.ring.len();
        let tail = (self.head + self.used) % capacity;
        let first = bytes.len().min(capacity - tail);
        self.ring[tail..tail + first].copy_from_slice(&bytes[..first]);
        self.ring[..bytes.len() - first].copy_from_slice(&bytes[first..]);
        self.used += bytes.len();
    }

    fn peek(&self, out: &mut [u8]) {
        let first = out.len().min(self.ring.len() - self.head);
        let count = out.len();
        out[..first].copy_from_slice(&self.ring[self.head..self.head + first]);
        out[first..].copy_from_slice(&self.ring[..count - first]);
    }

    fn discard(&mut self, count: usize) {
        self.head = (self.head + count) % self.ring.len();
        self.used -= count;
    }
}

/// The drop decision of RFC 8289, section 5, asked once per packet as it comes to the head.
#[derive(Debug, Default)]
struct Codel {
    first_above: Option<u64>,
    dropping: bool,
    drop_next: u64,
    count: u64,
    count_before: u64,
}

impl Codel {
    fn drops(&mut self, now: u64, sojourn: u64, backlog: usize) -> bool {
        let standing = self.above_for_an_interval(now, sojourn, backlog);
        if self.dropping {
            if !standing {
                self.dropping = false;
                return false;
            }
            if now < self.drop_next {
                return false;
            }
            self.count += 1;
            self.drop_next = self.drop_next.saturating_add(spacing(self.count));
            return true;
        }
        if !standing {
            return false;
        }
        self.dropping = true;
        // Resume near the rate that worked if the last episode ended a short while ago.
        let added = self.count - self.count_before;
        let recent = now.saturating_sub(self.drop_next) < 16 * CODEL_INTERVAL;
        self.count = if added > 1 && recent { added } else { 1 };
        self.count_before = self.count;
        self.drop_next = now.saturating_add(spacing(self.count));
        true
    }

    fn emptied(&mut self) {
        self.first_above = None;
        self.dropping = false;
    }

    fn above_for_an_interval(&mut self, now: u64, sojourn: u64, backlog: usize) -> bool {
        // One packet's worth of backlog is the link at work, not a standing queue.
        if sojourn < CODEL_TARGET || backlog <= MAX_PACKET {
            self.first_above = None;
            return false;
        }
        match self.first_above {
            None => {
                self.first_above = Some(now.saturating_add(CODEL_INTERVAL));
                false
            }
            Some(at) => now >= at,
        }
    }
}

/// Nanoseconds to the next drop: the interval over the square root of the drops so far.
fn spacing(count: u64) -> u64 {
    (CODEL_INTERVAL * CODEL_INTERVAL / count.max(1)).isqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn fill(packer: &mut Packer, now: u64) -> ([u8; DATA_LEN], Fill) {
        let mut data = [0xAA; DATA_LEN];
        let fill = packer.fill(&mut data, now);
        (data, fill)
    }

    #[test]
    fn an_empty_queue_makes_cover() {
        let (data, fill) = fill(&mut Packer::new(4096), 0);
        assert_eq!(fill, Fill { block_offset: 0, payload: false });
        assert_eq!(data, [0; DATA_LEN]);
    }

    #[test]
    fn a_large_packet_spans_cells_and_small_ones_share_one() {
        let mut packer = Packer::new(16384);
        packer.push(BlockKind::Ipv4, &[1; 1400], 0).unwrap();
        packer.push(BlockKind::Ipv6, &[2; 40], 0).unwrap();
        packer.push(BlockKind::Control, &[3; 20], 0).unwrap();
        assert_eq!(packer.len_bytes(), 1460);

        let (first, told) = fill(&mut packer, 0);
        assert_eq!(told, Fill { block_offset: 0, payload: true });
        assert_eq!(first[..4], [4, 5, 120, 1]);
        assert_eq!(packer.len_bytes(), 1460 - 1245);

        let (second, told) = fill(&mut packer, 0);
        assert_eq!(told, Fill { block_offset: 155, payload: true });
        assert_eq!(second[154..159], [1, 6, 0, 40, 2]);
        assert_eq!(second[155 + 43..155 + 47], [1, 0, 20, 3]);
        assert!(packer.is_empty());
        assert_eq!(packer.len_bytes(), 0);
    }

    #[test]
    fn what_waits_when_a_circuit_ends_is_counted() {
        let mut packer = Packer::new(16384);
        assert_eq!(packer.abandon(), 0);
        packer.push(BlockKind::Ipv4, &[1; 1400], 0).unwrap();
        packer.push(BlockKind::Ipv6, &[2; 40], 0).unwrap();
        fill(&mut packer, 0);
        assert_eq!(packer.abandon(), 2, "one in part, one whole");
        assert!(packer.is_empty() && packer.len_bytes() == 0);
        packer.push(BlockKind::Ipv4, &[3; 1400], 0).unwrap();
        assert_eq!(packer.abandon(), 1);
    }

    #[test]
    fn a_header_never_straddles_cells() {
        for left in 0..=3 {
            let mut packer = Packer::new(16384);
            packer.push(BlockKind::Ipv4, &vec![9; DATA_LEN - BLOCK_HEADER_LEN - left], 0).unwrap();
            packer.push(BlockKind::Ipv4, &[7; 30], 0).unwrap();
            let (first, _) = fill(&mut packer, 0);
            let (_, told) = fill(&mut packer, 0);
            let header_fits = left == BLOCK_HEADER_LEN;
            assert_eq!(told.block_offset, if header_fits { 30 } else { 0 }, "{left} bytes left");
            assert!(header_fits || first[DATA_LEN - left..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut packer = Packer::new(0);
        assert_eq!(packer.push(BlockKind::Ipv4, &[], 0), Err(PushError::Length));
        assert_eq!(packer.push(BlockKind::Ipv4, &[0; MAX_PACKET + 1], 0), Err(PushError::Length));
        assert_eq!(packer.push(BlockKind::Ipv4, &[0; MAX_PACKET], 0), Ok(()));
        assert_eq!(packer.push(BlockKind::Ipv4, &[0], 0), Err(PushError::QueueFull));
    }

    #[test]
    fn a_standing_queue_is_thinned_and_a_burst_is_not() {
        let mut packer = Packer::new(1 << 20);
        for _ in 0..100 {
            packer.push(BlockKind::Ipv4, &[1; 1000], 0).unwrap();
        }
        for slot in 0..100 {
            fill(&mut packer, slot * MS);
        }
        assert_eq!(packer.dropped(), 0, "a burst that is gone within an interval");

        for slot in 0..2000 {
            let now = slot * MS;
            // Two cells' worth comes for every cell that goes.
            for _ in 0..2 {
                let _full = packer.push(BlockKind::Ipv4, &[1; 1200], now);
            }
            fill(&mut packer, now);
        }
        let dropped = packer.take_dropped();
        assert!(dropped > 20, "{dropped}");
        assert_eq!(packer.take_dropped(), 0);
    }

    #[test]
    fn control_is_never_dropped_for_its_age() {
        let mut packer = Packer::new(1 << 20);
        for _ in 0..500 {
            packer.push(BlockKind::Control, &[1; 1200], 0).unwrap();
        }
        let mut now = 0;
        while !packer.is_empty() {
            fill(&mut packer, now);
            now += 100 * MS;
        }
        assert_eq!(packer.take_dropped(), 0);
    }
}
