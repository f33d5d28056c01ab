//! Handshakes that wait for a first cell: with several workers, it is the NIC that says which one a link's cells come to.

use super::{Links, Who};
use crate::control::action::{Action, Outbox, Refusal};
use crate::crypto::Split;
use crate::engine::time::Nanos;
use crate::rates::Plan;
use rand_core::CryptoRng;
use relay_common::abi::session_slot;
use std::net::SocketAddr;
use std::sync::Arc;

/// Handshakes that may wait for their first cell.
const MAX_PARKED: usize = 256;

/// A handshake that this relay answered, before it is known which worker its cells come to.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) who: Who,
    pub(super) lane: u16,
    pub(super) source: SocketAddr,
    pub(super) plan: Arc<Plan>,
    pub(super) send_index: u32,
    pub(super) split: Split,
    pub(super) born: Nanos,
}

impl Links {
    /// Waits for the first cell of a session, which says to which worker the NIC sends them.
    pub(super) fn park(&mut self, receive_index: u32, parked: Parked, out: &mut Outbox) -> bool {
        if self.parked.len() >= MAX_PARKED {
            self.slots.remove(&session_slot(receive_index));
            out.refuse(Refusal::Exhausted);
            return false;
        }
        out.push(Action::AdmitSession { receive_index, source: parked.source, link: None });
        self.parked.insert(receive_index, parked);
        true
    }

    /// A cell came to `worker` for a session that no worker has.
    pub(in crate::control) fn on_unowned(
        &mut self,
        receive_index: u32,
        worker: u16,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        if let Some(parked) = self.parked.remove(&receive_index) {
            self.open(receive_index, &parked, worker.into(), false, rng, out);
        }
    }

    /// Forgets those that were answered before `born`.
    pub(super) fn give_parked_up(&mut self, born: Nanos, out: &mut Outbox) {
        let old = self.parked.iter().filter(|(_, parked)| parked.born < born).map(|(&index, _)| index);
        for index in old.collect::<Vec<u32>>() {
            self.parked.remove(&index);
            self.forget_session(index, out);
        }
    }
}
