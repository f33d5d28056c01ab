//! The leakage ledger: what changes of class may have told, in bits, at most.
//!
//! Entered is every *opportunity*, since a class that stays tells something too. One with k possible outcomes tells
//! log2 k bits at most; one that is ε-differentially private ε·log2 e, since no outcome's probability changes by more
//! than that factor: the smaller of both counts. Sums are bounds as well, whatever the opportunities have to do with
//! each other.

use super::Unix;
use serde::Serialize;

const MICRO: f64 = 1e6;

/// Bits that an opportunity may tell, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    /// Millionths of a bit, rounded up, so that sums are exact.
    micro: u64,
    /// Millionths of ε, rounded up.
    micro_epsilon: u64,
}

impl Bound {
    /// What is known beforehand tells nothing.
    pub const NOTHING: Self = Self { micro: 0, micro_epsilon: 0 };

    /// One of `choices` outcomes.
    pub fn of_choices(choices: usize) -> Self {
        Self { micro: micro(bits_of(choices)), micro_epsilon: 0 }
    }

    /// One of `choices` outcomes, drawn with ε-differential privacy.
    pub fn private(choices: usize, epsilon: f64) -> Self {
        let bits = (epsilon * std::f64::consts::LOG2_E).min(bits_of(choices));
        Self { micro: micro(bits), micro_epsilon: micro(epsilon) }
    }

    /// So many opportunities of this bound.
    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self {
            micro: self.micro.saturating_mul(count),
            micro_epsilon: self.micro_epsilon.saturating_mul(count),
        }
    }

    /// In bits.
    pub fn bits(self) -> f64 {
        whole(self.micro)
    }
}

#[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 choices")]
fn bits_of(choices: usize) -> f64 {
    (choices.max(1) as f64).log2()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
fn micro(value: f64) -> u64 {
    (value * MICRO).ceil() as u64
}

#[expect(clippy::cast_precision_loss, reason = "2^53 millionths are nine milliard bits")]
fn whole(micro: u64) -> f64 {
    micro as f64 / MICRO
}

/// Why a class could have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The time of day.
    Scheduled,
    /// Noised demand.
    Adaptive,
    /// Loss of cells.
    Loss,
    /// The breaker stopped a link: when, tells at most in which of the day's windows.
    Breaker,
    /// A boundary passed before its class was decided, or before a choice could be told: that it did shows.
    Late,
}

impl Cause {
    const COUNT: usize = 5;
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    micro: u64,
    micro_epsilon: u64,
}

impl Sum {
    const fn add(&mut self, bound: Bound) {
        self.micro = self.micro.saturating_add(bound.micro);
        self.micro_epsilon = self.micro_epsilon.saturating_add(bound.micro_epsilon);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    opportunities: u64,
    changes: u64,
    bits: Sum,
}

/// The books of one node. What a peer decided stands in the peer's.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    day: u64,
    today: Sum,
    yesterday: Sum,
    worst: u64,
    causes: [Tally; Cause::COUNT],
}

impl Ledger {
    /// Enters one opportunity at the boundary `at`, which a change of class did or did not follow. One before the
    /// last day entered, as after a clock was set back, counts as that day's.
    pub fn enter(&mut self, at: Unix, cause: Cause, bound: Bound, changed: bool) {
        self.turn_to(at);
        self.today.add(bound);
        self.worst = self.worst.max(self.today.micro);
        let tally = &mut self.causes[cause as usize];
        tally.opportunities = tally.opportunities.saturating_add(1);
        tally.changes += u64::from(changed);
        tally.bits.add(bound);
    }

    /// Enters boundaries that passed undecided, the last of them `at`: of each shows that it did.
    pub fn miss(&mut self, at: Unix, boundaries: u64) {
        self.enter(at, Cause::Late, Bound::of_choices(2).times(boundaries), false);
        let late = &mut self.causes[Cause::Late as usize].opportunities;
        *late = late.saturating_add(boundaries.saturating_sub(1));
    }

    fn turn_to(&mut self, at: Unix) {
        if at.day() > self.day {
            let today = std::mem::take(&mut self.today);
            self.yesterday = if at.day() == self.day + 1 { today } else { Sum::default() };
            self.day = at.day();
        }
    }

    /// The sums at `now`.
    pub fn summary(&self, now: Unix) -> LedgerSummary {
        let mut turned = self.clone();
        turned.turn_to(now);
        let mut total = Sum::default();
        for tally in &self.causes {
            total.micro = total.micro.saturating_add(tally.bits.micro);
            total.micro_epsilon = total.micro_epsilon.saturating_add(tally.bits.micro_epsilon);
        }
        let count = |of: fn(&Tally) -> u64| self.causes.iter().map(of).fold(0, u64::saturating_add);
        let bits = |cause: Cause| whole(self.causes[cause as usize].bits.micro);
        LedgerSummary {
            bits_today: whole(turned.today.micro),
            bits_yesterday: whole(turned.yesterday.micro),
            bits_worst_day: whole(self.worst),
            bits_since_start: whole(total.micro),
            bits_by_demand: bits(Cause::Adaptive),
            bits_by_loss: bits(Cause::Loss),
            bits_by_breaker: bits(Cause::Breaker),
            bits_by_delay: bits(Cause::Late),
            epsilon_today: whole(turned.today.micro_epsilon),
            epsilon_since_start: whole(total.micro_epsilon),
            opportunities: count(|tally| tally.opportunities),
            changes: count(|tally| tally.changes),
        }
    }
}

/// What the ledger says, for `relay status`. Bits are upper bounds, over all links of the node together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LedgerSummary {
    /// Since midnight, UTC.
    pub bits_today: f64,
    /// Of the day before.
    pub bits_yesterday: f64,
    /// Of the worst day since the start.
    pub bits_worst_day: f64,
    /// Since the start.
    pub bits_since_start: f64,
    /// Those of them that noised demand may have told.
    pub bits_by_demand: f64,
    /// Those of them that reactions to loss may have told.
    pub bits_by_loss: f64,
    /// Those of them that stops by the breaker may have told.
    pub bits_by_breaker: f64,
    /// Those of them that boundaries may have told which this node missed.
    pub bits_by_delay: f64,
    /// ε of today's choices together.
    pub epsilon_today: f64,
    /// ε of all choices together.
    pub epsilon_since_start: f64,
    /// Times at which a class could have changed, of all links together: hours at which the document has another, choices,
    /// steps for loss, stops, and boundaries that were missed.
    pub opportunities: u64,
    /// Those at which it did, or at which a link was stopped.
    pub changes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(day: u64, second: u64) -> Unix {
        Unix::from_seconds(day * 86_400 + second)
    }

    #[test]
    fn the_smaller_bound_counts() {
        assert_eq!(Bound::of_choices(1).bits(), 0.0);
        assert_eq!(Bound::of_choices(4).bits(), 2.0);
        assert!((Bound::private(4, 0.5).bits() - 0.721_348).abs() < 1e-6);
        assert_eq!(Bound::private(4, 3.0).bits(), 2.0, "there is no more in it than the class");
    }

    #[test]
    fn bounds_are_never_rounded_down() {
        assert!(Bound::of_choices(3).bits() >= 3.0_f64.log2());
        assert!(Bound::private(8, 1.0).bits() >= std::f64::consts::LOG2_E);
    }

    #[test]
    fn what_is_fixed_ahead_costs_nothing_but_is_counted() {
        let mut ledger = Ledger::default();
        ledger.enter(at(100, 0), Cause::Scheduled, Bound::NOTHING, true);
        let summary = ledger.summary(at(100, 5));
        assert_eq!((summary.bits_since_start, summary.opportunities, summary.changes), (0.0, 1, 1));
        assert_eq!(Ledger::default().summary(at(100, 0)).bits_since_start, 0.0);
    }

    #[test]
    fn a_class_that_stays_costs_as_much_as_one_that_changes() {
        let mut ledger = Ledger::default();
        for changed in [true, false, false] {
            ledger.enter(at(100, 0), Cause::Loss, Bound::of_choices(2), changed);
        }
        let summary = ledger.summary(at(100, 0));
        assert_eq!((summary.bits_today, summary.bits_by_loss, summary.changes), (3.0, 3.0, 1));
    }

    #[test]
    fn days_are_kept_apart() {
        let mut ledger = Ledger::default();
        for (day, count) in [(100, 3), (101, 1)] {
            for _ in 0..count {
                ledger.enter(at(day, 7), Cause::Adaptive, Bound::private(2, 10.0), false);
            }
        }
        let summary = ledger.summary(at(101, 86_399));
        assert_eq!((summary.bits_today, summary.bits_yesterday, summary.bits_worst_day), (1.0, 3.0, 3.0));
        assert_eq!((summary.epsilon_today, summary.epsilon_since_start), (10.0, 40.0));
        let tomorrow = ledger.summary(at(102, 0));
        assert_eq!(
            (tomorrow.bits_today, tomorrow.bits_yesterday, tomorrow.bits_since_start),
            (0.0, 1.0, 4.0)
        );
        assert_eq!(ledger.summary(at(104, 0)).bits_yesterday, 0.0);
    }

    #[test]
    fn a_clock_set_back_loses_nothing() {
        let mut ledger = Ledger::default();
        ledger.enter(at(100, 0), Cause::Loss, Bound::of_choices(2), false);
        ledger.enter(at(99, 0), Cause::Loss, Bound::of_choices(2), false);
        assert_eq!(ledger.summary(at(100, 0)).bits_today, 2.0);
    }

    #[test]
    fn boundaries_missed_cost_a_bit_each_and_a_stop_its_place_in_the_day() {
        let mut ledger = Ledger::default();
        ledger.miss(at(100, 0), 3);
        ledger.enter(at(100, 5), Cause::Breaker, Bound::of_choices(86_401), true);
        let summary = ledger.summary(at(100, 5));
        assert_eq!((summary.bits_by_delay, summary.opportunities, summary.changes), (3.0, 4, 1));
        assert!((summary.bits_by_breaker - 86_401_f64.log2()).abs() < 1e-5);
        assert!((summary.bits_today - 3.0 - summary.bits_by_breaker).abs() < 1e-9);
        ledger.miss(at(101, 0), u64::MAX);
        assert!(ledger.summary(at(101, 0)).bits_today > 1e12, "saturates, and does not wrap");
    }

    proptest! {
        #[test]
        fn sums_are_the_sums_of_their_entries(
            entries in prop::collection::vec((0u64..5, 0usize..3, 1usize..9, 0.01_f64..4.0, any::<bool>()), 0..200),
        ) {
            let mut ledger = Ledger::default();
            let (mut total, mut by_day) = (0.0, [0.0; 5]);
            let mut day = 0;
            for (step, cause, choices, epsilon, changed) in &entries {
                day = (day + u64::from(*step == 0)).min(4);
                let (cause, bound) = match cause {
                    0 => (Cause::Scheduled, Bound::NOTHING),
                    1 => (Cause::Adaptive, Bound::private(*choices, *epsilon)),
                    _ => (Cause::Loss, Bound::of_choices(*choices)),
                };
                ledger.enter(at(100 + day, 0), cause, bound, *changed);
                total += bound.bits();
                by_day[usize::try_from(day).unwrap()] += bound.bits();
            }
            let summary = ledger.summary(at(100 + day, 1));
            let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
            prop_assert!(near(summary.bits_since_start, total));
            prop_assert!(near(summary.bits_by_demand + summary.bits_by_loss, total));
            prop_assert!(near(summary.bits_today, by_day[usize::try_from(day).unwrap()]));
            prop_assert!(near(summary.bits_worst_day, by_day.iter().copied().fold(0.0, f64::max)));
            prop_assert_eq!(summary.opportunities, entries.len() as u64);
            prop_assert_eq!(summary.changes, entries.iter().filter(|entry| entry.4).count() as u64);
        }
    }
}
