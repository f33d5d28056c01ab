//! How long payload waits for a slot that it may still have, by the law of the slots.

use crate::engine::schedule::Law;

/// Bins of the time axis on which waits are added up.
const BINS: usize = 2048;

/// The wait for the next slot of one link, from an instant that has nothing to do with its slots, with no payload before
/// it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    law: Law,
    /// Mean time between slots, in µs.
    period: f64,
}

impl Wait {
    /// For slots of `law` at `rate` per second, more than 0.
    pub(crate) fn new(law: Law, rate: f64) -> Self {
        Self { law, period: 1e6 / rate }
    }

    /// A wait behind cells that come and go at random: exponential, with this mean in µs.
    pub(crate) const fn exponential(mean: f64) -> Self {
        Self { law: Law::Poisson, period: mean }
    }

    /// Mean, in µs: of a gap that an instant falls into, half is still to come, and long gaps are met more often.
    pub(crate) fn mean(self) -> f64 {
        let halves = match self.law {
            Law::Constant => 1.0,
            // A gap is a period and the difference of two uniform offsets: its square's mean is 7/6.
            Law::Jittered => 7.0 / 6.0,
            Law::Poisson => 2.0,
            Law::Pattern(pattern) => pattern.unevenness(),
        };
        self.period * halves / 2.0
    }

    /// The share of waits that are longer than `micros`, not negative.
    fn longer_than(self, micros: f64) -> f64 {
        let x = micros / self.period;
        match self.law {
            Law::Constant => (1.0 - x).max(0.0),
            Law::Jittered => jittered(x),
            Law::Poisson => (-x).exp(),
            Law::Pattern(pattern) => {
                let unit = pattern.gaps().len() as f64 / f64::from(pattern.total());
                let left = pattern.gaps().iter().map(|&gap| (f64::from(gap) * unit - x).max(0.0));
                left.sum::<f64>() / pattern.gaps().len() as f64
            }
        }
    }

    fn longest(self) -> f64 {
        self.period * self.law.longest_gap()
    }
}

/// The share of waits longer than `x` periods: over all places u of the instant in its period, neither that period's slot
/// lies between u and u + x, nor the next one's.
fn jittered(x: f64) -> f64 {
    if x >= 2.0 {
        return 0.0;
    }
    let a = 2.0 - x;
    if x >= 1.0 {
        return a.powi(3) / 6.0;
    }
    let inside = (1.0 - x).powi(2);
    let into_next = |u: f64| a * u * u / 2.0 - u.powi(3) / 3.0;
    inside + into_next(1.0) - into_next(1.0 - x)
}

/// The time, in µs, that the sum of independent waits does not exceed with probability `share`, to a two-thousandth of
/// the longest sum.
pub(crate) fn quantile(waits: &[Wait], share: f64) -> f64 {
    let width = waits.iter().map(|wait| wait.longest()).sum::<f64>() / BINS as f64;
    let mut sum = vec![1.0];
    for wait in waits {
        let shares = masses(*wait, width);
        let mut next = vec![0.0; sum.len() + shares.len() - 1];
        for (at, mass) in sum.iter().enumerate() {
            for (cell, share) in next[at..].iter_mut().zip(&shares) {
                *cell += mass * share;
            }
        }
        sum = next;
    }
    let mut below = 0.0;
    for (at, mass) in sum.iter().enumerate() {
        if below + mass >= share {
            // A bin's mass stands for its middle: as many halves as there are waits, less the one that is its own.
            let middles = (waits.len() as f64 - 1.0) / 2.0;
            return (at as f64 + middles + (share - below) / mass) * width;
        }
        below += mass;
    }
    sum.len() as f64 * width
}

/// The share of waits in each bin.
fn masses(wait: Wait, width: f64) -> Vec<f64> {
    let mut masses = Vec::new();
    let (mut from, mut left) = (0.0, 1.0);
    while from < wait.longest() {
        let to = from + width;
        let after = wait.longer_than(to);
        masses.push(left - after);
        (from, left) = (to, after);
    }
    masses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::schedule::{Pattern, Schedule};
    use crate::engine::time::Nanos;

    const RATE: u32 = 2000;

    fn laws() -> [Law; 4] {
        [Law::Constant, Law::Jittered, Law::Poisson, Law::Pattern(Pattern::new(&[1, 1, 6]).unwrap())]
    }

    fn wait(law: Law) -> Wait {
        Wait::new(law, RATE.into())
    }

    fn near(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
    }

    #[test]
    fn single_waits_are_those_of_the_laws() {
        // Period 500 µs. By hand: half; 7/12; one; (1 + 1 + 36) / 3 over (8 / 3)² and half.
        let means = laws().map(|law| wait(law).mean());
        for (found, expected) in means.into_iter().zip([250.0, 291.666_666_7, 500.0, 445.312_5]) {
            near(found, expected, 1e-6);
        }
        // 0.99; 2 - cube root of 0.06; ln 100; and for the pattern only the long gap of 2.25 is left: 0.03 of it.
        let quantiles = laws().map(|law| quantile(&[wait(law)], 0.99));
        for (found, expected) in quantiles.into_iter().zip([495.0, 804.25, 2302.6, 1110.0]) {
            near(found, expected, expected * 2e-3);
        }
        near(jittered(0.0), 1.0, 1e-12);
        near(jittered(1.0), 1.0 / 6.0, 1e-12);
        near(jittered(1.0 - 1e-9), 1.0 / 6.0, 1e-8);
    }

    #[test]
    fn sums_are_those_of_known_laws() {
        // Three uniform waits: the sum is beyond 3 - y with probability y³/6; y is the cube root of 0.06.
        near(quantile(&[wait(Law::Constant); 3], 0.99), 500.0 * (3.0 - 0.06_f64.cbrt()), 1.5);
        // Three exponential ones: an Erlang law, whose 99th percentile is 8.4059 means.
        near(quantile(&[wait(Law::Poisson); 3], 0.99), 500.0 * 8.4059, 15.0);
        // Irwin and Hall's law is even about its middle.
        near(quantile(&[wait(Law::Constant); 3], 0.5), 750.0, 1.0);
    }

    #[test]
    fn schedules_make_payload_wait_as_long_as_is_said() {
        for law in laws() {
            let mut waits: Vec<f64> = (0..4000_u64)
                .map(|number| {
                    let mut seed = [1; 32];
                    seed[..8].copy_from_slice(&number.to_le_bytes());
                    let start = Nanos(Nanos::SECOND.0);
                    let mut schedule = Schedule::without_offset(law, RATE, start, seed);
                    // Far enough in for slots before it, and at no round number of periods.
                    let at = start + Nanos(20_123_457);
                    schedule.skip_to(at);
                    schedule.deadline().since(at).0 as f64 / 1e3
                })
                .collect();
            waits.sort_by(f64::total_cmp);
            let mean = waits.iter().sum::<f64>() / 4000.0;
            near(mean, wait(law).mean(), 25.0);
            near(waits[3960], quantile(&[wait(law)], 0.99), 0.12 * wait(law).mean() * 4.6);
            let longer = waits.iter().filter(|&&waited| waited > 300.0).count() as f64 / 4000.0;
            near(longer, wait(law).longer_than(300.0), 0.03);
        }
    }
}
