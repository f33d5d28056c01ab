//! New keys for a running link. The handshake travels in the link's own slots. The wire shows no more than that the receiver
//! index in the clear has changed.

use super::{Links, OLD_KEYS, REKEY, REKEY_PATIENCE, Who, new_index};
use crate::control::action::{Outbox, Refusal};
use crate::crypto::LinkKeys;
use crate::crypto::handshake::{self, HandshakeRole, Initiator, Prologue};
use crate::engine::time::Nanos;
use crate::engine::{Command, body_mut};
use crate::xsk::Frame;
use rand_core::CryptoRng;
use relay_common::wire::Command as CellCommand;

impl Links {
    /// A rekey message of a link.
    pub(super) fn on_rekey(
        &mut self,
        number: u32,
        command: CellCommand,
        mut frame: Frame,
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        let Some(body) = body_mut(&mut frame) else { return };
        let result = match command {
            CellCommand::RekeyInit => self.answer_rekey(number, body, now, rng, out),
            _ => self.finish_rekey(number, body, now, rng, out),
        };
        if result.is_none() {
            out.refuse(Refusal::Unauthentic);
        }
    }

    fn answer_rekey(
        &mut self,
        number: u32,
        body: &[u8],
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) -> Option<()> {
        let link = self.links.get(&number)?;
        let (who, address) = (link.who, link.address);
        let identity = self.identity.as_ref().filter(|_| !link.initiator)?;
        let role = if who == Who::Client { HandshakeRole::Client } else { HandshakeRole::Relay };
        let send_index = u32::from_be_bytes(body[..4].try_into().ok()?);
        let prologue = Prologue::new(self.suite, role, &identity.id, &[0; 16]);
        let answer =
            handshake::respond(role, &identity.key, &body[4..4 + role.init_len()], &prologue).ok()?;
        if let Who::Peer(at) = who
            && answer.peer != Some(self.peers[at].public)
        {
            return None;
        }
        let receive_index = new_index(&mut self.slots, rng)?;
        let keys = LinkKeys::derive(&answer.split, self.suite, false);
        self.install(number, address, receive_index, send_index, keys, false, now, out);
        // Until the new keys are confirmed the old ones stay; a repeated rekey replaces what was never used.
        let link = self.links.get_mut(&number)?;
        let life = crate::engine::SESSION_LIFE;
        link.old.push((std::mem::replace(&mut link.index, receive_index), now + life));
        let frame = out.cell(&[&receive_index.to_be_bytes(), &send_index.to_be_bytes(), &answer.message])?;
        out.worker(link_cell(number, CellCommand::RekeyResp, frame));
        Some(())
    }

    fn finish_rekey(
        &mut self,
        number: u32,
        body: &[u8],
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) -> Option<()> {
        let send_index = u32::from_be_bytes(body[..4].try_into().ok()?);
        let index = u32::from_be_bytes(body[4..8].try_into().ok()?);
        let link = self.links.get_mut(&number)?;
        let (initiator, receive_index, _) = link.rekey.take_if(|(_, ours, _)| *ours == index)?;
        let address = link.address;
        let split = initiator.finish(&body[8..8 + handshake::RESPONSE_LEN]).ok()?;
        link.old.push((std::mem::replace(&mut link.index, receive_index), now + OLD_KEYS));
        link.rekey_at = now + Nanos(REKEY - REKEY / 10 + rng.next_u64() % (REKEY / 5));
        let keys = LinkKeys::derive(&split, self.suite, true);
        self.install(number, address, receive_index, send_index, keys, true, now, out);
        Some(())
    }

    pub(super) fn start_rekey(
        &mut self,
        number: u32,
        at: usize,
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        let (role, key) = match &self.identity {
            Some(identity) => (HandshakeRole::Relay, Some(&identity.key)),
            None => (HandshakeRole::Client, None),
        };
        let prologue = Prologue::new(self.suite, role, &self.peers[at].id, &[0; 16]);
        let Ok((initiator, message)) = Initiator::start(role, key, &self.peers[at].public, &prologue) else {
            return;
        };
        let Some(index) = new_index(&mut self.slots, rng) else { return out.refuse(Refusal::Exhausted) };
        let Some(frame) = out.cell(&[&index.to_be_bytes(), &message]) else { return };
        out.worker(link_cell(number, CellCommand::RekeyInit, frame));
        if let Some(link) = self.links.get_mut(&number) {
            let patience = REKEY_PATIENCE.max(link.governed.patience());
            link.rekey = Some((initiator, index, now + patience));
        }
    }
}

fn link_cell(link: u32, command: CellCommand, frame: Frame) -> Command {
    Command::SendCell { link, circ_id: 0, command, hop_seq: 0, frame }
}
