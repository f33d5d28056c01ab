//! Samples by the block that they were taken in.

use super::random::shuffle;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Which samples (by their place in a slice) were taken in which block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    members: Vec<Vec<usize>>,
    names: Vec<u32>,
}

impl Blocks {
    /// Of the blocks' names, one for each sample. Blocks are numbered from 0 in the order of their names.
    pub fn of(names: impl IntoIterator<Item = u32>) -> Self {
        let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (sample, name) in names.into_iter().enumerate() {
            members.entry(name).or_default().push(sample);
        }
        let (names, members) = members.into_iter().unzip();
        Self { members, names }
    }

    /// The blocks' names, in their order.
    pub fn names(&self) -> &[u32] {
        &self.names
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The samples of each block.
    pub fn iter(&self) -> impl Iterator<Item = &[usize]> {
        self.members.iter().map(Vec::as_slice)
    }

    /// In how many blocks the label occurs that occurs in fewest; 0 where all labels are the same.
    pub fn least_spread(&self, labels: &[u16]) -> usize {
        let mut spread: BTreeMap<u16, usize> = BTreeMap::new();
        for label in self.iter().flat_map(|members| kinds(labels, members)) {
            *spread.entry(label).or_default() += 1;
        }
        if spread.len() < 2 { 0 } else { spread.into_values().min().unwrap_or(0) }
    }

    /// A fold (below `folds`) for each sample: whole blocks, dealt so that blocks of like labels are spread evenly.
    pub fn folds(&self, labels: &[u16], folds: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let mut order: Vec<&[usize]> = self.iter().collect();
        shuffle(&mut order, rng);
        order.sort_by_key(|members| kinds(labels, members));
        let mut fold_of = vec![0; labels.len()];
        for (place, members) in order.into_iter().enumerate() {
            for &member in members {
                fold_of[member] = place % folds.max(1);
            }
        }
        fold_of
    }

    /// The samples of a quarter of the blocks, to learn from, and the other blocks, to try it on; blocks of like labels are
    /// spread evenly.
    pub fn split(&self, labels: &[u16], rng: &mut ChaCha8Rng) -> (Vec<usize>, Self) {
        let fold_of = self.folds(labels, 4, rng);
        let (mut lessons, mut trials) = (Vec::new(), Self { members: Vec::new(), names: Vec::new() });
        for (members, name) in self.members.iter().zip(&self.names) {
            if members.first().is_some_and(|&member| fold_of[member] == 0) {
                lessons.extend_from_slice(members);
            } else {
                trials.members.push(members.clone());
                trials.names.push(*name);
            }
        }
        (lessons, trials)
    }

    /// The labels as they could as well have been, if they meant nothing: blocks of one label trade it among
    /// themselves, and in each block of several, labels trade places.
    pub fn permuted(&self, labels: &[u16], rng: &mut ChaCha8Rng) -> Vec<u16> {
        let mut dealt: Vec<u16> = self.iter().filter_map(|members| only(&kinds(labels, members))).collect();
        shuffle(&mut dealt, rng);
        let mut permuted = labels.to_vec();
        for members in self.iter() {
            let before = kinds(labels, members);
            let mut after = before.clone();
            if only(&before).is_none() {
                shuffle(&mut after, rng);
            } else if let Some(label) = dealt.pop() {
                after = vec![label];
            }
            for &member in members {
                if let Ok(kind) = before.binary_search(&labels[member]) {
                    permuted[member] = after[kind];
                }
            }
        }
        permuted
    }

    /// In how many ways [`Self::permuted`] can answer: with fewer than a hundred, nothing can be rare.
    pub fn arrangements(&self, labels: &[u16]) -> f64 {
        let mut single: BTreeMap<u16, u32> = BTreeMap::new();
        let (mut ways, mut blocks) = (1.0, 0);
        for members in self.iter() {
            let kinds = kinds(labels, members);
            match only(&kinds) {
                // The multinomial coefficient, built up block by block.
                Some(label) => {
                    let alike = single.entry(label).or_default();
                    *alike += 1;
                    blocks += 1;
                    ways *= f64::from(blocks) / f64::from(*alike);
                }
                None => ways *= (1..=kinds.len()).map(|n| n as f64).product::<f64>(),
            }
        }
        ways
    }
}

/// The labels of a block, each once, in order.
fn kinds(labels: &[u16], members: &[usize]) -> Vec<u16> {
    let mut kinds: Vec<u16> = members.iter().map(|&member| labels[member]).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn only(kinds: &[u16]) -> Option<u16> {
    match kinds {
        [label] => Some(*label),
        _ => None,
    }
}

/// Names as numbers that run from 0 in the order of the names, as [`Blocks`] numbers them, and how many different ones
/// there are.
pub fn numbered(names: &[u32]) -> (Vec<usize>, usize) {
    let mut distinct = names.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    (names.iter().map(|name| distinct.partition_point(|other| other < name)).collect(), distinct.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_run_from_zero() {
        assert_eq!(numbered(&[7, 3, 7, 90]), (vec![1, 0, 1, 2], 3));
    }

    #[test]
    fn folds_keep_blocks_whole_and_spread_labels() {
        let names: Vec<u32> = (0..80).map(|sample| sample / 4).collect();
        let labels: Vec<u16> = names.iter().map(|name| u16::from(name % 2 == 0)).collect();
        let blocks = Blocks::of(names.clone());
        let folds = blocks.folds(&labels, 5, &mut ChaCha8Rng::seed_from_u64(1));
        for members in blocks.iter() {
            assert!(members.iter().all(|&member| folds[member] == folds[members[0]]));
        }
        for fold in 0..5 {
            let busy = (0..80).filter(|&sample| folds[sample] == fold && labels[sample] == 1).count();
            assert_eq!(busy, 8, "two of ten busy blocks in each of five folds");
        }
        let (lessons, trials) = blocks.split(&labels, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!((lessons.len(), trials.len(), trials.names().len()), (20, 15, 15));
        assert!(trials.iter().all(|members| members.len() == 4 && !lessons.contains(&members[0])));
    }

    #[test]
    fn blocks_of_one_label_trade_it() {
        let names = [7, 7, 3, 3, 9, 9, 5, 5];
        let labels = [1, 1, 0, 0, 1, 1, 0, 0];
        let blocks = Blocks::of(names);
        assert_eq!(blocks.arrangements(&labels), 6.0);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let seen: BTreeSet<Vec<u16>> = (0..200).map(|_| blocks.permuted(&labels, &mut rng)).collect();
        assert_eq!(seen.len(), 6);
        assert!(seen.iter().all(|labels| labels.chunks(2).all(|pair| pair[0] == pair[1])));
    }

    #[test]
    fn labels_of_one_block_trade_places_in_it() {
        let names = [1, 1, 1, 2, 2, 2];
        let labels = [0, 0, 4, 4, 0, 0];
        let blocks = Blocks::of(names);
        assert_eq!(blocks.arrangements(&labels), 4.0);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let seen: BTreeSet<Vec<u16>> = (0..100).map(|_| blocks.permuted(&labels, &mut rng)).collect();
        assert_eq!(seen.len(), 4);
        assert!(seen.contains([4, 4, 0, 4, 0, 0].as_slice()));
    }

    #[test]
    fn the_rarest_label_counts() {
        let blocks = Blocks::of([1, 2, 2, 3, 3]);
        assert_eq!(blocks.least_spread(&[0, 0, 1, 0, 1]), 2);
        assert_eq!(blocks.least_spread(&[0; 5]), 0);
    }
}
