//! The edge that a node has, as the engine sees it: cells on one side, packets on the other.

use crate::edge::{BlockKind, ClientEdge, EdgeDrop, ExitEdge, Packer, Reassembler, ReassemblyDrop};
use crate::engine::time::Nanos;
use crate::engine::{Edge, Engine, Witness};
use rand_chacha::ChaCha20Rng;
use relay_common::wire::DATA_LEN;

/// Bytes of packets that may wait for a circuit's cells: about 50 cells.
const PACKER_BYTES: usize = 64 * 1024;
/// Cells that may arrive out of order.
const REORDER_CELLS: usize = 64;

/// A client's own circuit has a number below this; others that it keeps are decoys, which end at no TUN.
pub const OWN_CIRCUITS: u32 = 2;

/// A node's edge.
pub enum NodeEdge {
    /// A relay that ends no circuits.
    None,
    /// A client's TUN.
    Client(Box<ClientSide>),
    /// An exit's TUN and address pool.
    Exit(Box<ExitSide>),
}

/// A client's TUN and the circuit that carries its packets.
pub struct ClientSide {
    tun: ClientEdge,
    buffers: Buffers,
    fallen: Fallen,
    circuit: Option<u32>,
    last_delivery: Nanos,
    last_of_decoys: Nanos,
}

/// An exit's TUN, and the packets of each circuit that ends here.
pub struct ExitSide {
    tun: ExitEdge,
    rng: ChaCha20Rng,
    circuits: Vec<Option<Box<Buffers>>>,
    fallen: Fallen,
    refused: u64,
}

struct Buffers {
    packer: Packer,
    reassembler: Reassembler,
}

impl Buffers {
    fn new() -> Self {
        Self { packer: Packer::new(PACKER_BYTES), reassembler: Reassembler::new(REORDER_CELLS) }
    }
}

/// What circuits' buffers let fall, of all circuits together, those included that are gone.
#[derive(Default)]
struct Fallen {
    /// Packets that waited for too long.
    delayed: u64,
    /// Packets that waited when their circuit ended.
    abandoned: u64,
    reassembly: [u64; ReassemblyDrop::ALL.len()],
}

impl Fallen {
    /// Takes over what the buffers have counted.
    fn settle(&mut self, buffers: &mut Buffers) {
        self.delayed += buffers.packer.take_dropped();
        for (sum, count) in self.reassembly.iter_mut().zip(buffers.reassembler.take_drops()) {
            *sum = sum.saturating_add(count);
        }
    }

    /// Of buffers whose circuit has ended.
    fn end(&mut self, buffers: &mut Buffers) {
        self.abandoned += buffers.packer.abandon();
        self.settle(buffers);
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let reassembly = ReassemblyDrop::ALL.into_iter().map(ReassemblyDrop::name).zip(self.reassembly);
        reassembly.chain([("edge_queue_delay", self.delayed), ("edge_circuit_gone", self.abandoned)])
    }
}

impl NodeEdge {
    /// The edge of a client with `tun`.
    pub fn client(tun: ClientEdge) -> Self {
        Self::Client(Box::new(ClientSide {
            tun,
            buffers: Buffers::new(),
            fallen: Fallen::default(),
            circuit: None,
            last_delivery: Nanos(0),
            last_of_decoys: Nanos(0),
        }))
    }

    /// The edge of an exit with `tun`, for up to `circuits` circuits; `rng` chooses their addresses.
    pub fn exit(tun: ExitEdge, circuits: u32, rng: ChaCha20Rng) -> Self {
        let circuits = std::iter::repeat_with(|| None).take(circuits as usize).collect();
        Self::Exit(Box::new(ExitSide { tun, rng, circuits, fallen: Fallen::default(), refused: 0 }))
    }

    /// Writes out what cells brought, and moves up to `max` packets from the TUN towards cells. Returns how many there
    /// were, those included that nobody got.
    pub(super) fn pump<W: Witness>(&mut self, engine: &mut Engine<W>, now: Nanos, max: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Client(side) => {
                side.tun.flush();
                // With no circuit the packets still leave the TUN, so that none of them is stale later.
                side.tun.pump(&mut side.buffers.packer, now.0, max)
            }
            Self::Exit(side) => {
                side.tun.flush();
                let mut budget = max;
                while let Some((circuit, kind, packet)) = side.tun.read(&mut budget) {
                    let buffers = side.circuits.get_mut(circuit as usize).and_then(Option::as_mut);
                    let pushed = buffers.map(|buffers| buffers.packer.push(kind, packet, now.0).is_ok());
                    match pushed {
                        Some(true) => engine.notify_data(circuit),
                        _ => side.tun.refused(),
                    }
                }
                max - budget
            }
        }
    }

    /// Gives up on cells that never came, and counts what fell.
    pub(super) fn housekeep(&mut self, now: Nanos) {
        match self {
            Self::None => {}
            Self::Client(side) => {
                let ClientSide { tun, buffers, fallen, .. } = &mut **side;
                buffers.reassembler.flush(now.0, &mut |kind, packet| tun.deliver(kind, packet));
                fallen.settle(buffers);
                tun.flush();
            }
            Self::Exit(side) => {
                let ExitSide { tun, circuits, fallen, .. } = &mut **side;
                for (circuit, buffers) in (0u32..).zip(circuits.iter_mut()) {
                    if let Some(buffers) = buffers {
                        let sink = &mut |kind: BlockKind, packet: &[u8]| tun.deliver(circuit, kind, packet);
                        buffers.reassembler.flush(now.0, sink);
                        fallen.settle(buffers);
                    }
                }
                tun.flush();
            }
        }
    }

    /// Bytes of packets that a client's own programs sent and got; zero for relays.
    pub(super) fn payload(&self) -> [u64; 2] {
        match self {
            Self::Client(side) => side.tun.payload(),
            Self::None | Self::Exit(_) => [0; 2],
        }
    }

    /// Drops by reason, those that occurred.
    pub(super) fn drops(&self) -> Vec<(&'static str, u64)> {
        let (drops, fallen, refused) = match self {
            Self::None => return Vec::new(),
            Self::Client(side) => (side.tun.drops(), &side.fallen, 0),
            Self::Exit(side) => (side.tun.drops(), &side.fallen, side.refused),
        };
        let counted = EdgeDrop::ALL.into_iter().map(|reason| (reason.name(), drops.get(reason)));
        let counted = counted.chain(fallen.named()).chain([("edge_no_pool_address", refused)]);
        counted.filter(|&(_, count)| count > 0).collect()
    }

    /// When a cell last came to a client's circuit.
    pub(super) fn last_delivery(&self) -> Nanos {
        match self {
            Self::Client(side) => side.last_delivery,
            _ => Nanos(0),
        }
    }
}

impl NodeEdge {
    /// When a cell last came to a client's decoy.
    pub(super) fn last_of_decoys(&self) -> Nanos {
        match self {
            Self::Client(side) => side.last_of_decoys,
            _ => Nanos(0),
        }
    }
}

impl Edge for NodeEdge {
    fn deliver(&mut self, circuit: u32, seq: u64, data: &[u8; DATA_LEN], block_offset: u16, now: Nanos) {
        match self {
            Self::None => {}
            Self::Client(side) => {
                let ClientSide { tun, buffers, circuit: ours, last_delivery, .. } = &mut **side;
                if *ours == Some(circuit) {
                    *last_delivery = now;
                    buffers
                        .reassembler
                        .accept(seq, data, block_offset, &mut |kind, packet| tun.deliver(kind, packet));
                } else if circuit >= OWN_CIRCUITS {
                    side.last_of_decoys = now;
                }
            }
            Self::Exit(side) => {
                let Some(slot) = side.circuits.get_mut(circuit as usize) else { return };
                if slot.is_none() {
                    if side.tun.open_circuit(circuit, now.0, &mut side.rng).is_err() {
                        side.refused += 1;
                        return;
                    }
                    *slot = Some(Box::new(Buffers::new()));
                }
                let tun = &mut side.tun;
                if let Some(buffers) = slot {
                    let sink = &mut |kind: BlockKind, packet: &[u8]| tun.deliver(circuit, kind, packet);
                    buffers.reassembler.accept(seq, data, block_offset, sink);
                }
            }
        }
    }

    fn fill(&mut self, circuit: u32, data: &mut [u8; DATA_LEN], now: Nanos) -> u16 {
        let packer = match self {
            Self::Client(side) if side.circuit == Some(circuit) => Some(&mut side.buffers.packer),
            Self::Exit(side) => side
                .circuits
                .get_mut(circuit as usize)
                .and_then(Option::as_mut)
                .map(|buffers| &mut buffers.packer),
            _ => None,
        };
        match packer {
            Some(packer) => packer.fill(data, now.0).block_offset,
            None => {
                data.fill(0);
                0
            }
        }
    }

    fn has_data(&self, circuit: u32) -> bool {
        match self {
            Self::None => false,
            Self::Client(side) => side.circuit == Some(circuit) && !side.buffers.packer.is_empty(),
            Self::Exit(side) => side
                .circuits
                .get(circuit as usize)
                .and_then(Option::as_ref)
                .is_some_and(|buffers| !buffers.packer.is_empty()),
        }
    }

    fn opened(&mut self, circuit: u32, now: Nanos) {
        if let Self::Client(side) = self
            && circuit < OWN_CIRCUITS
        {
            side.fallen.end(&mut side.buffers);
            side.buffers = Buffers::new();
            side.circuit = Some(circuit);
            side.last_delivery = now;
        }
    }

    fn closed(&mut self, circuit: u32, now: Nanos) {
        match self {
            Self::None => {}
            Self::Client(side) => {
                if side.circuit == Some(circuit) {
                    side.circuit = None;
                }
            }
            Self::Exit(side) => {
                if let Some(slot) = side.circuits.get_mut(circuit as usize)
                    && let Some(mut buffers) = slot.take()
                {
                    side.fallen.end(&mut buffers);
                    side.tun.close_circuit(circuit, now.0);
                }
            }
        }
    }
}
