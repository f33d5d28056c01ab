//! Attack 5: which of K activities goes on inside?

use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::learn::forest::{self, Forest};
use crate::observe::learn::table::Table;
use crate::observe::learn::{judge, knn};
use rand_chacha::ChaCha8Rng;

/// How often the nearest neighbours, and a random forest, name the right activity of windows in blocks that they have
/// not seen. Against a perfect defence 1/K, for K labels. [`Table::one_way`] and [`Table::two_way`] make the table.
pub fn fingerprint(table: &Table, rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let target = Target::Chance { value: 1.0 / table.kinds().max(1) as f64, half_width: 0.03 };
    vec![
        judge::accuracy(table, knn::votes, rng).found(Attack::Fingerprint, "k-NN accuracy", target),
        judge::accuracy(table, forest::votes, rng).found(Attack::Fingerprint, "forest accuracy", target),
    ]
}

/// What share of its knowledge a forest takes from each feature, in the order of
/// [`names`](crate::observe::learn::features::names). Where a finding missed its target, this shows where to look.
pub fn telling(table: &Table, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let rows: Vec<usize> = (0..table.len()).collect();
    Forest::grow(table, &rows, 100, rng).importance()
}

#[cfg(test)]
mod tests {
    use super::super::planted::{Link, samples};
    use super::super::traffic::{Shape, activity, cells};
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::learn::features;
    use crate::observe::trace::{SECOND, Sample, Trace};
    use rand_core::SeedableRng;

    const KINDS: u16 = 4;

    /// Blocks of one window for each activity, each given to `what` for its trace.
    fn table(blocks: u32, mut what: impl FnMut(u16) -> Trace) -> Table {
        let traces: Vec<(Trace, u16, u32)> = (0..blocks)
            .flat_map(|block| (0..KINDS).map(move |label| (label, block)))
            .map(|(label, block)| (what(label), label, block))
            .collect();
        let samples: Vec<Sample<'_>> = traces
            .iter()
            .map(|(trace, label, block)| Sample {
                window: trace.window(0, SECOND),
                label: *label,
                block: *block,
            })
            .collect();
        Table::one_way(&samples)
    }

    #[test]
    fn a_plain_tunnel_shows_what_goes_on() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let table = table(20, |label| activity(label, SECOND, &mut rng));
        for finding in fingerprint(&table, &mut rng) {
            assert!(finding.value >= 0.9, "{finding:?}");
            assert_eq!(finding.verdict(), Verdict::Missed);
        }
        let telling = telling(&table, &mut rng);
        assert_eq!(telling.len(), features::names(1).len());
    }

    #[test]
    fn slots_show_nothing() {
        for shape in [Shape::Constant, Shape::Jittered] {
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            let table = table(40, |_| cells(shape, 200, SECOND, &mut rng));
            for finding in fingerprint(&table, &mut rng) {
                assert!(finding.interval.holds(0.25), "{shape:?} {finding:?}");
                assert_ne!(finding.verdict(), Verdict::Missed);
            }
        }
    }

    #[test]
    fn timers_that_work_perturbs_show_it_though_counts_do_not() {
        let traces = Link::Perturbed.traces(16, 4);
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let table = Table::one_way(&samples(&traces));
        for finding in fingerprint(&table, &mut rng) {
            assert!(finding.value > 0.9, "{finding:?}");
        }
        let telling = telling(&table, &mut rng);
        let of = |what: &str| -> f64 {
            let named = features::names(1).into_iter().zip(&telling);
            named.filter(|(name, _)| name.contains(what)).map(|(_, share)| share).sum()
        };
        assert!(of("gap") > 0.5 && of("packets") < 0.1, "{} {}", of("gap"), of("packets"));
    }

    #[test]
    fn what_differs_from_block_to_block_is_not_taken_for_activity() {
        let misses = (0..8).flat_map(|seed| {
            let traces = Link::Drifting.traces(16, 50 + seed);
            let table = Table::one_way(&samples(&traces));
            fingerprint(&table, &mut ChaCha8Rng::seed_from_u64(seed))
        });
        let misses = misses.filter(|finding| !finding.interval.holds(0.5)).count();
        assert!(misses <= 4, "{misses} of 16");
    }

    #[test]
    fn a_few_windows_have_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let table = table(3, |label| activity(label, SECOND, &mut rng));
        for finding in fingerprint(&table, &mut rng) {
            assert_eq!(finding.verdict(), Verdict::NoPower);
        }
    }
}
