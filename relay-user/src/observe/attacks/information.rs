//! Attack 8: what do cells tell about the payload, in bits?

use super::correlation::{NAMES as SERIES, Run, SEEN, turned};
use super::shape::{NAMES, shapes};
use super::{NO_CHANCE, against_chance};
use crate::observe::finding::{Attack, Finding};
use crate::observe::stats::{
    Blocks, Contingency, jackknife, mutual_information, permutation, quantile_bins, quantile_edges,
};
use crate::observe::trace::Sample;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// What a window tells about its label, in bits: the most that any one number about its gaps does, against the same with
/// labels traded by block. At most log2 of the labels' number.
pub fn of_labels(samples: &[Sample<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let labels: Vec<u16> = samples.iter().map(|sample| sample.label).collect();
    let blocks = Blocks::of(samples.iter().map(|sample| sample.block));
    let shapes = shapes(samples);
    let seen: [Vec<usize>; NAMES.len()] = std::array::from_fn(|number| {
        let column: Vec<f64> = shapes.iter().map(|shape| shape[number]).collect();
        quantile_bins(&column, SEEN_BINS)
    });
    let truth = ranks(&labels);
    let of_each =
        |labels: &[usize]| greatest(seen.iter().map(|seen| mutual_information(labels, seen)).enumerate());
    let (best, value) = of_each(&truth);
    let enough = blocks.arrangements(&labels) >= LEAST_ARRANGEMENTS && blocks.least_spread(&labels) > 0;
    let chance = if enough {
        permutation(value, SHUFFLES, || of_each(&ranks(&blocks.permuted(&labels, rng))).1)
    } else {
        NO_CHANCE
    };
    let members: Vec<&[usize]> = blocks.iter().collect();
    let interval = jackknife(members.len(), |left_out| {
        let kept = members.iter().enumerate().filter(|(block, _)| Some(*block) != left_out);
        let kept: Vec<usize> = kept.flat_map(|(_, members)| members.iter().copied()).collect();
        let of = |values: &[usize]| -> Vec<usize> { kept.iter().map(|&sample| values[sample]).collect() };
        mutual_information(&of(&truth), &of(&seen[best]))
    });
    against_chance(
        Attack::Information,
        ["bits about what goes on", "p of bits about what goes on"],
        value,
        interval,
        chance,
        samples.len(),
    )
}

/// What the wire's bins of `bin` nanoseconds tell about the payload's bytes in the same bins, in bits: the most of cells,
/// bytes and unevenness, in one direction or in all together, against the same with the wire rotated in time, each run by an
/// amount of its own. What a run should be, and how directions count, [`correlation`](super::correlation::correlation) says: here,
/// bits times observations are what chance makes alike, so those of a direction count times the share of bins that it has.
///
/// What is seen falls into eight bins of each run, and payload into four of its direction: which run or direction a bin is of is not
/// what is asked, and what both tell of that would hide what one tells of the other.
///
/// Beside the findings: where the value was found; nowhere if there is none.
pub fn of_bytes(runs: &[Run<'_>], bin: u64, rng: &mut ChaCha8Rng) -> (Vec<Finding>, Option<Place>) {
    let truths = runs.iter().map(|run| (run, run.truth(bin)));
    // One in which nothing counts cannot be rotated.
    let truths: Vec<(&Run<'_>, Vec<f64>)> = truths.filter(|(_, truth)| !truth.is_empty()).collect();
    let mut payload: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for (run, truth) in &truths {
        payload.entry(run.direction).or_default().extend(truth);
    }
    let edges: BTreeMap<u32, Vec<f64>> =
        payload.iter().map(|(&direction, bytes)| (direction, quantile_edges(bytes, TRUTH_BINS))).collect();
    let mut runs: Vec<Binned> = truths
        .iter()
        .map(|(run, truth)| Binned {
            turned_with: run.turned_with,
            direction: run.direction,
            truth: truth
                .iter()
                .map(|bytes| edges[&run.direction].partition_point(|edge| edge < bytes))
                .collect(),
            seen: run.seen(bin).map(|values| quantile_bins(&values, SEEN_BINS)),
        })
        .collect();
    runs.sort_by_key(|run| run.direction);
    let bins = runs.iter().map(|run| run.truth.len()).sum();
    let still = vec![0; runs.len()];
    let all: Vec<&Binned> = runs.iter().collect();
    let (found, value) = greatest(told(&all, &still));
    let rotations: f64 = runs.iter().map(|run| run.truth.len() as f64).product();
    let varies = payload.values().any(|bytes| bytes.iter().any(|one| *one != bytes[0]));
    let chance = if varies && rotations >= LEAST_ARRANGEMENTS {
        permutation(value, SHUFFLES, || {
            let turned = turned(runs.iter().map(|run| (run.turned_with, run.truth.len())), rng);
            greatest(told(&all, &turned)).1
        })
    } else {
        NO_CHANCE
    };
    let interval = jackknife(runs.len(), |left_out| {
        let kept = all.iter().enumerate().filter(|(run, _)| Some(*run) != left_out);
        let kept: Vec<&Binned> = kept.map(|(_, run)| *run).collect();
        let bits = told(&kept, &still);
        bits.iter().find(|(one, _)| *one == found).map_or(f64::NAN, |(_, bits)| *bits)
    });
    let findings = against_chance(
        Attack::Information,
        ["bits about bytes in a bin", "p of bits about bytes in a bin"],
        value,
        interval,
        chance,
        bins,
    );
    let (series, direction) = found;
    let seen = SERIES.get(series).filter(|_| value.is_finite());
    (findings, seen.map(|seen| Place { seen, direction }))
}

/// Where [`of_bytes`] finds its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What tells of the payload: `cells`, `bytes` or `unevenness`.
    pub seen: &'static str,
    /// The direction that it is of; `None` for all of them together.
    pub direction: Option<u32>,
}

/// Of one run: the bin of the payload's bytes, and those of what is seen.
struct Binned {
    turned_with: u32,
    direction: u32,
    truth: Vec<usize>,
    seen: [Vec<usize>; SEEN],
}

/// One of [`Run::seen`], and the direction that it is of; `None` for all together.
type Series = (usize, Option<u32>);

/// What each series tells where each run's wire is `turned`, direction by direction and all together, as it counts among
/// all bins. Runs of one direction follow each other.
fn told(runs: &[&Binned], turned: &[usize]) -> Vec<(Series, f64)> {
    let all: usize = runs.iter().map(|run| run.truth.len()).sum();
    let directions: Vec<&[&Binned]> = runs.chunk_by(|a, b| a.direction == b.direction).collect();
    let nothing = || Contingency::new(TRUTH_BINS, SEEN_BINS);
    let mut told = Vec::new();
    for number in 0..SEEN {
        let mut whole = nothing();
        let mut turns = turned.iter();
        for of in &directions {
            let mut counted = nothing();
            for (run, &turn) in of.iter().zip(turns.by_ref()) {
                // Turning the payload against the wire is turning the wire.
                let (seen, bins) = (&run.seen[number], run.truth.len());
                let turn = turn % bins.max(1);
                counted.count(&run.truth[turn..], &seen[..bins - turn]);
                counted.count(&run.truth[..turn], &seen[bins - turn..]);
            }
            whole.add(&counted);
            if directions.len() > 1 {
                let share = counted.total() as f64 / all as f64;
                told.push(((number, of.first().map(|run| run.direction)), counted.information() * share));
            }
        }
        told.push(((number, None), whole.information()));
    }
    told
}

const TRUTH_BINS: usize = 4;
const SEEN_BINS: usize = 8;
/// Permutations of each p-value.
pub const SHUFFLES: usize = 499;
/// Fewer arrangements of labels, or rotations, than this, and none is rare.
const LEAST_ARRANGEMENTS: f64 = 100.0;

/// The most of what is told, and where; not a number where there is nothing.
fn greatest<P: Default>(told: impl IntoIterator<Item = (P, f64)>) -> (P, f64) {
    let mut best = (P::default(), f64::NAN);
    for (place, bits) in told {
        if bits > best.1 || best.1.is_nan() {
            best = (place, bits);
        }
    }
    best
}

/// Labels as numbers from 0 without holes.
fn ranks(labels: &[u16]) -> Vec<usize> {
    let mut kinds = labels.to_vec();
    kinds.sort_unstable();
    kinds.dedup();
    labels.iter().map(|label| kinds.partition_point(|kind| kind < label)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::planted::{Link, MILLI, Planted, runs, samples};
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::trace::{Sight, Trace};
    use rand_core::SeedableRng;

    fn by_labels(link: Link, seed: u64) -> Vec<Finding> {
        let traces = link.traces(16, seed);
        of_labels(&samples(&traces), &mut ChaCha8Rng::seed_from_u64(seed))
    }

    fn by_bytes(link: Link, seed: u64) -> Vec<Finding> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let planted: Vec<Planted> = (0..4).map(|block| link.block(block, 1, |_, _| true, &mut rng)).collect();
        of_bytes(&runs(&planted), 10 * MILLI, &mut rng).0
    }

    #[test]
    fn a_plain_tunnel_tells_nearly_all() {
        let findings = by_labels(Link::Plain, 1);
        assert!(findings[0].value > 0.9, "of one bit: {findings:?}");
        assert_eq!(findings[0].verdict(), Verdict::Missed);
        let findings = by_bytes(Link::Plain, 1);
        assert!(findings[0].value > 0.9, "{findings:?}");
        assert_eq!(findings[0].verdict(), Verdict::Missed);
    }

    #[test]
    fn timers_that_work_perturbs_tell_something() {
        for findings in [by_labels(Link::Perturbed, 2), by_bytes(Link::Perturbed, 2)] {
            assert_eq!(findings[0].verdict(), Verdict::Missed, "{findings:?}");
            assert!(findings[1].value <= 0.002 && findings[0].interval.low > 0.0, "{findings:?}");
        }
    }

    #[test]
    fn schedules_that_know_nothing_exceed_chance_as_often_as_they_say() {
        let tries = 16;
        for link in [Link::Constant, Link::Jittered, Link::Drifting] {
            for attack in [by_labels, by_bytes] {
                let wrong = (0..tries)
                    .filter(|seed| attack(link, 500 + seed)[0].verdict() == Verdict::Missed)
                    .count();
                assert!(wrong <= 3, "{link:?}: {wrong} of {tries} exceed 95 % of chance");
            }
        }
    }

    #[test]
    fn what_one_direction_of_four_tells_is_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut planted = |link: Link| -> Vec<Planted> {
            (0..4).map(|block| link.block(block, 1, |_, _| true, &mut rng)).collect()
        };
        let (one, other) = (planted(Link::Perturbed), planted(Link::Constant));
        let beside = |direction: u32| runs(&other).into_iter().map(move |run| Run { direction, ..run });
        let all: Vec<Run<'_>> = runs(&one).into_iter().chain((1..4).flat_map(beside)).collect();
        let (found, place) = of_bytes(&all, 10 * MILLI, &mut rng);
        assert_eq!(place, Some(Place { seen: "unevenness", direction: Some(0) }));
        assert!(found[1].value <= 0.004 && found[0].interval.holds(found[0].value), "{found:?}");
        let alone = of_bytes(&runs(&one), 10 * MILLI, &mut rng).0[0].value;
        assert!((found[0].value * 4.0 - alone).abs() < 0.2 * alone, "{alone} {found:?}");
    }

    #[test]
    fn which_direction_a_bin_is_of_is_not_what_is_told() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut planted = |link: Link| -> Vec<Planted> {
            (0..4).map(|block| link.block(block, 1, |_, _| true, &mut rng)).collect()
        };
        let (mut little, much) = (planted(Link::Constant), planted(Link::Jittered));
        for one in &mut little {
            let smaller =
                one.payload.sights().iter().map(|sight| Sight { length: sight.length / 10, ..*sight });
            one.payload = Trace::new(smaller.collect());
        }
        let other = runs(&much).into_iter().map(|run| Run { direction: 1, ..run });
        let all: Vec<Run<'_>> = runs(&little).into_iter().chain(other).collect();
        let (found, _) = of_bytes(&all, 10 * MILLI, &mut rng);
        assert!(found[0].value < 0.03 && found[0].verdict() == Verdict::Met, "{found:?}");
    }

    #[test]
    fn too_little_is_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let traces = Link::Plain.traces(4, 1);
        assert_eq!(of_labels(&samples(&traces), &mut rng)[0].verdict(), Verdict::NoPower);
        assert_eq!(of_labels(&[], &mut rng)[0].verdict(), Verdict::NoPower);
        assert_eq!(of_bytes(&[], MILLI, &mut rng).0[0].verdict(), Verdict::NoPower);
    }
}
