//! What the control plane's state machines ask for; `node` carries it out.

use crate::engine::Command;
use crate::xsk::{Arena, Frame};
use relay_common::wire::BODY_LEN;
use std::net::SocketAddr;

/// One thing to be done. The order of a list of actions matters.
#[derive(Debug)]
pub(super) enum Action {
    /// Send a handshake datagram through the kernel's socket of a lane's port.
    Datagram { lane: u16, to: SocketAddr, bytes: Vec<u8> },
    /// Tell the worker.
    Worker(Command),
    /// Let a session's cells through to the worker that has `link`; without one, to the worker that they happen to come
    /// to, which then asks.
    AdmitSession { receive_index: u32, source: SocketAddr, link: Option<u32> },
    /// Stop letting them through.
    DropSession { receive_index: u32 },
    /// A link's cells go from a lane's port to `remote` from here on.
    Aim { link: u32, lane: u16, remote: SocketAddr },
    /// A link's number is free again.
    Forget { link: u32 },
}

/// Reasons for which the control plane refuses or drops what it is sent.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A datagram on the kernel's socket that is none of the handshake's.
    Malformed,
    /// `mac1` does not match: not meant for this relay.
    WrongMac,
    /// No valid retry token: answered with RETRY.
    NoToken,
    /// An HS_INIT that was accepted before.
    ReplayedInit,
    /// The handshake does not authenticate.
    Unauthentic,
    /// The peer's key is not in the network document, or has no trunk to this relay.
    UnknownPeer,
    /// An answer to nothing that was asked.
    Unexpected,
    /// A link that lost too much and must stay down for a while.
    Stopped,
    /// No free link, session or circuit number.
    Exhausted,
    /// A circuit or an extension that this relay does not accept.
    CircuitRefused,
    /// The arena had no frame for a control cell.
    NoFrame,
    /// The worker's command queue was full.
    WorkerBusy,
}

impl Refusal {
    pub(super) const ALL: [Self; 12] = [
        Self::Malformed,
        Self::WrongMac,
        Self::NoToken,
        Self::ReplayedInit,
        Self::Unauthentic,
        Self::UnknownPeer,
        Self::Unexpected,
        Self::Stopped,
        Self::Exhausted,
        Self::CircuitRefused,
        Self::NoFrame,
        Self::WorkerBusy,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "handshake_malformed",
            Self::WrongMac => "handshake_wrong_mac",
            Self::NoToken => "handshake_no_token",
            Self::ReplayedInit => "handshake_replayed",
            Self::Unauthentic => "handshake_unauthentic",
            Self::UnknownPeer => "handshake_unknown_peer",
            Self::Unexpected => "handshake_unexpected",
            Self::Stopped => "link_stopped",
            Self::Exhausted => "control_exhausted",
            Self::CircuitRefused => "circuit_refused",
            Self::NoFrame => "control_no_frame",
            Self::WorkerBusy => "worker_busy",
        }
    }
}

/// Collects actions and counts refusals.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) actions: Vec<Action>,
    pub(super) refusals: [u64; Refusal::ALL.len()],
    arena: &'static Arena,
}

impl Outbox {
    pub(super) fn new(arena: &'static Arena) -> Self {
        Self { actions: Vec::new(), refusals: [0; Refusal::ALL.len()], arena }
    }

    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn worker(&mut self, command: Command) {
        self.actions.push(Action::Worker(command));
    }

    pub(super) fn refuse(&mut self, reason: Refusal) {
        self.refusals[reason as usize] += 1;
    }

    /// A frame whose body begins with `parts`, one after the other; the rest is zero.
    pub(super) fn cell(&mut self, parts: &[&[u8]]) -> Option<Frame> {
        let Some(mut frame) = self.arena.take() else {
            self.refuse(Refusal::NoFrame);
            return None;
        };
        crate::engine::blank_cell(&mut frame)?;
        let body: &mut [u8; BODY_LEN] = crate::engine::body_mut(&mut frame)?;
        let mut at = 0;
        for part in parts {
            body.get_mut(at..at + part.len())?.copy_from_slice(part);
            at += part.len();
        }
        Some(frame)
    }
}
