//! Attack 2, of gaps that the law of a link does not have: are there more of them, or fewer, when something goes on?
//!
//! They are what a host leaves that stands still, or that a payload holds up. There are few, each of them plain to see, so what
//! looks at windows or at all gaps together hardly notices how often they come.

use super::{NO_CHANCE, against_chance};
use crate::observe::finding::{Attack, Finding};
use crate::observe::stats::{Blocks, jackknife, mean, permutation, variance};
use rand_chacha::ChaCha8Rng;

/// What was seen for some time, the same for all that are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// 0 where nothing goes on.
    pub label: u16,
    /// How many such gaps each direction had in a second.
    pub per_second: Vec<f64>,
}

/// Permutations of each p-value.
pub const SHUFFLES: usize = 1999;
/// Fewer arrangements of labels than this, and none is rare.
const LEAST_ARRANGEMENTS: f64 = 100.0;

/// By how many standard errors stretches in which something goes on have more such gaps than the others, or fewer, in the
/// direction where that is most, or in all of them together; held against labels traded by stretch. All stretches have the
/// same directions, in the same order.
///
/// Gaps come in clusters, so the root of what a second has is compared: one stretch of many is not all there is.
pub fn long_gaps(stretches: &[Stretch], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let labels: Vec<u16> = stretches.iter().map(|stretch| u16::from(stretch.label != 0)).collect();
    let blocks = Blocks::of((0..).take(stretches.len()));
    let count = stretches.iter().map(|stretch| stretch.per_second.len()).min().unwrap_or(0);
    let direction = |place: usize| stretches.iter().map(move |stretch| stretch.per_second[place]);
    let together = stretches.iter().map(|stretch| stretch.per_second.iter().sum());
    let rates: Vec<Vec<f64>> = (0..count)
        .map(|place| direction(place).collect())
        .chain(std::iter::once(together.collect()))
        .collect();
    let roots: Vec<Vec<f64>> =
        rates.iter().map(|rates: &Vec<f64>| rates.iter().map(|rate| rate.sqrt()).collect()).collect();
    let most = |labels: &[u16], left_out: Option<usize>| {
        let apart = |roots: &Vec<f64>| errors_apart(roots, labels, left_out);
        roots
            .iter()
            .map(apart)
            .fold(0.0, |most: f64, apart| if apart.abs() > most.abs() { apart } else { most })
    };
    let value = most(&labels, None);
    let chance = if blocks.arrangements(&labels) >= LEAST_ARRANGEMENTS {
        permutation(value.abs(), SHUFFLES, || most(&blocks.permuted(&labels, rng), None).abs())
    } else {
        NO_CHANCE
    };
    let interval = jackknife(stretches.len(), |left_out| most(&labels, left_out).abs());
    against_chance(
        Attack::Distribution,
        ["long gaps, standard errors apart", "p of long gaps"],
        value.abs(),
        interval,
        chance,
        stretches.len(),
    )
}

/// How many standard errors the mean of values labelled 1 is above that of the others; 0 where all are the same.
fn errors_apart(values: &[f64], labels: &[u16], left_out: Option<usize>) -> f64 {
    let of = |label: u16| -> Vec<f64> {
        let kept = values.iter().zip(labels).enumerate().filter(|(place, _)| Some(*place) != left_out);
        kept.filter(|(_, (_, own))| **own == label).map(|(_, (value, _))| *value).collect()
    };
    let [idle, busy] = [of(0), of(1)];
    let error = (variance(&idle) / idle.len() as f64 + variance(&busy) / busy.len() as f64).sqrt();
    let apart = (mean(&busy) - mean(&idle)) / error;
    if apart.is_finite() { apart } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::stats::unit;
    use rand_core::SeedableRng;

    /// Stretches, idle and busy in turn, in which three directions stand still together, now and then for long; in busy ones
    /// the second has `more` such gaps a second beside.
    fn stretches(count: u16, more: f64, rng: &mut ChaCha8Rng) -> Vec<Stretch> {
        (0..count)
            .map(|stretch| {
                let label = stretch % 2;
                let stalls = if unit(rng) < 0.1 { 40.0 * unit(rng) } else { 0.0 };
                let mut of = |more: f64| (stalls + unit(rng) * 2.0 + more).floor();
                Stretch { label, per_second: vec![of(0.0), of(f64::from(label) * more), of(0.0)] }
            })
            .collect()
    }

    #[test]
    fn more_gaps_in_one_direction_are_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for more in [1.0, 3.0] {
            let found = long_gaps(&stretches(200, more, &mut rng), &mut rng);
            assert!(found[1].value <= 0.001 && found[0].verdict() == Verdict::Missed, "{more}: {found:?}");
        }
    }

    #[test]
    fn a_machine_that_stands_still_whatever_goes_on_tells_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let tries = 100;
        let wrong =
            (0..tries).filter(|_| long_gaps(&stretches(60, 0.0, &mut rng), &mut rng)[1].value <= 0.05);
        let wrong = wrong.count();
        assert!(wrong <= 12, "{wrong} of {tries} at 5 %");
    }

    #[test]
    fn none_at_all_is_no_difference_and_too_few_are_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let none = |label| Stretch { label, per_second: vec![0.0; 2] };
        let found = long_gaps(&(0..40).map(|place| none(place % 2)).collect::<Vec<_>>(), &mut rng);
        assert_eq!((found[0].value, found[1].value), (0.0, 1.0));
        assert_eq!(long_gaps(&[none(0), none(1)], &mut rng)[0].verdict(), Verdict::NoPower);
        assert_eq!(long_gaps(&[], &mut rng)[0].verdict(), Verdict::NoPower);
    }
}
