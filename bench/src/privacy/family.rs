//! Many tests of one kind: one in twenty is beyond 95 % of chance with nothing there, so they are judged together.

use std::collections::BTreeMap;

use relay_user::observe::finding::{Attack, Finding, Interval, Target};
use relay_user::observe::stats::binomial_interval;

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

    /// For each attack, how many of its tests are beyond 95 % of chance, and the smallest p-value for as many tests as
    /// there are. Nothing where nobody asks.
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
                    interval: binomial_interval(beyond, n),
                    target: Target::AtMost { bound: usual(n) as f64 / n as f64 },
                    samples: n,
                };
                let least = tests.iter().copied().fold(1.0, f64::min);
                let least = (least * n as f64).min(1.0);
                let smallest = Finding {
                    attack,
                    statistic: "smallest p, by tests",
                    value: least,
                    interval: Interval::exact(least),
                    target: Target::AtLeast { bound: 0.01 },
                    samples: n,
                };
                [share, smallest].map(|finding| Row::new(&finding, "all", defence))
            })
            .collect()
    }
}

/// How many of `n` tests are beyond 95 % of chance, no more than which it is 95 times in a hundred.
fn usual(n: usize) -> usize {
    let n_f = n as f64;
    let mut term = (1.0 - LEVEL).powf(n_f);
    let mut sum = term;
    let mut count = 0;
    while sum < 1.0 - LEVEL && count < n {
        term *= (n_f - count as f64) / (count as f64 + 1.0) * LEVEL / (1.0 - LEVEL);
        sum += term;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::row::Status;

    #[test]
    fn the_usual_number_is_the_binomial_law_s() {
        // 95 % points of Binomial(n, 0.05).
        assert_eq!([1, 7, 18, 100].map(usual), [0, 1, 3, 9]);
    }

    #[test]
    fn one_in_twenty_is_no_finding_and_a_strong_one_is() {
        let status = |tests: &[f64]| {
            let mut family = Family::default();
            tests.iter().for_each(|p| family.add(Attack::Correlation, *p));
            family.rows("constant", true).iter().map(|row| row.status).collect::<Vec<_>>()
        };
        assert_eq!(status(&[0.04, 0.2, 0.5, 0.7, 0.9, 0.3, 0.6]), [Status::Met, Status::Met]);
        assert_eq!(status(&[0.001, 0.2, 0.5, 0.7, 0.9, 0.3, 0.6]), [Status::Met, Status::Missed]);
        assert_eq!(status(&[0.04, 0.03, 0.05, 0.7, 0.9, 0.3, 0.6]), [Status::Missed, Status::Met]);
    }
}
