//! How unlike two windows are, by measures that see different things.

use super::features::counts;
use super::series::{lagged, standardised, warped};
use crate::observe::stats::{ks_sorted, quantile};
use crate::observe::trace::Window;

/// How many distances there are: by counts in wide and in narrow bins, by gaps, and by alignment.
pub const DISTANCES: usize = 4;

const COARSE: u64 = 20;
const FINE: u64 = 100;
/// Bins by which one window may run behind the other: a tenth of the window.
const COARSE_LAG: isize = 2;
const FINE_LAG: isize = 10;
/// Bins by which alignment may move a packet.
const BAND: usize = 5;
/// Gaps of a window that are kept, evenly by rank.
const GAPS: usize = 256;

/// A window, made ready for comparisons with many others.
#[derive(Clone, Debug)]
pub struct Profile {
    coarse: Vec<f64>,
    fine: Vec<f64>,
    outline: Vec<f64>,
    gaps: Vec<f64>,
}

impl Profile {
    /// Of this window. Windows that are compared should be equally long.
    pub fn of(window: Window<'_>) -> Self {
        let mut gaps: Vec<f64> = window.gaps().collect();
        gaps.sort_unstable_by(f64::total_cmp);
        if gaps.len() > GAPS {
            gaps = (0..GAPS).map(|i| quantile(&gaps, i as f64 / (GAPS - 1) as f64)).collect();
        }
        let fine = counts(window, FINE);
        Self { coarse: counts(window, COARSE), outline: standardised(&fine), fine, gaps }
    }
}

/// Distances between what went in and what may have come out of it, at once or a little later.
pub fn followed(entered: &Profile, left: &Profile) -> [f64; DISTANCES] {
    let best = |a: &[f64], b: &[f64], most: isize| lagged(a, b, most).fold(f64::NEG_INFINITY, f64::max);
    distances(entered, left, best)
}

/// Distances between two that may act together or by turns, either one first.
pub fn together(one: &Profile, other: &Profile) -> [f64; DISTANCES] {
    let best = |a: &[f64], b: &[f64], most: isize| {
        lagged(a, b, most).chain(lagged(b, a, most)).map(f64::abs).fold(0.0, f64::max)
    };
    distances(one, other, best)
}

fn distances(
    one: &Profile,
    other: &Profile,
    best: impl Fn(&[f64], &[f64], isize) -> f64,
) -> [f64; DISTANCES] {
    let common = one.outline.len().min(other.outline.len());
    [
        1.0 - best(&one.coarse, &other.coarse, COARSE_LAG),
        1.0 - best(&one.fine, &other.fine, FINE_LAG),
        ks_sorted(&one.gaps, &other.gaps),
        warped(&one.outline[..common], &other.outline[..common], BAND),
    ]
}

/// One likeness for each of these: their distances, each in deviations from its mean over all, summed; greater is more
/// alike. A distance that is the same for all says nothing.
pub fn likeness(distances: &[[f64; DISTANCES]]) -> Vec<f64> {
    let mut sums = vec![0.0; distances.len()];
    for i in 0..DISTANCES {
        let of: Vec<f64> = distances.iter().map(|distances| distances[i]).collect();
        for (sum, distance) in sums.iter_mut().zip(standardised(&of)) {
            *sum -= distance;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::trace::{SECOND, Sight, Trace};

    fn bursts(at: &[u64]) -> Profile {
        let sights = at.iter().flat_map(|at| (0..20).map(move |k| at * 10_000_000 + k * 100_000));
        Profile::of(Trace::new(sights.map(|at| Sight { at, length: 500 }).collect()).window(0, SECOND))
    }

    #[test]
    fn a_window_is_nearest_to_what_came_out_of_it() {
        let entered = bursts(&[3, 20, 50, 71]);
        let (same, late) = (bursts(&[3, 20, 50, 71]), bursts(&[7, 24, 54, 75]));
        let other = bursts(&[10, 33, 34, 90]);
        assert!(followed(&entered, &same).iter().all(|distance| *distance < 1e-9));
        for i in [1, 3] {
            assert!(followed(&entered, &late)[i] + 0.1 < followed(&entered, &other)[i], "distance {i}");
        }
        let all = likeness(&[followed(&entered, &other), followed(&entered, &late)]);
        assert!(all[1] > all[0]);
    }

    #[test]
    fn turns_are_a_likeness_too() {
        let even: Vec<u64> = (0..20).filter(|k| k % 2 == 0).map(|k| k * 5).collect();
        let odd: Vec<u64> = (0..20).filter(|k| k % 2 == 1).map(|k| k * 5).collect();
        assert!(together(&bursts(&even), &bursts(&odd))[0] < 0.1);
    }

    #[test]
    fn windows_without_packets_are_comparable() {
        let nothing = Trace::default();
        let (empty, none) = (Profile::of(nothing.window(0, SECOND)), Profile::of(nothing.window(0, 0)));
        assert!(followed(&empty, &bursts(&[5])).iter().all(|distance| distance.is_finite()));
        assert!(together(&none, &empty).iter().all(|distance| distance.is_finite()));
    }
}
