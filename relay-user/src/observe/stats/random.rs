//! Numbers drawn from a seeded generator.

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

/// A number below `bound` (0 where `bound` is 0), uniform to within `bound` / 2^64.
pub fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    let scaled = (u128::from(rng.next_u64()) * bound as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

/// A number in [0, 1), uniform.
pub fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A number from the normal law of mean 0 and variance 1 (Box and Muller's).
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(rng)).cos()
}

/// Puts `items` in an order drawn uniformly.
pub fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ks_uniform, mean, normal_p, variance};
    use super::*;
    use rand_core::SeedableRng;

    #[test]
    fn draws_follow_their_laws() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let normals: Vec<f64> = (0..20_000).map(|_| normal(&mut rng)).collect();
        assert!(mean(&normals).abs() < 0.03);
        assert!((variance(&normals) - 1.0).abs() < 0.04);
        // Through its own distribution function a normal draw becomes uniform. 1.63/sqrt(n) is the 1 % bound.
        let ranks: Vec<f64> = normals.iter().map(|&z| normal_p(z)).collect();
        assert!(ks_uniform(&ranks) < 1.63 / 20_000f64.sqrt());
    }

    #[test]
    fn every_order_is_as_likely() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut seen = [0u32; 27];
        for _ in 0..6000 {
            let mut items = [0, 1, 2];
            shuffle(&mut items, &mut rng);
            seen[items[0] * 9 + items[1] * 3 + items[2]] += 1;
        }
        let orders: Vec<u32> = seen.into_iter().filter(|&count| count > 0).collect();
        assert_eq!(orders.len(), 6);
        assert!(orders.iter().all(|count| (880..1120).contains(count)), "{orders:?}");
        assert_eq!(below(&mut rng, 0), 0);
    }
}
