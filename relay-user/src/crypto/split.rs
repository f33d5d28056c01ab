//! What a finished handshake leaves behind, and the one place where keys are derived from it.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::aead::{AeadKey, IV_LEN, KEY_LEN, Suite};

/// Two secrets, one per direction, that only the two ends of a handshake know. Erased on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Split {
    /// Secret of what the initiator sends.
    pub initiator_to_responder: [u8; 32],
    /// Secret of what the responder sends.
    pub responder_to_initiator: [u8; 32],
}

impl std::fmt::Debug for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Split").finish_non_exhaustive()
    }
}

/// A secret that HKDF-SHA256 expands into keys under labels.
pub(super) struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// The secret of one direction of a [`Split`], for one use named by `purpose`.
    pub(super) fn extract(direction: &[u8; 32], purpose: &[u8]) -> Self {
        Self::expand_prk(&Salt::new(HKDF_SHA256, b"evenwire1").extract(direction), purpose)
    }

    /// A further secret under `label`.
    pub(super) fn secret(&self, label: &[u8]) -> Self {
        Self(self.bytes(label))
    }

    /// An AEAD key and its IV under their labels.
    pub(super) fn aead_key(&self, suite: Suite, key_label: &[u8], iv_label: &[u8]) -> AeadKey {
        let key: Zeroizing<[u8; KEY_LEN]> = self.bytes(key_label);
        let iv: Zeroizing<[u8; IV_LEN]> = self.bytes(iv_label);
        AeadKey::new(suite, &key, *iv)
    }

    /// A number below 2^62 under `label`.
    pub(super) fn offset(&self, label: &[u8]) -> u64 {
        let bytes: Zeroizing<[u8; 8]> = self.bytes(label);
        u64::from_be_bytes(*bytes) >> 2
    }

    fn expand_prk(prk: &Prk, label: &[u8]) -> Self {
        Self(expand(prk, label))
    }

    fn bytes<const N: usize>(&self, label: &[u8]) -> Zeroizing<[u8; N]> {
        expand(&Prk::new_less_safe(HKDF_SHA256, &*self.0), label)
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(prk: &Prk, label: &[u8]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    prk.expand(&[label], Length(N))
        .and_then(|okm| okm.fill(&mut *out))
        .expect("N is far below the 8160 bytes that HKDF-SHA256 can make");
    out
}
