//! The floor of what a relayed cell costs: three AES-256-GCM passes and nothing else.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use relay_common::wire::{LINK_HEADER_LEN, SEALED_LEN, layer_len};
use std::time::{Duration, Instant};

/// Cells per measurement, as many as [`super::relay::BATCH`].
const CELLS: usize = super::relay::BATCH;

/// Keys and buffers for the passes of a link open, a hop layer and a link seal.
pub(super) struct Passes {
    keys: [LessSafeKey; 3],
    buffers: Vec<[u8; SEALED_LEN]>,
    number: u64,
}

impl Default for Passes {
    fn default() -> Self {
        Self::new()
    }
}

impl Passes {
    /// Three keys and a batch of buffers.
    ///
    /// # Panics
    /// Never: the keys have the length that the suite wants.
    pub(super) fn new() -> Self {
        let key =
            |fill| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[fill; 32]).expect("a key of 32 bytes"));
        Self { keys: [key(1), key(2), key(3)], buffers: vec![[0x5a; SEALED_LEN]; CELLS], number: 0 }
    }

    /// Time of the passes over one batch of cells.
    ///
    /// # Panics
    /// Never: a cell is far below the suite's limit.
    pub(super) fn batch(&mut self) -> Duration {
        let header = [1; LINK_HEADER_LEN];
        let start = Instant::now();
        for buffer in &mut self.buffers {
            self.number += 1;
            // In the middle of three hops.
            let lengths = [SEALED_LEN, layer_len(1), SEALED_LEN];
            for (key, length) in self.keys.iter().zip(lengths) {
                let mut nonce = [0; NONCE_LEN];
                nonce[4..].copy_from_slice(&self.number.to_be_bytes());
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&header), &mut buffer[..length]);
                let _tag = std::hint::black_box(tag.expect("far below the limit"));
            }
        }
        start.elapsed()
    }
}
