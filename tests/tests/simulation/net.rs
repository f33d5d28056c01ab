//! The network on virtual time: nodes, wires with latency and seeded faults, and the observer's notes.

use crate::node::Node;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use relay_user::engine::schedule::{Law, Pattern};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, DropReason};
use relay_user::observe::attacks::watermark::{Act, Watermark};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;

pub(crate) const CLIENT: usize = 0;
pub(crate) const ENTRY: usize = 1;
pub(crate) const MIDDLE: usize = 2;
pub(crate) const EXIT: usize = 3;
/// Cells per second of the client's link and of the trunks.
pub(crate) const RATES: [u32; 3] = [1500, 2000, 2000];
/// A circuit's number at the client.
pub(crate) const CIRCUIT: u32 = 3;
pub(crate) const MS: u64 = 1_000_000;

/// One of every kind.
pub(crate) fn laws() -> [Law; 4] {
    let pattern = Pattern::new(&[1, 1, 6, 2]).expect("a pattern");
    [Law::Constant, Law::Jittered, Law::Poisson, Law::Pattern(pattern)]
}

/// What the wires do to cells, in thousandths of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) loss: u32,
    pub(crate) duplicate: u32,
    pub(crate) reorder: u32,
    pub(crate) flip: u32,
}

/// What a relay on the path has right after a cell came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Knows {
    pub(crate) at: u64,
    /// Cells of all its links so far.
    pub(crate) received: u64,
    /// Cells in its queues.
    pub(crate) waiting: usize,
    /// Cells so far that ended here.
    pub(crate) ended: u64,
}

struct Wire {
    rng: ChaCha8Rng,
    latency: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: u64,
    order: u64,
    to: usize,
    source: SocketAddr,
    bytes: Vec<u8>,
}

/// Egress of one link as an observer sees it.
pub(crate) type Egress = BTreeMap<(usize, u32), Vec<(u64, usize)>>;

pub(crate) struct Net {
    pub(crate) nodes: Vec<Node>,
    pub(crate) now: u64,
    pub(crate) faults: Faults,
    pub(crate) egress: Egress,
    /// Cells that went to a node, for whoever wants to throw them again.
    pub(crate) tapped: Vec<(SocketAddr, Vec<u8>)>,
    pub(crate) tap: Option<usize>,
    /// What an adversary does to cells between client and entry.
    pub(crate) mark: Option<Watermark>,
    /// Whether `knows` is kept.
    pub(crate) watch: bool,
    /// What each node learns, cell by cell.
    pub(crate) knows: BTreeMap<usize, Vec<Knows>>,
    wires: BTreeMap<(usize, u32), Wire>,
    flights: BinaryHeap<Reverse<Flight>>,
    order: u64,
    sessions: u64,
    seed: u64,
    law: Law,
}

impl Net {
    /// Client, entry, middle and exit, with links between neighbours that are about to come up. Link 0 goes towards
    /// the client, link 1 towards the exit.
    pub(crate) fn new(seed: u64, law: Law) -> Self {
        Self::sparing(seed, law, law.spare())
    }

    /// The same, where the exit leaves one in `spare` cells of circuit cover without an answer.
    pub(crate) fn sparing(seed: u64, law: Law, spare: u32) -> Self {
        let nodes = (0..4).map(|index| Node::new(index, seed, usize::from(index) == EXIT, spare)).collect();
        let mut net = Self {
            nodes,
            // Far from zero, as a machine's uptime is.
            now: 86_400_000 * MS,
            faults: Faults::default(),
            egress: Egress::new(),
            tapped: Vec::new(),
            tap: None,
            mark: None,
            watch: false,
            knows: BTreeMap::new(),
            wires: BTreeMap::new(),
            flights: BinaryHeap::new(),
            order: 0,
            sessions: 0,
            seed,
            law,
        };
        for near in [CLIENT, ENTRY, MIDDLE] {
            net.join(near);
        }
        net
    }

    /// Joins `near` to the node behind it.
    pub(crate) fn join(&mut self, near: usize) {
        let now = Nanos(self.now);
        self.sessions += 1;
        let number = self.sessions;
        for (node, link, far, initiator) in [(near, 1, near + 1, true), (near + 1, 0, near, false)] {
            let peer = self.nodes[far].address;
            self.nodes[node].add_link(link, far, self.law, RATES[near], now);
            self.nodes[node].install(link, number, peer, initiator, now);
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&self.seed.to_be_bytes());
            seed[8] = u8::try_from(2 * node).unwrap() + u8::try_from(link).unwrap();
            let mut rng = ChaCha8Rng::from_seed(seed);
            let latency = 200_000 + rng.next_u64() % (20 * MS);
            self.wires.entry((node, link)).or_insert(Wire { rng, latency });
        }
    }

    /// A network whose circuit is open at both ends.
    pub(crate) fn with_circuit(seed: u64, law: Law, cover: bool) -> Self {
        let mut net = Self::new(seed, law);
        net.run(100 * MS);
        net.build(1, cover);
        net
    }

    /// Time that the wire of a node's link takes, in nanoseconds.
    pub(crate) fn latency(&self, node: usize, link: u32) -> u64 {
        self.wires[&(node, link)].latency
    }

    /// Builds the client's circuit and waits until data reached the exit.
    pub(crate) fn build(&mut self, key: u64, cover: bool) {
        let now = Nanos(self.now);
        self.nodes[CLIENT].build(CIRCUIT, [ENTRY, MIDDLE, EXIT], key, cover, now);
        self.run(500 * MS);
        assert!(self.nodes[CLIENT].is_open(CIRCUIT), "the client's circuit opened");
        if !cover {
            // The exit learns by the first cell that the circuit ends there.
            let hello = crate::edge::packet(u64::MAX, 20);
            self.nodes[CLIENT].send_packet(CIRCUIT, &hello, Nanos(self.now));
        }
        self.run(100 * MS);
        assert_eq!(self.nodes[EXIT].edge.open_circuits().len(), 1, "the exit's end opened");
    }

    /// Runs for `duration` nanoseconds.
    pub(crate) fn run(&mut self, duration: u64) {
        let end = self.now + duration;
        let mut turns_at = (0, 0_u32);
        loop {
            let arrival = self.flights.peek().map(|Reverse(flight)| flight.at);
            let due = self.nodes.iter().filter_map(|node| {
                let deadline = node.engine.next_deadline()?.0.max(node.stalled_until.0);
                Some(deadline)
            });
            let Some(next) = due.chain(arrival).min().filter(|&next| next < end) else { break };
            let next = next.max(self.now);
            turns_at = if next == turns_at.0 { (next, turns_at.1 + 1) } else { (next, 0) };
            assert!(turns_at.1 < 10_000, "the engine asks for turns at {next} for ever");
            self.now = next;
            self.arrivals();
            for node in 0..self.nodes.len() {
                let asked = self.nodes[node].engine.next_deadline().is_some_and(|at| at.0 <= next);
                if asked && self.nodes[node].stalled_until.0 <= next {
                    self.turn(node);
                }
            }
        }
        self.now = end;
        for node in 0..self.nodes.len() {
            if self.nodes[node].stalled_until.0 <= end {
                self.turn(node);
            }
            self.nodes[node].check_frames();
        }
    }

    /// Lets bytes arrive at a node now, whoever sent them.
    pub(crate) fn throw(&mut self, to: usize, source: SocketAddr, bytes: &[u8]) {
        let now = Nanos(self.now);
        self.nodes[to].receive(bytes, source, now);
        self.turn(to);
    }

    pub(crate) fn command(&mut self, node: usize, command: Command) {
        let now = Nanos(self.now);
        self.nodes[node].command(command, now);
    }

    pub(crate) fn dropped(&self, node: usize, reason: DropReason) -> u64 {
        self.nodes[node].engine.counters().dropped(reason)
    }

    pub(crate) fn circuits(&self) -> Vec<usize> {
        self.nodes.iter().map(|node| node.engine.circuit_count()).collect()
    }

    fn arrivals(&mut self) {
        while let Some(Reverse(flight)) = self.flights.pop() {
            if flight.at > self.now {
                self.flights.push(Reverse(flight));
                return;
            }
            let node = &mut self.nodes[flight.to];
            if node.stalled_until.0 > self.now {
                let at = node.stalled_until.0;
                self.flights.push(Reverse(Flight { at, ..flight }));
                continue;
            }
            node.receive(&flight.bytes, flight.source, Nanos(self.now));
            if self.watch {
                self.knows.entry(flight.to).or_default().push(Knows {
                    at: self.now,
                    received: node.engine.counters().received,
                    waiting: node.engine.waiting_cells(),
                    ended: node.edge.cells,
                });
            }
            if self.tap == Some(flight.to) {
                self.tapped.push((flight.source, flight.bytes));
            }
            self.turn(flight.to);
        }
    }

    fn turn(&mut self, index: usize) {
        let mut sent = Vec::new();
        self.nodes[index].turn(Nanos(self.now), |link, bytes| sent.push((link, bytes.to_vec())));
        for (link, bytes) in sent {
            self.egress.entry((index, link)).or_default().push((self.now, bytes.len()));
            self.launch(index, link, bytes);
        }
    }

    fn launch(&mut self, from: usize, link: u32, bytes: Vec<u8>) {
        let Some(far) = self.nodes[from].far.get(&link).copied() else { return };
        let wire = self.wires.get_mut(&(from, link)).expect("a wire for every link");
        // The same number of draws for every cell: faults of one cell do not depend on another's.
        let mut draw = |bound: u32| u32::try_from(wire.rng.next_u64() % u64::from(bound)).unwrap();
        let (lost, doubled, late) = (draw(1000), draw(1000), draw(1000));
        let (flip, bit, delay) = (draw(1000), draw(1360 * 8) as usize, draw(15_000_000));
        let Faults { loss, duplicate, reorder, flip: flips } = self.faults;
        let latency = wire.latency + if late < reorder { u64::from(delay) } else { 0 };
        let act = self.mark.as_ref().filter(|_| (from, link) == (CLIENT, 1)).map(|mark| mark.act(self.now));
        let held = match act {
            Some(Act::Delay(nanos)) => nanos,
            Some(Act::Pass) | None => 0,
            Some(Act::Drop) => return,
        };
        if lost < loss {
            return;
        }
        let mut copies = 1 + u64::from(doubled < duplicate);
        while copies > 0 {
            copies -= 1;
            let mut bytes = bytes.clone();
            if flip < flips {
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            self.order += 1;
            let (source, at) = (self.nodes[from].address, self.now + latency + held + copies * 3 * MS);
            self.flights.push(Reverse(Flight { at, order: self.order, to: far, source, bytes }));
        }
    }
}
