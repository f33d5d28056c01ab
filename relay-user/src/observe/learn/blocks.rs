//! How sure a figure is where observations of one block stand or fall together.

use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::stats;
use rand_chacha::ChaCha8Rng;

/// With fewer blocks than this nothing is said.
pub const FEWEST: usize = 6;
const RESAMPLES: usize = 1000;
/// Added to both ends: sums in another order differ by less.
const ROUNDING: f64 = 1e-9;

/// A figure and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// Observations that it rests on; 0 if there are too few to tell.
    pub samples: usize,
}

impl Figure {
    /// Nothing can be said.
    pub const NONE: Self = Self { value: f64::NAN, interval: Interval::exact(f64::NAN), samples: 0 };

    /// As what `attack` found.
    pub fn found(self, attack: Attack, statistic: &'static str, target: Target) -> Finding {
        let Self { value, interval, samples } = self;
        Finding { attack, statistic, value, interval, target, samples }
    }
}

/// The blocks' numbers, made to run from 0 on, and how many blocks there are.
pub fn numbered(blocks: &[u32]) -> (Vec<usize>, usize) {
    let mut distinct = blocks.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    (blocks.iter().map(|block| distinct.partition_point(|other| other < block)).collect(), distinct.len())
}

/// A statistic of all of `blocks` (0 to `blocks - 1`), which is given the numbers of blocks drawn, with repeats.
/// Nothing is said of fewer than [`FEWEST`] blocks.
pub fn figure(
    blocks: usize,
    samples: usize,
    rng: &mut ChaCha8Rng,
    mut statistic: impl FnMut(&[usize]) -> f64,
) -> Figure {
    if blocks < FEWEST {
        return Figure::NONE;
    }
    let value = statistic(&(0..blocks).collect::<Vec<_>>());
    let drawn = stats::bootstrap(blocks, RESAMPLES, rng, &mut statistic);
    // The bootstrap takes the blocks at hand for all there are, which is too sure of itself where they are few.
    let factor = stretch(blocks);
    let low = value - (value - drawn.low).max(0.0) * factor - ROUNDING;
    let high = value + (drawn.high - value).max(0.0) * factor + ROUNDING;
    Figure { value, interval: Interval { low, high }, samples }
}

/// The mean of one value for each block, weighted alike.
pub fn mean(values: &[f64], samples: usize, rng: &mut ChaCha8Rng) -> Figure {
    figure(values.len(), samples, rng, |drawn| {
        drawn.iter().map(|block| values[*block]).sum::<f64>() / drawn.len() as f64
    })
}

/// Student's 97.5 % quantile over the normal law's, with the correction for a sample's variance: 1.44 for 6 blocks,
/// 1.21 for 10, 1.03 for 60. Cornish and Fisher's expansion is right to 1 % from 6 blocks on.
fn stretch(blocks: usize) -> f64 {
    let z: f64 = 1.959_964;
    let freedom = (blocks.max(2) - 1) as f64;
    let first = (z.powi(3) + z) / (4.0 * freedom);
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * freedom * freedom);
    (z + first + second) / z * ((freedom + 1.0) / freedom).sqrt()
}

/// One observation's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Greater where the observer believes that there is something.
    pub score: f64,
    /// Whether there was.
    pub positive: bool,
    /// Its block.
    pub block: u32,
}

/// The chance that something scores more than nothing (area under the ROC curve; equal scores count half). Nothing is
/// said unless there are both.
pub fn auc(scored: &[Scored], rng: &mut ChaCha8Rng) -> Figure {
    let mut sorted = scored.to_vec();
    sorted.sort_unstable_by(|a, b| a.score.total_cmp(&b.score));
    let positives = sorted.iter().filter(|one| one.positive).count();
    if positives == 0 || positives == sorted.len() {
        return Figure::NONE;
    }
    let (block, blocks) = numbered(&sorted.iter().map(|one| one.block).collect::<Vec<_>>());
    let mut times = vec![0.0; blocks];
    figure(blocks, sorted.len(), rng, |drawn| {
        times.fill(0.0);
        for block in drawn {
            times[*block] += 1.0;
        }
        area(&sorted, &block, &times)
    })
}

/// The area where each observation counts as often as its block was drawn; one half if only one kind was.
fn area(sorted: &[Scored], block: &[usize], times: &[f64]) -> f64 {
    let (mut below, mut positives, mut won) = (0.0, 0.0, 0.0);
    let mut from = 0;
    for equal in sorted.chunk_by(|a, b| a.score == b.score) {
        let (mut negative, mut positive) = (0.0, 0.0);
        for (one, block) in equal.iter().zip(&block[from..]) {
            *if one.positive { &mut positive } else { &mut negative } += times[*block];
        }
        won += positive * (below + negative / 2.0);
        below += negative;
        positives += positive;
        from += equal.len();
    }
    if below * positives > 0.0 { won / (below * positives) } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    #[test]
    fn numbers_run_from_zero() {
        assert_eq!(numbered(&[7, 3, 7, 90]), (vec![1, 0, 1, 2], 3));
    }

    #[test]
    fn intervals_of_few_blocks_hold_the_truth_as_often_as_they_say() {
        for (blocks, least) in [(6, 180), (12, 183), (40, 184)] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let held = (0..200).filter(|_| {
                let values: Vec<f64> = (0..blocks).map(|_| stats::normal(&mut rng)).collect();
                mean(&values, blocks, &mut rng).interval.holds(0.0)
            });
            let held = held.count();
            assert!((least..=199).contains(&held), "{held} of 200 with {blocks} blocks");
        }
    }

    #[test]
    fn the_area_is_that_of_the_statistics_room() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let scored: Vec<Scored> = (0..300)
            .map(|i| {
                let positive = i % 3 == 0;
                let score = (stats::normal(&mut rng) * 2.0 + if positive { 1.0 } else { 0.0 }).round();
                Scored { score, positive, block: i / 30 }
            })
            .collect();
        let of = |kind| -> Vec<f64> {
            scored.iter().filter(|one| one.positive == kind).map(|one| one.score).collect()
        };
        let figure = auc(&scored, &mut rng);
        assert!((figure.value - stats::auc(&of(false), &of(true))).abs() < 1e-12);
        assert!(figure.interval.holds(figure.value) && !figure.interval.holds(0.5));
    }

    #[test]
    fn too_little_is_no_figure() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let one = Scored { score: 1.0, positive: true, block: 0 };
        assert_eq!(auc(&[one; 10], &mut rng).samples, 0);
        assert_eq!(mean(&[0.5; 5], 500, &mut rng).samples, 0);
    }

    #[test]
    fn equal_blocks_hold_their_own_value() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        assert!(mean(&[1.0 / 7.0; 9], 9, &mut rng).interval.holds(1.0 / 7.0));
    }
}
