//! The matched filter of attack 11: how far the halves of each second differ as a code says.

use super::watermark::{Heard, code};
use crate::observe::finding::Interval;
use crate::observe::learn::figure::{self, FEWEST, Figure};
use crate::observe::learn::series::deviation;
use crate::observe::stats::{Blocks, auc, mean, variance};
use crate::observe::trace::{SECOND, Window};
use rand_chacha::ChaCha8Rng;

/// How late, at most, a mark is looked for: nanoseconds that a cell may take from where the mark is put.
pub const LATEST: u64 = LAGS as u64 * STEP;
const LAGS: usize = 10;
const STEP: u64 = 20_000_000;
/// Codes that nobody used, against which a code's score is held.
const DECOYS: usize = 64;

/// How the halves of each chip of a window differ (positive where the first lacks what the second has), once for each
/// lag, by packets and by the spread of their gaps.
#[derive(Clone, Debug)]
pub struct Filter {
    responses: Vec<Vec<f64>>,
}

impl Filter {
    /// Of a window in which a code of `bits` bits begins.
    pub fn of(window: Window<'_>, bits: usize) -> Self {
        let lags = || (0..=LAGS as u64).map(|lag| lag * STEP);
        let at: Vec<u64> = window.sights().iter().map(|sight| sight.at - window.from()).collect();
        let by_count = lags().map(|lag| response(&at, lag, bits, |half| half.len() as f64));
        let by_spread = lags().map(|lag| response(&at, lag, bits, spread));
        Self { responses: by_count.chain(by_spread).collect() }
    }

    /// Holds the best score of a code, over lags and measures, against that of codes drawn at random.
    pub fn look_for(&self, code: &[bool], rng: &mut ChaCha8Rng) -> Match {
        let own = self.best(code);
        let decoys: Vec<f64> = (0..DECOYS).map(|_| self.best(&self::code(rng, code.len()))).collect();
        let spread = (variance(&decoys) * DECOYS as f64 / (DECOYS - 1) as f64).sqrt();
        // Halves that never differ carry no code.
        let z = if spread > 0.0 { (own - mean(&decoys)) / spread } else { 0.0 };
        Match { z, rank: auc(&decoys, &[own]) }
    }

    fn best(&self, code: &[bool]) -> f64 {
        self.responses.iter().map(|response| score(response, code).abs()).fold(0.0, f64::max)
    }
}

/// How much of a code is in a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Its score in deviations from the mean of random codes': about normal where it is not there.
    pub z: f64,
    /// The share of random codes that score less, those that score the same counted half.
    pub rank: f64,
}

/// Normal with variance 1 where the code's signs have nothing to do with the response.
fn score(response: &[f64], code: &[bool]) -> f64 {
    let scale = response.iter().map(|value| value * value).sum::<f64>().sqrt();
    let sum: f64 = response.iter().zip(code).map(|(value, bit)| if *bit { -value } else { *value }).sum();
    if scale > 0.0 { sum / scale } else { 0.0 }
}

fn response(at: &[u64], lag: u64, bits: usize, measure: impl Fn(&[u64]) -> f64) -> Vec<f64> {
    let half = |from: u64| {
        let end = at.partition_point(|at| *at < from + SECOND / 2);
        measure(&at[at.partition_point(|at| *at < from)..end])
    };
    (0..bits as u64)
        .map(|chip| {
            let from = chip * SECOND + lag;
            half(from + SECOND / 2) - half(from)
        })
        .collect()
}

/// The logarithm of the gaps' deviation; a microsecond is added to it, so that steady ones do not differ by rounding.
fn spread(half: &[u64]) -> f64 {
    let gaps: Vec<f64> = half.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e3).collect();
    if gaps.is_empty() { 0.0 } else { (deviation(&gaps) + 1.0).ln() }
}

/// What a mark carries so far, if each chip is read as a bit by the sign of its response: the capacity of the channel
/// that reads wrong as often as was seen. Lag and measure are those that read the other half of the blocks best.
///
/// Its lower end is 0 unless more bits than chance are right (or wrong).
pub fn bits_per_minute(heard: &[Heard<'_>], filters: &[Filter], rng: &mut ChaCha8Rng) -> Figure {
    let blocks = Blocks::of(heard.iter().map(|heard| heard.block));
    if blocks.len() < FEWEST {
        return Figure::NONE;
    }
    // For each block the share of right bits under each response, and how many bits there are.
    let read: Vec<(Vec<f64>, f64)> = blocks
        .iter()
        .map(|members| {
            let bits = members.iter().map(|i| heard[*i].code.len() as f64).sum();
            let right = (0..2 * (LAGS + 1)).map(|at| {
                members.iter().map(|i| right(&filters[*i].responses[at], heard[*i].code)).sum::<f64>()
            });
            (right.collect(), bits)
        })
        .collect();
    let best = [0, 1].map(|parity| strongest(read.iter().skip(1 - parity).step_by(2)));
    let of_block: Vec<(f64, f64)> =
        read.iter().enumerate().map(|(i, (right, bits))| (right[best[i % 2]], *bits)).collect();
    let bits: f64 = of_block.iter().map(|(_, bits)| bits).sum();
    let share = figure::ratio(&of_block, heard.len(), rng);
    let Interval { low, high } = share.interval;
    let ends = (capacity(low), capacity(high));
    // A share that strays from one half by chance would seem to carry this much.
    let chance = 60.0 / (2.0 * std::f64::consts::LN_2 * bits);
    let beyond = |bits: f64| (bits - chance).max(0.0);
    let least = if share.interval.holds(0.5) { 0.0 } else { beyond(ends.0.min(ends.1)) };
    let value = beyond(capacity(share.value));
    Figure { value, interval: Interval { low: least, high: ends.0.max(ends.1) }, samples: share.samples }
}

/// The response that reads these blocks best, where reading all wrong is as good as all right.
fn strongest<'r>(read: impl Iterator<Item = &'r (Vec<f64>, f64)>) -> usize {
    let mut sums = [0.0; 2 * (LAGS + 1)];
    for (right, bits) in read {
        for (sum, right) in sums.iter_mut().zip(right) {
            *sum += right - bits / 2.0;
        }
    }
    let strength = |at: &usize| f64::abs(sums[*at]);
    (0..sums.len()).max_by(|a, b| strength(a).total_cmp(&strength(b))).unwrap_or(0)
}

/// How many bits the response's signs give right; where there is no sign, half of one.
fn right(response: &[f64], code: &[bool]) -> f64 {
    let read = |(value, bit): (&f64, &bool)| {
        if *value == 0.0 { 0.5 } else { f64::from(u8::from((*value < 0.0) == *bit)) }
    };
    response.iter().zip(code).map(read).sum()
}

/// Bits per minute of a binary symmetric channel, used once a second, that gives this share right.
fn capacity(share: f64) -> f64 {
    let part = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
    let share = share.clamp(0.0, 1.0);
    60.0 * (1.0 - part(share) - part(1.0 - share))
}

#[cfg(test)]
mod tests {
    use super::super::traffic::{Shape, cells};
    use super::super::watermark::{Mark, Watermark};
    use super::*;
    use crate::observe::trace::{Sight, Trace};
    use rand_core::SeedableRng;

    #[test]
    fn capacity_is_that_of_the_binary_symmetric_channel() {
        assert!((capacity(0.5)).abs() < 1e-9);
        assert!((capacity(1.0) - 60.0).abs() < 1e-9);
        assert!((capacity(0.0) - 60.0).abs() < 1e-9);
        assert!((capacity(0.89) / 60.0 - 0.5).abs() < 0.001, "11 % wrong carry half a bit");
    }

    #[test]
    fn a_late_mark_is_found_and_another_code_is_not() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let flow = cells(Shape::Jittered, 100, 30 * SECOND, &mut rng);
        let watermark = Watermark::new(Mark::Drop(200_000_000), 4, 0, 30);
        let late = watermark.put(&flow);
        let late =
            late.sights().iter().map(|sight| Sight { at: sight.at + 130_000_000, length: sight.length });
        let late = Trace::new(late.collect());
        let filter = Filter::of(late.window(0, 30 * SECOND), 30);
        assert!(filter.look_for(watermark.code(), &mut rng).z > 3.0);
        assert!(filter.look_for(Watermark::new(Mark::Drop(1), 5, 0, 30).code(), &mut rng).z < 3.0);
    }

    #[test]
    fn a_steady_flow_carries_no_code() {
        let steady = Trace::new((0..1000).map(|k| Sight { at: k * 20_000_000, length: 1360 }).collect());
        let filter = Filter::of(steady.window(0, 19 * SECOND), 18);
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        assert_eq!(filter.look_for(&code(&mut rng, 18), &mut rng), Match { z: 0.0, rank: 0.5 });
    }
}
