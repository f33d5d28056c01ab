//! Attack 2: do gaps follow another law when something goes on?

use super::directions::Part;
use super::{NO_CHANCE, against_chance};
use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::stats::{
    Blocks, Resampling, jackknife, ks_sorted, numbered, permutation, quantile_edges, shuffle,
};
use crate::observe::trace::{Sample, Window};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Compares gaps of idle windows (label 0) with those of busy ones (any other).
///
/// - "share rejected at 5 %": of pairs of an idle and a busy window, those further apart (Kolmogorov and Smirnov's
///   distance) than 95 % of pairs of idle ones. The two of a pair are always of different blocks, so that what blocks
///   differ by anyway counts on both sides. Table values of the distance would not do: gaps between slots are not
///   independent.
/// - "KS distance" of all idle from all busy gaps against labels traded by block, and its p-value: sees smaller
///   differences, none of single windows.
///
/// A window without a whole gap, of one packet or none, has those that its ends cut: an empty one is unlike every window
/// with packets, and like every other empty one.
pub fn distribution(samples: &[Sample<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let mut findings = vec![rejections(samples, rng).finding(rng)];
    findings.extend(laws(samples, rng));
    findings
}

/// The first finding of [`distribution`] as a part of what several directions say together.
pub fn rejections(samples: &[Sample<'_>], rng: &mut ChaCha8Rng) -> Part<'static> {
    let labels: Vec<u16> = samples.iter().map(|sample| u16::from(sample.label != 0)).collect();
    rejected(samples, &labels, rng)
}

/// The findings of [`distribution`] behind the first: the distance of all gaps, and its p-value.
pub fn laws(samples: &[Sample<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let labels: Vec<u16> = samples.iter().map(|sample| u16::from(sample.label != 0)).collect();
    pooled(samples, &labels, rng)
}

/// Microseconds between packets of a window; where it has no two, between its ends and what packet there is.
fn gaps(window: Window<'_>) -> Vec<f64> {
    let end = window.from() + window.width();
    match window.sights() {
        [] => vec![window.width() as f64 / 1e3],
        [one] => vec![(one.at - window.from()) as f64 / 1e3, (end - one.at) as f64 / 1e3],
        _ => window.gaps().collect(),
    }
}

const LEVEL: f64 = 0.05;
const REJECTIONS: &str = "share rejected at 5 %";
const TARGET: Target = Target::Chance { value: LEVEL, half_width: 0.03 };
/// How many pairs each window is part of, on average.
const ROUNDS: usize = 4;
/// Below, pairs of different blocks say next to nothing about others.
const LEAST_BLOCKS: usize = 4;

/// Two windows and their distance.
struct Pair {
    distance: f64,
    blocks: [usize; 2],
}

fn rejected(samples: &[Sample<'_>], labels: &[u16], rng: &mut ChaCha8Rng) -> Part<'static> {
    let blocks = Blocks::of(samples.iter().map(|sample| sample.block));
    let what = (Attack::Distribution, REJECTIONS, TARGET);
    if blocks.least_spread(labels) < LEAST_BLOCKS {
        return Part::untold(what, samples.len());
    }
    let gaps: Vec<Vec<f64>> = samples
        .iter()
        .map(|sample| {
            let mut gaps = gaps(sample.window);
            gaps.sort_unstable_by(f64::total_cmp);
            gaps
        })
        .collect();
    let (block_of, _) = numbered(&samples.iter().map(|sample| sample.block).collect::<Vec<_>>());
    let of =
        |label: u16| -> Vec<usize> { (0..labels.len()).filter(|&sample| labels[sample] == label).collect() };
    let (mut idle, mut busy) = (of(0), of(1));
    let (mut alike, mut across) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        shuffle(&mut idle, rng);
        shuffle(&mut busy, rng);
        let pair = |(&a, &b): (&usize, &usize)| {
            let blocks = [block_of[a], block_of[b]];
            (blocks[0] != blocks[1]).then(|| Pair { distance: ks_sorted(&gaps[a], &gaps[b]), blocks })
        };
        alike.extend(idle.iter().zip(idle.iter().cycle().skip(1)).filter_map(pair));
        let turns = idle.len().max(busy.len());
        across.extend(idle.iter().cycle().zip(busy.iter().cycle()).take(turns).filter_map(pair));
    }
    for pairs in [&mut alike, &mut across] {
        pairs.sort_unstable_by(|a, b| b.distance.total_cmp(&a.distance));
    }
    let pairs = across.len();
    Part::new(what, pairs, blocks.names().to_vec(), Resampling::LeftOut, move |times| {
        share_rejected(&alike, &across, times)
    })
}

/// The share of `across` beyond what 5 % of `alike` are beyond. Both go from the greatest distance down; pairs weigh what
/// their blocks do. Where the 5 % fall among equal distances, each of these is rejected in part, so that like pairs are
/// rejected 5 % of the time exactly.
fn share_rejected(alike: &[Pair], across: &[Pair], weights: &[f64]) -> f64 {
    let weigh = |pair: &Pair| weights[pair.blocks[0]] * weights[pair.blocks[1]];
    let total: f64 = alike.iter().map(weigh).sum();
    let mut beyond = 0.0;
    for tied in alike.chunk_by(|a, b| a.distance == b.distance) {
        let here: f64 = tied.iter().map(weigh).sum();
        if beyond + here >= LEVEL * total && here > 0.0 {
            let part = (LEVEL * total - beyond) / here;
            let threshold = tied[0].distance;
            let first = across.partition_point(|pair| pair.distance > threshold);
            let end = across.partition_point(|pair| pair.distance >= threshold);
            let sum = |pairs: &[Pair]| pairs.iter().map(weigh).sum::<f64>();
            return (sum(&across[..first]) + part * sum(&across[first..end])) / sum(across);
        }
        beyond += here;
    }
    f64::NAN
}

const BINS: usize = 128;
/// Gaps that suffice to lay down bins.
const POOL: usize = 100_000;
/// Permutations of each p-value.
pub const SHUFFLES: usize = 499;
/// Fewer arrangements of labels than this, and none is rare.
const LEAST_ARRANGEMENTS: f64 = 100.0;

/// How many of a block's gaps, of one kind of window, fall into each bin.
type Histogram = Vec<u32>;

fn pooled(samples: &[Sample<'_>], labels: &[u16], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let all = samples.iter().map(|sample| sample.window.sights().len()).sum::<usize>();
    let pool: Vec<f64> =
        samples.iter().flat_map(|sample| gaps(sample.window)).step_by(all / POOL + 1).collect();
    let edges = quantile_edges(&pool, BINS);
    // What trades labels together is one entry here.
    let mut units: BTreeMap<(u32, u16), Histogram> = BTreeMap::new();
    let mut count = 0;
    for (sample, &label) in samples.iter().zip(labels) {
        let histogram = units.entry((sample.block, label)).or_insert_with(|| vec![0; BINS]);
        for gap in gaps(sample.window) {
            count += 1;
            if let Some(bin) = histogram.get_mut(edges.partition_point(|&edge| edge < gap)) {
                *bin += 1;
            }
        }
    }
    let (names, histograms): (Vec<(u32, u16)>, Vec<Histogram>) = units.into_iter().unzip();
    let labels: Vec<u16> = names.iter().map(|&(_, label)| label).collect();
    let blocks = Blocks::of(names.iter().map(|&(block, _)| block));
    let value = distance(&histograms, &labels, |_| true);
    let enough = blocks.arrangements(&labels) >= LEAST_ARRANGEMENTS;
    let chance = if enough {
        permutation(value, SHUFFLES, || distance(&histograms, &blocks.permuted(&labels, rng), |_| true))
    } else {
        NO_CHANCE
    };
    let members: Vec<&[usize]> = blocks.iter().collect();
    let interval = jackknife(blocks.len(), |left_out| {
        let gone = left_out.map_or(&[][..], |block| members[block]);
        distance(&histograms, &labels, |unit| !gone.contains(&unit))
    });
    against_chance(Attack::Distribution, ["KS distance", "p of KS distance"], value, interval, chance, count)
}

/// Kolmogorov and Smirnov's distance at the bins' edges; not a number where either side has no gaps.
fn distance(histograms: &[Histogram], labels: &[u16], given: impl Fn(usize) -> bool) -> f64 {
    let mut sums = [[0.0; BINS]; 2];
    for (unit, (histogram, &label)) in histograms.iter().zip(labels).enumerate() {
        if given(unit) {
            for (sum, &count) in sums[usize::from(label != 0)].iter_mut().zip(histogram) {
                *sum += f64::from(count);
            }
        }
    }
    let totals = sums.map(|sum| sum.iter().sum::<f64>());
    if totals.contains(&0.0) {
        return f64::NAN;
    }
    let (mut lead, mut greatest): (f64, f64) = (0.0, 0.0);
    for (idle, busy) in sums[0].iter().zip(&sums[1]) {
        lead += idle / totals[0] - busy / totals[1];
        greatest = greatest.max(lead.abs());
    }
    greatest
}

#[cfg(test)]
mod tests {
    use super::super::planted::{Link, samples};
    use super::*;
    use crate::observe::finding::Verdict;
    use rand_core::SeedableRng;

    fn attacked(link: Link, blocks: u32, seed: u64) -> Vec<Finding> {
        let traces = link.traces(blocks, seed);
        distribution(&samples(&traces), &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn a_plain_tunnel_is_rejected() {
        let findings = attacked(Link::Plain, 16, 1);
        assert!(findings[0].value > 0.9, "{:?}", findings[0]);
        assert_eq!(findings[0].verdict(), Verdict::Missed);
    }

    #[test]
    fn packets_where_there_were_none_are_rejected() {
        use crate::observe::trace::{Sight, Trace};
        let milli = 1_000_000;
        // A call: a packet every 20 ms, and windows of 20 ms hold one each.
        let packets = (0..200).map(|packet| Sight { at: (5 + 20 * packet) * milli, length: 200 });
        let (call, nothing) = (Trace::new(packets.collect()), Trace::default());
        let samples: Vec<Sample<'_>> = (0..200_u32)
            .map(|window| {
                let label = u16::from(window / 10 % 2 == 1);
                let trace = if label == 1 { &call } else { &nothing };
                let from = u64::from(window) * 20 * milli;
                Sample { window: trace.window(from, from + 20 * milli), label, block: window / 10 }
            })
            .collect();
        let findings = distribution(&samples, &mut ChaCha8Rng::seed_from_u64(5));
        assert!((findings[0].value - 1.0).abs() < 1e-9, "{findings:?}");
        assert!((findings[1].value - 1.0).abs() < 1e-9 && findings[2].value < 0.005, "{findings:?}");
        let idle: Vec<Sample<'_>> =
            samples.iter().map(|one| Sample { window: nothing.window(0, 20 * milli), ..*one }).collect();
        let findings = distribution(&idle, &mut ChaCha8Rng::seed_from_u64(6));
        assert!((findings[0].value - 0.05).abs() < 1e-9, "{findings:?}");
        assert!(findings[1].value == 0.0 && findings[2].value == 1.0, "{findings:?}");
    }

    #[test]
    fn timers_that_work_perturbs_are_rejected() {
        let findings = attacked(Link::Perturbed, 16, 2);
        assert_eq!(findings[0].verdict(), Verdict::Missed, "{:?}", findings[0]);
        assert_eq!(findings[1].verdict(), Verdict::Missed, "{:?}", findings[1]);
        assert!(findings[2].value <= 0.005, "{:?}", findings[2]);
    }

    #[test]
    fn schedules_that_know_nothing_are_rejected_as_often_as_they_say() {
        for link in [Link::Constant, Link::Jittered, Link::Drifting] {
            let tries = 20;
            let findings: Vec<Vec<Finding>> = (0..tries).map(|seed| attacked(link, 20, 200 + seed)).collect();
            let wrong = findings.iter().filter(|findings| !findings[0].interval.holds(LEVEL)).count();
            assert!(wrong <= 3, "{link:?}: {wrong} of {tries} intervals rule 5 % out");
            let beyond = findings.iter().filter(|findings| findings[1].verdict() == Verdict::Missed).count();
            assert!(beyond <= 4, "{link:?}: {beyond} of {tries} distances are beyond chance");
        }
    }

    #[test]
    fn ties_are_rejected_in_part() {
        let pairs = |distances: &[f64]| -> Vec<Pair> {
            distances.iter().map(|&distance| Pair { distance, blocks: [0, 1] }).collect()
        };
        let alike = pairs(&[1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0]);
        // Half of the 1.0 makes 5 %.
        assert!((share_rejected(&alike, &alike, &[1.0; 2]) - 0.05).abs() < 1e-12);
        assert!((share_rejected(&alike, &pairs(&[1.0, 0.5]), &[1.0; 2]) - 0.25).abs() < 1e-12);
        assert!((share_rejected(&pairs(&[0.0; 9]), &pairs(&[0.0; 4]), &[1.0; 2]) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn too_little_is_no_power() {
        let findings = attacked(Link::Constant, 4, 1);
        assert!(findings[..2].iter().all(|finding| finding.verdict() == Verdict::NoPower), "{findings:?}");
    }
}
