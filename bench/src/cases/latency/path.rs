//! Four nodes whose wires have no length, driven in turn by one thread on real time, and when each probe left each.

use super::node::{AHEAD, BACK, CLIENT, EXIT, NODES, Node, link_keys};
use anyhow::Context as _;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use relay_common::wire::{CIRCUIT_HEADER_LEN, CircuitHeader, LINK_HEADER_LEN};
use relay_user::crypto::LinkKeys;
use relay_user::engine::schedule::Law;
use relay_user::engine::time::Nanos;
use relay_user::worker::Clock;
use relay_user::xsk::{Arena, Frame};
use std::collections::VecDeque;

/// Frames for all four.
pub(super) const FRAMES: u32 = 1024;
/// Between two probes of one direction: more than they wait at one hop, so that none waits for another.
const SPACING: (u64, u64) = (2_000_000, 4_000_000);
/// For a circuit to be built, and for the last probes to arrive.
const PATIENCE: Nanos = Nanos(3 * Nanos::SECOND.0);

/// The way that a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Client to exit.
    Out,
    /// Exit to client.
    Home,
}

impl Way {
    /// The nodes at whose slots a probe waits, in order.
    pub(super) const fn hops(self) -> [usize; NODES - 1] {
        match self {
            Self::Out => [CLIENT, 1, 2],
            Self::Home => [EXIT, 2, 1],
        }
    }
}

/// Times of the probes of one way, each list in the order of the probes.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// When they were put where packets wait for cells.
    pub(super) entered: Vec<Nanos>,
    /// When they left each of [`Way::hops`].
    pub(super) left: [Vec<Nanos>; NODES - 1],
    /// When the far edge had them.
    pub(super) delivered: Vec<Nanos>,
}

/// The path.
pub(super) struct Path {
    nodes: Vec<Node>,
    clock: Clock,
    rng: ChaCha8Rng,
    /// What tells a circuit's cell from cover: the keys of the end that receives, by joint, out and home.
    taps: Vec<[LinkKeys; 2]>,
    flying: VecDeque<(usize, u32, Frame)>,
    out: Times,
    home: Times,
}

impl Path {
    /// A path with an open circuit; `round` decides when its slots are.
    pub(super) fn new(arena: &'static Arena, law: Law, rate: u32, round: u32) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let mut path = Self {
            nodes: (0..NODES).map(|place| Node::new(arena, place)).collect(),
            clock,
            rng: ChaCha8Rng::seed_from_u64(u64::from(round)),
            taps: (0..EXIT).map(|joint| [link_keys(joint, false), link_keys(joint, true)]).collect(),
            flying: VecDeque::with_capacity(64),
            out: Times::default(),
            home: Times::default(),
        };
        let now = clock.now();
        for joint in 0..EXIT {
            let (near, far) = (path.nodes[joint].address, path.nodes[joint + 1].address);
            path.nodes[joint].join(AHEAD, far, law, rate, round, now);
            path.nodes[joint + 1].join(BACK, near, law, rate, round, now);
        }
        path.nodes[CLIENT].build(now)?;
        path.turn_until(|path| path.nodes[CLIENT].edge.open).context("the circuit does not open")?;
        // The exit learns by the first cell that the circuit ends there.
        path.nodes[CLIENT].push_probe();
        path.turn_until(|path| !path.nodes[EXIT].edge.delivered.is_empty())
            .context("nothing arrives at the exit")?;
        path.out = Times::default();
        path.home = Times::default();
        path.nodes[EXIT].edge.delivered.clear();
        Ok(path)
    }

    /// Sends probes both ways for `duration`, and waits until they have arrived.
    pub(super) fn probe(&mut self, duration: Nanos) -> anyhow::Result<()> {
        let start = self.clock.now();
        let mut next = [start, start];
        let mut now = start;
        while now.since(start) < duration {
            for (way, next) in [Way::Out, Way::Home].into_iter().zip(&mut next) {
                if now >= *next {
                    let pause = SPACING.0 + self.rng.next_u64() % (SPACING.1 - SPACING.0);
                    *next = now + Nanos(pause);
                    self.nodes[way.hops()[0]].push_probe();
                    self.times_mut(way).entered.push(now);
                }
            }
            now = self.turn()?;
        }
        self.turn_until(|path| {
            let arrived =
                |node: usize, times: &Times| path.nodes[node].edge.delivered.len() >= times.entered.len();
            arrived(EXIT, &path.out) && arrived(CLIENT, &path.home)
        })
        .context("not every probe arrives")?;
        self.out.delivered = std::mem::take(&mut self.nodes[EXIT].edge.delivered);
        self.home.delivered = std::mem::take(&mut self.nodes[CLIENT].edge.delivered);
        Ok(())
    }

    pub(super) const fn times(&self, way: Way) -> &Times {
        match way {
            Way::Out => &self.out,
            Way::Home => &self.home,
        }
    }

    const fn times_mut(&mut self, way: Way) -> &mut Times {
        match way {
            Way::Out => &mut self.out,
            Way::Home => &mut self.home,
        }
    }

    /// Slots that the nodes left empty.
    pub(super) fn missed(&self) -> u64 {
        self.nodes.iter().map(|node| node.engine.counters().missed_slots).sum()
    }

    fn turn_until(&mut self, mut done: impl FnMut(&Self) -> bool) -> anyhow::Result<()> {
        let start = self.clock.now();
        while !done(self) {
            let now = self.turn()?;
            anyhow::ensure!(now.since(start) < PATIENCE, "not within {} s", PATIENCE.0 / Nanos::SECOND.0);
        }
        Ok(())
    }

    /// One turn of every node; what leaves one arrives at the next at once.
    fn turn(&mut self) -> anyhow::Result<Nanos> {
        let mut now = self.clock.now();
        for place in 0..NODES {
            now = self.clock.now();
            let flying = &mut self.flying;
            self.nodes[place].turn(now, |link, frame| flying.push_back((place, link, frame)))?;
            while let Some((from, link, frame)) = self.flying.pop_front() {
                let left = self.clock.now();
                let (way, to, joint) =
                    if link == AHEAD { (Way::Out, from + 1, from) } else { (Way::Home, from - 1, from - 1) };
                if self.is_circuits(joint, way, &frame)
                    && let Some(hop) = way.hops().iter().position(|&hop| hop == from)
                {
                    self.times_mut(way).left[hop].push(left);
                }
                let source = self.nodes[from].address;
                self.nodes[to].receive(frame, source, left);
            }
        }
        Ok(now)
    }

    /// Whether a cell on the wire belongs to the circuit.
    fn is_circuits(&self, joint: usize, way: Way, frame: &Frame) -> bool {
        let Some(cell) = frame.cell() else { return false };
        let mut cell = *cell;
        self.taps[joint][way as usize].receive.open_cell(&mut cell).is_ok()
            && cell[LINK_HEADER_LEN..]
                .first_chunk::<CIRCUIT_HEADER_LEN>()
                .and_then(CircuitHeader::decode)
                .is_some_and(|header| header.circ_id != 0)
    }
}
