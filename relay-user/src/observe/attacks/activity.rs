//! Attack 1: is something going on? One threshold on one number about a window's gaps, learnt on other blocks.

use super::shape::{NAMES, Shape, shapes};
use super::untold;
use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::stats::{Blocks, bootstrap};
use crate::observe::trace::Sample;
use rand_chacha::ChaCha8Rng;

/// How well idle windows (label 0) are told from busy ones (any other).
///
/// The first finding is the attack: the number, threshold and direction that do best on the other blocks, tried on the
/// blocks held out. Those behind it are what each number does alone, for those who look for the mechanism. Accuracy is
/// the mean of both kinds', so that guessing gives 0.5 however many there are of each. The interval's half-width is about
/// 0.98 / sqrt(windows), more where windows of a block are alike: 0.03 takes 1100 windows and more.
pub fn activity(samples: &[Sample<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let labels: Vec<u16> = samples.iter().map(|sample| u16::from(sample.label != 0)).collect();
    let blocks = Blocks::of(samples.iter().map(|sample| sample.block));
    let folds = blocks.least_spread(&labels).min(FOLDS);
    if folds < LEAST_FOLDS {
        return vec![untold(Attack::Activity, STATISTICS[0], TARGET, samples.len())];
    }
    let fold_of = blocks.folds(&labels, folds, rng);
    let shapes = shapes(samples);
    let columns = Columns::new(&shapes, &labels);
    let mut right: [Vec<bool>; STATISTICS.len()] = std::array::from_fn(|_| vec![false; samples.len()]);
    for fold in 0..folds {
        let stumps: [Stump; NAMES.len()] =
            std::array::from_fn(|number| columns.learn(number, |sample| fold_of[sample] != fold));
        let best = stumps
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.gain.total_cmp(&b.1.gain))
            .map_or(0, |(best, _)| best);
        for sample in (0..samples.len()).filter(|&sample| fold_of[sample] == fold) {
            for (statistic, right) in right.iter_mut().enumerate() {
                let number = statistic.checked_sub(1).unwrap_or(best);
                right[sample] = stumps[number].says_busy(shapes[sample][number]) == (labels[sample] == 1);
            }
        }
    }
    let targets = std::iter::once(TARGET).chain(std::iter::repeat(Target::None));
    let findings = STATISTICS.into_iter().zip(&right).zip(targets);
    findings
        .map(|((statistic, right), target)| {
            let tallies = tally(&blocks, &labels, right);
            let value = accuracy(tallies.iter());
            let interval = bootstrap(blocks.len(), RESAMPLES, rng, |drawn| {
                accuracy(drawn.iter().map(|&block| &tallies[block]))
            });
            Finding { attack: Attack::Activity, statistic, value, interval, target, samples: samples.len() }
        })
        .collect()
}

const TARGET: Target = Target::Chance { value: 0.5, half_width: 0.03 };
const STATISTICS: [&str; NAMES.len() + 1] = [
    "accuracy",
    "accuracy by gap variance",
    "accuracy by gap entropy",
    "accuracy by mean gap",
    "accuracy by count",
    "accuracy by longest gap",
    "accuracy by gap autocorrelation",
];
const FOLDS: usize = 10;
/// Below, what is learnt rests on a block or two.
const LEAST_FOLDS: usize = 3;
const RESAMPLES: usize = 1000;

/// A threshold on one number.
#[derive(Clone, Copy, Debug)]
struct Stump {
    threshold: f64,
    busy_above: bool,
    /// Difference of the two kinds' shares on one side of the threshold, 0 to 1, where it was learnt.
    gain: f64,
}

impl Stump {
    fn says_busy(self, value: f64) -> bool {
        (value > self.threshold) == self.busy_above
    }
}

/// Each number's values in order, with the sample they are of.
struct Columns<'a> {
    sorted: [Vec<(f64, usize)>; NAMES.len()],
    labels: &'a [u16],
}

impl<'a> Columns<'a> {
    fn new(shapes: &[Shape], labels: &'a [u16]) -> Self {
        let sorted = std::array::from_fn(|number| {
            let mut column: Vec<(f64, usize)> =
                shapes.iter().enumerate().map(|(sample, shape)| (shape[number], sample)).collect();
            column.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            column
        });
        Self { sorted, labels }
    }

    /// The best threshold on one number for the samples that are `given`.
    fn learn(&self, number: usize, given: impl Fn(usize) -> bool) -> Stump {
        let column: Vec<(f64, bool)> = self.sorted[number]
            .iter()
            .filter(|(_, sample)| given(*sample))
            .map(|&(value, sample)| (value, self.labels[sample] == 1))
            .collect();
        let busy = column.iter().filter(|(_, busy)| *busy).count() as f64;
        let idle = column.len() as f64 - busy;
        let (mut below, mut best) =
            ([0.0; 2], Stump { threshold: f64::INFINITY, busy_above: true, gain: 0.0 });
        for pair in column.windows(2) {
            below[usize::from(pair[0].1)] += 1.0;
            let lead: f64 = below[0] / idle - below[1] / busy;
            if pair[0].0 < pair[1].0 && lead.abs() > best.gain {
                let threshold = f64::midpoint(pair[0].0, pair[1].0);
                best = Stump { threshold, busy_above: lead > 0.0, gain: lead.abs() };
            }
        }
        best
    }
}

/// Of one block and one kind of window: how many, and how many were told right.
type Tally = [[f64; 2]; 2];

fn tally(blocks: &Blocks, labels: &[u16], right: &[bool]) -> Vec<Tally> {
    let of = |members: &[usize]| {
        let mut tally = Tally::default();
        for &member in members {
            let [all, hits] = &mut tally[usize::from(labels[member] == 1)];
            *all += 1.0;
            *hits += f64::from(u8::from(right[member]));
        }
        tally
    };
    blocks.iter().map(of).collect()
}

/// The mean of the shares told right of idle and of busy windows; not a number where a kind is missing.
fn accuracy<'a>(tallies: impl Iterator<Item = &'a Tally>) -> f64 {
    let mut sum = Tally::default();
    for tally in tallies {
        for (sum, tally) in sum.iter_mut().flatten().zip(tally.iter().flatten()) {
            *sum += tally;
        }
    }
    let [idle, busy] = sum.map(|[all, hits]| hits / all);
    f64::midpoint(idle, busy)
}

#[cfg(test)]
mod tests {
    use super::super::planted::{Link, samples};
    use super::*;
    use crate::observe::finding::Verdict;
    use rand_core::SeedableRng;

    fn attacked(link: Link, blocks: u32, seed: u64) -> Vec<Finding> {
        let traces = link.traces(blocks, seed);
        activity(&samples(&traces), &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn a_plain_tunnel_gives_activity_away() {
        let findings = attacked(Link::Plain, 12, 1);
        assert!(findings[0].value >= 0.9 && findings[0].interval.low > 0.9, "{:?}", findings[0]);
        assert_eq!(findings[0].verdict(), Verdict::Missed);
        assert_eq!(findings.len(), STATISTICS.len());
    }

    #[test]
    fn timers_that_work_perturbs_give_it_away() {
        // Counts and sizes are constant; what is left is Fu's variance of gaps.
        let findings = attacked(Link::Perturbed, 12, 2);
        assert!(findings[0].value > 0.9, "{:?}", findings[0]);
        let by =
            |name: &str| findings.iter().find(|finding| finding.statistic.ends_with(name)).map(|f| f.value);
        assert!(by("gap variance").is_some_and(|value| value > 0.9));
        assert!(by("count").is_some_and(|value| value < 0.6));
    }

    #[test]
    fn schedules_that_know_nothing_stay_at_chance() {
        for link in [Link::Constant, Link::Jittered, Link::Drifting] {
            let tries = 30;
            let findings: Vec<Finding> =
                (0..tries).map(|seed| attacked(link, 24, 100 + seed).swap_remove(0)).collect();
            let wrong = findings.iter().filter(|finding| !finding.interval.holds(0.5)).count();
            assert!(wrong <= 4, "{link:?}: {wrong} of {tries} intervals rule 0.5 out");
            let mean = findings.iter().map(|finding| finding.value).sum::<f64>() / tries as f64;
            assert!((mean - 0.5).abs() < 0.02, "{link:?}: {mean} on average");
        }
    }

    #[test]
    fn too_little_is_no_power() {
        assert_eq!(attacked(Link::Constant, 2, 1)[0].verdict(), Verdict::NoPower);
        assert_eq!(activity(&[], &mut ChaCha8Rng::seed_from_u64(1))[0].verdict(), Verdict::NoPower);
        assert_eq!(
            attacked(Link::Constant, 8, 1)[0].verdict(),
            Verdict::NoPower,
            "80 windows bound nothing by 0.03"
        );
    }
}
