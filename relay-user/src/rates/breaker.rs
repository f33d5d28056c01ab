//! The circuit breaker (after RFC 8084): traffic that does not slow down by itself must stop where it overloads a path.
//!
//! A link's cells go on whatever becomes of them, so loss beyond a hard limit for some seconds takes the link down for
//! a fixed time. Both are the network's constants; how often it happened is counted, never for whom.

use super::{LossRules, LossWindow};
use crate::engine::time::Nanos;

/// Watches one direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    /// When the run of windows beyond the limit began.
    since: Option<Nanos>,
}

impl Breaker {
    /// Takes a window that ended at `now`; true where the link must stop. One window within the limit ends the run.
    pub fn note(&mut self, window: LossWindow, rules: &LossRules, now: Nanos) -> bool {
        if !window.is_above(rules.limit) {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let lasted = now.since(since) >= Nanos(u64::from(rules.seconds) * Nanos::SECOND.0);
        if lasted {
            self.since = None;
        }
        lasted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: LossRules = LossRules { high: 20_000, recover: 3, limit: 200_000, seconds: 5, pause: 60 };

    fn at(second: u64) -> Nanos {
        Nanos(second * Nanos::SECOND.0)
    }

    fn trips(missing: &[u64]) -> Vec<u64> {
        let mut breaker = Breaker::default();
        (0..)
            .zip(missing)
            .filter(|&(second, &missing)| {
                breaker.note(LossWindow { expected: 100, missing }, &RULES, at(second))
            })
            .map(|(second, _)| second)
            .collect()
    }

    #[test]
    fn loss_beyond_the_limit_for_long_enough_trips_it() {
        assert_eq!(trips(&[0, 21, 21, 21, 21, 21, 21, 0]), [6]);
    }

    #[test]
    fn a_break_in_between_starts_the_count_anew() {
        assert_eq!(trips(&[21, 21, 21, 21, 21, 20, 21, 21, 21, 21, 21]), [0_u64; 0]);
    }

    #[test]
    fn after_a_trip_it_needs_as_long_again() {
        assert_eq!(trips(&[50; 12]), [5, 11]);
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_the_whole_past(missing in prop::collection::vec(prop_oneof![Just(0_u64), Just(50)], 1..60)) {
            // A run of windows beyond the limit trips at its 6th, 12th, …
            let mut run = 0;
            let expected: Vec<u64> = (0..)
                .zip(&missing)
                .filter(|&(_, &missing)| {
                    run = if missing > 20 { run + 1 } else { 0 };
                    run > 0 && run % 6 == 0
                })
                .map(|(second, _)| second)
                .collect();
            prop_assert_eq!(trips(&missing), expected);
        }
    }
}
