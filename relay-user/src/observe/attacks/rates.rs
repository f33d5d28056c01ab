//! Attack 13: what do changes of rate tell?

use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::trace::Window;

/// Of two rates, one must be a tenth above the other,
const SHARE: f64 = 0.1;
/// and five of Poisson's deviations, to be another one.
const DEVIATIONS: f64 = 5.0;
/// Fewer packets in the fullest window than this could hide that a rate has halved.
const FEWEST: f64 = 100.0;

/// What the changes of rate in windows that follow each other can have told, in bits: log2 of the classes for each
/// change. `classes` is how many the network has; should more rates be seen, so many count. `ledger` is the bound, in
/// bits, that the defence states for this stretch of time: 0 for a fixed rate.
///
/// Windows should last a second or more: a stall that takes a tenth of one is taken for two changes.
pub fn rates(windows: &[Window<'_>], classes: usize, ledger: f64) -> Finding {
    let counts: Vec<f64> = windows.iter().map(|window| window.sights().len() as f64).collect();
    let levels = levels(&counts);
    let changes = levels.len().saturating_sub(1);
    let symbols = classes.max(distinct(levels)).max(1) as f64;
    let value = changes as f64 * symbols.log2();
    let enough = counts.len() > 1 && counts.iter().copied().fold(0.0, f64::max) >= FEWEST;
    Finding {
        attack: Attack::Rates,
        statistic: "bits",
        value,
        interval: Interval::exact(value),
        target: Target::AtMost { bound: ledger },
        samples: if enough { counts.len() } else { 0 },
    }
}

/// The mean of each stretch of like counts. A window in which a stretch ends has a count between its neighbours', and is
/// no stretch of its own.
fn levels(counts: &[f64]) -> Vec<f64> {
    let mut levels: Vec<(f64, f64)> = Vec::new();
    for (i, count) in counts.iter().enumerate() {
        let Some((sum, windows)) = levels.last_mut() else {
            levels.push((*count, 1.0));
            continue;
        };
        let level = *sum / *windows;
        if !differ(level, *count) {
            *sum += count;
            *windows += 1.0;
            continue;
        }
        let passing = counts.get(i + 1).is_some_and(|next| {
            differ(level, *next) && level.min(*next) <= *count && *count <= level.max(*next)
        });
        if !passing || !differ(*count, counts[i + 1]) {
            levels.push((*count, 1.0));
        }
    }
    levels.into_iter().map(|(sum, windows)| sum / windows).collect()
}

/// How many of the levels are different: each from the least of those that it would be taken for. Were neighbours held
/// against each other, a tunnel with every rate between two would have one.
fn distinct(mut levels: Vec<f64>) -> usize {
    levels.sort_unstable_by(f64::total_cmp);
    levels.dedup_by(|level, least| !differ(*least, *level));
    levels.len()
}

fn differ(a: f64, b: f64) -> bool {
    let most = a.max(b);
    (a - b).abs() > most * told_apart(most)
}

/// By what share of it a rate has to differ to be taken for another one, in windows of so many packets.
pub fn told_apart(packets: f64) -> f64 {
    SHARE.max(DEVIATIONS / packets.sqrt())
}

#[cfg(test)]
mod tests {
    use super::super::traffic::{Shape, activity, cells};
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::trace::{SECOND, Sight, Trace};
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    fn seconds(trace: &Trace, count: u64) -> Vec<Window<'_>> {
        (0..count).map(|k| trace.window(k * SECOND, (k + 1) * SECOND)).collect()
    }

    #[test]
    fn a_fixed_rate_tells_nothing() {
        for shape in [Shape::Constant, Shape::Jittered] {
            let trace = cells(shape, 1000, 20 * SECOND, &mut ChaCha8Rng::seed_from_u64(1));
            let found = rates(&seconds(&trace, 19), 1, 0.0);
            assert_eq!((found.value, found.verdict()), (0.0, Verdict::Met), "{shape:?}");
        }
    }

    #[test]
    fn each_change_tells_its_class() {
        // 1000, 2000, 500 cells per second; the first change comes amid a window.
        let at =
            (0..4500).map(|k| k * SECOND / 1000).chain((0..9000).map(|k| 4_500_000_000 + k * SECOND / 2000));
        let at = at.chain((0..2000).map(|k| 9 * SECOND + k * SECOND / 500));
        let trace = Trace::new(at.map(|at| Sight { at, length: 1360 }).collect());
        let trace =
            Trace::new(trace.sights().iter().copied().filter(|sight| sight.at < 13 * SECOND).collect());
        assert_eq!(rates(&seconds(&trace, 13), 4, 4.0).value, 4.0);
        assert_eq!(rates(&seconds(&trace, 13), 4, 4.0).verdict(), Verdict::Met);
        assert_eq!(rates(&seconds(&trace, 13), 4, 2.0).verdict(), Verdict::Missed);
        assert_eq!(rates(&seconds(&trace, 13), 1, 0.0).value, 2.0 * 3.0_f64.log2(), "three rates were seen");
    }

    #[test]
    fn rates_close_to_each_other_are_not_one() {
        // From 500 to 2300 packets a second, up and down, and no two neighbours of the sorted rates that differ.
        let rates_seen =
            [500, 2300, 600, 2200, 700, 2100, 800, 2000, 900, 1900, 1000, 1800, 1100, 1700, 1200, 1600];
        let sights = (0..).zip(rates_seen).flat_map(|(second, rate)| {
            (0..rate).map(move |k| Sight { at: second * SECOND + k * SECOND / rate, length: 1360 })
        });
        let trace = Trace::new(sights.collect());
        let found = rates(&seconds(&trace, 16), 1, 0.0);
        assert!(found.value >= 15.0, "{found:?}");
        assert_eq!(found.verdict(), Verdict::Missed);
    }

    #[test]
    fn a_plain_tunnel_changes_all_the_time() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let (pages, idle) = (activity(2, 60 * SECOND, &mut rng), activity(0, 60 * SECOND, &mut rng));
        let mixed = pages.sights().iter().filter(|sight| sight.at / SECOND % 4 < 2).chain(idle.sights());
        let trace = Trace::new(mixed.copied().collect());
        let found = rates(&seconds(&trace, 60), 4, 4.0);
        assert!(found.value > 20.0, "{found:?}");
        assert_eq!(found.verdict(), Verdict::Missed);
    }

    #[test]
    fn a_trickle_has_no_power() {
        let trace = cells(Shape::Constant, 20, 20 * SECOND, &mut ChaCha8Rng::seed_from_u64(3));
        assert_eq!(rates(&seconds(&trace, 19), 4, 4.0).verdict(), Verdict::NoPower);
    }
}
