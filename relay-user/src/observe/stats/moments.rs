//! Mean, variance, quantiles.

/// The mean; not a number where there are no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The mean squared distance from the mean (divided by n, not n - 1); not a number where there are no values.
pub fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64
}

/// The value below which a share `q` (0 to 1) of `sorted` lies, between neighbours in proportion; not a number where
/// there are no values.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = floor(position).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

/// The whole part of a number that is not negative.
#[expect(clippy::cast_possible_truncation, reason = "saturates, and takes what is no number for 0")]
pub(super) fn floor(value: f64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let sorted = [1.0, 2.0, 4.0];
        assert_eq!(quantile(&sorted, 0.0), 1.0);
        assert_eq!(quantile(&sorted, 0.75), 3.0);
        assert_eq!(quantile(&sorted, 1.0), 4.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn moments_of_little() {
        assert_eq!((mean(&[1.0, 3.0]), variance(&[1.0, 3.0])), (2.0, 1.0));
        assert!(mean(&[]).is_nan() && variance(&[]).is_nan());
    }
}
