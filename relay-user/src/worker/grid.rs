//! The moments at which a worker's cells leave: how late a cell is follows from where its slot lies between two of them.

use crate::engine::schedule::{FRACTION, RateOffset, uniform};
use crate::engine::time::Nanos;
use rand_core::Rng;

/// Moments a period apart. The period is off its nominal width by up to 200 ppm and the first moment lies anywhere within
/// one, both drawn: who measures where cells leave learns as little of the host's clock as from a link's rate, and cannot
/// carry a phase from one session of a device on to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// In 2^-32 ns.
    period: u64,
    /// The last moment that has come, in 2^-32 ns.
    reached: u128,
    /// The last moment that was given out.
    given: Nanos,
}

/// A moment at which cells leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// When they should have left, at the latest.
    pub(super) due: Nanos,
    /// The moment.
    pub(super) at: Nanos,
}

impl Grid {
    /// Draws one of this nominal width, in whole nanoseconds, off by `offset`, whose moments began before `now`.
    pub(super) fn draw(nominal: Nanos, offset: RateOffset, now: Nanos, rng: &mut impl Rng) -> Self {
        let period = offset.apply(nominal.0 << FRACTION);
        let reached = (u128::from(now.0) << FRACTION).saturating_sub(u128::from(uniform(rng, period)));
        Self { period, reached, given: Nanos(0) }
    }

    /// Goes on to the last moment up to `now`. Returns whether there was a new one.
    pub(super) fn reach(&mut self, now: Nanos) -> bool {
        let come = self.whole(now);
        self.reached += come;
        come > 0
    }

    /// Gives out the moment for what is due at `slot`, each once, if it is no later than `soon`: the first one at or after
    /// `slot`. Where that has passed, it is the next one; and where even that is too far, the last that has passed.
    pub(super) fn give(&mut self, slot: Nanos, now: Nanos, soon: Nanos) -> Option<Given> {
        if slot > soon {
            return None;
        }
        self.reach(now);
        let due = self.first_from(slot.max(self.given + Nanos(1)));
        if due > soon {
            return None;
        }
        let next = (due < now).then(|| self.first_from(now)).filter(|next| *next <= soon);
        let at = next.unwrap_or(due);
        self.given = at;
        Some(Given { due, at })
    }

    /// The last moment that was given out.
    pub(super) const fn given(&self) -> Nanos {
        self.given
    }

    /// The first moment at or after `slot`, of those that have not passed.
    pub(super) fn first_from(&self, slot: Nanos) -> Nanos {
        // Moments are told in whole nanoseconds, the part behind the point left out.
        let before = Nanos(slot.0.saturating_sub(1));
        if before < self.last() {
            return self.last();
        }
        told(self.reached + self.whole(before) + u128::from(self.period))
    }

    fn last(&self) -> Nanos {
        told(self.reached)
    }

    /// The periods that are over at `now`, since the last moment that was reached.
    fn whole(&self, now: Nanos) -> u128 {
        let period = u128::from(self.period);
        // A moment has come once the whole of its nanosecond has.
        let spent = ((u128::from(now.0) + 1) << FRACTION).saturating_sub(1).saturating_sub(self.reached);
        if spent < period {
            return 0;
        }
        // As a rule it is the next one, and needs no division of 128 bits.
        if spent < 2 * period { period } else { spent / period * period }
    }
}

fn told(at: u128) -> Nanos {
    Nanos(u64::try_from(at >> FRACTION).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng as _;

    const WIDTH: Nanos = Nanos(32_003);

    fn grid(seed: u64, now: Nanos) -> Grid {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let offset = RateOffset::draw(&mut rng);
        Grid::draw(WIDTH, offset, now, &mut rng)
    }

    #[test]
    fn two_draws_share_neither_period_nor_phase() {
        let now = Nanos::SECOND;
        let draws: Vec<Grid> = (0..1000).map(|seed| grid(seed, now)).collect();
        let nominal = (WIDTH.0 << FRACTION) as f64;
        let ppm: Vec<f64> = draws.iter().map(|grid| (grid.period as f64 / nominal - 1.0) * 1e6).collect();
        let phases: Vec<f64> =
            draws.iter().map(|grid| now.since(grid.last()).0 as f64 / WIDTH.0 as f64).collect();
        for (values, low, width) in [(ppm, -200.0, 400.0), (phases, 0.0, 1.0)] {
            let places: Vec<f64> = values.into_iter().map(|value| (value - low) / width).collect();
            assert!(places.iter().all(|place| (-0.0001..=1.0001).contains(place)), "{places:?}");
            let below = |part| places.iter().filter(|place| **place < part).count();
            // 250 in each quarter; six standard deviations are 82.
            let parts = [below(0.25), below(0.5) - below(0.25), below(0.75) - below(0.5)];
            assert!(parts.iter().all(|part| (168..=332).contains(part)), "{parts:?}");
        }
    }

    #[test]
    fn what_has_missed_its_moment_leaves_at_the_next_or_at_once() {
        let now = Nanos::SECOND;
        let mut first = grid(1, now);
        let due = first.first_from(now + Nanos(100_000));
        let next = first.first_from(due + Nanos(1));
        let late = due + Nanos(5_000);
        assert_eq!(first.give(due, late, late + Nanos(64_000)), Some(Given { due, at: next }));
        let mut second = grid(1, now);
        assert_eq!(second.give(due, late, late + Nanos(1_000)), Some(Given { due, at: due }));
    }

    #[test]
    fn a_worker_that_wakes_late_still_meets_its_moment() {
        let now = Nanos::SECOND;
        let mut grid = grid(1, now);
        let moment = grid.first_from(now + Nanos(100_000));
        let slot = Nanos(moment.0 - 10_000);
        // Two moments lie before `soon`; the first one is the slot's.
        let late = Nanos(moment.0 - 20_000);
        let soon = late + Nanos(64_000);
        assert_eq!(grid.give(slot, late, soon), Some(Given { due: moment, at: moment }));
        let next = grid.first_from(moment + Nanos(1));
        assert_eq!(grid.give(slot, late, soon), Some(Given { due: next, at: next }));
    }

    proptest! {
        #[test]
        fn moments_are_a_period_apart_and_given_once(seed: u64, steps in prop::collection::vec((0..90_000u64, 0..70_000u64, 0..200_000u64), 1..80)) {
            let mut now = Nanos::SECOND;
            let mut grid = grid(seed, now);
            // Every moment from the drawing on, told one by one.
            let (origin, period) = (grid.reached, u128::from(grid.period));
            let moments: Vec<Nanos> = (0..300).map(|index| told(origin + index * period)).collect();
            let mut next = 0;
            for (step, guard, ahead) in steps {
                now = now + Nanos(step);
                let (soon, slot) = (now + Nanos(guard), Nanos(now.0 - 50_000 + ahead));
                let of_slot = moments.partition_point(|moment| *moment < slot);
                let last = moments.partition_point(|moment| *moment <= now) - 1;
                let wanted = next.max(of_slot).max(last);
                let wanted = Some(wanted).filter(|&wanted| slot.max(moments[wanted]) <= soon);
                let given = wanted.map(|wanted| {
                    let passed = moments[wanted] < now && moments[last + 1] <= soon;
                    next = 1 + if passed { last + 1 } else { wanted };
                    Given { due: moments[wanted], at: moments[next - 1] }
                });
                prop_assert_eq!(grid.give(slot, now, soon), given);
            }
        }

        #[test]
        fn a_long_sleep_leaves_the_grid_where_it_was(seed: u64, sleep in 0..1u64 << 50) {
            let mut one = grid(seed, Nanos::SECOND);
            let other = grid(seed, Nanos::SECOND);
            let slot = Nanos::SECOND + Nanos(sleep);
            one.reach(slot);
            prop_assert_eq!(one.first_from(slot + Nanos(1)), other.first_from(slot + Nanos(1)));
            prop_assert!(one.last() <= slot && one.first_from(slot + Nanos(1)) > slot);
            prop_assert!(one.first_from(slot + Nanos(1)).since(one.last()).0 <= WIDTH.0 + 8);
        }
    }
}
