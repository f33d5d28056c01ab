//! One node of the simulation: the engine as it is, and a control plane that does without handshakes. Keys come from
//! a number that CREATE carries in the clear, so whoever reads it derives what a handshake would have left behind.

use crate::edge::TestEdge;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use relay_common::wire::{Command as CellCommand, DestroyReason, HopCommand, LossTotals};
use relay_user::crypto::{HopKeys, LinkKeys, Split, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, Engine, Event, Limits, Session, Side, blank_cell, body_mut};
use relay_user::xsk::{Arena, Frame, FramePool};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Frames of a node's arena: enough for its queues, few enough that a leak shows.
const FRAMES: u32 = 2048;
/// Relays of a circuit.
const HOPS: usize = 3;

/// Secrets that two ends share without a handshake.
pub(crate) fn split(seed: u64, number: u64) -> Split {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    let mut rng = ChaCha8Rng::from_seed(bytes);
    let mut split = Split { initiator_to_responder: [0; 32], responder_to_initiator: [0; 32] };
    rng.fill_bytes(&mut split.initiator_to_responder);
    rng.fill_bytes(&mut split.responder_to_initiator);
    split
}

/// A circuit of this client while it grows.
#[derive(Clone, Copy)]
struct Building {
    circuit: u32,
    ahead: Side,
    key: u64,
    seq: u64,
    path: [usize; HOPS],
    hops: usize,
    cover: bool,
}

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) edge: TestEdge,
    pub(crate) address: SocketAddr,
    /// The peer of each link, by its place in the network.
    pub(crate) far: BTreeMap<u32, usize>,
    pub(crate) stalled_until: Nanos,
    /// Whether its control plane takes no events.
    pub(crate) deaf: bool,
    pub(crate) closed: Vec<(u32, DestroyReason)>,
    pub(crate) silent: Vec<u32>,
    /// What the peers of links said of this node's cells, until somebody takes it.
    pub(crate) losses: Vec<(u32, LossTotals)>,
    arena: &'static Arena,
    pool: FramePool,
    seed: u64,
    building: Vec<Building>,
    extending: BTreeMap<(u32, u32), u32>,
    numbers: BTreeSet<u32>,
    next_name: u32,
}

impl Node {
    pub(crate) fn new(index: u8, seed: u64, exit: bool, spare: u32) -> Self {
        let arena = Arena::anonymous(FRAMES).expect("memory");
        let limits = Limits { links: 8, circuits: 16, waiting: 1024, exit, spare, ..Limits::default() };
        Self {
            engine: Engine::new(limits),
            edge: TestEdge::default(),
            address: SocketAddr::from(([192, 0, 2, index], 7443)),
            far: BTreeMap::new(),
            stalled_until: Nanos(0),
            deaf: false,
            closed: Vec::new(),
            silent: Vec::new(),
            losses: Vec::new(),
            arena,
            pool: FramePool::new(arena, 16),
            seed,
            building: Vec::new(),
            extending: BTreeMap::new(),
            numbers: BTreeSet::new(),
            next_name: 1 + 1000 * u32::from(index),
        }
    }

    pub(crate) fn command(&mut self, command: Command, now: Nanos) {
        self.engine.apply(command, &mut self.edge, now);
    }

    pub(crate) fn add_link(&mut self, link: u32, far: usize, law: Law, rate: u32, now: Nanos) {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_be_bytes());
        seed[8..12].copy_from_slice(&link.to_be_bytes());
        seed[12..18].copy_from_slice(&self.address.to_string().as_bytes()[4..10]);
        self.far.insert(link, far);
        let schedule = Box::new(Schedule::new(law, rate, now, seed));
        self.command(Command::AddLink { link, schedule }, now);
    }

    pub(crate) fn install(&mut self, link: u32, number: u64, peer: SocketAddr, initiator: bool, now: Nanos) {
        let keys = LinkKeys::derive(&split(self.seed, number), Suite::Aes256Gcm, initiator);
        let index = |initiator: bool| u32::try_from(2 * number).unwrap() + u32::from(initiator);
        let session = Box::new(Session::new(link, index(initiator), index(!initiator), keys, peer, now));
        self.command(Command::InstallSession { session, send_now: initiator }, now);
    }

    /// Starts a circuit over `path` with names and keys that `key` decides.
    pub(crate) fn build(&mut self, circuit: u32, path: [usize; HOPS], key: u64, cover: bool, now: Nanos) {
        let ahead = Side {
            link: self.link_to(path[0]).expect("a link to the entry"),
            circ_id: u32::try_from(7 + key).unwrap(),
        };
        let seq = 1 << 40 | key << 8;
        self.building.push(Building { circuit, ahead, key, seq, path, hops: 0, cover });
        let frame = self.body(&create_body(key, 0));
        let command = CellCommand::Create;
        let (link, circ_id) = (ahead.link, ahead.circ_id);
        self.command(Command::SendCell { link, circ_id, command, hop_seq: seq, frame }, now);
    }

    pub(crate) fn receive(&mut self, datagram: &[u8], source: SocketAddr, now: Nanos) {
        let Some(mut frame) = self.pool.take() else { panic!("no frame to receive into") };
        frame.reset(Frame::CELL_OFFSET, u16::try_from(datagram.len()).unwrap());
        frame.data_mut().copy_from_slice(datagram);
        self.engine.receive(frame, source, &mut self.edge, now);
    }

    /// One turn of a worker: seal what comes due, send what is due, serve the control plane.
    pub(crate) fn turn(&mut self, now: Nanos, mut out: impl FnMut(u32, &[u8])) {
        self.engine.stage(now, 32, &mut self.pool, &mut self.edge);
        self.engine.emit(now, |link, frame| {
            out(link, frame.data());
            Ok(())
        });
        while !self.deaf
            && let Some(event) = self.engine.pop_event()
        {
            self.serve(event, now);
        }
    }

    pub(crate) fn send_packet(&mut self, circuit: u32, bytes: &[u8], now: Nanos) {
        self.edge.push(circuit, bytes, now);
        self.engine.notify_data(circuit);
    }

    /// Asserts that every frame of the arena is free or stands in a queue that the engine knows of.
    pub(crate) fn check_frames(&mut self) {
        self.pool = FramePool::new(self.arena, 16);
        let used = FRAMES as usize - self.arena.free_frames();
        let known = self.engine.waiting_cells() + self.engine.sealed_cells();
        let events = if self.deaf { Limits::default().events } else { 0 };
        assert!(
            (known..=known + events).contains(&used),
            "{used} frames in use, {known} in queues, at {}",
            self.address
        );
        assert!(used <= 1024 + 64 * 8 + events, "queues of {} grew to {used}", self.address);
    }

    pub(crate) fn is_open(&self, circuit: u32) -> bool {
        self.edge.open_circuits().contains(&circuit)
    }

    fn link_to(&self, node: usize) -> Option<u32> {
        self.far.iter().find(|&(_, &far)| far == node).map(|(&link, _)| link)
    }

    /// A frame whose body begins with `bytes`.
    pub(crate) fn body(&mut self, bytes: &[u8]) -> Frame {
        let mut frame = self.pool.take().expect("frame for the control plane");
        blank_cell(&mut frame).expect("cell");
        body_mut(&mut frame).expect("body")[..bytes.len()].copy_from_slice(bytes);
        frame
    }

    fn serve(&mut self, event: Event, now: Nanos) {
        match event {
            Event::LinkSilent { link } => self.silent.push(link),
            Event::Create { back, seq, mut frame } => self.created_here(back, seq, &mut frame, now),
            Event::Created { ahead, frame } => {
                drop(frame);
                self.created_ahead(ahead, now);
            }
            Event::Extend { circuit, mut frame, .. } => {
                let body = body_mut(&mut frame).expect("body");
                let (next, key, depth) = (usize::from(body[9]), key_of(body), body[8]);
                drop(frame);
                let Some(link) = self.link_to(next) else {
                    let frame = self.body(&[DestroyReason::NoSuchRelay as u8]);
                    let command = HopCommand::Refused;
                    return self.command(Command::Answer { circuit, command, length: 1, frame }, now);
                };
                let ahead = Side { link, circ_id: self.next_name };
                self.next_name += 1;
                self.extending.insert((ahead.link, ahead.circ_id), circuit);
                let frame = self.body(&create_body(key, depth));
                self.command(Command::Extend { circuit, ahead, frame }, now);
            }
            Event::Extended { circuit, command, .. } => {
                assert_eq!(command, HopCommand::Extended);
                self.grown(circuit, now);
            }
            Event::CircuitClosed { circuit, reason } => {
                self.numbers.remove(&circuit);
                self.extending.retain(|_, extending| *extending != circuit);
                self.closed.push((circuit, reason));
            }
            Event::LinkControl { link, command: CellCommand::Loss, mut frame } => {
                let body = body_mut(&mut frame).expect("body");
                self.losses.push((link, LossTotals::decode(body.first_chunk().expect("totals"))));
            }
            Event::SessionConfirmed { .. } | Event::LinkControl { .. } | Event::CreateRefused { .. } => {}
        }
    }

    fn created_here(&mut self, back: Side, seq: u64, frame: &mut Frame, now: Nanos) {
        let body = body_mut(frame).expect("body");
        let (key, depth) = (key_of(body), usize::from(body[8]));
        let circuit = (0..16).find(|number| !self.numbers.contains(number)).expect("a free number");
        self.numbers.insert(circuit);
        let keys = Box::new(self.hop_keys(key, depth));
        self.command(Command::AddCarried { circuit, back, depth, keys, seq }, now);
        let frame = self.body(&[]);
        let (link, circ_id, command) = (back.link, back.circ_id, CellCommand::Created);
        self.command(Command::SendCell { link, circ_id, command, hop_seq: 0, frame }, now);
    }

    fn created_ahead(&mut self, ahead: Side, now: Nanos) {
        if let Some(circuit) = self.extending.remove(&(ahead.link, ahead.circ_id)) {
            let frame = self.body(&[]);
            let command = HopCommand::Extended;
            self.command(Command::Answer { circuit, command, length: 0, frame }, now);
            return;
        }
        let found = self.building.iter().find(|building| building.ahead == ahead && building.hops == 0);
        // Whoever answers what nobody asked is not heard.
        let Some(&Building { circuit, key, seq, cover, .. }) = found else { return };
        let keys = Box::new(self.hop_keys(key, 0));
        self.command(Command::AddOrigin { circuit, ahead, keys, seq, cover }, now);
        self.grown(circuit, now);
    }

    /// One more relay of a circuit of this client answered.
    fn grown(&mut self, circuit: u32, now: Nanos) {
        let at = self.building.iter().position(|building| building.circuit == circuit).expect("building");
        let building = &mut self.building[at];
        building.hops += 1;
        let Building { key, hops, path, .. } = *building;
        if hops > 1 {
            let keys = Box::new(self.hop_keys(key, hops - 1));
            self.command(Command::AddHop { circuit, keys, open: hops == HOPS }, now);
        }
        if hops == HOPS {
            self.building.remove(at);
            return;
        }
        let mut body = create_body(key, u8::try_from(hops).unwrap()).to_vec();
        body.push(u8::try_from(path[hops]).unwrap());
        let frame = self.body(&body);
        self.command(Command::SendExtend { circuit, length: 10, frame }, now);
    }

    fn hop_keys(&self, key: u64, depth: usize) -> HopKeys {
        HopKeys::derive(&split(self.seed ^ 0xc1c, 3 * key + depth as u64), Suite::Aes256Gcm)
    }
}

fn create_body(key: u64, depth: u8) -> [u8; 9] {
    let mut body = [depth; 9];
    body[..8].copy_from_slice(&key.to_be_bytes());
    body
}

fn key_of(body: &[u8; relay_common::wire::BODY_LEN]) -> u64 {
    u64::from_be_bytes(*body.first_chunk().expect("eight bytes"))
}
