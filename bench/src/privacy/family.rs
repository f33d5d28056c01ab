//! Many tests of one kind: one in twenty is beyond 95 % of chance with nothing there, so they are judged together.
//!
//! What is judged is the smallest p-value times the number of tests (Bonferroni's bound), which sees one strong effect, and
//! twice the mean p-value (Vovk and Wang 2020), which sees many weak ones. Both hold however tests depend on each other.
//! They do: those of one run share its stretches without payload and its machine, so that how many of them are beyond
//! 95 % of chance does not follow the binomial law, and their share is told and not judged.

use std::collections::BTreeMap;

use relay_user::observe::finding::{Attack, Finding, Interval, Target};
use relay_user::observe::stats::UNBOUNDED;

use super::row::Row;

const LEVEL: f64 = 0.05;

/// p-values by attack.
#[derive(Debug, Default)]
pub(super) struct Family(BTreeMap<Attack, Vec<f64>>);

impl Family {
    /// Adds a test; one that could not be done is none.
    pub(super) fn add(&mut self, attack: Attack, p: f64) {
        if p.is_finite() {
            self.0.entry(attack).or_default().push(p);
        }
    }

    /// For each attack, how many of its tests are beyond 95 % of chance, told only; the smallest p-value for as many tests as
    /// there are, and twice the mean, both judged at 5 %. Nothing where nobody asks.
    pub(super) fn rows(&self, defence: &str, asked: bool) -> Vec<Row> {
        let families = self.0.iter().filter(|_| asked);
        families
            .flat_map(|(&attack, tests)| {
                let n = tests.len();
                let beyond = tests.iter().filter(|p| **p <= LEVEL).count();
                let share = Finding {
                    attack,
                    statistic: "share of tests beyond 95 % of chance",
                    value: beyond as f64 / n as f64,
                    // No law is known that it follows.
                    interval: UNBOUNDED,
                    target: Target::None,
                    samples: n,
                };
                let judged = |statistic, p: f64| Finding {
                    statistic,
                    value: p.min(1.0),
                    interval: Interval::exact(p.min(1.0)),
                    target: Target::AtLeast { bound: LEVEL },
                    ..share.clone()
                };
                let least = tests.iter().copied().fold(1.0, f64::min);
                let smallest = judged("smallest p, by tests", least * n as f64);
                let mean = judged("mean p, twice", 2.0 * tests.iter().sum::<f64>() / n as f64);
                [share, smallest, mean].map(|finding| Row::new(&finding, "all", defence))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::row::Status;

    #[test]
    fn one_in_twenty_is_no_finding_and_a_strong_one_is() {
        let status = |tests: &[f64]| {
            let mut family = Family::default();
            tests.iter().for_each(|p| family.add(Attack::Correlation, *p));
            family.rows("constant", true).iter().map(|row| row.status).collect::<Vec<_>>()
        };
        let (reported, met, missed) = (Status::Reported, Status::Met, Status::Missed);
        assert_eq!(status(&[0.04, 0.2, 0.5, 0.7, 0.9, 0.3, 0.6]), [reported, met, met]);
        assert_eq!(status(&[0.001, 0.2, 0.5, 0.7, 0.9, 0.3, 0.6]), [reported, missed, met]);
        assert_eq!(status(&[0.02; 7]), [reported, met, missed], "none of them by itself");
    }
}
