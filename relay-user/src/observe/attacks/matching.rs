//! Attack 4: which flow in belongs to which flow out?

use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::learn::figure;
use crate::observe::learn::likeness::{Profile, followed, likeness};
use crate::observe::stats::{Blocks, auc, mean};
use crate::observe::trace::Window;
use rand_chacha::ChaCha8Rng;

/// A flow's window where it enters, and the same stretch of time where it leaves.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Where it enters.
    pub ingress: Window<'a>,
    /// Where it leaves.
    pub egress: Window<'a>,
    /// Pairs of one block were seen at one time: they are each other's candidates.
    pub block: u32,
}

/// Of the N flows of a block, how often the likeliest flow out is the right one, and how often a right pair is more
/// alike than a wrong one. Against a perfect defence 1/N and one half. Blocks of one pair say nothing.
pub fn matching(pairs: &[Pair<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let (mut right, mut areas, mut guesses, mut samples) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for members in Blocks::of(pairs.iter().map(|pair| pair.block)).iter().filter(|members| members.len() > 1)
    {
        let alike = compare(pairs, members);
        let n = members.len();
        right.push(mean(&(0..n).map(|row| top(&alike[row * n..][..n], row)).collect::<Vec<_>>()));
        let of = |own: bool| -> Vec<f64> {
            let cells = alike.iter().enumerate().filter(|(i, _)| (i / n == i % n) == own);
            cells.map(|(_, alike)| *alike).collect()
        };
        areas.push(auc(&of(false), &of(true)));
        guesses.push(1.0 / n as f64);
        samples += n;
    }
    let first = Target::Chance { value: mean(&guesses), half_width: 0.03 };
    let half = Target::Chance { value: 0.5, half_width: 0.03 };
    vec![
        figure::mean(&right, samples, rng).found(Attack::Matching, "top-1 of N", first),
        figure::mean(&areas, samples, rng).found(Attack::Matching, "AUC", half),
    ]
}

/// How alike each flow in (rows) is to each flow out (columns) of a block.
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
    fn pairs_without_others_say_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let trace = activity(2, SECOND, &mut rng);
        let window = trace.window(0, SECOND);
        let pairs: Vec<Pair<'_>> =
            (0..20).map(|block| Pair { ingress: window, egress: window, block }).collect();
        for finding in matching(&pairs, &mut rng) {
            assert_eq!(finding.verdict(), Verdict::NoPower);
        }
    }
}
