//! The adaptive policy's choice: differentially private, with a stated ε for each choice, and one choice for each epoch.
//!
//! - *Neighbours*: any two ways in which a client may use the time from one choice to the next, from nothing to everything.
//!   That time is an epoch's length, and begins and ends shortly before the epoch does. Nobody need ask how much traffic a
//!   conversation has; one that lies across a choice is in two of them, at 2·ε.
//! - *Statistic*: the demand in cells per second, clamped to [0, rate of the fastest class].
//! - *Mechanism*: the exponential mechanism with the score 1 for the class that the demand asks for (the slowest whose
//!   rate is at least 5/4 of it, else the fastest) and 0 for all others.
//! - *Sensitivity*: the score of each class changes by at most 1 between neighbours, and the sum of all weights not at
//!   all. So weights of e^(ε·score) already give ε; the usual half of ε for the sum need not be paid.
//! - *Composition*: over n epochs it is n·ε, as each choice is made with fresh randomness. The ledger sums it up.
//!
//! Weights are whole numbers, so that the probabilities are exactly what the test below says of them and no rounding of
//! floating point tells more (Mironov, CCS 2012).

use super::ClassNumber;
use rand_core::Rng;

/// Largest ε of an epoch. Beyond it a choice is as good as not noised.
pub const MAX_EPSILON: f64 = 16.0;
/// Weight of a class that the demand does not ask for.
const WEIGHT: u64 = 1 << 32;
/// A class is asked for up to this share of its rate: payload needs room for what its own bursts add.
const HEADROOM: (u64, u64) = (5, 4);

/// Why a mechanism cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMechanism {
    /// Fewer than two classes.
    #[error("has fewer than two classes to choose from")]
    TooFew,
    /// Two classes have the same rate.
    #[error("has two classes of the same rate")]
    SameRate,
    /// ε is not above 0, or above [`MAX_EPSILON`].
    #[error("is not a number above 0 and up to 16")]
    Epsilon,
}

/// Chooses a class from a demand, with noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Mechanism {
    /// By rising rate.
    classes: Vec<ClassNumber>,
    /// Cells per second, rising.
    rates: Vec<u32>,
    epsilon: f64,
    /// Weight of the class that is asked for; at most e^ε times [`WEIGHT`].
    wanted: u64,
}

impl Mechanism {
    /// Chooses among `classes`, each with its rate in cells per second, at an ε of `epsilon` for each choice.
    ///
    /// # Errors
    /// [`BadMechanism`] with fewer than two classes, two of the same rate, or an ε out of its range.
    pub fn new(mut classes: Vec<(ClassNumber, u32)>, epsilon: f64) -> Result<Self, BadMechanism> {
        if !(epsilon > 0.0 && epsilon <= MAX_EPSILON) {
            return Err(BadMechanism::Epsilon);
        }
        classes.sort_unstable_by_key(|&(_, rate)| rate);
        if classes.len() < 2 {
            return Err(BadMechanism::TooFew);
        }
        if classes.windows(2).any(|pair| pair[0].1 == pair[1].1) {
            return Err(BadMechanism::SameRate);
        }
        let (classes, rates) = classes.into_iter().unzip();
        Ok(Self { classes, rates, epsilon, wanted: weight(epsilon) })
    }

    /// ε of each choice.
    pub const fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// The classes to choose from, by rising rate.
    pub fn classes(&self) -> &[ClassNumber] {
        &self.classes
    }

    /// The place, by rising rate, of the class that `demand` (cells per second) asks for.
    fn wanted_by(&self, demand: u64) -> usize {
        let fastest = self.rates.last().copied().unwrap_or(0);
        let needed = demand.min(u64::from(fastest)) * HEADROOM.0;
        let found = self.rates.iter().position(|&rate| u64::from(rate) * HEADROOM.1 >= needed);
        found.unwrap_or(self.rates.len() - 1)
    }

    /// Each class's weight at a demand, by rising rate; the class's probability is its share of their sum.
    pub fn weights(&self, demand: u64) -> Vec<u64> {
        let wanted = self.wanted_by(demand);
        (0..self.classes.len()).map(|at| if at == wanted { self.wanted } else { WEIGHT }).collect()
    }

    /// Draws the class of the coming epoch from the demand of the last one, in cells per second.
    pub fn choose(&self, demand: u64, rng: &mut impl Rng) -> ClassNumber {
        let weights = self.weights(demand);
        let mut left = below(rng, weights.iter().sum());
        for (&class, &weight) in self.classes.iter().zip(&weights) {
            if left < weight {
                return class;
            }
            left -= weight;
        }
        // The weights' sum bounds the draw.
        self.classes[0]
    }
}

/// e^ε as a multiple of [`WEIGHT`], a little below it: `exp` is right to one part in 2^52, and what is cut off is far
/// more than that.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 2^32 to below 2^56")]
#[expect(clippy::cast_precision_loss, reason = "a power of two")]
fn weight(epsilon: f64) -> u64 {
    let exact = epsilon.exp() * (1.0 - 1e-12) * WEIGHT as f64;
    (exact as u64).max(WEIGHT)
}

/// A number below `bound`, exactly uniform.
fn below(rng: &mut impl Rng, bound: u64) -> u64 {
    let limit = u64::MAX - u64::MAX % bound.max(1);
    loop {
        let drawn = rng.next_u64();
        if drawn < limit {
            return drawn % bound.max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    fn classes(rates: &[u32]) -> Vec<(ClassNumber, u32)> {
        (0..).map(ClassNumber).zip(rates.iter().copied()).collect()
    }

    /// The largest ratio of the probabilities of one class under any two demands, as a fraction. Exact: a class's
    /// probability is a ratio of whole numbers.
    fn worst_ratio(mechanism: &Mechanism, demands: &[u64]) -> (u128, u128) {
        let mut worst = (1, 1);
        let weights: Vec<Vec<u64>> = demands.iter().map(|&demand| mechanism.weights(demand)).collect();
        for one in &weights {
            for other in &weights {
                let (sum_one, sum_other) = (one.iter().sum::<u64>(), other.iter().sum::<u64>());
                for (&a, &b) in one.iter().zip(other) {
                    // Their factors are below 2^60.
                    let ratio = (u128::from(a) * u128::from(sum_other), u128::from(b) * u128::from(sum_one));
                    if ratio.0 as f64 / ratio.1 as f64 > worst.0 as f64 / worst.1 as f64 {
                        worst = ratio;
                    }
                }
            }
        }
        worst
    }

    #[test]
    fn no_demand_makes_a_class_more_than_e_to_epsilon_times_as_likely() {
        for epsilon in [0.01, 0.1, 0.5, 1.0, std::f64::consts::LN_2, 2.0, 5.0, MAX_EPSILON] {
            for rates in [&[100, 200][..], &[100, 200, 400], &[1, 2, 3, 5, 8, 13, 21]] {
                let mechanism = Mechanism::new(classes(rates), epsilon).unwrap();
                let edges =
                    rates.iter().flat_map(|&rate| [u64::from(rate) * 4 / 5, u64::from(rate) * 4 / 5 + 1]);
                let demands: Vec<u64> = edges.chain([0, 1, u64::from(u32::MAX), 1 << 40]).collect();
                let (over, under) = worst_ratio(&mechanism, &demands);
                // Between two doubles next to each other, the true e^ε lies within one part in 2^52.
                let bound = epsilon.exp() * (1.0 - f64::EPSILON);
                let ratio = over as f64 / under as f64;
                assert!(ratio <= bound, "ε {epsilon}, {rates:?}: {ratio} above {bound}");
                // And the budget is used: with less, the choice would be worse than it need be.
                assert!(ratio > bound * (1.0 - 1e-6), "ε {epsilon}, {rates:?}: only {ratio} of {bound}");
            }
        }
    }

    #[test]
    fn a_mechanism_that_spends_more_is_found_out() {
        let mut broken = Mechanism::new(classes(&[100, 200]), 1.0).unwrap();
        broken.wanted = weight(1.1);
        let (over, under) = worst_ratio(&broken, &[0, 500]);
        assert!(over as f64 / under as f64 > 1.0_f64.exp());
    }

    #[test]
    fn draws_follow_the_weights() {
        let mechanism = Mechanism::new(classes(&[100, 200, 400]), 1.5).unwrap();
        let mut rng = ChaCha8Rng::from_seed([3; 32]);
        for demand in [0, 150, 1000] {
            let draws = 60_000;
            let mut counts = [0_u32; 3];
            for _ in 0..draws {
                counts[usize::from(mechanism.choose(demand, &mut rng).0)] += 1;
            }
            let weights = mechanism.weights(demand);
            let sum: u64 = weights.iter().sum();
            for (&count, &weight) in counts.iter().zip(&weights) {
                let p = weight as f64 / sum as f64;
                let sigma = (p * (1.0 - p) / f64::from(draws)).sqrt();
                let share = f64::from(count) / f64::from(draws);
                assert!((share - p).abs() < 4.0 * sigma, "demand {demand}: {share} for {p}");
            }
        }
    }

    #[test]
    fn sampled_choices_of_neighbours_keep_to_epsilon() {
        let mechanism = Mechanism::new(classes(&[100, 200, 400]), 1.0).unwrap();
        let mut rng = ChaCha8Rng::from_seed([4; 32]);
        let mut histogram = |demand| {
            let mut counts = [0_u32; 3];
            (0..100_000).for_each(|_| counts[usize::from(mechanism.choose(demand, &mut rng).0)] += 1);
            counts
        };
        let (idle, busy) = (histogram(0), histogram(400));
        for (one, other) in idle.into_iter().zip(busy) {
            let ratio = f64::from(one) / f64::from(other);
            // The sampling error of such counts is about 1 %.
            assert!(ratio < 1.0_f64.exp() * 1.03 && ratio > (-1.0_f64).exp() / 1.03, "{ratio}");
        }
        assert!(f64::from(idle[0]) / f64::from(busy[0]) > 2.5, "the choice follows the demand at all");
    }

    #[test]
    fn a_demand_asks_for_the_slowest_class_with_room_for_it() {
        let mechanism = Mechanism::new(classes(&[400, 100, 200]), 1.0).unwrap();
        assert_eq!(mechanism.classes(), [ClassNumber(1), ClassNumber(2), ClassNumber(0)]);
        for (demand, wanted) in [(0, 0), (80, 0), (81, 1), (160, 1), (161, 2), (400, 2), (u64::MAX, 2)] {
            assert_eq!(mechanism.wanted_by(demand), wanted, "{demand}");
        }
    }

    #[test]
    fn what_cannot_be_chosen_from_is_refused() {
        let refused = |rates: &[u32], epsilon| Mechanism::new(classes(rates), epsilon).unwrap_err();
        assert_eq!(refused(&[100], 1.0), BadMechanism::TooFew);
        assert_eq!(refused(&[100, 100], 1.0), BadMechanism::SameRate);
        for epsilon in [0.0, -1.0, 16.1, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(&[100, 200], epsilon), BadMechanism::Epsilon);
        }
    }

    proptest! {
        #[test]
        fn any_rates_and_any_epsilon_keep_the_bound(
            rates in prop::collection::btree_set(1u32..200_000, 2..6),
            epsilon in 0.001_f64..16.0,
            demands in prop::collection::vec(any::<u64>(), 2..12),
        ) {
            let rates: Vec<u32> = rates.into_iter().collect();
            let mechanism = Mechanism::new(classes(&rates), epsilon).unwrap();
            let (over, under) = worst_ratio(&mechanism, &demands);
            prop_assert!(over as f64 / under as f64 <= epsilon.exp() * (1.0 - f64::EPSILON));
        }

        #[test]
        fn draws_stay_below_their_bound(seed: [u8; 32], bound in 1u64..) {
            prop_assert!(below(&mut ChaCha8Rng::from_seed(seed), bound) < bound);
        }
    }
}
