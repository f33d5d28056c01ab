//! A client or relay of the circuit: the engine as it is, and a control plane whose handshakes are numbers that both
//! ends know.

use relay_common::wire::{Command as CellCommand, DATA_LEN, HopCommand};
use relay_user::crypto::{HopKeys, LinkKeys, Split, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, Edge, Engine, Event, Limits, Session, Side, blank_cell};
use relay_user::xsk::{Arena, Frame, FramePool};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;

/// Client, entry, middle, exit.
pub(super) const NODES: usize = 4;
pub(super) const CLIENT: usize = 0;
pub(super) const EXIT: usize = NODES - 1;
/// The link towards the client, and the one towards the exit.
pub(super) const BACK: u32 = 0;
pub(super) const AHEAD: u32 = 1;
/// The circuit's number at every node, and its name on every link.
const CIRCUIT: u32 = 0;
const NAME: u32 = 9;
const FIRST_SEQ: u64 = 1;
const SUITE: Suite = Suite::Aes256Gcm;

/// The ends of the circuit: probes that wait for a cell, and when probes came out.
#[derive(Debug, Default)]
pub(super) struct ProbeEdge {
    waiting: u32,
    pub(super) open: bool,
    pub(super) delivered: Vec<Nanos>,
}

impl Edge for ProbeEdge {
    fn deliver(&mut self, _: u32, _: u64, _: &[u8; DATA_LEN], _: u16, now: Nanos) {
        self.delivered.push(now);
    }
    fn fill(&mut self, _: u32, data: &mut [u8; DATA_LEN], _: Nanos) -> u16 {
        self.waiting = self.waiting.saturating_sub(1);
        data.fill(0);
        0
    }
    fn has_data(&self, _: u32) -> bool {
        self.waiting > 0
    }
    fn opened(&mut self, _: u32, _: Nanos) {
        self.open = true;
    }
    fn closed(&mut self, _: u32, _: Nanos) {
        self.open = false;
    }
}

/// One node.
pub(super) struct Node {
    pub(super) engine: Engine,
    pub(super) edge: ProbeEdge,
    pub(super) address: SocketAddr,
    place: usize,
    pool: FramePool,
    /// Relays that answered, at the client.
    hops: usize,
}

impl Node {
    pub(super) fn new(arena: &'static Arena, place: usize) -> Self {
        let limits = Limits { links: 2, circuits: 1, exit: place == EXIT, ..Limits::default() };
        let host = u8::try_from(place + 1).unwrap_or(u8::MAX);
        Self {
            engine: Engine::new(limits),
            edge: ProbeEdge::default(),
            address: SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), 7443)),
            place,
            pool: FramePool::new(arena, 16),
            hops: 0,
        }
    }

    /// Joins a link to the node at the other end, which has `peer` as its address.
    /// `round` decides when its slots are.
    pub(super) fn join(&mut self, link: u32, peer: SocketAddr, law: Law, rate: u32, round: u32, now: Nanos) {
        let initiator = link == AHEAD;
        let joint = if initiator { self.place } else { self.place - 1 };
        let seed = split(2 + 2 * round + link, joint).initiator_to_responder;
        let schedule = Box::new(Schedule::new(law, rate, now, seed));
        self.apply(Command::AddLink { link, schedule }, now);
        let keys = link_keys(joint, initiator);
        let session = Box::new(Session::new(link, link, 1 - link, keys, peer, now));
        self.apply(Command::InstallSession { session, send_now: true }, now);
    }

    /// Sends the circuit's first CREATE.
    pub(super) fn build(&mut self, now: Nanos) -> anyhow::Result<()> {
        let frame = self.blank()?;
        let (command, hop_seq) = (CellCommand::Create, FIRST_SEQ);
        self.apply(Command::SendCell { link: AHEAD, circ_id: NAME, command, hop_seq, frame }, now);
        Ok(())
    }

    /// Puts a probe where packets wait for cells.
    pub(super) fn push_probe(&mut self) {
        self.edge.waiting += 1;
        self.engine.notify_data(CIRCUIT);
    }

    pub(super) fn receive(&mut self, frame: Frame, source: SocketAddr, now: Nanos) {
        self.engine.receive(frame, source, &mut self.edge, now);
    }

    /// Hands the cells whose slots have come to `out`, and seals those of the coming ones.
    pub(super) fn turn(&mut self, now: Nanos, mut out: impl FnMut(u32, Frame)) -> anyhow::Result<()> {
        self.engine.emit(now, |link, frame| {
            out(link, frame);
            Ok(())
        });
        self.engine.stage(now, &mut self.pool, &mut self.edge);
        while let Some(event) = self.engine.pop_event() {
            self.serve(event, now)?;
        }
        Ok(())
    }

    fn serve(&mut self, event: Event, now: Nanos) -> anyhow::Result<()> {
        match event {
            Event::Create { back, seq, .. } => {
                let depth = self.place - 1;
                let keys = Box::new(hop_keys(depth));
                self.apply(Command::AddCarried { circuit: CIRCUIT, back, depth, keys, seq }, now);
                let (link, circ_id, command) = (back.link, back.circ_id, CellCommand::Created);
                let frame = self.blank()?;
                self.apply(Command::SendCell { link, circ_id, command, hop_seq: 0, frame }, now);
            }
            Event::Created { ahead, .. } if self.place == CLIENT => {
                let (keys, seq) = (Box::new(hop_keys(0)), FIRST_SEQ);
                self.apply(Command::AddOrigin { circuit: CIRCUIT, ahead, keys, seq, cover: false }, now);
                self.grown(now)?;
            }
            Event::Created { .. } => {
                let (command, frame) = (HopCommand::Extended, self.blank()?);
                self.apply(Command::Answer { circuit: CIRCUIT, command, length: 0, frame }, now);
            }
            Event::Extend { frame, .. } => {
                let ahead = Side { link: AHEAD, circ_id: NAME };
                self.apply(Command::Extend { circuit: CIRCUIT, ahead, frame }, now);
            }
            Event::Extended { .. } => {
                let keys = Box::new(hop_keys(self.hops));
                let open = self.hops + 1 == EXIT;
                self.apply(Command::AddHop { circuit: CIRCUIT, keys, open }, now);
                self.grown(now)?;
            }
            Event::CircuitClosed { reason, .. } | Event::CreateRefused { reason, .. } => {
                anyhow::bail!("the circuit broke at node {}: {reason:?}", self.place);
            }
            Event::SessionConfirmed { .. } | Event::LinkSilent { .. } | Event::LinkControl { .. } => {}
        }
        Ok(())
    }

    /// One more relay answered: on to the next.
    fn grown(&mut self, now: Nanos) -> anyhow::Result<()> {
        self.hops += 1;
        if self.hops < EXIT {
            let frame = self.blank()?;
            self.apply(Command::SendExtend { circuit: CIRCUIT, length: 0, frame }, now);
        }
        Ok(())
    }

    fn apply(&mut self, command: Command, now: Nanos) {
        self.engine.apply(command, &mut self.edge, now);
    }

    fn blank(&mut self) -> anyhow::Result<Frame> {
        let mut frame = self.pool.take().context("no frame left")?;
        blank_cell(&mut frame).context("a frame is smaller than a cell")?;
        Ok(frame)
    }
}

/// Keys of the link between node `joint` and the one behind it, as one of its ends has them.
pub(super) fn link_keys(joint: usize, initiator: bool) -> LinkKeys {
    LinkKeys::derive(&split(0, joint), SUITE, initiator)
}

fn hop_keys(depth: usize) -> HopKeys {
    HopKeys::derive(&split(1, depth), SUITE)
}

fn split(purpose: u32, number: usize) -> Split {
    let mut bytes = [0x3c; 32];
    bytes[..4].copy_from_slice(&purpose.to_be_bytes());
    bytes[4..12].copy_from_slice(&(number as u64).to_be_bytes());
    Split { initiator_to_responder: bytes, responder_to_initiator: bytes.map(|byte| !byte) }
}
