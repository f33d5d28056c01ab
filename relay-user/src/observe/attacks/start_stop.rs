//! Attack 6: when did it begin, or end? Detectors of one change, on counts and on gaps.

use super::pooled::{Interval, Part};
use super::shape::unevenness;
use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::stats::{Blocks, auc, cusum, glr_mean, glr_variance, mean, weighted_auc};
use crate::observe::trace::{Sample, Window};
use rand_chacha::ChaCha8Rng;

/// How well stretches in which something begins or ends (any label but 0) are told from those in which all goes on as
/// it was (label 0, idle or busy throughout). Stretches of a second or so, cut into bins of `bin` nanoseconds.
///
/// The first finding is the attack: the detector and direction that do best on a quarter of the blocks, tried on the
/// others (for why not in turns, see [`super::activity`]). Those behind it are what each detector does alone, a high score
/// taken for a change. The interval's half-width is about 1.3 / sqrt(stretches): 0.03 takes 1900.
pub fn start_stop(samples: &[Sample<'_>], bin: u64, rng: &mut ChaCha8Rng) -> Vec<Finding> {
    parts(samples, bin, rng).iter().map(|part| part.finding(rng)).collect()
}

/// The findings of [`start_stop`] as parts of what several directions say together. Directions that are given the same
/// randomness learn on the same blocks.
pub fn parts(samples: &[Sample<'_>], bin: u64, rng: &mut ChaCha8Rng) -> Vec<Part<'static>> {
    let labels: Vec<u16> = samples.iter().map(|sample| u16::from(sample.label != 0)).collect();
    let blocks = Blocks::of(samples.iter().map(|sample| sample.block));
    if blocks.least_spread(&labels) < LEAST_BLOCKS {
        return vec![Part::untold((Attack::StartStop, STATISTICS[0], TARGET), samples.len())];
    }
    let scores: Vec<Scores> = samples.iter().map(|sample| scores(sample.window, bin)).collect();
    let (lessons, trials) = blocks.split(&labels, rng);
    let (best, sign) = learn(&lessons, &scores, &labels);
    let targets = std::iter::once(TARGET).chain(std::iter::repeat(Target::None));
    let detectors = std::iter::once((best, sign)).chain((0..DETECTORS).map(|detector| (detector, 1.0)));
    STATISTICS
        .into_iter()
        .zip(detectors)
        .zip(targets)
        .map(|((statistic, (detector, sign)), target)| {
            let mut stretches: Vec<(f64, bool, usize)> = trials
                .iter()
                .enumerate()
                .flat_map(|(block, members)| members.iter().map(move |&sample| (block, sample)))
                .map(|(block, sample)| (sign * scores[sample][detector], labels[sample] != 0, block))
                .collect();
            stretches.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let ranking: Vec<(f64, bool)> =
                stretches.iter().map(|&(score, changed, _)| (score, changed)).collect();
            let block_of: Vec<usize> = stretches.iter().map(|&(.., block)| block).collect();
            let what = (Attack::StartStop, statistic, target);
            Part::new(what, ranking.len(), trials.names().to_vec(), Interval::Drawn, move |times| {
                weighted_auc(&ranking, |place| times[block_of[place]])
            })
        })
        .collect()
}

const TARGET: Target = Target::Chance { value: 0.5, half_width: 0.03 };
const DETECTORS: usize = 4;
const STATISTICS: [&str; DETECTORS + 1] = [
    "AUC",
    "AUC by CUSUM of counts",
    "AUC by GLR of counts",
    "AUC by CUSUM of gap unevenness",
    "AUC by GLR of gap variance",
];
/// Of either kind. Below, what is learnt rests on nothing.
const LEAST_BLOCKS: usize = 4;

/// What each detector says of one stretch, in the order of [`STATISTICS`].
type Scores = [f64; DETECTORS];

fn scores(window: Window<'_>, bin: u64) -> Scores {
    let counts: Vec<f64> = window.counts(bin).into_iter().map(f64::from).collect();
    let uneven: Vec<f64> = unevenness(window).into_iter().map(|(_, gap)| gap).collect();
    let gaps: Vec<f64> = window.gaps().collect();
    let center = mean(&gaps);
    let centered: Vec<f64> = gaps.into_iter().map(|gap| gap - center).collect();
    [cusum(&counts), glr_mean(&counts), cusum(&uneven), glr_variance(&centered)]
}

/// The detector that tells these stretches apart best, and whether high means a change (1) or none (-1).
fn learn(lessons: &[usize], scores: &[Scores], labels: &[u16]) -> (usize, f64) {
    let lead = |detector: usize| {
        let of = |label: u16| -> Vec<f64> {
            let kept = lessons.iter().filter(|&&sample| labels[sample] == label);
            kept.map(|&sample| scores[sample][detector]).collect()
        };
        auc(&of(0), &of(1)) - 0.5
    };
    let mut best = (0, 0.0);
    for (detector, lead) in (0..DETECTORS).map(lead).enumerate() {
        if lead.abs() > f64::abs(best.1) {
            best = (detector, lead);
        }
    }
    (best.0, best.1.signum())
}

#[cfg(test)]
mod tests {
    use super::super::planted::{BLOCK, Link, MILLI, Planted, whole};
    use super::*;
    use crate::observe::finding::Verdict;
    use rand_core::SeedableRng;

    /// Stretches of a second; in every other one payload begins half-way.
    fn attacked(link: Link, stretches: u32, seed: u64) -> Vec<Finding> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let planted: Vec<Planted> = (0..stretches)
            .map(|stretch| {
                let label = u16::from(stretch % 2 == 1);
                let busy = stretch % 4 == 0;
                let active = |changes: bool, at: u64| if changes { at >= BLOCK / 2 } else { busy };
                link.block(stretch / 4, label, active, &mut rng)
            })
            .collect();
        start_stop(&whole(&planted), 20 * MILLI, &mut rng)
    }

    #[test]
    fn a_start_shows_in_a_plain_tunnel() {
        let findings = attacked(Link::Plain, 120, 1);
        assert!(findings[0].value >= 0.9, "{findings:?}");
        assert_eq!(findings[0].verdict(), Verdict::Missed);
    }

    #[test]
    fn a_start_shows_in_timers_that_work_perturbs() {
        let findings = attacked(Link::Perturbed, 120, 2);
        assert!(findings[0].value >= 0.9, "{findings:?}");
        assert!(findings[1].value < 0.7, "counts say nothing: {findings:?}");
    }

    #[test]
    fn schedules_that_know_nothing_stay_at_chance() {
        for link in [Link::Constant, Link::Jittered] {
            let tries = 20;
            let findings: Vec<Finding> =
                (0..tries).map(|seed| attacked(link, 100, 400 + seed).swap_remove(0)).collect();
            let wrong = findings.iter().filter(|finding| !finding.interval.holds(0.5)).count();
            assert!(wrong <= 3, "{link:?}: {wrong} of {tries} intervals rule 0.5 out");
            let mean = findings.iter().map(|finding| finding.value).sum::<f64>() / tries as f64;
            assert!((mean - 0.5).abs() < 0.04, "{link:?}: {mean} on average");
        }
    }

    #[test]
    fn too_little_is_no_power() {
        assert_eq!(attacked(Link::Plain, 8, 1)[0].verdict(), Verdict::NoPower);
        assert_eq!(attacked(Link::Constant, 40, 3)[0].verdict(), Verdict::NoPower);
    }
}
