//! Series of numbers: their moments, and how alike two of them are.

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The standard deviation, dividing by the number of values; 0 of nothing.
pub fn deviation(values: &[f64]) -> f64 {
    let centre = mean(values);
    if values.is_empty() {
        return 0.0;
    }
    (values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// Pearson's correlation of the values that both have; 0 where one of them does not vary.
pub fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let length = a.len().min(b.len());
    let (a, b) = (&a[..length], &b[..length]);
    let (centre_a, centre_b) = (mean(a), mean(b));
    let (mut both, mut only_a, mut only_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - centre_a, y - centre_b);
        both += x * y;
        only_a += x * x;
        only_b += y * y;
    }
    let scale = (only_a * only_b).sqrt();
    // What is left of equal values after rounding is not a variation.
    let flat = 1e-12 * length as f64 * (1.0 + centre_a.abs()) * (1.0 + centre_b.abs());
    if scale <= flat { 0.0 } else { both / scale }
}

/// Correlation of the values with those `lag` places on.
pub fn autocorrelation(values: &[f64], lag: usize) -> f64 {
    match values.get(lag..) {
        Some(later) if later.len() > 1 => correlation(values, later),
        _ => 0.0,
    }
}

/// Correlations of `a` with `b`, where `b` runs behind by 0 to `most` places. At least two values must overlap.
pub fn lagged<'s>(a: &'s [f64], b: &'s [f64], most: usize) -> impl Iterator<Item = f64> + 's {
    (0..=most).filter_map(move |lag| {
        let later = b.get(lag..).filter(|later| later.len() > 1)?;
        Some(correlation(a, later))
    })
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
    fn correlation_is_of_direction_and_not_of_size() {
        assert!((correlation(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]) - 1.0).abs() < 1e-12);
        assert!((correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        assert_eq!(correlation(&[0.1; 5], &[1.0, 2.0, 3.0, 4.0, 5.0]), 0.0);
        assert_eq!(correlation(&[], &[1.0]), 0.0);
    }

    #[test]
    fn a_lag_is_found() {
        let a: Vec<f64> = (0..50).map(|i| f64::from((i * i) % 17)).collect();
        let late: Vec<f64> = [9.0; 3].iter().chain(&a).copied().collect();
        let best = lagged(&a, &late, 5).fold(f64::MIN, f64::max);
        assert!((best - 1.0).abs() < 1e-9);
        assert!(lagged(&a, &late, 2).fold(f64::MIN, f64::max) < 0.5);
        assert!((autocorrelation(&a, 17) - 1.0).abs() < 1e-9);
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
