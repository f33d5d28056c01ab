//! Single numbers about a window, from its gaps.

use crate::observe::stats::{autocorrelation, entropy, mean, quantile_edges, variance};
use crate::observe::trace::{Sample, Window};

/// What the numbers of a [`Shape`] are.
pub(super) const NAMES: [&str; 6] =
    ["gap variance", "gap entropy", "mean gap", "count", "longest gap", "gap autocorrelation"];

/// One window's numbers, in the order of [`NAMES`]: squared microseconds, bits, microseconds, packets, microseconds,
/// -1 to 1.
pub(super) type Shape = [f64; NAMES.len()];

/// The shapes of all samples. Gaps are binned alike in all of them, by what gaps there are and not by who has which.
pub(super) fn shapes(samples: &[Sample<'_>]) -> Vec<Shape> {
    let all = samples.iter().map(|sample| sample.window.sights().len()).sum::<usize>();
    let pool: Vec<f64> =
        samples.iter().flat_map(|sample| sample.window.gaps()).step_by(all / POOL + 1).collect();
    let edges = quantile_edges(&pool, BINS);
    samples.iter().map(|sample| shape(sample.window, &edges)).collect()
}

/// Gaps that suffice to lay down bins.
const POOL: usize = 100_000;
const BINS: usize = 32;

fn shape(window: Window<'_>, edges: &[f64]) -> Shape {
    let gaps: Vec<f64> = window.gaps().collect();
    let count = window.sights().len() as f64;
    if gaps.is_empty() {
        let nothing = window.width() as f64 / 1e3;
        return [0.0, 0.0, nothing, count, nothing, 0.0];
    }
    let mut bins = [0; BINS];
    for gap in &gaps {
        if let Some(bin) = bins.get_mut(edges.partition_point(|edge| edge < gap)) {
            *bin += 1;
        }
    }
    let longest = gaps.iter().copied().fold(0.0, f64::max);
    [variance(&gaps), entropy(&bins), mean(&gaps), count, longest, autocorrelation(&gaps, 1)]
}

/// How far each gap is from the middle one, in microseconds, with the place of the packet that ends it.
pub(super) fn unevenness(window: Window<'_>) -> Vec<(u64, f64)> {
    let mut gaps: Vec<f64> = window.gaps().collect();
    let middle = gaps.len() / 2;
    if gaps.is_empty() {
        return Vec::new();
    }
    let (_, &mut middle, _) = gaps.select_nth_unstable_by(middle, f64::total_cmp);
    let ends = window.sights().iter().skip(1).map(|sight| sight.at - window.from());
    ends.zip(window.gaps()).map(|(at, gap)| (at, (gap - middle).abs())).collect()
}

/// The mean of [`unevenness`] in each bin of `bin` nanoseconds, in microseconds; 0 where no gap ends. A mean, not a sum: that
/// would count gaps too, and a window's first bin has one less.
pub(super) fn mean_unevenness(window: Window<'_>, bin: u64) -> Vec<f64> {
    let mut bins = vec![(0.0, 0.0); window.counts(bin).len()];
    for (at, gap) in unevenness(window) {
        let place = usize::try_from(at / bin.max(1)).ok();
        if let Some((sum, gaps)) = place.and_then(|place| bins.get_mut(place)) {
            *sum += gap;
            *gaps += 1.0;
        }
    }
    bins.into_iter().map(|(sum, gaps)| sum / f64::max(gaps, 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::trace::{Sight, Trace};

    #[test]
    fn an_empty_window_has_a_shape_too() {
        let trace = Trace::new([0, 10, 20, 60].map(|at| Sight { at: at * 1000, length: 1 }).to_vec());
        let sample = |from: u64, to: u64| Sample { window: trace.window(from, to), label: 0, block: 0 };
        let shapes = shapes(&[sample(0, 100_000), sample(100_000, 150_000)]);
        assert_eq!(shapes[0][0], 200.0);
        assert_eq!(shapes[0][2..5], [20.0, 4.0, 40.0]);
        assert_eq!(shapes[1], [0.0, 0.0, 50.0, 0.0, 50.0, 0.0]);
    }

    #[test]
    fn unevenness_is_from_the_middle_gap() {
        let trace = Trace::new([0, 10, 20, 60].map(|at| Sight { at: at * 1000, length: 1 }).to_vec());
        let uneven = unevenness(trace.window(0, 100_000));
        assert_eq!(uneven, [(10_000, 0.0), (20_000, 0.0), (60_000, 30.0)]);
        assert_eq!(mean_unevenness(trace.window(0, 100_000), 50_000), [0.0, 30.0]);
    }
}
