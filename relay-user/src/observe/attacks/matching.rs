//! Attack 4: which flow in belongs to which flow out?

use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::learn::figure;
use crate::observe::learn::likeness::{Profile, followed, likeness};
use crate::observe::stats::{Blocks, auc, mean};
use crate::observe::trace::Window;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// A flow's window where it enters, and the same stretch of time where it leaves.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Where it enters.
    pub ingress: Window<'a>,
    /// Where it leaves.
    pub egress: Window<'a>,
    /// Pairs of one moment were seen at one time: they are each other's candidates.
    pub moment: u32,
    /// What was seen side by side: moments of one block stand or fall together.
    pub block: u32,
}

/// Of the N flows of a moment, how often the likeliest flow out is the right one, and how often a right pair is more
/// alike than a wrong one. Against a perfect defence 1/N and one half. Moments of one pair say nothing.
pub fn matching(pairs: &[Pair<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let (mut right, mut areas) = (ByBlock::new(), ByBlock::new());
    let (mut guesses, mut samples) = (Vec::new(), 0);
    for members in Blocks::of(pairs.iter().map(|pair| pair.moment)).iter().filter(|members| members.len() > 1)
    {
        let alike = compare(pairs, members);
        let n = members.len();
        let block = pairs[members[0]].block;
        add(&mut right, block, mean(&(0..n).map(|row| top(&alike[row * n..][..n], row)).collect::<Vec<_>>()));
        let of = |own: bool| -> Vec<f64> {
            let cells = alike.iter().enumerate().filter(|(i, _)| (i / n == i % n) == own);
            cells.map(|(_, alike)| *alike).collect()
        };
        add(&mut areas, block, auc(&of(false), &of(true)));
        guesses.push(1.0 / n as f64);
        samples += n;
    }
    let first = Target::Chance { value: mean(&guesses), half_width: 0.03 };
    let half = Target::Chance { value: 0.5, half_width: 0.03 };
    let mut figure = |parts: ByBlock| figure::ratio(&parts.into_values().collect::<Vec<_>>(), samples, rng);
    vec![
        figure(right).found(Attack::Matching, "top-1 of N", first),
        figure(areas).found(Attack::Matching, "AUC", half),
    ]
}

/// Of each block, the sum over its moments, and how many these are.
type ByBlock = BTreeMap<u32, (f64, f64)>;

fn add(parts: &mut ByBlock, block: u32, value: f64) {
    let (sum, moments) = parts.entry(block).or_default();
    *sum += value;
    *moments += 1.0;
}

/// How alike each flow in (rows) is to each flow out (columns) of a moment.
fn compare(pairs: &[Pair<'_>], members: &[usize]) -> Vec<f64> {
    let entered: Vec<Profile> = members.iter().map(|member| Profile::of(pairs[*member].ingress)).collect();
    let left: Vec<Profile> = members.iter().map(|member| Profile::of(pairs[*member].egress)).collect();
    let distances: Vec<_> =
        entered.iter().flat_map(|entered| left.iter().map(move |left| followed(entered, left))).collect();
    likeness(&distances)
}

/// 1 if the likeliest of a row is its own, shared where several are.
fn top(row: &[f64], own: usize) -> f64 {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let equals = row.iter().filter(|alike| **alike == most).count();
    if row[own] == most { 1.0 / equals as f64 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::traffic::{Shape, activity, cells, relayed};
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::trace::{SECOND, Trace};
    use rand_core::SeedableRng;

    const FLOWS: u32 = 5;

    fn run(
        blocks: u32,
        rng: &mut ChaCha8Rng,
        mut flow: impl FnMut(&mut ChaCha8Rng) -> (Trace, Trace),
    ) -> Vec<Finding> {
        let flows: Vec<(Trace, Trace, u32)> = (0..blocks * FLOWS)
            .map(|i| {
                let (entered, left) = flow(rng);
                (entered, left, i / FLOWS)
            })
            .collect();
        let pairs: Vec<Pair<'_>> = flows
            .iter()
            .map(|(entered, left, block)| Pair {
                ingress: entered.window(0, 2 * SECOND),
                egress: left.window(0, 2 * SECOND),
                moment: *block,
                block: *block,
            })
            .collect();
        matching(&pairs, rng)
    }

    #[test]
    fn a_plain_tunnel_matches() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for finding in run(8, &mut rng, |rng| {
            let entered = activity(2, 2 * SECOND, rng);
            let left = relayed(&entered, rng);
            (entered, left)
        }) {
            assert!(finding.value >= 0.9, "{finding:?}");
            assert_eq!(finding.verdict(), Verdict::Missed);
        }
    }

    #[test]
    fn slots_do_not_match() {
        for shape in [Shape::Constant, Shape::Jittered] {
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            let mut alarms = 0;
            for _ in 0..20 {
                let findings = run(12, &mut rng, |rng| {
                    (cells(shape, 100, 2 * SECOND, rng), cells(shape, 100, 2 * SECOND, rng))
                });
                alarms += findings.iter().filter(|finding| finding.verdict() == Verdict::Missed).count();
            }
            // Of 40 figures, two by chance; six or more come once in 70 times.
            assert!(alarms <= 5, "{shape:?}: {alarms} of 40");
        }
    }

    #[test]
    fn slots_fed_by_bursts_match_where_the_payload_moves_them() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let findings = run(8, &mut rng, |rng| {
            let entered = activity(2, 2 * SECOND, rng);
            let mut left = cells(Shape::Constant, 100, 2 * SECOND, rng).sights().to_vec();
            left.extend_from_slice(relayed(&entered, rng).sights());
            (entered, Trace::new(left))
        });
        assert!(findings[1].value > 0.9, "{findings:?}");
    }

    #[test]
    fn moments_of_one_stretch_are_no_more_than_one() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let flows: Vec<[Trace; 2]> =
            (0..40).map(|_| [(); 2].map(|()| cells(Shape::Jittered, 100, 2 * SECOND, &mut rng))).collect();
        let mut width = |moments: u32| {
            let pairs: Vec<Pair<'_>> = (0..)
                .zip(&flows)
                .flat_map(|(flow, [entered, left])| {
                    (0..moments).map(move |moment| Pair {
                        ingress: entered.window(0, 2 * SECOND),
                        egress: left.window(0, 2 * SECOND),
                        moment: flow / 2 * moments + moment,
                        block: flow / 2,
                    })
                })
                .collect();
            matching(&pairs, &mut rng)[0].interval.half_width()
        };
        let (one, ten) = (width(1), width(10));
        assert!(one > 0.05 && (0.8..1.25).contains(&(ten / one)), "{one} {ten}");
    }

    #[test]
    fn pairs_without_others_say_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let trace = activity(2, SECOND, &mut rng);
        let window = trace.window(0, SECOND);
        let pairs: Vec<Pair<'_>> =
            (0..20).map(|at| Pair { ingress: window, egress: window, moment: at, block: at }).collect();
        for finding in matching(&pairs, &mut rng) {
            assert_eq!(finding.verdict(), Verdict::NoPower);
        }
    }
}
