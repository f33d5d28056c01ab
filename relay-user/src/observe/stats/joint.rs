//! Several statistics of the same blocks, whose intervals hold the truth all at once.

use super::interval::{Z, expanded};
use super::moments::{mean, quantile, variance};
use super::random::{below, normal};
use super::special::student_quantile;
use rand_chacha::ChaCha8Rng;

/// How it is found out how far statistics stray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// Blocks are drawn anew, with repeats.
    Drawn,
    /// One block is left out at a time: for statistics that repeats would bias.
    LeftOut,
}

/// Several statistics, and how far they stray.
#[derive(Clone, Debug, PartialEq)]
pub struct Joint {
    /// The statistics of the whole.
    pub values: Vec<f64>,
    /// The standard deviation of each.
    pub deviations: Vec<f64>,
    /// How far to either side of each the truth may lie: all of these intervals hold it in 95 of 100 cases. Infinite where
    /// nothing can be said of one.
    pub reach: Vec<f64>,
}

/// How far `statistics` of `blocks` blocks stray together, from `resamples` (1000 or more) draws. The closure gets how often
/// each block counts, and answers with as many numbers each time; a draw of which one says nothing is none.
///
/// Each reach is the statistic's deviation times what the greatest of all does not exceed in 95 of 100 draws (Romano and
/// Wolf 2005), so statistics that stray alike cost no more than one. Nothing is said of fewer than three blocks.
pub fn joint(
    blocks: usize,
    resampling: Resampling,
    resamples: usize,
    rng: &mut ChaCha8Rng,
    mut statistics: impl FnMut(&[f64]) -> Vec<f64>,
) -> Joint {
    let values = statistics(&vec![1.0; blocks]);
    let unknown = |values: Vec<f64>| Joint {
        deviations: vec![f64::NAN; values.len()],
        reach: vec![f64::INFINITY; values.len()],
        values,
    };
    if blocks < 3 || values.iter().any(|value| !value.is_finite()) {
        return unknown(values);
    }
    let (strayed, widened) = match resampling {
        Resampling::Drawn => (drawn(blocks, resamples, rng, &values, statistics), expanded(blocks) / Z),
        Resampling::LeftOut => {
            (left_out(blocks, resamples, rng, statistics), student_quantile(blocks - 1) / Z)
        }
    };
    if strayed.len() * 2 <= resamples {
        return unknown(values);
    }
    let deviations: Vec<f64> = (0..values.len())
        .map(|place| variance(&strayed.iter().map(|draw| draw[place]).collect::<Vec<_>>()).sqrt())
        .collect();
    let farthest = |draw: &Vec<f64>| {
        let by_deviation = draw.iter().zip(&deviations).filter(|(_, deviation)| **deviation > 0.0);
        by_deviation.map(|(strayed, deviation)| strayed.abs() / deviation).fold(0.0, f64::max)
    };
    let mut greatest: Vec<f64> = strayed.iter().map(farthest).collect();
    greatest.sort_unstable_by(f64::total_cmp);
    let most = quantile(&greatest, 0.95) * widened;
    let reach = deviations.iter().map(|deviation| most * deviation).collect();
    Joint { values, deviations, reach }
}

/// How far each statistic was off in each draw of blocks.
fn drawn(
    blocks: usize,
    resamples: usize,
    rng: &mut ChaCha8Rng,
    values: &[f64],
    mut statistics: impl FnMut(&[f64]) -> Vec<f64>,
) -> Vec<Vec<f64>> {
    let draws = (0..resamples).map(|_| {
        let mut times = vec![0.0; blocks];
        (0..blocks).for_each(|_| times[below(rng, blocks)] += 1.0);
        statistics(&times).iter().zip(values).map(|(drawn, value)| drawn - value).collect()
    });
    draws.filter(|draw: &Vec<f64>| draw.iter().all(|off| off.is_finite())).collect()
}

/// As [`drawn`], from what each block has to do with each statistic, times a normal number for each block.
fn left_out(
    blocks: usize,
    resamples: usize,
    rng: &mut ChaCha8Rng,
    mut statistics: impl FnMut(&[f64]) -> Vec<f64>,
) -> Vec<Vec<f64>> {
    let without: Vec<Vec<f64>> = (0..blocks)
        .map(|block| {
            let mut times = vec![1.0; blocks];
            times[block] = 0.0;
            statistics(&times)
        })
        .collect();
    let count = without.first().map_or(0, Vec::len);
    let centers: Vec<f64> = (0..count)
        .map(|place| mean(&without.iter().map(|values| values[place]).collect::<Vec<_>>()))
        .collect();
    if centers.iter().any(|center| !center.is_finite()) {
        return Vec::new();
    }
    let scale = ((blocks as f64 - 1.0) / blocks as f64).sqrt();
    let draw = |_| {
        let weights: Vec<f64> = (0..blocks).map(|_| scale * normal(rng)).collect();
        let of = |place: usize| {
            let parts = without.iter().zip(&weights);
            parts.map(|(values, weight)| weight * (values[place] - centers[place])).sum::<f64>()
        };
        (0..count).map(of).collect()
    };
    (0..resamples).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    /// How often all of `count` intervals hold 0, where blocks of every statistic share a part of what they are.
    fn coverage(resampling: Resampling, blocks: usize, count: usize, shared: f64) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(blocks as u64);
        let tries = 300;
        let holds = (0..tries).filter(|_| {
            let rows: Vec<Vec<f64>> = (0..blocks)
                .map(|_| {
                    let common = shared * normal(&mut rng);
                    (0..count).map(|_| common + normal(&mut rng)).collect()
                })
                .collect();
            let joint = joint(blocks, resampling, 400, &mut rng, |times| {
                let all: f64 = times.iter().sum();
                let of =
                    |place: usize| rows.iter().zip(times).map(|(row, t)| row[place] * t).sum::<f64>() / all;
                (0..count).map(of).collect()
            });
            joint.values.iter().zip(&joint.reach).all(|(value, reach)| value.abs() <= *reach)
        });
        holds.count() as f64 / f64::from(tries)
    }

    #[test]
    fn all_intervals_hold_the_truth_at_once_as_often_as_they_say() {
        for resampling in [Resampling::Drawn, Resampling::LeftOut] {
            for (blocks, count, shared) in [(12, 1, 0.0), (40, 5, 0.0), (40, 5, 2.0)] {
                let share = coverage(resampling, blocks, count, shared);
                assert!(
                    (0.91..0.99).contains(&share),
                    "{resampling:?}, {blocks}, {count}, {shared}: {share}"
                );
            }
        }
    }

    #[test]
    fn copies_cost_no_more_than_one() {
        let values: Vec<f64> = (0..30).map(|block| f64::from(block * block % 17)).collect();
        let of = |copies: usize| {
            joint(30, Resampling::Drawn, 1000, &mut ChaCha8Rng::seed_from_u64(1), |times| {
                let all: f64 = times.iter().sum();
                vec![values.iter().zip(times).map(|(value, times)| value * times).sum::<f64>() / all; copies]
            })
        };
        assert!((of(1).reach[0] - of(6).reach[0]).abs() < 1e-9);
    }

    #[test]
    fn too_little_bounds_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for resampling in [Resampling::Drawn, Resampling::LeftOut] {
            let none = joint(2, resampling, 100, &mut rng, |_| vec![0.5]);
            assert_eq!(none.reach, [f64::INFINITY]);
            let none = joint(9, resampling, 100, &mut rng, |_| vec![0.5, f64::NAN]);
            assert_eq!(none.reach, [f64::INFINITY; 2]);
            let fixed = joint(9, resampling, 100, &mut rng, |_| vec![0.5]);
            assert_eq!(fixed.reach, [0.0]);
        }
    }
}
