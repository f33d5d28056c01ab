//! What an observer can learn from the rates of links, at most.

use serde::Serialize;

use crate::engine::time::Nanos;
use crate::rates::{Epochs, Plan, Policy, SECONDS_PER_DAY};

/// A bound on what changes of class tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Leakage {
    /// The policy that chooses classes.
    pub(crate) policy: String,
    /// Classes that it chooses from.
    pub(crate) classes: u32,
    /// Boundaries at which it may change, or tell that it does not.
    pub(crate) opportunities_per_day: f64,
    /// Bits that an observer can learn in a day, at most; `None` where nothing bounds them.
    pub(crate) bits_per_day: Option<f64>,
}

impl Leakage {
    /// The bound for one direction of one link that comes by its classes in this way.
    pub(super) fn of_link(plan: &Plan, epochs: Epochs) -> Self {
        let mut classes = plan.classes();
        classes.sort_unstable();
        classes.dedup();
        let seconds = epochs.length().0 as f64 / Nanos::SECOND.0 as f64;
        Self {
            policy: plan.policy.name().to_owned(),
            classes: u32::try_from(classes.len()).unwrap_or(u32::MAX),
            opportunities_per_day: match &plan.policy {
                Policy::Scheduled(table) if plan.ladder.is_empty() => table.changes() as f64,
                _ if classes.len() > 1 => f64::from(SECONDS_PER_DAY) / seconds,
                _ => 0.0,
            },
            bits_per_day: Some(plan.bits_per_day(epochs)),
        }
    }

    /// That of the link that may tell most; of links without a choice where there are none.
    pub(super) fn greatest(plans: &[Plan], epochs: Epochs) -> Self {
        let bounds = plans.iter().map(|plan| Self::of_link(plan, epochs));
        let bits = |bound: &Self| bound.bits_per_day.unwrap_or(f64::INFINITY);
        let most = bounds.max_by(|one, other| bits(one).total_cmp(&bits(other)));
        most.unwrap_or(Self {
            policy: "fixed".to_owned(),
            classes: 1,
            opportunities_per_day: 0.0,
            bits_per_day: Some(0.0),
        })
    }

    /// In a line.
    pub(super) fn line(&self) -> String {
        let bits = self
            .bits_per_day
            .map_or("not bounded".to_owned(), |bits| format!("{bits:.3} bits a day at most"));
        format!(
            "{bits} for one way of a link: policy {}, {} {}, {} opportunities a day",
            self.policy,
            self.classes,
            if self.classes == 1 { "class" } else { "classes" },
            self.opportunities_per_day
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rates::{ClassNumber, DayTable, LossRules};

    #[test]
    fn hours_are_as_many_opportunities_as_the_document_has_changes() {
        let [day, night] = [ClassNumber(0), ClassNumber(1)];
        let table = DayTable::new(vec![(0, night), (7 * 3600, day), (12 * 3600, day), (22 * 3600, night)]);
        let policy = Policy::Scheduled(table.unwrap());
        let mut plan = Plan { policy, ladder: vec![], loss: LossRules::default(), rates: vec![100, 50] };
        let epochs = Epochs::new(900);
        let opportunities = |plan: &Plan| Leakage::of_link(plan, epochs).opportunities_per_day.round();
        assert!((opportunities(&plan) - 2.0).abs() < 1e-9);
        plan.ladder = vec![night];
        assert!((opportunities(&plan) - 96.0).abs() < 1e-9, "each boundary may bring a step");
    }

    #[test]
    fn a_bound_is_a_line() {
        let hourly = Leakage {
            policy: "adaptive".to_owned(),
            classes: 4,
            opportunities_per_day: 24.0,
            bits_per_day: Some(48.0),
        };
        assert_eq!(
            hourly.line(),
            "48.000 bits a day at most for one way of a link: policy adaptive, 4 classes, 24 opportunities a day"
        );
        assert_eq!(Leakage::greatest(&[], Epochs::new(3600)).bits_per_day, Some(0.0));
        let unbounded = Leakage { bits_per_day: None, ..hourly };
        assert!(unbounded.line().starts_with("not bounded for one way"), "{}", unbounded.line());
    }
}
