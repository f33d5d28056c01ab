//! What one direction of a link says, block by block, so that several directions can be put together.
//!
//! Directions of one link, and links of one path, are seen during the same stretches and through the same machine: what is
//! odd about a stretch is odd in all of them. Their figures are no independent ones, and an interval of their mean that
//! took them for that would be too narrow by up to the root of their number. Here each resample draws stretches once, and
//! every direction is evaluated on what was drawn.

use super::untold;
use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::stats::{UNBOUNDED, bootstrap, jackknife};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Draws of each interval.
const RESAMPLES: usize = 1000;

/// How an interval is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interval {
    /// Blocks are drawn anew, with repeats.
    Drawn,
    /// One block is left out at a time: for statistics that repeats would bias.
    LeftOut,
}

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
    interval: Interval,
    of: Statistic<'a>,
}

impl<'a> Part<'a> {
    /// A figure of `blocks`: `of` gets how often each of them counts, in their order.
    pub(super) fn new(
        (attack, statistic, target): (Attack, &'static str, Target),
        samples: usize,
        blocks: Vec<u32>,
        interval: Interval,
        of: impl Fn(&[f64]) -> f64 + 'a,
    ) -> Self {
        Self { attack, statistic, target, samples, blocks, interval, of: Box::new(of) }
    }

    /// A figure that cannot be given for lack of data.
    pub(super) fn untold(what: (Attack, &'static str, Target), samples: usize) -> Self {
        Self::new(what, samples, Vec::new(), Interval::Drawn, |_| f64::NAN)
    }

    /// What this direction says by itself.
    pub fn finding(&self, rng: &mut ChaCha8Rng) -> Finding {
        pooled(&[self], rng).unwrap_or_else(|| untold(self.attack, self.statistic, self.target, self.samples))
    }
}

/// The mean of one figure over directions, with the interval of that mean over the stretches that they share. Not a number
/// where one of them cannot be given; nothing where there is no direction.
pub fn pooled(parts: &[&Part<'_>], rng: &mut ChaCha8Rng) -> Option<Finding> {
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
    let mean = |times: &[f64]| {
        let values = parts.iter().zip(&known).map(|(part, known)| {
            let own: Vec<f64> = known.iter().map(|&place| times[place]).collect();
            (part.of)(&own)
        });
        values.sum::<f64>() / parts.len() as f64
    };
    let value = mean(&vec![1.0; places.len()]);
    let interval = match first.interval {
        _ if !value.is_finite() => UNBOUNDED,
        Interval::Drawn => bootstrap(places.len(), RESAMPLES, rng, |drawn| {
            let mut times = vec![0.0; places.len()];
            for &place in drawn {
                times[place] += 1.0;
            }
            mean(&times)
        }),
        Interval::LeftOut => jackknife(places.len(), |left_out| {
            let mut times = vec![1.0; places.len()];
            if let Some(time) = left_out.and_then(|place| times.get_mut(place)) {
                *time = 0.0;
            }
            mean(&times)
        }),
    };
    let samples = parts.iter().map(|part| part.samples).sum();
    let (attack, statistic, target) = (first.attack, first.statistic, first.target);
    Some(Finding { attack, statistic, value, interval, target, samples })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::stats::normal;
    use rand_core::SeedableRng;

    const BLOCKS: usize = 80;

    fn part(values: Vec<f64>, interval: Interval) -> Part<'static> {
        let blocks = (0..).take(values.len()).collect();
        let target = Target::Chance { value: 0.0, half_width: 0.5 };
        Part::new((Attack::Activity, "mean", target), values.len(), blocks, interval, move |times| {
            let sum: f64 = values.iter().zip(times).map(|(value, times)| value * times).sum();
            sum / times.iter().sum::<f64>()
        })
    }

    fn half_width(parts: &[Part<'_>]) -> f64 {
        let parts: Vec<&Part<'_>> = parts.iter().collect();
        let found = pooled(&parts, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        assert_eq!(found.samples, BLOCKS * parts.len());
        found.interval.half_width()
    }

    #[test]
    fn copies_say_no_more_than_one_and_independent_ones_do() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for interval in [Interval::Drawn, Interval::LeftOut] {
            let mut draw = || -> Vec<f64> { (0..BLOCKS).map(|_| normal(&mut rng)).collect() };
            let one = draw();
            let single = half_width(&[part(one.clone(), interval)]);
            for k in [2_u8, 4, 6] {
                let copies: Vec<_> = (0..k).map(|_| part(one.clone(), interval)).collect();
                let same = half_width(&copies) / single;
                assert!((same - 1.0).abs() < 1e-9, "{k} copies: {same}");
                let others: Vec<_> = (0..k).map(|_| part(draw(), interval)).collect();
                let alone = others.chunks(1).map(|one| half_width(one).powi(2)).sum::<f64>().sqrt();
                let root = half_width(&others) / (alone / f64::from(k));
                assert!((0.8..1.25).contains(&root), "{k} independent ones: {root}");
            }
        }
    }

    #[test]
    fn intervals_of_directions_that_share_their_stretches_hold_the_truth() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let tries = 200;
        let (mut joint, mut naive) = (0, 0);
        for _ in 0..tries {
            let shared: Vec<f64> = (0..40).map(|_| normal(&mut rng)).collect();
            let parts: Vec<Part<'_>> = (0..4)
                .map(|_| {
                    let values = shared.iter().map(|shared| shared + 0.5 * normal(&mut rng)).collect();
                    part(values, Interval::LeftOut)
                })
                .collect();
            let found = pooled(&parts.iter().collect::<Vec<_>>(), &mut rng).unwrap();
            joint += u32::from(found.interval.holds(0.0));
            let apart = parts.iter().map(|part| part.finding(&mut rng).interval.half_width().powi(2));
            naive += u32::from(found.value.abs() <= apart.sum::<f64>().sqrt() / 4.0);
        }
        assert!((183..=198).contains(&joint), "{joint} of {tries}");
        assert!(naive < 160, "taking them for independent is wrong here: {naive} of {tries}");
    }

    #[test]
    fn one_that_says_nothing_leaves_nothing_to_say() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let target = Target::Chance { value: 0.0, half_width: 0.5 };
        let none = Part::untold((Attack::Activity, "mean", target), 7);
        let some = part(vec![1.0; 9], Interval::Drawn);
        let found = pooled(&[&some, &none], &mut rng).unwrap();
        assert!(found.value.is_nan() && found.interval == UNBOUNDED);
        assert!(pooled(&[], &mut rng).is_none());
    }
}
