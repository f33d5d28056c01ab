//! What one direction of a link says, block by block, so that several directions can be held beside each other.
//!
//! A leak may show in one direction alone, so what counts is the direction that is furthest from chance, or their mean
//! where that is further. Looking at several has its price: intervals are as wide as it takes for all of them to hold
//! chance at once in 95 of 100 cases where nothing tells.
//!
//! Directions of one link, and links of one path, are seen during the same stretches and through the same machine: what is
//! odd about a stretch is odd in all of them. Here each resample draws stretches once, and every direction is evaluated on
//! what was drawn, so those that err together are not taken for several.

use super::untold;
use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::stats::{Joint, Resampling, joint};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Draws of each interval.
const RESAMPLES: usize = 1000;

/// A statistic of these blocks, given how often each counts.
type Statistic<'a> = Box<dyn Fn(&[f64]) -> f64 + 'a>;

/// One figure of one direction, and what each block has to do with it.
pub struct Part<'a> {
    attack: Attack,
    statistic: &'static str,
    target: Target,
    samples: usize,
    /// Names of the blocks that it rests on, each once; none where nothing can be said.
    blocks: Vec<u32>,
    resampling: Resampling,
    of: Statistic<'a>,
}

impl<'a> Part<'a> {
    /// A figure of `blocks`: `of` gets how often each of them counts, in their order.
    pub(super) fn new(
        (attack, statistic, target): (Attack, &'static str, Target),
        samples: usize,
        blocks: Vec<u32>,
        resampling: Resampling,
        of: impl Fn(&[f64]) -> f64 + 'a,
    ) -> Self {
        Self { attack, statistic, target, samples, blocks, resampling, of: Box::new(of) }
    }

    /// A figure that cannot be given for lack of data.
    pub(super) fn untold(what: (Attack, &'static str, Target), samples: usize) -> Self {
        Self::new(what, samples, Vec::new(), Resampling::Drawn, |_| f64::NAN)
    }

    /// What this direction says by itself.
    pub fn finding(&self, rng: &mut ChaCha8Rng) -> Finding {
        let alone = most_telling(&[self], rng).map(|most| most.finding);
        alone.unwrap_or_else(|| untold(self.attack, self.statistic, self.target, self.samples))
    }

    /// What guessing gives; one half for a figure that is only told.
    const fn chance(&self) -> f64 {
        match self.target {
            Target::Chance { value, .. } => value,
            _ => 0.5,
        }
    }
}

/// What several directions say together.
#[derive(Clone, Debug, PartialEq)]
pub struct Most {
    /// The figure that is furthest from chance.
    pub finding: Finding,
    /// Whose it is, by its place; `None` for the mean of all.
    pub direction: Option<usize>,
    /// What each direction says.
    pub each: Vec<f64>,
    /// How far to either side of any of these the truth may lie; infinite where one cannot be given.
    pub reach: f64,
}

/// The figure of the direction that is furthest from chance, counted in its own deviations, or of the mean of all; with an
/// interval that allows for the choice. Not a number where one of them cannot be given; nothing where there is no
/// direction.
pub fn most_telling(parts: &[&Part<'_>], rng: &mut ChaCha8Rng) -> Option<Most> {
    let first = parts.first()?;
    let mut places: BTreeMap<u32, usize> = BTreeMap::new();
    for name in parts.iter().flat_map(|part| &part.blocks) {
        places.entry(*name).or_default();
    }
    for (number, place) in places.values_mut().enumerate() {
        *place = number;
    }
    let known: Vec<Vec<usize>> = parts
        .iter()
        .map(|part| part.blocks.iter().filter_map(|name| places.get(name).copied()).collect())
        .collect();
    let figures = |times: &[f64]| -> Vec<f64> {
        let own = |(part, known): (&&Part<'_>, &Vec<usize>)| {
            (part.of)(&known.iter().map(|&place| times[place]).collect::<Vec<_>>())
        };
        let mut figures: Vec<f64> = parts.iter().zip(&known).map(own).collect();
        if figures.len() > 1 {
            figures.push(figures.iter().sum::<f64>() / figures.len() as f64);
        }
        figures
    };
    let Joint { values, deviations, reach } = joint(places.len(), first.resampling, RESAMPLES, rng, figures);
    let far = |place: &usize| {
        let off = (values[*place] - first.chance()).abs();
        // Not a number where it is no different from chance and never was.
        let by_deviation = off / deviations[*place];
        (if by_deviation.is_nan() { 0.0 } else { by_deviation }, off)
    };
    let order = |a: &usize, b: &usize| {
        let (a, b) = (far(a), far(b));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    };
    let place = (0..values.len()).max_by(order)?;
    let (attack, statistic, target) = (first.attack, first.statistic, first.target);
    let samples = parts.iter().map(|part| part.samples).sum();
    let all_known = values.iter().all(|value| value.is_finite());
    let finding = if all_known {
        let (value, reach) = (values[place], reach[place]);
        let interval = Interval { low: value - reach, high: value + reach };
        Finding { attack, statistic, value, interval, target, samples }
    } else {
        untold(attack, statistic, target, samples)
    };
    let each = values.into_iter().take(parts.len()).collect();
    let reach = reach.into_iter().take(parts.len()).fold(0.0, f64::max);
    let direction = (all_known && place < parts.len()).then_some(place);
    Some(Most { finding, direction, each, reach })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::stats::{UNBOUNDED, normal};
    use rand_core::SeedableRng;

    const BLOCKS: usize = 80;

    fn part(values: Vec<f64>, resampling: Resampling) -> Part<'static> {
        let blocks = (0..).take(values.len()).collect();
        let target = Target::Chance { value: 0.0, half_width: 0.5 };
        Part::new((Attack::Activity, "mean", target), values.len(), blocks, resampling, move |times| {
            let sum: f64 = values.iter().zip(times).map(|(value, times)| value * times).sum();
            sum / times.iter().sum::<f64>()
        })
    }

    fn told(parts: &[Part<'_>], seed: u64) -> Most {
        most_telling(&parts.iter().collect::<Vec<_>>(), &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()
    }

    /// Blocks of `count` directions that share a part of what they are, the second of which is off by `off`.
    fn beside(count: usize, off: f64, resampling: Resampling, rng: &mut ChaCha8Rng) -> Vec<Part<'static>> {
        let shared: Vec<f64> = (0..BLOCKS).map(|_| 0.5 * normal(rng)).collect();
        (0..count)
            .map(|place| {
                let off = if place == 1 { off } else { 0.0 };
                part(shared.iter().map(|shared| off + shared + normal(rng)).collect(), resampling)
            })
            .collect()
    }

    #[test]
    fn copies_cost_no_more_than_one() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for resampling in [Resampling::Drawn, Resampling::LeftOut] {
            let values: Vec<f64> = (0..BLOCKS).map(|_| normal(&mut rng)).collect();
            let width = |copies: usize| {
                let parts: Vec<_> = (0..copies).map(|_| part(values.clone(), resampling)).collect();
                let told = told(&parts, 1);
                assert_eq!((told.finding.samples, told.each.len()), (BLOCKS * copies, copies));
                told.finding.interval.half_width()
            };
            assert!((width(4) - width(1)).abs() < 1e-9, "{resampling:?}");
        }
    }

    #[test]
    fn directions_that_tell_nothing_hold_chance_as_often_as_they_say() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for (resampling, count) in [(Resampling::Drawn, 2), (Resampling::LeftOut, 4), (Resampling::Drawn, 6)]
        {
            let tries = 200;
            let holds = (0..tries).filter(|&seed| {
                told(&beside(count, 0.0, resampling, &mut rng), seed).finding.interval.holds(0.0)
            });
            let holds = holds.count();
            assert!((182..=198).contains(&holds), "{resampling:?}, {count}: {holds} of {tries}");
        }
    }

    #[test]
    fn what_one_direction_of_six_tells_is_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for resampling in [Resampling::Drawn, Resampling::LeftOut] {
            let told = told(&beside(6, 1.0, resampling, &mut rng), 1);
            assert_eq!((told.direction, told.finding.verdict()), (Some(1), Verdict::Missed), "{told:?}");
            assert!(told.each.iter().sum::<f64>() / 6.0 < 0.4, "their mean would say little: {told:?}");
        }
    }

    #[test]
    fn what_all_tell_a_little_of_is_found_in_their_mean() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let off = |rng: &mut ChaCha8Rng| (0..BLOCKS).map(|_| 0.3 + normal(rng)).collect();
        let parts: Vec<_> = (0..6).map(|_| part(off(&mut rng), Resampling::Drawn)).collect();
        let told = told(&parts, 1);
        assert_eq!((told.direction, told.finding.verdict()), (None, Verdict::Missed), "{told:?}");
        assert!(told.reach > 1.5 * told.finding.interval.half_width(), "{told:?}");
    }

    #[test]
    fn one_that_says_nothing_leaves_nothing_to_say() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let target = Target::Chance { value: 0.0, half_width: 0.5 };
        let none = Part::untold((Attack::Activity, "mean", target), 7);
        let some = part(vec![1.0; 9], Resampling::Drawn);
        let found = most_telling(&[&some, &none], &mut rng).unwrap();
        assert!(found.finding.value.is_nan() && found.finding.interval == UNBOUNDED);
        assert_eq!((found.direction, found.finding.verdict()), (None, Verdict::NoPower));
        assert!(most_telling(&[], &mut rng).is_none());
    }
}
