//! Attack 8: what do cells tell about the payload, in bits?

use super::correlation::{Run, SEEN, turned};
use super::shape::{NAMES, shapes};
use super::{NO_CHANCE, against_chance};
use crate::observe::finding::{Attack, Finding, Interval};
use crate::observe::stats::{Blocks, jackknife, mutual_information, permutation, quantile_bins};
use crate::observe::trace::Sample;
use rand_chacha::ChaCha8Rng;

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
    let (value, best) = most(&truth, &seen);
    let enough = blocks.arrangements(&labels) >= LEAST_ARRANGEMENTS && blocks.least_spread(&labels) > 0;
    let chance = if enough {
        permutation(value, SHUFFLES, || most(&ranks(&blocks.permuted(&labels, rng)), &seen).0)
    } else {
        NO_CHANCE
    };
    let block_of = names(&blocks, samples.len());
    let interval = without_blocks(&truth, &seen[best], &block_of, blocks.len());
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
/// bytes and unevenness, against the same with the wire rotated in time, each run by an amount of its own. What a run
/// should be, [`correlation`](super::correlation::correlation) says.
pub fn of_bytes(runs: &[Run<'_>], bin: u64, rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let (mut payload, mut lengths) = (Vec::new(), Vec::new());
    let mut seen: [Vec<f64>; SEEN] = std::array::from_fn(|_| Vec::new());
    let truths = runs.iter().map(|run| (run, run.truth(bin)));
    // One in which nothing counts cannot be rotated.
    let truths: Vec<(&Run<'_>, Vec<f64>)> = truths.filter(|(_, truth)| !truth.is_empty()).collect();
    let numbers: Vec<u32> = truths.iter().map(|(run, _)| run.turned_with).collect();
    for (run, truth) in truths {
        lengths.push(truth.len());
        payload.extend(truth);
        for (seen, series) in seen.iter_mut().zip(run.seen(bin)) {
            seen.extend(series);
        }
    }
    let truth = quantile_bins(&payload, TRUTH_BINS);
    let seen = seen.map(|values| quantile_bins(&values, SEEN_BINS));
    let (value, best) = most(&truth, &seen);
    let rotations: f64 = lengths.iter().map(|&bins| bins as f64).product();
    let varies = truth.iter().any(|&bin| bin != truth[0]);
    let chance = if varies && rotations >= LEAST_ARRANGEMENTS {
        // Turning the payload's runs against the wire's is turning the wire's, and there is only one payload.
        permutation(value, SHUFFLES, || {
            let turns = turned(numbers.iter().copied().zip(lengths.iter().copied()), rng);
            let mut payload = truth.clone();
            let mut rest = payload.as_mut_slice();
            for (&bins, &turn) in lengths.iter().zip(&turns) {
                let (run, others) = rest.split_at_mut(bins);
                run.rotate_left(turn);
                rest = others;
            }
            most(&payload, &seen).0
        })
    } else {
        NO_CHANCE
    };
    let run_of: Vec<usize> =
        lengths.iter().enumerate().flat_map(|(run, &bins)| std::iter::repeat_n(run, bins)).collect();
    let interval = without_blocks(&truth, &seen[best], &run_of, lengths.len());
    against_chance(
        Attack::Information,
        ["bits about bytes in a bin", "p of bits about bytes in a bin"],
        value,
        interval,
        chance,
        payload.len(),
    )
}

const TRUTH_BINS: usize = 4;
const SEEN_BINS: usize = 8;
/// Permutations of each p-value.
pub const SHUFFLES: usize = 499;
/// Fewer arrangements of labels, or rotations, than this, and none is rare.
const LEAST_ARRANGEMENTS: f64 = 100.0;

/// The most that one of the series tells, and which. Not a number where there is nothing.
fn most<const N: usize>(truth: &[usize], seen: &[Vec<usize>; N]) -> (f64, usize) {
    let mut best = (f64::NAN, 0);
    for (number, seen) in seen.iter().enumerate() {
        let bits = mutual_information(truth, seen);
        if bits > best.0 || best.0.is_nan() {
            best = (bits, number);
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

/// The block of each of `samples` samples.
fn names(blocks: &Blocks, samples: usize) -> Vec<usize> {
    let mut names = vec![0; samples];
    for (block, members) in blocks.iter().enumerate() {
        for &member in members {
            names[member] = block;
        }
    }
    names
}

fn without_blocks(truth: &[usize], seen: &[usize], block_of: &[usize], blocks: usize) -> Interval {
    jackknife(blocks, |left_out| {
        let kept = |values: &[usize]| -> Vec<usize> {
            values
                .iter()
                .zip(block_of)
                .filter(|(_, block)| Some(**block) != left_out)
                .map(|(v, _)| *v)
                .collect()
        };
        mutual_information(&kept(truth), &kept(seen))
    })
}

#[cfg(test)]
mod tests {
    use super::super::planted::{Link, MILLI, Planted, runs, samples};
    use super::*;
    use crate::observe::finding::Verdict;
    use rand_core::SeedableRng;

    fn by_labels(link: Link, seed: u64) -> Vec<Finding> {
        let traces = link.traces(16, seed);
        of_labels(&samples(&traces), &mut ChaCha8Rng::seed_from_u64(seed))
    }

    fn by_bytes(link: Link, seed: u64) -> Vec<Finding> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let planted: Vec<Planted> = (0..4).map(|block| link.block(block, 1, |_, _| true, &mut rng)).collect();
        of_bytes(&runs(&planted), 10 * MILLI, &mut rng)
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
    fn too_little_is_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let traces = Link::Plain.traces(4, 1);
        assert_eq!(of_labels(&samples(&traces), &mut rng)[0].verdict(), Verdict::NoPower);
        assert_eq!(of_labels(&[], &mut rng)[0].verdict(), Verdict::NoPower);
        assert_eq!(of_bytes(&[], MILLI, &mut rng)[0].verdict(), Verdict::NoPower);
    }
}
