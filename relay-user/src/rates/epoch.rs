//! Epochs: stretches of one length, whose boundaries all clocks share.

use crate::engine::time::Nanos;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of a day of Unix time.
pub const SECONDS_PER_DAY: u32 = 86_400;

/// How long before a boundary a choice is made, at most; a quarter of an epoch where that is shorter.
const CHOICE_LEAD: u64 = 10 * Nanos::SECOND.0;
/// How often what is told is told: each time a quarter of the lead later.
pub const TELLINGS: u64 = 3;
/// How long before a boundary the class is decided, at most; a twentieth of an epoch where that is shorter.
const DECISION_LEAD: u64 = Nanos::SECOND.0;

/// Nanoseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unix(pub u64);

impl Unix {
    /// The start of a second.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(Nanos::SECOND.0))
    }

    /// Whole seconds since midnight, 0 to 86,399.
    pub fn second_of_day(self) -> u32 {
        let seconds = self.0 / Nanos::SECOND.0 % u64::from(SECONDS_PER_DAY);
        u32::try_from(seconds).unwrap_or(0)
    }

    /// Days since 1970-01-01.
    pub const fn day(self) -> u64 {
        self.0 / Nanos::SECOND.0 / SECONDS_PER_DAY as u64
    }

    /// The same moment on another clock, which reads `there` when it is `now` here. Moments before that clock's origin
    /// become its origin.
    pub const fn on_clock(self, now: Self, there: Nanos) -> Nanos {
        if self.0 >= now.0 {
            Nanos(there.0.saturating_add(self.0 - now.0))
        } else {
            Nanos(there.0.saturating_sub(now.0 - self.0))
        }
    }
}

impl From<SystemTime> for Unix {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The network's epochs. Boundaries lie at the multiples of the length in Unix time, so that whoever changes class does
/// it together with everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epochs {
    length: u64,
}

impl Epochs {
    /// Epochs of `seconds`, at least 1.
    pub fn new(seconds: u32) -> Self {
        Self { length: u64::from(seconds.max(1)) * Nanos::SECOND.0 }
    }

    /// How long an epoch is.
    pub const fn length(self) -> Nanos {
        Nanos(self.length)
    }

    /// Number of the epoch that `at` lies in; a boundary belongs to the epoch that begins there.
    pub const fn number(self, at: Unix) -> u64 {
        at.0 / self.length
    }

    /// How long before a boundary a choice is made, a step for loss decided, and both first told.
    pub fn choice_lead(self) -> Nanos {
        Nanos(CHOICE_LEAD.min(self.length / 4))
    }

    /// How long before it what was chosen is told for the `number`th time, from 0.
    pub fn telling(self, number: u64) -> Nanos {
        let lead = self.choice_lead().0;
        Nanos(lead.saturating_sub(number * (lead / 4)))
    }

    /// How long before it the class is decided, and the engine told.
    pub fn decision_lead(self) -> Nanos {
        Nanos(DECISION_LEAD.min(self.length / 20))
    }

    /// From the last telling to the decision: by how much the peer's clock may be ahead and the cell under way, together.
    pub fn margin(self) -> Nanos {
        self.telling(TELLINGS - 1).since(self.decision_lead())
    }

    /// When epoch `number` begins.
    pub const fn start(self, number: u64) -> Unix {
        Unix(number.saturating_mul(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hours_and_days_are_those_of_the_clock_on_the_wall() {
        // 2026-11-24T22:30:05Z
        let at = Unix::from_seconds(1_795_559_405);
        assert_eq!(at.second_of_day(), 22 * 3600 + 30 * 60 + 5);
        assert_eq!(at.day(), 20_781);
        assert_eq!(Epochs::new(900).start(Epochs::new(900).number(at)).second_of_day(), 22 * 3600 + 30 * 60);
    }

    #[test]
    fn another_clock_shows_the_same_moment() {
        let (now, there) = (Unix(5_000), Nanos(70));
        assert_eq!(Unix(5_100).on_clock(now, there), Nanos(170));
        assert_eq!(Unix(4_990).on_clock(now, there), Nanos(60));
        assert_eq!(Unix(1).on_clock(now, there), Nanos(0));
    }

    #[test]
    fn what_is_told_is_told_well_before_it_is_decided() {
        let second = |nanos: Nanos| nanos.0 as f64 / 1e9;
        let leads = |seconds| {
            let epochs = Epochs::new(seconds);
            let tellings = [0, 1, 2].map(|number| second(epochs.telling(number)));
            (tellings, second(epochs.decision_lead()), second(epochs.margin()))
        };
        assert_eq!(leads(3600), ([10.0, 7.5, 5.0], 1.0, 4.0));
        assert_eq!(leads(40), ([10.0, 7.5, 5.0], 1.0, 4.0));
        assert_eq!(leads(10), ([2.5, 1.875, 1.25], 0.5, 0.75));
    }

    proptest! {
        #[test]
        fn every_moment_lies_in_its_epoch(seconds in 1u32..=86_400, at in 0u64..1 << 62) {
            let epochs = Epochs::new(seconds);
            let number = epochs.number(Unix(at));
            prop_assert!(epochs.start(number).0 <= at);
            prop_assert!(at < epochs.start(number + 1).0);
            prop_assert_eq!(epochs.number(epochs.start(number)), number);
        }
    }
}
