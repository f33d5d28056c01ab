//! Attack 6: when did it begin, or end? Detectors of one change, on counts and on gaps.

use super::shape::unevenness;
use super::untold;
use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::stats::{Blocks, auc, bootstrap, cusum, glr_mean, glr_variance, mean};
use crate::observe::trace::{Sample, Window};
use rand_chacha::ChaCha8Rng;

/// How well stretches in which something begins or ends (any label but 0) are told from those in which all goes on as
/// it was (label 0, idle or busy throughout). Stretches of a second or so, cut into bins of `bin` nanoseconds.
///
/// The first finding is the attack: the detector that does best on other blocks, tried on those held out, in the
/// direction learnt there. Those behind it are what each detector does alone. Some 1500 stretches bound the AUC by 0.03.
pub fn start_stop(samples: &[Sample<'_>], bin: u64, rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let labels: Vec<u16> = samples.iter().map(|sample| u16::from(sample.label != 0)).collect();
    let blocks = Blocks::of(samples.iter().map(|sample| sample.block));
    let folds = blocks.least_spread(&labels).min(FOLDS);
    if folds < LEAST_FOLDS {
        return vec![untold(Attack::StartStop, STATISTICS[0], TARGET, samples.len())];
    }
    let fold_of = blocks.folds(&labels, folds, rng);
    let scores: Vec<Scores> = samples.iter().map(|sample| scores(sample.window, bin)).collect();
    let held_out: Vec<Ranking> = (0..folds)
        .map(|fold| {
            let (best, sign) = learn(&scores, &labels, |sample| fold_of[sample] != fold);
            let members = (0..samples.len()).filter(|&sample| fold_of[sample] == fold);
            ranking(members.map(|sample| (sign * scores[sample][best], sample)))
        })
        .collect();
    let alone = (0..DETECTORS).map(|detector| {
        vec![ranking(scores.iter().enumerate().map(|(sample, scores)| (scores[detector], sample)))]
    });
    let targets = std::iter::once(TARGET).chain(std::iter::repeat(Target::None));
    let rankings = std::iter::once(held_out).chain(alone);
    STATISTICS
        .into_iter()
        .zip(rankings)
        .zip(targets)
        .map(|((statistic, rankings), target)| {
            let value = area(&rankings, &labels, &vec![1.0; samples.len()]);
            let interval = bootstrap(blocks.len(), RESAMPLES, rng, |drawn| {
                area(&rankings, &labels, &blocks.weights(drawn))
            });
            Finding { attack: Attack::StartStop, statistic, value, interval, target, samples: samples.len() }
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
const FOLDS: usize = 10;
const LEAST_FOLDS: usize = 3;
const RESAMPLES: usize = 1000;

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

/// The detector that tells the `given` stretches apart best, and whether high means a change (1) or none (-1).
fn learn(scores: &[Scores], labels: &[u16], given: impl Fn(usize) -> bool) -> (usize, f64) {
    let mut best = (0, 1.0);
    let mut furthest = 0.0;
    for detector in 0..DETECTORS {
        let of = |label: u16| -> Vec<f64> {
            let kept = (0..labels.len()).filter(|&sample| labels[sample] == label && given(sample));
            kept.map(|sample| scores[sample][detector]).collect()
        };
        let lead = auc(&of(0), &of(1)) - 0.5;
        if lead.abs() > furthest {
            furthest = lead.abs();
            best = (detector, lead.signum());
        }
    }
    best
}

/// Scores in order, each with the stretch that it is of.
type Ranking = Vec<(f64, usize)>;

fn ranking(scores: impl Iterator<Item = (f64, usize)>) -> Ranking {
    let mut ranking: Ranking = scores.collect();
    ranking.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    ranking
}

/// The share of pairs in which the changed stretch scores higher, ties half, each stretch counted `weights` times.
///
/// Only pairs of one ranking count, and there is one for each fold: a pair across folds would be of scores that were
/// learnt with one of the two at hand, which comes out below 0.5 where there is nothing to learn.
fn area(rankings: &[Ranking], labels: &[u16], weights: &[f64]) -> f64 {
    let (mut wins, mut pairs) = (0.0, 0.0);
    for ranking in rankings {
        let mut below = [0.0; 2];
        for tied in ranking.chunk_by(|a, b| a.0 == b.0) {
            let mut here = [0.0; 2];
            for &(_, sample) in tied {
                here[usize::from(labels[sample] == 1)] += weights[sample];
            }
            wins += here[1] * (below[0] + here[0] / 2.0);
            below = [below[0] + here[0], below[1] + here[1]];
        }
        pairs += below[0] * below[1];
    }
    wins / pairs
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
    fn weights_count_as_repeats_do() {
        let rankings = [ranking([(3.0, 2), (1.0, 0), (2.0, 1)].into_iter())];
        let labels = [0, 1, 0];
        assert_eq!(area(&rankings, &labels, &[1.0; 3]), 0.5);
        assert_eq!(area(&rankings, &labels, &[3.0, 1.0, 1.0]), auc(&[1.0, 1.0, 1.0, 3.0], &[2.0]));
        assert!(area(&rankings, &labels, &[1.0, 0.0, 1.0]).is_nan());
    }

    #[test]
    fn too_little_is_no_power() {
        assert_eq!(attacked(Link::Plain, 8, 1)[0].verdict(), Verdict::NoPower);
        assert_eq!(attacked(Link::Constant, 40, 3)[0].verdict(), Verdict::NoPower);
    }
}
