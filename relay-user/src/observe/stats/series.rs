//! Series of values, one a bin: likeness by lag, and changes half-way.

use super::moments::{mean, variance};

/// How a series resembles itself `lag` places later, -1 to 1; 0 where it never changes or is too short.
pub fn autocorrelation(values: &[f64], lag: usize) -> f64 {
    let center = mean(values);
    let spread: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    let later = values.get(lag..).unwrap_or_default();
    let product: f64 = values.iter().zip(later).map(|(a, b)| (a - center) * (b - center)).sum();
    if spread > 0.0 { product / spread } else { 0.0 }
}

/// Pearson's correlation of `x` with what `y` is `lag` places later (earlier, where negative), -1 to 1; 0 where one
/// never changes or nothing overlaps.
pub fn cross_correlation(x: &[f64], y: &[f64], lag: isize) -> f64 {
    let shift = lag.unsigned_abs();
    let (x, y) = if lag < 0 { (x.get(shift..), Some(y)) } else { (Some(x), y.get(shift..)) };
    let (x, y) = (x.unwrap_or_default(), y.unwrap_or_default());
    let common = x.len().min(y.len());
    let (x, y) = (&x[..common], &y[..common]);
    let scale = common as f64 * (variance(x) * variance(y)).sqrt();
    let (center_x, center_y) = (mean(x), mean(y));
    let product: f64 = x.iter().zip(y).map(|(a, b)| (a - center_x) * (b - center_y)).sum();
    if scale > 0.0 { product / scale } else { 0.0 }
}

/// How far the sum of deviations from the mean strays, in units of sqrt(n) deviations: about 0.87 on average for
/// independent values, more where the mean changes on the way. 0 where nothing varies.
pub fn cusum(values: &[f64]) -> f64 {
    let (center, spread) = (mean(values), variance(values));
    let mut sum = 0.0;
    let mut furthest: f64 = 0.0;
    for value in values {
        sum += value - center;
        furthest = furthest.max(f64::abs(sum));
    }
    if spread > 0.0 { furthest / (spread * values.len() as f64).sqrt() } else { 0.0 }
}

/// The log likelihood ratio (nats) of one change of the mean, at its best place, against none, for normal values of one
/// unknown variance. 0 where nothing varies.
pub fn glr_mean(values: &[f64]) -> f64 {
    let (center, spread) = (mean(values), variance(values));
    let n = values.len() as f64;
    if spread <= 0.0 {
        return 0.0;
    }
    let mut sum = 0.0;
    let mut explained: f64 = 0.0;
    for (count, value) in (1..values.len()).zip(values) {
        sum += value - center;
        explained = explained.max(sum * sum / (count as f64 * (n - count as f64)));
    }
    // A step without noise would be infinitely likely; no float holds a finer difference than this one.
    -n / 2.0 * (1.0 - explained / spread).max(f64::EPSILON).ln()
}

/// The log likelihood ratio (nats) of one change of the variance, at its best place, against none, for normal values of
/// mean zero. At least `MARGIN` values are kept on either side; 0 where there are too few.
pub fn glr_variance(values: &[f64]) -> f64 {
    let n = values.len();
    let total: f64 = values.iter().map(|value| value * value).sum();
    // Keeps logarithms finite where one side does not vary at all.
    let floor = total / n.max(1) as f64 * 1e-12;
    if n < 2 * MARGIN || floor <= 0.0 {
        return 0.0;
    }
    let cost = |sum: f64, count: usize| count as f64 * (sum / count as f64).max(floor).ln();
    let mut before = 0.0;
    let mut best: f64 = 0.0;
    for (count, value) in (1..=n - MARGIN).zip(values) {
        before += value * value;
        if count >= MARGIN {
            let split = cost(before, count) + cost(total - before, n - count);
            best = best.max((cost(total, n) - split) / 2.0);
        }
    }
    best
}

/// Fewest values that give a variance worth comparing.
const MARGIN: usize = 5;

#[cfg(test)]
mod tests {
    use super::super::{auc, normal};
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    fn noise(n: usize, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| normal(&mut rng)).collect()
    }

    #[test]
    fn a_shifted_copy_is_found_at_its_lag_only() {
        let x = noise(2000, 1);
        let y: Vec<f64> = x.iter().cycle().skip(1990).take(2000).map(|value| 3.0 - 2.0 * value).collect();
        assert!((cross_correlation(&x, &y, 10) + 1.0).abs() < 1e-9);
        assert!((cross_correlation(&y, &x, -10) + 1.0).abs() < 1e-9);
        for lag in [-10, 0, 9, 11] {
            assert!(cross_correlation(&x, &y, lag).abs() < 0.1);
        }
        assert_eq!(cross_correlation(&x, &[1.0; 2000], 0), 0.0);
        assert_eq!(cross_correlation(&x, &y, 5000), 0.0);
    }

    #[test]
    fn differences_of_noise_are_anticorrelated() {
        let noise = noise(20_000, 2);
        let differences: Vec<f64> = noise.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!((autocorrelation(&differences, 1) + 0.5).abs() < 0.02);
        assert!(autocorrelation(&noise, 1).abs() < 0.03);
        assert_eq!(autocorrelation(&[1.0; 5], 1), 0.0);
        assert_eq!(autocorrelation(&[], 3), 0.0);
    }

    type Detector = fn(&[f64]) -> f64;

    fn detected(detector: Detector, change: impl Fn(f64, usize) -> f64) -> f64 {
        let scores = |changed: bool| -> Vec<f64> {
            (0..200)
                .map(|seed| {
                    let values = noise(100, seed + if changed { 1000 } else { 0 });
                    let alter = |(index, value)| if changed { change(value, index) } else { value };
                    detector(&values.into_iter().enumerate().map(alter).collect::<Vec<_>>())
                })
                .collect()
        };
        auc(&scores(false), &scores(true))
    }

    #[test]
    fn changes_are_found_and_their_absence_is_not() {
        let detectors: [(Detector, bool); 3] = [(cusum, true), (glr_mean, true), (glr_variance, false)];
        for (detector, of_mean) in detectors {
            let chance = detected(detector, |value, _| value);
            assert!((chance - 0.5).abs() < 0.08, "{chance}");
            let found = detected(detector, |value, index| match (index < 50, of_mean) {
                (true, _) => value,
                (false, true) => value + 1.0,
                (false, false) => value * 2.0,
            });
            assert!(found > 0.95, "{found}");
        }
    }

    #[test]
    fn nothing_and_steps_without_noise_stay_finite() {
        let step: Vec<f64> = (0..50).map(|index| if index < 25 { 0.0 } else { 1.0 }).collect();
        for detector in [cusum as Detector, glr_mean, glr_variance] {
            assert_eq!(detector(&[]), 0.0);
            assert_eq!(detector(&[0.0; 30]), 0.0);
            assert!(detector(&step).is_finite() && detector(&step) > 1.0);
        }
    }
}
