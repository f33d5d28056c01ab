//! Handshakes between nodes that share no session yet: begun, repeated, answered. A link begins where one ends.

use super::parked::Parked;
use super::{Links, Peer, Who, new_index};
use crate::control::action::{Action, Outbox, Refusal};
use crate::crypto::datagram::{HsInit, HsResp, Mac1Key, Retry};
use crate::crypto::handshake::{self, HandshakeRole, Initiator, Prologue};
use crate::crypto::retry::TokenSubject;
use crate::engine::time::Nanos;
use rand_core::CryptoRng;
use relay_common::abi::session_slot;
use relay_common::wire::DatagramType;
use std::net::SocketAddr;
use std::sync::Arc;

/// First and longest wait for an answer to HS_INIT; doubled each time, with a quarter of jitter.
const RETRANSMIT: (u64, u64) = (Nanos::SECOND.0, 4 * Nanos::SECOND.0);

/// An HS_INIT that waits for its answer.
#[derive(Debug)]
pub(super) struct Attempt {
    initiator: Initiator,
    sender_index: u32,
    nonce: [u8; 8],
    token: [u8; 16],
}

/// Where the handshake with a peer stands.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) attempt: Option<Attempt>,
    pub(super) tries: u32,
    pub(super) again: Nanos,
}

impl Links {
    /// Sends HS_INIT to a peer, with a token where it asked for one.
    pub(super) fn dial(
        &mut self,
        at: usize,
        token: [u8; 16],
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        let repeated = token != [0; 16];
        let (role, key) = match &self.identity {
            Some(identity) => (HandshakeRole::Relay, Some(&identity.key)),
            None => (HandshakeRole::Client, None),
        };
        let peer = &self.peers[at];
        let prologue = Prologue::new(self.suite, role, &peer.id, &token);
        let (initiator, message) = match Initiator::start(role, key, &peer.public, &prologue) {
            Ok(started) => started,
            Err(error) => {
                log::error!("handshake with {}: {error}", peer.name);
                return;
            }
        };
        let previous = self.dials[at].attempt.take();
        // The token is bound to the nonce that asked for it; every other HS_INIT gets a fresh one.
        let nonce = match &previous {
            Some(previous) if repeated => previous.nonce,
            _ => rng.next_u64().to_be_bytes(),
        };
        if let Some(previous) = previous {
            self.slots.remove(&session_slot(previous.sender_index));
        }
        let Some(sender_index) = new_index(&mut self.slots, rng) else {
            out.refuse(Refusal::Exhausted);
            return;
        };
        let init = HsInit { role, sender_index, client_nonce: nonce, message: &message, retry_token: token };
        let peer = &self.peers[at];
        let bytes = init.encode(&Mac1Key::new(&peer.public), rng).to_vec();
        out.push(Action::Datagram { lane: peer.lane, to: peer.address, bytes });
        let dial = &mut self.dials[at];
        if !repeated {
            let wait = (RETRANSMIT.0 << dial.tries.min(8)).min(RETRANSMIT.1);
            dial.tries += 1;
            dial.again = now + Nanos(wait + rng.next_u64() % (wait / 4));
        }
        dial.attempt = Some(Attempt { initiator, sender_index, nonce, token });
    }

    /// Takes a datagram of the kernel's socket of a lane's port.
    pub(in crate::control) fn on_datagram(
        &mut self,
        bytes: &[u8],
        source: SocketAddr,
        lane: u16,
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        match bytes.first().copied().and_then(DatagramType::from_byte) {
            Some(DatagramType::HsInit) => self.on_init(bytes, source, lane, now, rng, out),
            Some(DatagramType::HsResp) => self.on_response(bytes, source, now, rng, out),
            Some(DatagramType::Retry) => self.on_retry(bytes, source, now, rng, out),
            _ => out.refuse(Refusal::Malformed),
        }
    }

    fn on_init(
        &mut self,
        bytes: &[u8],
        source: SocketAddr,
        lane: u16,
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        let Some(identity) = &mut self.identity else { return out.refuse(Refusal::Unexpected) };
        let Ok(init) = HsInit::decode(bytes, &identity.mac1) else { return out.refuse(Refusal::WrongMac) };
        let destination_port = identity.port + lane;
        let subject = TokenSubject { source, destination_port, client_nonce: init.client_nonce };
        if !identity.tokens.accepts(now.0, &subject, &init.retry_token) {
            out.refuse(Refusal::NoToken);
            let retry = Retry { client_nonce: init.client_nonce, token: identity.tokens.issue(&subject) };
            out.push(Action::Datagram { lane, to: source, bytes: retry.encode().to_vec() });
            return;
        }
        if self.rates.is_stopped_source(source, now) {
            return out.refuse(Refusal::Stopped);
        }
        let prologue = Prologue::new(self.suite, init.role, &identity.id, &init.retry_token);
        let Ok(answer) = handshake::respond(init.role, &identity.key, init.message, &prologue) else {
            return out.refuse(Refusal::Unauthentic);
        };
        if identity.guard.admit(now.0, init.message).is_err() {
            return out.refuse(Refusal::ReplayedInit);
        }
        let clients = &identity.clients;
        let (who, plan) = match init.role {
            HandshakeRole::Client => (Who::Client, Arc::clone(clients)),
            HandshakeRole::Relay => {
                let asks = |peer: &Peer| Some(peer.public) == answer.peer && peer.lane == lane;
                let known = self.peers.iter().position(asks);
                match known {
                    Some(at) if self.rates.is_stopped_peer(at, now) => return out.refuse(Refusal::Stopped),
                    Some(at) => (Who::Peer(at), Arc::clone(&self.peers[at].plan)),
                    None => return out.refuse(Refusal::UnknownPeer),
                }
            }
        };
        let Some(receive_index) = new_index(&mut self.slots, rng) else {
            return out.refuse(Refusal::Exhausted);
        };
        let Ok(message) = answer.message.as_slice().try_into() else { return };
        let response = HsResp { sender_index: receive_index, receiver_index: init.sender_index, message };
        let reply = response.encode(rng).to_vec();
        let send_index = init.sender_index;
        let parked = Parked { who, lane, source, plan, send_index, split: answer.split, born: now };
        let opened = match who {
            Who::Client if self.workers() > 1 => self.park(receive_index, parked, out),
            Who::Client => self.open(receive_index, &parked, 0, false, rng, out),
            Who::Peer(_) => self.open(receive_index, &parked, u32::from(lane), false, rng, out),
        };
        if opened {
            out.push(Action::Datagram { lane, to: source, bytes: reply });
        }
    }

    /// The peer at `source` whose handshake waits for an answer of this kind.
    fn asked(&self, source: SocketAddr, waits: impl Fn(&Attempt) -> bool) -> Option<usize> {
        let dials = self.peers.iter().zip(&self.dials);
        let mut dials =
            dials.map(|(peer, dial)| peer.address == source && dial.attempt.as_ref().is_some_and(&waits));
        dials.position(|waits| waits)
    }

    fn on_retry(
        &mut self,
        bytes: &[u8],
        source: SocketAddr,
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        let Ok(retry) = Retry::decode(bytes) else { return out.refuse(Refusal::Malformed) };
        let waits = |attempt: &Attempt| attempt.nonce == retry.client_nonce && attempt.token == [0; 16];
        match self.asked(source, waits) {
            Some(at) => self.dial(at, retry.token, now, rng, out),
            None => out.refuse(Refusal::Unexpected),
        }
    }

    fn on_response(
        &mut self,
        bytes: &[u8],
        source: SocketAddr,
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        let Ok(response) = HsResp::decode(bytes) else { return out.refuse(Refusal::Malformed) };
        let waits = |attempt: &Attempt| attempt.sender_index == response.receiver_index;
        let Some(at) = self.asked(source, waits) else { return out.refuse(Refusal::Unexpected) };
        let Some(attempt) = self.dials[at].attempt.take() else { return };
        let index = attempt.sender_index;
        match attempt.initiator.finish(response.message) {
            Ok(split) => {
                let (lane, plan) = (self.peers[at].lane, Arc::clone(&self.peers[at].plan));
                let send_index = response.sender_index;
                let answered =
                    Parked { who: Who::Peer(at), lane, source, plan, send_index, split, born: now };
                self.open(index, &answered, u32::from(lane), true, rng, out);
                self.dials[at].tries = 0;
                log::info!("link to {} is up", self.peers[at].name);
            }
            Err(_) => {
                self.slots.remove(&session_slot(index));
                out.refuse(Refusal::Unauthentic);
            }
        }
    }
}
