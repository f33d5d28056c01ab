//! When a link's slots are: laid down from the class and a seed alone, before any payload is known.

use super::time::Nanos;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// The law by which a class lays its slots in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// Slot k at `t0 + k * period`.
    Constant,
    /// Slot k somewhere in `[t0 + k * period, t0 + (k + 1) * period)`, uniformly.
    Jittered,
}

/// The slots of one direction of one link.
#[derive(Debug)]
pub struct Schedule {
    law: Law,
    period: Nanos,
    base: Nanos,
    deadline: Nanos,
    rng: ChaCha8Rng,
}

impl Schedule {
    /// Slots at `rate` cells per second (1 to 200,000), from a random phase after `start`. The seed decides every
    /// later deadline.
    pub fn new(law: Law, rate: u32, start: Nanos, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let period = Nanos(Nanos::SECOND.0 / u64::from(rate.clamp(1, 200_000)));
        let base = start + Nanos(uniform(&mut rng, period.0));
        let mut schedule = Self { law, period, base, deadline: base, rng };
        schedule.draw();
        schedule
    }

    /// When the coming slot is due.
    pub const fn deadline(&self) -> Nanos {
        self.deadline
    }

    /// Mean time between slots.
    pub const fn period(&self) -> Nanos {
        self.period
    }

    /// Goes on to the next slot. The base moves by exactly one period, never from now.
    pub fn advance(&mut self) {
        self.base = self.base + self.period;
        self.draw();
    }

    /// Goes on to the first slot due at `earliest` or later; returns how many slots that skips. Takes the same time
    /// however many they are.
    pub fn skip_to(&mut self, earliest: Nanos) -> u64 {
        if self.deadline >= earliest {
            return 0;
        }
        // The coming slot's period is the one that holds `earliest`, or the one behind it.
        let periods = (earliest.since(self.base).0 / self.period.0).max(1);
        self.base = self.base + Nanos(periods * self.period.0);
        self.draw();
        if self.deadline >= earliest {
            return periods;
        }
        self.advance();
        periods + 1
    }

    fn draw(&mut self) {
        self.deadline = match self.law {
            Law::Constant => self.base,
            Law::Jittered => self.base + Nanos(uniform(&mut self.rng, self.period.0)),
        };
    }
}

/// A number below `bound`, uniform to within 2^-32 of its width for periods up to a second.
fn uniform(rng: &mut impl Rng, bound: u64) -> u64 {
    let scaled = (u128::from(rng.next_u64()) * u128::from(bound)) >> 64;
    u64::try_from(scaled).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadlines(law: Law, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(law, 1000, Nanos(5), [7; 32]);
        std::iter::repeat_with(|| {
            let at = schedule.deadline().0;
            schedule.advance();
            at
        })
        .take(count)
        .collect()
    }

    #[test]
    fn constant_slots_are_one_period_apart() {
        assert!(deadlines(Law::Constant, 1000).windows(2).all(|w| w[1] - w[0] == 1_000_000));
    }

    #[test]
    fn jittered_slots_stay_inside_their_period_and_fill_it() {
        let at = deadlines(Law::Jittered, 20_000);
        let base = Schedule::new(Law::Jittered, 1000, Nanos(5), [7; 32]).base.0;
        let offsets: Vec<u64> = at.iter().enumerate().map(|(k, t)| t - base - k as u64 * 1_000_000).collect();
        assert!(offsets.iter().all(|&o| o < 1_000_000));
        // Kolmogorov-Smirnov against the uniform law; 1.63/sqrt(n) is the 1 % bound.
        let mut sorted = offsets.clone();
        sorted.sort_unstable();
        let n = sorted.len() as f64;
        let d = sorted
            .iter()
            .enumerate()
            .map(|(i, &o)| (o as f64 / 1e6 - i as f64 / n).abs())
            .fold(0.0, f64::max);
        assert!(d < 1.63 / n.sqrt(), "D = {d}");
    }

    #[test]
    fn skipping_lands_on_the_first_slot_not_before() {
        for law in [Law::Constant, Law::Jittered] {
            for ahead in [0, 1, 300_000, 999_999, 1_000_000, 1_500_000, 86_400_000_000_123] {
                let mut schedule = Schedule::new(law, 1000, Nanos(5), [7; 32]);
                let (base, earliest) = (schedule.base, schedule.deadline + Nanos(ahead));
                let skipped = schedule.skip_to(earliest);
                assert!(schedule.deadline >= earliest, "{law:?} {ahead}");
                assert!(schedule.deadline.since(earliest).0 < 2_000_000, "{law:?} {ahead}");
                assert_eq!(schedule.base.since(base).0, skipped * 1_000_000);
            }
        }
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(deadlines(Law::Jittered, 100), deadlines(Law::Jittered, 100));
    }
}
