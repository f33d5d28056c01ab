//! Which chunks are in the kernel's hands.

/// One bit per chunk of an arena. The kernel's word that it is done with a chunk counts only for a chunk that was
/// lent to it, so no fault on its side can make two frames of one chunk.
pub(super) struct Lent {
    words: Box<[u64]>,
    count: u32,
}

impl Lent {
    /// None of `frames` chunks is lent.
    pub(super) fn new(frames: u32) -> Self {
        Self { words: vec![0; frames.div_ceil(64) as usize].into_boxed_slice(), count: 0 }
    }

    /// Number of chunks lent.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Notes that chunk `index` goes to the kernel.
    pub(super) fn lend(&mut self, index: u32) {
        if let Some(word) = self.words.get_mut((index / 64) as usize) {
            let bit = 1 << (index % 64);
            debug_assert_eq!(*word & bit, 0, "chunk {index} lent twice");
            *word |= bit;
            self.count += 1;
        }
    }

    /// Notes that chunk `index` came back. `false` when it was not lent.
    #[must_use]
    pub(super) fn take_back(&mut self, index: u32) -> bool {
        let bit = 1 << (index % 64);
        match self.words.get_mut((index / 64) as usize) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                self.count -= 1;
                true
            }
            _ => false,
        }
    }

    /// The next chunk that is lent, at or behind `from`.
    pub(super) fn next_lent(&self, from: u32) -> Option<u32> {
        let mut index = from;
        while let Some(word) = self.words.get((index / 64) as usize) {
            let rest = word >> (index % 64);
            if rest != 0 {
                return Some(index + rest.trailing_zeros());
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set(frames in 1u32..200, steps in proptest::collection::vec((any::<bool>(), 0u32..200), 0..200)) {
            let (mut lent, mut model) = (Lent::new(frames), BTreeSet::new());
            for (lend, index) in steps {
                let index = index % frames;
                if lend && model.insert(index) {
                    lent.lend(index);
                } else {
                    prop_assert_eq!(lent.take_back(index), model.remove(&index));
                }
                prop_assert_eq!(lent.count() as usize, model.len());
            }
            let mut listed = Vec::new();
            let mut from = 0;
            while let Some(index) = lent.next_lent(from) {
                listed.push(index);
                from = index + 1;
            }
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_chunk_beyond_the_arena_was_never_lent() {
        assert!(!Lent::new(3).take_back(u32::MAX));
    }
}
