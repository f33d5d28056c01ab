//! Comparisons of samples that look at order only.

/// How likely a value of `positives` is to be above one of `negatives`, ties counted half: 0.5 where they are alike,
/// 1 or 0 where one threshold tells them apart. Not a number where either is empty.
pub fn auc(negatives: &[f64], positives: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> = negatives.iter().map(|&value| (value, false)).collect();
    all.extend(positives.iter().map(|&value| (value, true)));
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    weighted_auc(&all, |_| 1.0)
}

/// [`auc`] of values in rising order, each beside whether it is a positive, where the one at a place counts as often as
/// `weight` says of the place.
pub fn weighted_auc(sorted: &[(f64, bool)], weight: impl Fn(usize) -> f64) -> f64 {
    let mut place = 0;
    // -0.0 and 0.0 are side by side in total order, so ties may be told by plain equality.
    let (wins, pairs) = ranked(sorted.chunk_by(|a, b| a.0 == b.0).map(|tied| {
        let mut here = [0.0; 2];
        for &(_, positive) in tied {
            here[usize::from(positive)] += weight(place);
            place += 1;
        }
        here
    }));
    wins / pairs
}

/// Of pairs of a negative and a positive, how many have the positive above, ties counted half, and how many there are:
/// from how many negatives and positives have each value, in rising order of values. Their quotient is the [`auc`].
pub fn ranked(groups: impl IntoIterator<Item = [f64; 2]>) -> (f64, f64) {
    let (mut wins, mut below) = (0.0, [0.0; 2]);
    for here in groups {
        wins += here[1] * (below[0] + here[0] / 2.0);
        below = [below[0] + here[0], below[1] + here[1]];
    }
    (wins, below[0] * below[1])
}

/// The greatest distance between the empirical distributions of two samples, 0 to 1. An empty sample is at distance
/// 0 from another, and 1 from any other.
pub fn ks(a: &[f64], b: &[f64]) -> f64 {
    let sorted = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    ks_sorted(&sorted(a), &sorted(b))
}

/// [`ks`] of samples that are in order already.
pub fn ks_sorted(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return if a.len() == b.len() { 0.0 } else { 1.0 };
    }
    let (mut i, mut j) = (0, 0);
    let mut distance: f64 = 0.0;
    while let (Some(&x), Some(&y)) = (a.get(i), b.get(j)) {
        let value = x.min(y);
        if value.is_nan() {
            break;
        }
        while a.get(i).is_some_and(|&x| x <= value) {
            i += 1;
        }
        while b.get(j).is_some_and(|&y| y <= value) {
            j += 1;
        }
        distance = distance.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    distance
}

/// The greatest distance of the empirical distribution of `values` from the uniform law on [0, 1].
pub fn ks_uniform(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len() as f64;
    sorted.iter().enumerate().fold(0.0, |distance: f64, (rank, &value)| {
        let below = value - rank as f64 / n;
        let above = (rank + 1) as f64 / n - value;
        distance.max(below).max(above)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{kolmogorov_p, unit};
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    #[test]
    fn auc_counts_pairs() {
        assert_eq!(auc(&[1.0, 2.0], &[3.0, 4.0]), 1.0);
        assert_eq!(auc(&[3.0, 4.0], &[1.0, 2.0]), 0.0);
        assert_eq!(auc(&[1.0; 7], &[1.0; 3]), 0.5);
        assert_eq!(auc(&[0.0, 2.0], &[-0.0, 1.0]), 0.375);
        assert!(auc(&[], &[1.0]).is_nan());
    }

    #[test]
    fn weights_count_as_repeats_do() {
        let sorted = [(1.0, false), (2.0, true), (3.0, false)];
        let weighted = |weights: [f64; 3]| weighted_auc(&sorted, |place| weights[place]);
        assert_eq!(weighted([1.0; 3]), 0.5);
        assert_eq!(weighted([3.0, 1.0, 1.0]), auc(&[1.0, 1.0, 1.0, 3.0], &[2.0]));
        assert!(weighted([1.0, 0.0, 1.0]).is_nan());
        assert_eq!(ranked([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), (8.5, 9.0));
    }

    #[test]
    fn auc_and_ks_agree_with_counting_all() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for _ in 0..50 {
            let mut draw =
                |n: usize| -> Vec<f64> { (0..n).map(|_| (unit(&mut rng) * 6.0).floor()).collect() };
            let (a, b) = (draw(13), draw(8));
            let wins: f64 = a
                .iter()
                .flat_map(|x| {
                    b.iter().map(move |y| {
                        if y > x {
                            1.0
                        } else if y == x {
                            0.5
                        } else {
                            0.0
                        }
                    })
                })
                .sum();
            assert!((auc(&a, &b) - wins / 104.0).abs() < 1e-12);
            let share = |values: &[f64], at: f64| {
                values.iter().filter(|&&value| value <= at).count() as f64 / values.len() as f64
            };
            let distance =
                (0..6).map(|at| (share(&a, at.into()) - share(&b, at.into())).abs()).fold(0.0, f64::max);
            assert!((ks(&a, &b) - distance).abs() < 1e-12);
        }
    }

    #[test]
    fn empty_samples_are_alike_and_unlike_others() {
        assert_eq!((ks(&[], &[]), ks(&[], &[1.0]), ks(&[1.0], &[1.0])), (0.0, 1.0, 0.0));
        assert_eq!(ks(&[1.0, 2.0], &[3.0]), 1.0);
    }

    #[test]
    fn distances_of_like_samples_have_uniform_p_values() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut draw = |n: usize| -> Vec<f64> { (0..n).map(|_| unit(&mut rng)).collect() };
        let pairs: Vec<f64> = (0..400).map(|_| kolmogorov_p(ks(&draw(60), &draw(40)), 24.0)).collect();
        assert!(ks_uniform(&pairs) < 0.1, "{}", ks_uniform(&pairs));
        let singles: Vec<f64> = (0..400).map(|_| kolmogorov_p(ks_uniform(&draw(60)), 60.0)).collect();
        assert!(ks_uniform(&singles) < 0.082, "{}", ks_uniform(&singles));
    }
}
