//! Entropy and mutual information of what falls into bins.

use super::moments::quantile;

/// The entropy, in bits, of a law that gave these counts, with Miller and Madow's correction for what few observations
/// hide. Not a number where nothing was counted.
pub fn entropy(counts: &[u64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let filled = counts.iter().filter(|&&count| count > 0);
    let sum: f64 = filled.clone().map(|&count| count as f64 * (count as f64).log2()).sum();
    let correction = (filled.count() as f64 - 1.0) / (2.0 * total * std::f64::consts::LN_2);
    total.log2() - sum / total + correction
}

/// What the bins `x` tell about the bins `y` of the same observations, in bits, with Miller and Madow's correction: 0 on
/// average where they tell nothing, so it may come out below. Not a number without observations.
pub fn mutual_information(x: &[usize], y: &[usize]) -> f64 {
    let size = |bins: &[usize]| bins.iter().max().map_or(0, |max| max + 1);
    let mut counted = Contingency::new(size(x), size(y));
    counted.count(x, y);
    counted.information()
}

/// How often bins of two kinds were met together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contingency {
    columns: usize,
    counts: Vec<u64>,
}

impl Contingency {
    /// Nothing yet, of bins below `rows` and below `columns`.
    pub fn new(rows: usize, columns: usize) -> Self {
        Self { columns, counts: vec![0; rows * columns] }
    }

    /// Adds observations; bins that there are not are left out.
    pub fn count(&mut self, x: &[usize], y: &[usize]) {
        for (&x, &y) in x.iter().zip(y) {
            if let Some(count) = self.counts.get_mut(x * self.columns + y) {
                *count += 1;
            }
        }
    }

    /// Adds what another of the same size counted.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
    }

    /// How many observations there were.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// As [`mutual_information`].
    pub fn information(&self) -> f64 {
        let rows = self.counts.chunks(self.columns.max(1));
        let first: Vec<u64> = rows.clone().map(|row| row.iter().sum()).collect();
        let mut second = vec![0; self.columns];
        for row in rows {
            second.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
        }
        entropy(&first) + entropy(&second) - entropy(&self.counts)
    }
}

/// The bin (below `bins`) of each value, with about as many values in each. Equal values share a bin, so that there may be
/// fewer.
pub fn quantile_bins(values: &[f64], bins: usize) -> Vec<usize> {
    let edges = quantile_edges(values, bins);
    values.iter().map(|value| edges.partition_point(|edge| edge < value)).collect()
}

/// The inner edges of `bins` bins with about as many values in each; a value equal to an edge lies below it.
pub fn quantile_edges(values: &[f64], bins: usize) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let mut edges: Vec<f64> =
        (1..bins).map(|edge| quantile(&sorted, edge as f64 / bins.max(1) as f64)).collect();
    edges.dedup();
    edges
}

#[cfg(test)]
mod tests {
    use super::super::{below, mean, normal};
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    #[test]
    fn entropy_of_known_laws() {
        assert!(entropy(&[1_000_000, 0]).abs() < 1e-12);
        assert!((entropy(&[1_000_000; 8]) - 3.0).abs() < 1e-5);
        assert!(entropy(&[]).is_nan());
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        // 40 draws in 16 bins: uncorrected it would be 3.72 on average.
        let corrected: Vec<f64> = (0..500)
            .map(|_| {
                let mut counts = [0; 16];
                for _ in 0..40 {
                    counts[below(&mut rng, 16)] += 1;
                }
                entropy(&counts)
            })
            .collect();
        assert!((mean(&corrected) - 4.0).abs() < 0.06, "{}", mean(&corrected));
    }

    #[test]
    fn information_of_what_is_equal_and_of_what_is_unrelated() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut draw = || -> Vec<usize> { (0..4000).map(|_| below(&mut rng, 4)).collect() };
        let x = draw();
        assert!((mutual_information(&x, &x) - 2.0).abs() < 0.01);
        let unrelated: Vec<f64> = (0..200).map(|_| mutual_information(&draw(), &draw())).collect();
        assert!(mean(&unrelated).abs() < 2e-4, "{}", mean(&unrelated));
        assert!(mutual_information(&[], &[]).is_nan());
    }

    #[test]
    fn information_of_a_noisy_channel() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let x: Vec<usize> = (0..50_000).map(|_| below(&mut rng, 2)).collect();
        let y: Vec<usize> =
            x.iter().map(|&bit| if below(&mut rng, 10) == 0 { 1 - bit } else { bit }).collect();
        // 1 - h(0.1).
        assert!((mutual_information(&x, &y) - 0.531).abs() < 0.01);
    }

    #[test]
    fn bins_are_even_and_ties_stay_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let values: Vec<f64> = (0..1000).map(|_| normal(&mut rng)).collect();
        let bins = quantile_bins(&values, 4);
        for bin in 0..4 {
            let count = bins.iter().filter(|&&of| of == bin).count();
            assert!((248..=252).contains(&count), "{count}");
        }
        assert_eq!(quantile_bins(&[5.0; 9], 4), [0; 9]);
        let mostly_zero = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0];
        assert_eq!(quantile_bins(&mostly_zero, 4), [0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
