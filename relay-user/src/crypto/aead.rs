//! One direction's AEAD key and the two shapes it seals: a cell and a hop layer.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use relay_common::wire::{CELL_LEN, LINK_HEADER_LEN, TAG_LEN};
use zeroize::Zeroize;

/// Bytes of a key of either suite.
pub(super) const KEY_LEN: usize = 32;
/// Bytes of a nonce, and of the secret IV it is made from, of either suite.
pub(super) const IV_LEN: usize = 12;

/// The network's AEAD. Stated in the network document and never negotiated, so nobody on the path can choose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Suite 1: AES-256-GCM.
    Aes256Gcm,
    /// Suite 2: ChaCha20-Poly1305, for hosts without AES instructions.
    ChaCha20Poly1305,
}

/// A suite number that protocol version 1 does not define.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("suite {0} is unknown; use 1 (AES-256-GCM) or 2 (ChaCha20-Poly1305)")]
pub struct UnknownSuite(pub u8);

impl Suite {
    /// The number in the network document and in the handshake's prologue.
    pub const fn number(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }
}

impl TryFrom<u8> for Suite {
    type Error = UnknownSuite;

    fn try_from(number: u8) -> Result<Self, UnknownSuite> {
        match number {
            1 => Ok(Self::Aes256Gcm),
            2 => Ok(Self::ChaCha20Poly1305),
            other => Err(UnknownSuite(other)),
        }
    }
}

/// The bytes were not sealed under this key and number. They are garbage now and must be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not authentic under this key; drop it")]
pub struct Unauthentic;

/// An AEAD key with its secret IV; the nonce is the IV xor a 64-bit number.
///
/// The caller must never seal twice under the same number. The key schedule is erased by the library on drop, the IV
/// here.
pub struct AeadKey {
    key: LessSafeKey,
    iv: [u8; IV_LEN],
}

impl AeadKey {
    pub(super) fn new(suite: Suite, key: &[u8; KEY_LEN], iv: [u8; IV_LEN]) -> Self {
        let algorithm = match suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, key).expect("both suites take keys of 32 bytes");
        Self { key: LessSafeKey::new(key), iv }
    }

    /// Seals a cell in place. The link header must be written: it is the associated data, and its counter makes the
    /// nonce. Seals bytes 16..1344 and puts the tag into the last 16.
    pub fn seal_cell(&self, cell: &mut [u8; CELL_LEN]) {
        let (header, rest) = header_and_rest(cell);
        let (sealed, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
        self.seal(counter(header), header, sealed, tag);
    }

    /// Opens a cell in place; afterwards bytes 16..1344 are the plaintext.
    ///
    /// # Errors
    /// [`Unauthentic`] if any bit of header, sealed part or tag differs from what was sealed.
    pub fn open_cell(&self, cell: &mut [u8; CELL_LEN]) -> Result<(), Unauthentic> {
        let (header, rest) = header_and_rest(cell);
        let (sealed, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
        self.open(counter(header), header, sealed, tag)
    }

    /// Seals a hop layer in place under `seq`; the last 16 bytes of `layer` become the tag.
    ///
    /// # Panics
    /// If `layer` is shorter than a tag.
    pub fn seal_layer(&self, seq: u64, layer: &mut [u8]) {
        assert!(layer.len() >= TAG_LEN, "a layer of {} bytes has no room for its tag", layer.len());
        let (sealed, tag) = layer.split_at_mut(layer.len() - TAG_LEN);
        self.seal(seq, &[], sealed, tag);
    }

    /// Opens a hop layer in place; the last 16 bytes of `layer` are its tag, the plaintext stands before them.
    ///
    /// # Errors
    /// [`Unauthentic`] if `layer` was not sealed by this key under `seq`, or is shorter than a tag.
    pub fn open_layer(&self, seq: u64, layer: &mut [u8]) -> Result<(), Unauthentic> {
        let sealed_len = layer.len().checked_sub(TAG_LEN).ok_or(Unauthentic)?;
        let (sealed, tag) = layer.split_at_mut(sealed_len);
        self.open(seq, &[], sealed, tag)
    }

    #[inline]
    fn seal(&self, number: u64, aad: &[u8], sealed: &mut [u8], tag: &mut [u8]) {
        let made = self
            .key
            .seal_in_place_separate_tag(self.nonce(number), Aad::from(aad), sealed)
            .expect("a cell is far below the length limit of either suite");
        tag.copy_from_slice(made.as_ref());
    }

    #[inline]
    fn open(&self, number: u64, aad: &[u8], sealed: &mut [u8], tag: &[u8]) -> Result<(), Unauthentic> {
        self.key
            .open_in_place_separate_tag(self.nonce(number), Aad::from(aad), tag, sealed)
            .map(|_| ())
            .map_err(|_| Unauthentic)
    }

    #[inline]
    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, bits) in nonce[IV_LEN - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= bits;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Drop for AeadKey {
    fn drop(&mut self) {
        self.iv.zeroize();
    }
}

impl std::fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AeadKey").finish_non_exhaustive()
    }
}

fn header_and_rest(cell: &mut [u8; CELL_LEN]) -> (&[u8; LINK_HEADER_LEN], &mut [u8]) {
    let (header, rest) = cell.split_first_chunk_mut().expect("a cell is longer than its header");
    (header, rest)
}

fn counter(header: &[u8; LINK_HEADER_LEN]) -> u64 {
    let [.., c0, c1, c2, c3, c4, c5, c6, c7] = *header;
    u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7])
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_common::wire::{LinkHeader, layer_len};

    const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    fn key(suite: Suite) -> AeadKey {
        AeadKey::new(suite, &[7; KEY_LEN], [9; IV_LEN])
    }

    fn cell(counter: u64) -> [u8; CELL_LEN] {
        let mut cell = [0xa5; CELL_LEN];
        cell[..LINK_HEADER_LEN]
            .copy_from_slice(&LinkHeader { receiver_index: 0x0102_0304, counter }.encode());
        cell
    }

    #[test]
    fn a_cell_comes_back_and_its_header_stays_clear() {
        for suite in SUITES {
            let plain = cell(u64::MAX - 1);
            let mut sealed = plain;
            key(suite).seal_cell(&mut sealed);
            assert_eq!(sealed[..LINK_HEADER_LEN], plain[..LINK_HEADER_LEN]);
            assert_ne!(sealed[LINK_HEADER_LEN..], plain[LINK_HEADER_LEN..]);
            key(suite).open_cell(&mut sealed).unwrap();
            assert_eq!(sealed[..CELL_LEN - TAG_LEN], plain[..CELL_LEN - TAG_LEN]);
        }
    }

    #[test]
    fn a_flip_of_any_bit_of_a_cell_is_refused() {
        for suite in SUITES {
            let key = key(suite);
            let mut sealed = cell(3);
            key.seal_cell(&mut sealed);
            for bit in 0..CELL_LEN * 8 {
                let mut tampered = sealed;
                tampered[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key.open_cell(&mut tampered), Err(Unauthentic), "{suite:?}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_layer_opens_only_under_its_sequence_number_and_untouched() {
        for suite in SUITES {
            let key = key(suite);
            for depth in 0..3 {
                let plain = vec![0x3c; layer_len(depth)];
                let mut sealed = plain.clone();
                key.seal_layer(11, &mut sealed);
                let mut opened = sealed.clone();
                key.open_layer(11, &mut opened).unwrap();
                assert_eq!(opened[..opened.len() - TAG_LEN], plain[..plain.len() - TAG_LEN]);
                assert_eq!(key.open_layer(12, &mut sealed.clone()), Err(Unauthentic));
                for bit in 0..sealed.len() * 8 {
                    let mut tampered = sealed.clone();
                    tampered[bit / 8] ^= 1 << (bit % 8);
                    assert_eq!(key.open_layer(11, &mut tampered), Err(Unauthentic), "{suite:?}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_layer_shorter_than_its_tag_is_refused() {
        assert_eq!(key(Suite::Aes256Gcm).open_layer(0, &mut [0; TAG_LEN - 1]), Err(Unauthentic));
    }

    #[test]
    fn the_nonce_is_the_iv_xor_the_number() {
        let key = AeadKey::new(Suite::Aes256Gcm, &[0; KEY_LEN], [0xff; IV_LEN]);
        assert_eq!(
            key.nonce(0x0102_0304_0506_0708).as_ref(),
            &[0xff, 0xff, 0xff, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0xfa, 0xf9, 0xf8, 0xf7]
        );
    }

    #[test]
    fn suites_keep_their_numbers() {
        for suite in SUITES {
            assert_eq!(Suite::try_from(suite.number()), Ok(suite));
        }
        assert_eq!(Suite::try_from(0), Err(UnknownSuite(0)));
        assert_eq!(Suite::try_from(3), Err(UnknownSuite(3)));
    }
}
