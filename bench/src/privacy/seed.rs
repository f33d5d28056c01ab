//! Randomness for each purpose from the one seed of a run: what is left out does not change what the rest draws.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

/// A seed for what `purpose` names, from the seed of everything.
pub(super) fn of(seed: u64, purpose: &[&str]) -> u64 {
    // FNV-1a, with an end behind each word. Only different purposes have to differ.
    let words = purpose.iter().flat_map(|word| word.bytes().chain([0xff]));
    seed.to_le_bytes()
        .into_iter()
        .chain(words)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The randomness of that seed.
pub(super) fn rng(seed: u64, purpose: &[&str]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(of(seed, purpose))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_and_seeds_differ() {
        let seeds = [of(1, &["a", "b"]), of(1, &["ab"]), of(1, &["b", "a"]), of(2, &["a", "b"]), of(1, &[])];
        for (place, one) in seeds.iter().enumerate() {
            assert!(!seeds[..place].contains(one), "{seeds:?}");
        }
        assert_eq!(of(1, &["a", "b"]), seeds[0]);
    }
}
