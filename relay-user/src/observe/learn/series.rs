//! Series of numbers: how far they spread, and how alike two of them are.

use crate::observe::stats::{cross_correlation, mean, variance};

/// The standard deviation; not a number of nothing.
pub fn deviation(values: &[f64]) -> f64 {
    variance(values).sqrt()
}

/// Correlations of `a` with `b`, where `b` runs behind by 0 to `most` places.
pub fn lagged<'s>(a: &'s [f64], b: &'s [f64], most: isize) -> impl Iterator<Item = f64> + 's {
    (0..=most).map(move |lag| cross_correlation(a, b, lag))
}

/// Values less their mean, over their deviation; zeros where they do not vary.
pub fn standardised(values: &[f64]) -> Vec<f64> {
    let (centre, spread) = (mean(values), deviation(values));
    if spread <= 1e-12 * (1.0 + centre.abs()) {
        return vec![0.0; values.len()];
    }
    values.iter().map(|value| (value - centre) / spread).collect()
}

/// Mean absolute difference along the best alignment that moves no value by more than `band` places (dynamic time
/// warping in a Sakoe-Chiba band). Infinite where lengths differ by more than the band.
pub fn warped(a: &[f64], b: &[f64], band: usize) -> f64 {
    if a.len().abs_diff(b.len()) > band {
        return f64::INFINITY;
    }
    // `last[j]` is the least sum that aligns the values of `a` so far with the first j of `b`.
    let mut last = vec![f64::INFINITY; b.len() + 1];
    last[0] = 0.0;
    let mut next = last.clone();
    for (i, x) in a.iter().enumerate() {
        next.fill(f64::INFINITY);
        let end = (i + band + 1).min(b.len());
        for j in i.saturating_sub(band)..end {
            next[j + 1] = (x - b[j]).abs() + last[j].min(last[j + 1]).min(next[j]);
        }
        std::mem::swap(&mut last, &mut next);
    }
    last[b.len()] / a.len().max(b.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_is_found() {
        let a: Vec<f64> = (0..50).map(|i| f64::from((i * i) % 17)).collect();
        let late: Vec<f64> = [9.0; 3].iter().chain(&a).copied().collect();
        let best = lagged(&a, &late, 5).fold(f64::MIN, f64::max);
        assert!((best - 1.0).abs() < 1e-9);
        assert!(lagged(&a, &late, 2).fold(f64::MIN, f64::max) < 0.5);
    }

    #[test]
    fn what_does_not_vary_is_standardised_to_nothing() {
        assert_eq!(standardised(&[0.1; 7]), [0.0; 7]);
        assert_eq!(standardised(&[1.0, 3.0]), [-1.0, 1.0]);
        assert_eq!(standardised(&[]), Vec::<f64>::new());
    }

    #[test]
    fn warping_forgives_a_shift_within_its_band() {
        let mut a = vec![0.0; 40];
        let mut b = a.clone();
        a[10] = 1.0;
        b[13] = 1.0;
        assert_eq!(warped(&a, &b, 5), 0.0);
        assert!((warped(&a, &b, 1) - 0.05).abs() < 1e-12, "two values of forty differ by one");
        assert!(warped(&a, &b[..20], 5).is_infinite());
        assert_eq!(warped(&[], &[], 5), 0.0);
    }
}
