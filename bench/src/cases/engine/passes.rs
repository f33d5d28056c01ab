//! The floor of what a relayed cell costs: opening the link layer, opening the hop layer and sealing the link layer
//! again, by calls to the AEAD library and nothing else.

use super::relay::{BATCH, Halves};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use relay_common::wire::{BODY_OFFSET, CELL_LEN, LINK_HEADER_LEN, TAG_LEN, layer_len};
use std::time::Instant;

/// Cells per measurement.
const CELLS: usize = BATCH;
/// The hop layer of a middle relay, as [`super::relay`] has it.
const LAYER: std::ops::Range<usize> = BODY_OFFSET..BODY_OFFSET + layer_len(1);

/// Keys and buffers for the three passes.
pub(super) struct Passes {
    from_entry: LessSafeKey,
    hop: LessSafeKey,
    to_exit: LessSafeKey,
    cells: Vec<[u8; CELL_LEN]>,
    number: u64,
}

impl Passes {
    pub(super) fn new() -> Self {
        let key =
            |fill| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[fill; 32]).expect("a key of 32 bytes"));
        Self {
            from_entry: key(1),
            hop: key(2),
            to_exit: key(3),
            cells: vec![[0x5a; CELL_LEN]; CELLS],
            number: 0,
        }
    }

    /// Time of the passes over one batch of cells, which are sealed before the clock starts. As in a relay, a batch is
    /// opened as it comes in and sealed as it goes out.
    pub(super) fn batch(&mut self) -> Halves {
        let first = self.number;
        for cell in &mut self.cells {
            self.number += 1;
            seal(&self.hop, self.number, &[], &mut cell[LAYER]);
            let (header, rest) = cell.split_at_mut(LINK_HEADER_LEN);
            seal(&self.from_entry, self.number, header, rest);
        }
        let start = Instant::now();
        for (number, cell) in (first + 1..).zip(&mut self.cells) {
            let (header, rest) = cell.split_at_mut(LINK_HEADER_LEN);
            open(&self.from_entry, number, header, rest);
            open(&self.hop, number, &[], &mut cell[LAYER]);
        }
        let opened = Instant::now();
        for (number, cell) in (first + 1..).zip(&mut self.cells) {
            let (header, rest) = cell.split_at_mut(LINK_HEADER_LEN);
            seal(&self.to_exit, number, header, rest);
        }
        Halves { receive: opened - start, send: opened.elapsed() }
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn seal(key: &LessSafeKey, number: u64, header: &[u8], bytes: &mut [u8]) {
    let (sealed, tag) = bytes.split_at_mut(bytes.len() - TAG_LEN);
    let made = key.seal_in_place_separate_tag(nonce(number), Aad::from(header), sealed);
    tag.copy_from_slice(made.expect("far below the limit").as_ref());
}

fn open(key: &LessSafeKey, number: u64, header: &[u8], bytes: &mut [u8]) {
    let (sealed, tag) = bytes.split_at_mut(bytes.len() - TAG_LEN);
    let opened = key.open_in_place_separate_tag(nonce(number), Aad::from(header), tag, sealed);
    assert!(opened.is_ok(), "sealed a moment ago under the same key and number");
}
