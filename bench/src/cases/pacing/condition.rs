//! What keeps slots under which conditions, and what was measured of it, round by round.

use super::compare::quantile_us;
use super::phase::{Phase, Task};
use super::relay::Cells;
use relay_user::engine::time::Nanos;
use relay_user::worker::Poll;
use std::time::Duration;

/// Share of the cells that may come late out of the feeder.
const FED_LATE: f64 = 0.02;
/// Rounds that must be left for a figure.
const FIT: f64 = 0.5;

/// What keeps the slots.
#[derive(Clone, Copy)]
pub(super) enum Keeper {
    Worker(Task),
    Loop(fn(Duration) -> anyhow::Result<Vec<u32>>),
}

/// One round: lateness in nanoseconds, sorted, or why the round shows nothing.
type Round = Result<Vec<u32>, String>;

/// Conditions, and what was measured under them.
pub(super) struct Condition {
    pub(super) name: &'static str,
    pub(super) keeper: Keeper,
    rounds: Vec<Round>,
    loads: Vec<f64>,
    missed: u64,
    pub(super) longest_turn: Nanos,
    contradiction: Option<String>,
}

impl Condition {
    pub(super) const fn worker(name: &'static str, poll: Poll, circuits: u32, cells: Cells) -> Self {
        Self::new(name, Keeper::Worker(Task { poll, circuits, cells }))
    }

    pub(super) const fn new(name: &'static str, keeper: Keeper) -> Self {
        Self {
            name,
            keeper,
            rounds: Vec::new(),
            loads: Vec::new(),
            missed: 0,
            longest_turn: Nanos(0),
            contradiction: None,
        }
    }

    /// Adds a round of a loop.
    pub(super) fn add(&mut self, mut lateness: Vec<u32>) {
        lateness.sort_unstable();
        self.rounds.push(Ok(lateness));
    }

    /// Adds a round of a worker, whose load, where it spins under one, shall lie between the two bounds.
    pub(super) fn add_phase(&mut self, phase: Phase, load: Option<f64>, (least, most): (f64, f64)) {
        self.contradiction = self.contradiction.take().or(phase.contradiction);
        self.longest_turn = self.longest_turn.max(phase.longest_turn);
        if phase.fed.late as f64 > FED_LATE * phase.fed.cells as f64 {
            self.rounds.push(Err(format!(
                "the relay waited for {} of {} cells, since the other core was busy with something else",
                phase.fed.late, phase.fed.cells
            )));
            return;
        }
        if let Some(load) = load.filter(|load| !(least..=most).contains(load)) {
            self.rounds.push(Err(format!("the worker worked {:.0} % of its time", 100.0 * load)));
            return;
        }
        self.loads.extend(load);
        self.missed += phase.missed;
        self.add(phase.lateness);
    }

    /// Why no figure may come from here: a round that contradicts itself, or too few that show anything.
    pub(super) fn invalid(&self) -> Option<String> {
        if let Some(contradiction) = &self.contradiction {
            return Some(contradiction.clone());
        }
        let unfit = self.rounds.iter().find_map(|round| round.as_ref().err())?;
        let (fit, all) = (self.fit().count(), self.rounds.len());
        ((fit as f64) < FIT * all as f64)
            .then(|| format!("{} of {all} rounds show nothing; in one of them {unfit}", all - fit))
    }

    fn fit(&self) -> impl Iterator<Item = &[u32]> {
        self.rounds.iter().filter_map(|round| round.as_deref().ok())
    }

    /// The median over the rounds of a quantile, in µs.
    pub(super) fn quantile_us(&self, quantile: f64) -> f64 {
        median(self.fit().map(|lateness| quantile_us(lateness, quantile)))
    }

    /// The greatest of all rounds, in µs.
    pub(super) fn max_us(&self) -> f64 {
        self.fit().map(|lateness| quantile_us(lateness, 1.0)).fold(f64::NAN, f64::max)
    }

    /// All rounds together, sorted.
    pub(super) fn pooled(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.fit().flatten().copied().collect();
        all.sort_unstable();
        all
    }

    /// Slots left empty, in percent.
    pub(super) fn missed_percent(&self) -> f64 {
        let slots: usize = self.fit().map(<[u32]>::len).sum();
        100.0 * self.missed as f64 / slots as f64
    }

    /// The median load of the rounds that count.
    pub(super) fn load(&self) -> f64 {
        median(self.loads.iter().copied())
    }

    /// The median over the rounds of what `compare` makes of this and another's sample of the same round.
    pub(super) fn against(&self, other: &Self, compare: impl Fn(&[u32], &[u32]) -> f64) -> f64 {
        let rounds = self.rounds.iter().zip(&other.rounds);
        median(rounds.filter_map(|pair| match pair {
            (Ok(a), Ok(b)) => Some(compare(a, b)),
            _ => None,
        }))
    }

    /// The same of each round with the next.
    pub(super) fn against_itself(&self, compare: impl Fn(&[u32], &[u32]) -> f64) -> f64 {
        let fit: Vec<&[u32]> = self.fit().collect();
        median(fit.windows(2).filter_map(|pair| Some(compare(pair.first()?, pair.get(1)?))))
    }

    /// The median over the rounds of a quantile in ns, each divided by that round's of `base`.
    pub(super) fn ratio(&self, quantile: f64, base: &[f64]) -> f64 {
        let rounds = self.rounds.iter().zip(base);
        median(rounds.filter_map(|(round, base)| Some(quantile_us(round.as_deref().ok()?, quantile) / base)))
    }
}

/// NaN where there is none.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::super::compare::ks_distance;
    use super::*;

    fn rounds(name: &'static str, rounds: Vec<Round>) -> Condition {
        let mut condition = Condition::worker(name, Poll::Busy, 1, Cells::Payload);
        condition.rounds = rounds;
        condition
    }

    #[test]
    fn rounds_are_compared_with_their_own_kind() {
        let a = rounds("a", vec![Ok(vec![1000, 2000]), Err("unfit".into()), Ok(vec![4000, 8000])]);
        let b = rounds("b", vec![Ok(vec![1000, 2000]), Ok(vec![1, 2]), Ok(vec![4000, 8000])]);
        assert!(a.against(&b, ks_distance) < 1e-9);
        assert!((a.against_itself(ks_distance) - 1.0).abs() < 1e-9);
        assert_eq!((a.quantile_us(1.0), a.max_us()), (8.0, 8.0));
        assert_eq!(a.ratio(1.0, &[1.0, 1.0, 2.0]), 4.0);
        assert_eq!(a.pooled(), [1000, 2000, 4000, 8000]);
    }

    #[test]
    fn figures_need_half_of_the_rounds_and_no_contradiction() {
        let unfit = || Err("the core was busy".to_owned());
        let mut condition = rounds("a", vec![unfit(), Ok(vec![1]), Ok(vec![2])]);
        assert_eq!(condition.invalid(), None);
        condition.rounds.extend([unfit(), unfit()]);
        assert!(condition.invalid().is_some_and(|why| why.starts_with("3 of 5 rounds")));
        condition.rounds.truncate(2);
        condition.contradiction = Some("1 sent, 2 received".into());
        assert_eq!(condition.invalid().as_deref(), Some("1 sent, 2 received"));
    }
}
