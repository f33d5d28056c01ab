//! Attack 1: is something going on? One threshold on one number about a window's gaps, learnt on other blocks.

use super::directions::Part;
use super::shape::{NAMES, Shape, shapes};
use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::stats::{Blocks, Resampling};
use crate::observe::trace::Sample;
use rand_chacha::ChaCha8Rng;

/// How well idle windows (label 0) are told from busy ones (any other).
///
/// The first finding is the attack: the number, threshold and direction that do best on a quarter of the blocks, tried on
/// the others. Those behind it are what each number does alone, for those who look for the mechanism. Accuracy is the
/// mean of both kinds', so that guessing gives 0.5 however many there are of each. The interval's half-width is about
/// 1.13 / sqrt(windows), more where windows of a block are alike: 0.03 takes 1450 windows and more.
///
/// Learning on each nine tenths in turn would use more of the windows to less effect: what is learnt is then nearly the
/// same each time, and where there is nothing to learn, the ten results err together. A 95 % interval that counts them as
/// ten misses 0.5 three times in ten (measured, 60 blocks of 20 windows).
pub fn activity(samples: &[Sample<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    parts(samples, rng).iter().map(|part| part.finding(rng)).collect()
}

/// The findings of [`activity`] as parts of what several directions say together. Directions that are given the same
/// randomness learn on the same blocks.
pub fn parts(samples: &[Sample<'_>], rng: &mut ChaCha8Rng) -> Vec<Part<'static>> {
    let labels: Vec<u16> = samples.iter().map(|sample| u16::from(sample.label != 0)).collect();
    let blocks = Blocks::of(samples.iter().map(|sample| sample.block));
    if blocks.least_spread(&labels) < LEAST_BLOCKS {
        return vec![Part::untold((Attack::Activity, STATISTICS[0], TARGET), samples.len())];
    }
    let (lessons, trials) = blocks.split(&labels, rng);
    let shapes = shapes(samples);
    let stumps: [Stump; NAMES.len()] =
        std::array::from_fn(|number| Stump::learn(&lessons, &shapes, number, &labels));
    let gain = |number: &usize| stumps[*number].gain;
    let best = (0..NAMES.len()).max_by(|a, b| gain(a).total_cmp(&gain(b))).unwrap_or(0);
    let targets = std::iter::once(TARGET).chain(std::iter::repeat(Target::None));
    let numbers = std::iter::once(best).chain(0..NAMES.len());
    STATISTICS
        .into_iter()
        .zip(numbers)
        .zip(targets)
        .map(|((statistic, number), target)| {
            let tallies: Vec<Tally> = trials
                .iter()
                .map(|members| {
                    tally(members, &labels, |sample| stumps[number].says_busy(shapes[sample][number]))
                })
                .collect();
            let what = (Attack::Activity, statistic, target);
            let samples = trials.iter().map(<[usize]>::len).sum();
            Part::new(what, samples, trials.names().to_vec(), Resampling::Drawn, move |times| {
                accuracy(&tallies, times)
            })
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
/// Of either kind. Below, what is learnt rests on nothing.
const LEAST_BLOCKS: usize = 4;

/// A threshold on one number.
#[derive(Clone, Copy, Debug)]
struct Stump {
    threshold: f64,
    busy_above: bool,
    /// Difference of the two kinds' shares on one side of the threshold, 0 to 1, where it was learnt.
    gain: f64,
}

impl Stump {
    /// The best threshold on one number for these samples.
    fn learn(lessons: &[usize], shapes: &[Shape], number: usize, labels: &[u16]) -> Self {
        let mut column: Vec<(f64, usize)> = lessons
            .iter()
            .map(|&sample| (shapes[sample][number], usize::from(labels[sample] != 0)))
            .collect();
        column.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut of = [0.0; 2];
        for &(_, kind) in &column {
            of[kind] += 1.0;
        }
        let mut below = [0.0; 2];
        let mut best = Self { threshold: f64::INFINITY, busy_above: true, gain: 0.0 };
        for pair in column.windows(2) {
            below[pair[0].1] += 1.0;
            let lead: f64 = below[0] / of[0] - below[1] / of[1];
            if pair[0].0 < pair[1].0 && lead.abs() > best.gain {
                let threshold = f64::midpoint(pair[0].0, pair[1].0);
                best = Self { threshold, busy_above: lead > 0.0, gain: lead.abs() };
            }
        }
        best
    }

    fn says_busy(self, value: f64) -> bool {
        (value > self.threshold) == self.busy_above
    }
}

/// Of one block and each kind of window: how many, and how many were told right.
type Tally = [[f64; 2]; 2];

fn tally(members: &[usize], labels: &[u16], says_busy: impl Fn(usize) -> bool) -> Tally {
    let mut tally = Tally::default();
    for &member in members {
        let busy = labels[member] != 0;
        let [all, right] = &mut tally[usize::from(busy)];
        *all += 1.0;
        *right += f64::from(u8::from(says_busy(member) == busy));
    }
    tally
}

/// The mean of the shares told right of idle and of busy windows, each block counted so many times; not a number where a
/// kind is missing.
fn accuracy(tallies: &[Tally], times: &[f64]) -> f64 {
    let mut sum = Tally::default();
    for (tally, times) in tallies.iter().zip(times) {
        for (sum, tally) in sum.iter_mut().flatten().zip(tally.iter().flatten()) {
            *sum += tally * times;
        }
    }
    let [idle, busy] = sum.map(|[all, right]| right / all);
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
