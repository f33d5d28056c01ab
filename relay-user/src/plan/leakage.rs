//! What an observer can learn from the rates of links, at most.

use serde::Serialize;

use crate::engine::time::Nanos;
use crate::rates::{ClassNumber, Epochs, Plan};

/// A bound on what changes of class tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Leakage {
    /// The policy that chooses classes.
    pub(crate) policy: String,
    /// Classes that it chooses from.
    pub(crate) classes: u32,
    /// Changes, at most.
    pub(crate) changes_per_day: f64,
    /// Bits that an observer can learn in a day, at most.
    pub(crate) bits_per_day: f64,
}

impl Leakage {
    /// One class for good: its rate says nothing.
    #[cfg(test)]
    pub(crate) fn fixed() -> Self {
        Self::of("fixed", 1, 1, 0.0)
    }

    /// The bound for one direction of one link that comes by its classes in this way.
    pub(super) fn of_link(plan: &Plan, epochs: Epochs) -> Self {
        let mut classes: Vec<ClassNumber> = plan.policy.classes();
        classes.extend(&plan.ladder);
        classes.sort_unstable();
        classes.dedup();
        let seconds = epochs.length().0 as f64 / Nanos::SECOND.0 as f64;
        Self {
            policy: plan.policy.name().to_owned(),
            classes: u32::try_from(classes.len()).unwrap_or(u32::MAX),
            changes_per_day: if classes.len() > 1 { 86_400.0 / seconds } else { 0.0 },
            bits_per_day: plan.bits_per_day(epochs),
        }
    }

    /// That of the link that may tell most; of links without a choice where there are none.
    pub(super) fn greatest(plans: &[Plan], epochs: Epochs) -> Self {
        let bounds = plans.iter().map(|plan| Self::of_link(plan, epochs));
        let most = bounds.max_by(|one, other| one.bits_per_day.total_cmp(&other.bits_per_day));
        most.unwrap_or(Self {
            policy: "fixed".to_owned(),
            classes: 1,
            changes_per_day: 0.0,
            bits_per_day: 0.0,
        })
    }

    /// The bound of a policy that may take one of `classes` at `changes` points of an epoch, `epochs_per_day` times a
    /// day. A choice among n says log2(n) bits at most; that no change was made is a choice, too.
    #[cfg(test)]
    pub(crate) fn of(policy: &str, classes: u32, changes: u32, epochs_per_day: f64) -> Self {
        let changes_per_day = f64::from(changes) * epochs_per_day;
        Self {
            policy: policy.to_owned(),
            classes,
            changes_per_day,
            bits_per_day: f64::from(classes.max(1)).log2() * changes_per_day,
        }
    }

    /// In a line.
    pub(super) fn line(&self) -> String {
        format!(
            "{:.3} bits a day at most for one way of a link: policy {}, {} {}, {} changes a day",
            self.bits_per_day,
            self.policy,
            self.classes,
            if self.classes == 1 { "class" } else { "classes" },
            self.changes_per_day
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_says_as_much_as_there_is_to_choose() {
        assert!(Leakage::fixed().bits_per_day.abs() < 1e-12);
        // Four classes, once in each of 24 hours: 2 bits each.
        let hourly = Leakage::of("adaptive", 4, 1, 24.0);
        assert!((hourly.bits_per_day - 48.0).abs() < 1e-12);
        assert!((Leakage::of("scheduled", 3, 2, 1.0).bits_per_day - 2.0 * 3.0_f64.log2()).abs() < 1e-12);
        assert!(Leakage::of("odd", 0, 5, 1.0).bits_per_day.abs() < 1e-12);
        assert_eq!(
            hourly.line(),
            "48.000 bits a day at most for one way of a link: policy adaptive, 4 classes, 24 changes a day"
        );
    }
}
