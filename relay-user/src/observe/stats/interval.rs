//! 95 % intervals.

use super::moments::quantile;
use super::random::below;
use super::special::{normal_p, student_quantile};
use crate::observe::finding::Interval;
use rand_chacha::ChaCha8Rng;

/// Of a value about which nothing is known: it holds everything, and makes a verdict one of no power.
pub const UNBOUNDED: Interval = Interval { low: f64::NEG_INFINITY, high: f64::INFINITY };

/// Wilson's interval of a share, from `successes` of `n` independent trials; from 0 to 1 where there were none.
pub fn binomial_interval(successes: usize, n: usize) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let z2 = Z * Z;
    let n = n as f64;
    let share = successes as f64 / n;
    let center = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let reach = Z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { low: (center - reach).max(0.0), high: (center + reach).min(1.0) }
}

/// The interval of `statistic` when `blocks` blocks are drawn anew, with repeats, `resamples` times (1000 or more).
///
/// The closure gets the numbers of the drawn blocks, and may answer with no number where such a draw says nothing (it
/// holds one label only, say). Percentiles are taken further out than 2.5 and 97.5 as blocks get fewer (Hesterberg
/// 2015, "expanded percentile interval"): plain ones are a fifth too narrow for ten blocks. [`UNBOUNDED`] below three
/// blocks, and where most draws said nothing.
pub fn bootstrap(
    blocks: usize,
    resamples: usize,
    rng: &mut ChaCha8Rng,
    mut statistic: impl FnMut(&[usize]) -> f64,
) -> Interval {
    if blocks < 3 {
        return UNBOUNDED;
    }
    let mut drawn = vec![0; blocks];
    let mut values = Vec::with_capacity(resamples);
    for _ in 0..resamples {
        drawn.fill_with(|| below(rng, blocks));
        values.push(statistic(&drawn));
    }
    values.retain(|value| value.is_finite());
    if values.len() * 2 <= resamples {
        return UNBOUNDED;
    }
    values.sort_unstable_by(f64::total_cmp);
    let tail = normal_p(-expanded(blocks));
    Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail) }
}

/// How many deviations to go out to in draws of so many blocks, two or more: what holds 95 % of normal ones, further as
/// blocks get fewer.
pub(super) fn expanded(blocks: usize) -> f64 {
    let n = blocks as f64;
    student_quantile(blocks - 1) * (n / (n - 1.0)).sqrt()
}

/// The interval of a smooth `statistic` from leaving out one of `blocks` blocks at a time.
///
/// The closure gets the number of the block to leave out, or none for the value of the whole. For statistics that
/// repeated observations would bias, as they do mutual information. [`UNBOUNDED`] below three blocks, and where an
/// answer is no number.
pub fn jackknife(blocks: usize, mut statistic: impl FnMut(Option<usize>) -> f64) -> Interval {
    if blocks < 3 {
        return UNBOUNDED;
    }
    let whole = statistic(None);
    let without: Vec<f64> = (0..blocks).map(|block| statistic(Some(block))).collect();
    let n = blocks as f64;
    let center = without.iter().sum::<f64>() / n;
    let squares: f64 = without.iter().map(|value| (value - center).powi(2)).sum();
    let reach = student_quantile(blocks - 1) * ((n - 1.0) / n * squares).sqrt();
    if !whole.is_finite() || !reach.is_finite() {
        return UNBOUNDED;
    }
    Interval { low: whole - reach, high: whole + reach }
}

/// What 97.5 % of normal draws lie below.
pub(super) const Z: f64 = 1.959_963_984_540_054;

#[cfg(test)]
mod tests {
    use super::super::{mean, normal};
    use super::*;
    use rand_core::SeedableRng;

    #[test]
    fn wilson_is_the_textbooks() {
        // Newcombe 1998, table I: 81 of 263, and 0 of 20.
        let interval = binomial_interval(81, 263);
        assert!((interval.low - 0.2553).abs() < 1e-4 && (interval.high - 0.3662).abs() < 1e-4);
        let interval = binomial_interval(0, 20);
        assert!(interval.low == 0.0 && (interval.high - 0.1611).abs() < 1e-4);
        assert!(binomial_interval(0, 0).holds(1.0));
    }

    /// How often the interval of a mean holds the truth, when blocks of ten share an offset.
    fn coverage(blocks: usize, interval: impl Fn(&[f64], &mut ChaCha8Rng) -> Interval) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(blocks as u64);
        let holds = (0..400)
            .filter(|_| {
                let means: Vec<f64> = (0..blocks)
                    .map(|_| {
                        let offset = normal(&mut rng);
                        mean(&(0..10).map(|_| offset + normal(&mut rng)).collect::<Vec<_>>())
                    })
                    .collect();
                interval(&means, &mut rng).holds(0.0)
            })
            .count();
        holds as f64 / 400.0
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        for blocks in [6, 20] {
            let share = coverage(blocks, |means, rng| {
                bootstrap(means.len(), 400, rng, |drawn| {
                    mean(&drawn.iter().map(|&block| means[block]).collect::<Vec<_>>())
                })
            });
            assert!((0.92..0.985).contains(&share), "bootstrap, {blocks} blocks: {share}");
            let share = coverage(blocks, |means, _| {
                jackknife(means.len(), |left_out| {
                    let kept = means.iter().enumerate().filter(|(block, _)| Some(*block) != left_out);
                    mean(&kept.map(|(_, mean)| *mean).collect::<Vec<_>>())
                })
            });
            assert!((0.92..0.985).contains(&share), "jackknife, {blocks} blocks: {share}");
        }
    }

    #[test]
    fn too_few_blocks_bound_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(bootstrap(2, 100, &mut rng, |_| 0.5), UNBOUNDED);
        assert_eq!(bootstrap(10, 100, &mut rng, |_| f64::NAN), UNBOUNDED);
        assert_eq!(jackknife(2, |_| 0.5), UNBOUNDED);
        assert_eq!(jackknife(10, |_| f64::NAN), UNBOUNDED);
    }
}
