//! An edge whose packets tell what they are: which one, how long, and whether a byte of them changed.

use relay_common::wire::DATA_LEN;
use relay_user::edge::{BlockKind, Packer, Reassembler};
use relay_user::engine::Edge;
use relay_user::engine::time::Nanos;
use std::collections::BTreeMap;

/// Bytes of packets that may wait at one end of a circuit.
const QUEUE_BYTES: usize = 64 * 1024;

/// The bytes of packet `id` at a length of `len`, at least the 16 that name it.
pub(crate) fn packet(id: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(&(len as u64).to_be_bytes());
    let mut state = (id << 12 ^ len as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

struct End {
    packer: Packer,
    reassembler: Reassembler,
}

/// The circuits that end at one node, and what came out of them.
#[derive(Default)]
pub(crate) struct TestEdge {
    ends: BTreeMap<u32, End>,
    /// How often each packet came out.
    pub(crate) arrived: BTreeMap<u64, u32>,
    /// When each packet last came out, in nanoseconds.
    pub(crate) came: BTreeMap<u64, u64>,
    /// Packets that came out other than they went in.
    pub(crate) corrupt: u64,
    /// Cells that ended here, with or without packets in them.
    pub(crate) cells: u64,
    /// When they did, by circuit.
    pub(crate) times: BTreeMap<u32, Vec<u64>>,
    /// Packets that the queue did not take.
    pub(crate) refused: u64,
}

impl TestEdge {
    /// Circuits that are open here.
    pub(crate) fn open_circuits(&self) -> Vec<u32> {
        self.ends.keys().copied().collect()
    }

    /// Queues a packet for every open circuit's far end.
    pub(crate) fn push(&mut self, circuit: u32, bytes: &[u8], now: Nanos) {
        let end = self.ends.get_mut(&circuit).expect("open circuit");
        if end.packer.push(BlockKind::Ipv4, bytes, now.0).is_err() {
            self.refused += 1;
        }
    }

    /// Packets that left the queue for their age.
    pub(crate) fn aged_out(&self) -> u64 {
        self.ends.values().map(|end| end.packer.dropped()).sum()
    }
}

impl Edge for TestEdge {
    fn deliver(&mut self, circuit: u32, seq: u64, data: &[u8; DATA_LEN], block_offset: u16, now: Nanos) {
        self.cells += 1;
        self.times.entry(circuit).or_default().push(now.0);
        let end = self.ends.get_mut(&circuit).expect("data only after the circuit opened");
        let (arrived, came, corrupt) = (&mut self.arrived, &mut self.came, &mut self.corrupt);
        let mut sink = |kind: BlockKind, bytes: &[u8]| {
            let id = bytes.first_chunk().map(|id| u64::from_be_bytes(*id));
            match id {
                Some(id) if kind == BlockKind::Ipv4 && bytes == packet(id, bytes.len()) => {
                    *arrived.entry(id).or_default() += 1;
                    came.insert(id, now.0);
                }
                _ => *corrupt += 1,
            }
        };
        end.reassembler.accept(seq, data, block_offset, &mut sink);
        end.reassembler.flush(now.0, &mut sink);
    }

    fn fill(&mut self, circuit: u32, data: &mut [u8; DATA_LEN], now: Nanos) -> u16 {
        self.ends.get_mut(&circuit).expect("filled only while open").packer.fill(data, now.0).block_offset
    }

    fn has_data(&self, circuit: u32) -> bool {
        self.ends.get(&circuit).is_some_and(|end| !end.packer.is_empty())
    }

    fn opened(&mut self, circuit: u32, _: Nanos) {
        let end = End { packer: Packer::new(QUEUE_BYTES), reassembler: Reassembler::new(256) };
        assert!(self.ends.insert(circuit, end).is_none(), "circuit {circuit} opened twice");
    }

    fn closed(&mut self, circuit: u32, _: Nanos) {
        assert!(self.ends.remove(&circuit).is_some(), "circuit {circuit} closed but never opened");
    }
}
