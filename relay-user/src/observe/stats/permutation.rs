//! What a statistic would be if there were nothing to find.

use super::moments::quantile;

/// A statistic beside its values where labels or places were traded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Permuted {
    /// How likely a value this great is by chance: exact, from 1 / (shuffles + 1) up.
    pub p: f64,
    /// What 95 % of the shuffled values do not exceed.
    pub bound: f64,
}

/// Holds `observed` against `shuffles` (199 or more) values of `null`, which computes the same statistic with the link
/// between the two sides cut. Not a number where the null answers so.
pub fn permutation(observed: f64, shuffles: usize, mut null: impl FnMut() -> f64) -> Permuted {
    let mut values: Vec<f64> = (0..shuffles).map(|_| null()).collect();
    if observed.is_nan() || values.iter().any(|value| value.is_nan()) {
        return Permuted { p: f64::NAN, bound: f64::NAN };
    }
    values.sort_unstable_by(f64::total_cmp);
    let reached = values.iter().filter(|&&value| value >= observed).count();
    Permuted { p: (1 + reached) as f64 / (1 + shuffles) as f64, bound: quantile(&values, 0.95) }
}

/// The p-value of one look, `first`, and of as many more as make `looks` in all, each of `shuffles` other permutations: of
/// one alone none is less than 1 / (shuffles + 1), which is not small among many tests. `again` gives the p-value of one
/// more look. Not a number where a look is none.
pub fn looked_again(first: f64, shuffles: usize, looks: usize, again: impl FnMut() -> f64) -> f64 {
    let all = shuffles as f64 + 1.0;
    // p is (1 + those that reach it) / (1 + permutations).
    let more = std::iter::repeat_with(again).take(looks.saturating_sub(1));
    let reached: f64 = std::iter::once(first).chain(more).map(|p| p * all - 1.0).sum();
    (1.0 + reached) / (1.0 + looks.max(1) as f64 * shuffles as f64)
}

#[cfg(test)]
mod tests {
    use super::super::{ks_uniform, mean, normal, shuffle};
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    fn p(shift: f64, rng: &mut ChaCha8Rng) -> f64 {
        let mut values: Vec<f64> =
            (0..40).map(|index| normal(rng) + if index < 20 { shift } else { 0.0 }).collect();
        let difference = |values: &[f64]| mean(&values[..20]) - mean(&values[20..]);
        let observed = difference(&values);
        permutation(observed, 199, || {
            shuffle(&mut values, rng);
            difference(&values)
        })
        .p
    }

    #[test]
    fn p_values_are_uniform_without_an_effect_and_small_with_one() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let without: Vec<f64> = (0..400).map(|_| p(0.0, &mut rng)).collect();
        assert!(ks_uniform(&without) < 0.082, "{}", ks_uniform(&without));
        assert!((0..20).all(|_| p(2.0, &mut rng) <= 0.01));
        assert!(permutation(f64::NAN, 10, || 0.0).bound.is_nan());
    }
    #[test]
    fn looks_add_up() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(near(looked_again(0.002, 499, 1, || unreachable!()), 0.002));
        assert!(near(looked_again(0.002, 499, 12, || 0.002), 1.0 / 5989.0), "none reached it");
        assert!(
            near(looked_again(0.004, 499, 12, || 0.012), 57.0 / 5989.0),
            "one of the first, five of each other"
        );
        assert!(looked_again(0.002, 499, 2, || f64::NAN).is_nan());
    }
}
