//! The keys that a client shares with one hop of a circuit.

use super::aead::{AeadKey, Suite};
use super::split::{Secret, Split};

/// The keys of one hop in one epoch; client and relay hold the same.
///
/// The client begins every circuit handshake, so `forward` comes from the initiator's half of the split.
pub struct HopKeys {
    /// Layers towards the exit: the client seals, the hop opens.
    pub forward: AeadKey,
    /// Layers towards the client: the hop seals, the client opens.
    pub backward: AeadKey,
    /// What the hop adds, wrapping, to a forward `hop_seq` before it passes the cell on. Below 2^62; the same in every
    /// epoch.
    pub forward_offset: u64,
    /// What the hop adds, wrapping, to a backward `hop_seq` before it passes the cell on. Below 2^62; the same in every
    /// epoch.
    pub backward_offset: u64,
    suite: Suite,
    epoch: u8,
    forward_ratchet: Secret,
    backward_ratchet: Secret,
}

impl HopKeys {
    /// The keys of epoch 0. Both ends call it alike.
    pub fn derive(split: &Split, suite: Suite) -> Self {
        let forward = Secret::extract(&split.initiator_to_responder, b"evenwire1 hop");
        let backward = Secret::extract(&split.responder_to_initiator, b"evenwire1 hop");
        let offsets = [&forward, &backward].map(|secret| secret.offset(b"evenwire1 hop seq offset"));
        Self::of_epoch(0, suite, &forward, &backward, offsets)
    }

    /// The keys of the epoch after this one. Once both are dropped, nothing can bring this epoch's keys back.
    pub fn next_epoch(&self) -> Self {
        let offsets = [self.forward_offset, self.backward_offset];
        let epoch = self.epoch.wrapping_add(1);
        Self::of_epoch(epoch, self.suite, &self.forward_ratchet, &self.backward_ratchet, offsets)
    }

    /// Generation of the keys modulo 256, as the circuit header carries it.
    pub fn epoch(&self) -> u8 {
        self.epoch
    }

    fn of_epoch(epoch: u8, suite: Suite, forward: &Secret, backward: &Secret, offsets: [u64; 2]) -> Self {
        let [forward_offset, backward_offset] = offsets;
        let key = |secret: &Secret| secret.aead_key(suite, b"evenwire1 hop key", b"evenwire1 hop iv");
        Self {
            forward: key(forward),
            backward: key(backward),
            forward_offset,
            backward_offset,
            suite,
            epoch,
            forward_ratchet: forward.secret(b"evenwire1 hop ratchet"),
            backward_ratchet: backward.secret(b"evenwire1 hop ratchet"),
        }
    }
}

impl std::fmt::Debug for HopKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HopKeys").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Unauthentic;
    use proptest::prelude::*;
    use relay_common::wire::layer_len;

    fn split(fill: u8) -> Split {
        Split { initiator_to_responder: [fill; 32], responder_to_initiator: [fill ^ 0xff; 32] }
    }

    #[test]
    fn both_ends_agree_in_every_epoch_and_epochs_do_not_mix() {
        let mut client = HopKeys::derive(&split(5), Suite::Aes256Gcm);
        let mut relay = HopKeys::derive(&split(5), Suite::Aes256Gcm);
        for epoch in 0..=256_u32 {
            assert_eq!(u32::from(client.epoch()), epoch % 256);
            let mut layer = vec![0; layer_len(1)];
            client.forward.seal_layer(8, &mut layer);
            assert_eq!(relay.backward.open_layer(8, &mut layer.clone()), Err(Unauthentic));
            assert_eq!(relay.next_epoch().forward.open_layer(8, &mut layer.clone()), Err(Unauthentic));
            relay.forward.open_layer(8, &mut layer).unwrap();
            let mut layer = vec![0; layer_len(1)];
            relay.backward.seal_layer(8, &mut layer);
            client.backward.open_layer(8, &mut layer).unwrap();
            (client, relay) = (client.next_epoch(), relay.next_epoch());
        }
    }

    #[test]
    fn offsets_differ_by_direction_and_stay_over_epochs() {
        let keys = HopKeys::derive(&split(5), Suite::Aes256Gcm);
        assert_ne!(keys.forward_offset, keys.backward_offset);
        let next = keys.next_epoch();
        assert_eq!((keys.forward_offset, keys.backward_offset), (next.forward_offset, next.backward_offset));
    }

    proptest! {
        #[test]
        fn offsets_leave_room_for_a_circuits_life(forward: [u8; 32], backward: [u8; 32]) {
            let split = Split { initiator_to_responder: forward, responder_to_initiator: backward };
            let keys = HopKeys::derive(&split, Suite::Aes256Gcm);
            prop_assert!(keys.forward_offset < 1 << 62);
            prop_assert!(keys.backward_offset < 1 << 62);
        }
    }
}
