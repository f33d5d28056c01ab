//! Circuits that this relay carries: answers CREATE, extends, and keeps the rate that each has taken.

use super::action::{Outbox, Refusal};
use super::links::Links;
use crate::crypto::handshake::{self, HandshakeRole, Initiator, Prologue};
use crate::crypto::{HopKeys, StaticKey, Suite};
use crate::engine::time::Nanos;
use crate::engine::{Command, Side, body_mut};
use crate::xsk::Frame;
use rand_core::Rng;
use relay_common::wire::{Command as CellCommand, DestroyReason, HopCommand, MAX_HOPS, RELAY_ID_LEN};
use std::collections::HashMap;

/// How long a relay waits for the next one's answer to CREATE.
const EXTEND_PATIENCE: Nanos = Nanos(3 * Nanos::SECOND.0);
/// Bytes in front of the handshake message in a CREATE body: depth 1, zero 3.
pub(super) const CREATE_PREFIX: usize = 4;

/// What the control plane keeps of one carried circuit.
#[derive(Debug)]
struct Carried {
    back: Side,
    depth: usize,
    ahead: Option<Side>,
    /// Cells per second set aside on the out-link.
    reserved: u32,
    /// The extension that waits for an answer, until then.
    waiting: Option<Nanos>,
}

/// The circuits of one relay.
#[derive(Debug)]
pub(super) struct Circuits {
    id: [u8; RELAY_ID_LEN],
    suite: Suite,
    exit: bool,
    known: HashMap<u32, Carried>,
    waiting: HashMap<Side, u32>,
    /// Free numbers of each worker: worker i of n has those that are i modulo n.
    free: Vec<Vec<u32>>,
}

impl Circuits {
    /// `workers` is at least 1.
    pub(super) fn new(id: [u8; RELAY_ID_LEN], suite: Suite, capacity: u32, exit: bool, workers: u16) -> Self {
        let step = usize::from(workers.max(1));
        let free =
            (0..u32::from(workers.max(1))).map(|worker| (worker..capacity).step_by(step).rev().collect());
        Self { id, suite, exit, known: HashMap::new(), waiting: HashMap::new(), free: free.collect() }
    }

    /// Answers CREATE.
    pub(super) fn on_create(
        &mut self,
        back: Side,
        seq: u64,
        mut frame: Frame,
        key: &StaticKey,
        links: &Links,
        out: &mut Outbox,
    ) {
        let Some(body) = body_mut(&mut frame) else { return };
        let depth = usize::from(body[0]);
        let message = &body[CREATE_PREFIX..CREATE_PREFIX + HandshakeRole::Client.init_len()];
        // Clients enter at the entry and nowhere else; relays only pass on what has entered.
        let placed = if links.is_client(back.link) { depth == 0 } else { (1..MAX_HOPS).contains(&depth) };
        if !placed || (depth + 1 == MAX_HOPS && !self.exit) {
            return destroy(back, DestroyReason::NoSuchRelay, out);
        }
        let prologue = Prologue::new(self.suite, HandshakeRole::Client, &self.id, &[0; 16]);
        let Ok(answer) = handshake::respond(HandshakeRole::Client, key, message, &prologue) else {
            return destroy(back, DestroyReason::Handshake, out);
        };
        // Of the worker that has the link.
        let worker = back.link as usize % self.free.len();
        let Some(circuit) = self.free[worker].pop() else {
            out.refuse(Refusal::Exhausted);
            return destroy(back, DestroyReason::NoCapacity, out);
        };
        let Some(created) = out.cell(&[&answer.message]) else {
            self.free[worker].push(circuit);
            return;
        };
        let keys = Box::new(HopKeys::derive(&answer.split, self.suite));
        out.worker(Command::AddCarried { circuit, back, depth, keys, seq });
        out.worker(send(back, CellCommand::Created, created));
        self.known.insert(circuit, Carried { back, depth, ahead: None, reserved: 0, waiting: None });
    }

    /// Answers EXTEND: reserves the rate on the out-link and sends CREATE.
    #[expect(clippy::too_many_arguments, reason = "the event's own fields, and what every handler takes")]
    pub(super) fn on_extend(
        &mut self,
        circuit: u32,
        length: u16,
        mut frame: Frame,
        now: Nanos,
        links: &mut Links,
        rng: &mut impl Rng,
        out: &mut Outbox,
    ) {
        let Some(carried) = self.known.get_mut(&circuit) else { return };
        let Some(body) = body_mut(&mut frame) else { return };
        let init = HandshakeRole::Client.init_len();
        if usize::from(length) != RELAY_ID_LEN + init || carried.ahead.is_some() {
            out.worker(Command::CloseCircuit { circuit, reason: DestroyReason::Protocol });
            return;
        }
        let (id, rest) = body.split_at(RELAY_ID_LEN);
        let rate = links.rate(carried.back.link);
        let link = match links.reserve(id, rate, carried.back.link) {
            Ok(link) => link,
            Err(reason) => return refuse(circuit, reason, out),
        };
        let ahead = Side { link, circ_id: links.new_circ_id(link, rng) };
        let depth = u8::try_from(carried.depth + 1).unwrap_or(u8::MAX);
        let Some(create) = out.cell(&[&[depth, 0, 0, 0], &rest[..init]]) else {
            links.release(link, rate);
            return;
        };
        carried.ahead = Some(ahead);
        carried.reserved = rate;
        carried.waiting = Some(now + EXTEND_PATIENCE);
        self.waiting.insert(ahead, circuit);
        out.worker(Command::Extend { circuit, ahead, frame: create });
    }

    /// The next relay answered CREATE.
    pub(super) fn on_created(&mut self, ahead: Side, frame: Frame, out: &mut Outbox) {
        let Some(circuit) = self.waiting.remove(&ahead) else {
            out.refuse(Refusal::Unexpected);
            return;
        };
        let Some(carried) = self.known.get_mut(&circuit) else { return };
        carried.waiting = None;
        let length = u16::try_from(handshake::RESPONSE_LEN).unwrap_or(0);
        out.worker(Command::Answer { circuit, command: HopCommand::Extended, length, frame });
    }

    /// The next relay refused CREATE.
    pub(super) fn on_create_refused(
        &mut self,
        ahead: Side,
        reason: DestroyReason,
        links: &mut Links,
        out: &mut Outbox,
    ) {
        if let Some(circuit) = self.waiting.remove(&ahead) {
            self.abandon_extension(circuit, links);
            refuse(circuit, reason, out);
        }
    }

    /// The engine closed a circuit.
    pub(super) fn on_closed(&mut self, circuit: u32, links: &mut Links) {
        self.abandon_extension(circuit, links);
        if self.known.remove(&circuit).is_some() {
            let worker = circuit as usize % self.free.len();
            self.free[worker].push(circuit);
        }
    }

    /// Gives extensions up that had no answer.
    pub(super) fn on_tick(&mut self, now: Nanos, out: &mut Outbox) {
        for (&circuit, carried) in &mut self.known {
            if carried.waiting.is_some_and(|until| now >= until) {
                carried.waiting = None;
                out.refuse(Refusal::CircuitRefused);
                out.worker(Command::CloseCircuit { circuit, reason: DestroyReason::Handshake });
            }
        }
    }

    /// Closes them all, for a clean stop.
    pub(super) fn close_all(&mut self, out: &mut Outbox) {
        for &circuit in self.known.keys() {
            out.worker(Command::CloseCircuit { circuit, reason: DestroyReason::Finished });
        }
    }

    fn abandon_extension(&mut self, circuit: u32, links: &mut Links) {
        if let Some(carried) = self.known.get_mut(&circuit)
            && let Some(ahead) = carried.ahead.take()
        {
            self.waiting.remove(&ahead);
            carried.waiting = None;
            links.release(ahead.link, std::mem::take(&mut carried.reserved));
        }
    }
}

fn send(side: Side, command: CellCommand, frame: Frame) -> Command {
    Command::SendCell { link: side.link, circ_id: side.circ_id, command, hop_seq: 0, frame }
}

/// Answers a CREATE that has no circuit.
pub(super) fn destroy(side: Side, reason: DestroyReason, out: &mut Outbox) {
    out.refuse(Refusal::CircuitRefused);
    if let Some(frame) = out.cell(&[&[reason as u8]]) {
        out.worker(send(side, CellCommand::Destroy, frame));
    }
}

fn refuse(circuit: u32, reason: DestroyReason, out: &mut Outbox) {
    out.refuse(Refusal::CircuitRefused);
    if let Some(frame) = out.cell(&[&[reason as u8]]) {
        out.worker(Command::Answer { circuit, command: HopCommand::Refused, length: 1, frame });
    }
}

/// One relay of a client's path.
#[derive(Clone, Debug)]
pub(super) struct PathRelay {
    pub(super) name: String,
    pub(super) id: [u8; RELAY_ID_LEN],
    pub(super) public: [u8; 32],
}

/// Starts the handshake with one relay of a path.
pub(super) fn start_hop(relay: &PathRelay, suite: Suite) -> Option<(Initiator, Vec<u8>)> {
    let prologue = Prologue::new(suite, HandshakeRole::Client, &relay.id, &[0; 16]);
    Initiator::start(HandshakeRole::Client, None, &relay.public, &prologue)
        .inspect_err(|error| log::error!("circuit handshake: {error}"))
        .ok()
}
