//! Attack 6: when did it begin, or end? Detectors of one change, on counts and on gaps.

use super::directions::Part;
use super::shape::unevenness;
use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::stats::{Blocks, Resampling, auc, cusum, glr_mean, glr_variance, mean, weighted_auc};
use crate::observe::trace::{Sample, Window};
use rand_chacha::ChaCha8Rng;

/// How well stretches in which something begins or ends (any label but 0) are told from those in which all goes on as
/// it was (label 0). Stretches of up to a second or so, cut into bins of `bin` nanoseconds.
///
/// The first finding is the attack: the detector and direction that do best on a quarter of the blocks, tried on the
/// others (for why not in turns, see [`super::activity`]). Those behind it are what each detector does alone, a high score
/// taken for a change. The interval's half-width is about 1.3 / sqrt(stretches): 0.03 takes 1900.
pub fn start_stop(samples: &[Sample<'_>], bin: u64, rng: &mut ChaCha8Rng) -> Vec<Finding> {
    parts(&[samples.to_vec()], bin, rng).iter().map(|part| part.finding(rng)).collect()
}

/// The findings of [`start_stop`] as parts of what several directions say together. Directions that are given the same
/// randomness learn on the same blocks.
///
/// A stretch's scores are places among those of its run, from 0 to 1: runs through different links score differently
/// whatever goes on, and with more changes in one of them than in another that would be taken for a change, or hide one.
pub fn parts(runs: &[Vec<Sample<'_>>], bin: u64, rng: &mut ChaCha8Rng) -> Vec<Part<'static>> {
    let samples: Vec<Sample<'_>> = runs.iter().flatten().copied().collect();
    let labels: Vec<u16> = samples.iter().map(|sample| u16::from(sample.label != 0)).collect();
    let blocks = Blocks::of(samples.iter().map(|sample| sample.block));
    if blocks.least_spread(&labels) < LEAST_BLOCKS {
        return vec![Part::untold((Attack::StartStop, STATISTICS[0], TARGET), samples.len())];
    }
    let places = |run: &Vec<Sample<'_>>| {
        placed(&run.iter().map(|sample| scores(sample.window, bin)).collect::<Vec<_>>())
    };
    let scores: Vec<Scores> = runs.iter().flat_map(places).collect();
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
            Part::new(what, ranking.len(), trials.names().to_vec(), Resampling::Drawn, move |times| {
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

/// Each score's place among all of its detector: 0 for the least, 1 for the greatest, like ones at the middle of theirs.
fn placed(scores: &[Scores]) -> Vec<Scores> {
    let last = scores.len().saturating_sub(1).max(1) as f64;
    let of: [Vec<f64>; DETECTORS] = std::array::from_fn(|detector| {
        let mut column: Vec<f64> = scores.iter().map(|scores| scores[detector]).collect();
        column.sort_unstable_by(f64::total_cmp);
        column
    });
    let place = |column: &[f64], score: f64| {
        let below = column.partition_point(|other| other.total_cmp(&score).is_lt());
        let reached = column.partition_point(|other| other.total_cmp(&score).is_le());
        (below + reached - 1) as f64 / 2.0 / last
    };
    let of_one = |scores: &Scores| std::array::from_fn(|detector| place(&of[detector], scores[detector]));
    scores.iter().map(of_one).collect()
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
    fn a_run_that_scores_higher_and_has_more_changes_is_taken_for_nothing() {
        // The second link's gaps are spread wider, throughout: of every ten of its stretches eight change, of the first's two.
        let wrong = (0..20).filter(|&seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(700 + seed);
            let runs: Vec<Vec<Planted>> = [(Link::Constant, 2), (Link::Jittered, 8)]
                .into_iter()
                .map(|(link, changes)| {
                    let stretch = |stretch: u32| {
                        let label = u16::from(stretch % 10 < changes);
                        link.block(stretch / 5, label, |_, _| true, &mut rng)
                    };
                    (0..100).map(stretch).collect()
                })
                .collect();
            let runs: Vec<Vec<Sample<'_>>> = (0..)
                .zip(&runs)
                .map(|(run, planted)| {
                    let samples = whole(planted);
                    samples.into_iter().map(|one| Sample { block: one.block + 20 * run, ..one }).collect()
                })
                .collect();
            !parts(&runs, 20 * MILLI, &mut rng)[0].finding(&mut rng).interval.holds(0.5)
        });
        let wrong = wrong.count();
        assert!(wrong <= 3, "{wrong} of 20 intervals rule 0.5 out");
    }

    #[test]
    fn too_little_is_no_power() {
        assert_eq!(attacked(Link::Plain, 8, 1)[0].verdict(), Verdict::NoPower);
        assert_eq!(attacked(Link::Constant, 40, 3)[0].verdict(), Verdict::NoPower);
    }
}
