//! How sure a figure is where observations of one block stand or fall together.

use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::stats::{self, UNBOUNDED, numbered};
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
    pub const NONE: Self = Self { value: f64::NAN, interval: UNBOUNDED, samples: 0 };

    /// As what `attack` found.
    pub fn found(self, attack: Attack, statistic: &'static str, target: Target) -> Finding {
        let Self { value, interval, samples } = self;
        Finding { attack, statistic, value, interval, target, samples }
    }
}

/// A statistic of all of `blocks` (0 to `blocks - 1`), which is given the numbers of blocks drawn, with repeats.
/// Nothing is said of fewer than [`FEWEST`] blocks.
pub fn by_block(
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
    let (low, high) = (drawn.low - ROUNDING, drawn.high + ROUNDING);
    Figure { value, interval: Interval { low, high }, samples }
}

/// The mean of one value for each block, weighted alike.
pub fn mean(values: &[f64], samples: usize, rng: &mut ChaCha8Rng) -> Figure {
    by_block(values.len(), samples, rng, |drawn| {
        drawn.iter().map(|block| values[*block]).sum::<f64>() / drawn.len() as f64
    })
}

/// The quotient of two sums over blocks, from each block's part of both.
pub fn ratio(parts: &[(f64, f64)], samples: usize, rng: &mut ChaCha8Rng) -> Figure {
    by_block(parts.len(), samples, rng, |drawn| {
        let sum = |of: fn(&(f64, f64)) -> f64| drawn.iter().map(|block| of(&parts[*block])).sum::<f64>();
        sum(|part| part.0) / sum(|part| part.1)
    })
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
    let ranking: Vec<(f64, bool)> = sorted.iter().map(|one| (one.score, one.positive)).collect();
    by_block(blocks, sorted.len(), rng, |drawn| {
        times.fill(0.0);
        for block in drawn {
            times[*block] += 1.0;
        }
        stats::weighted_auc(&ranking, |place| times[block[place]])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    #[test]
    fn the_area_is_that_of_the_statistics_room() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let scored: Vec<Scored> = (0..300)
            .map(|i| {
                let positive = i % 3 == 0;
                let score = (stats::normal(&mut rng) * 2.0 + if positive { 2.0 } else { 0.0 }).round();
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
