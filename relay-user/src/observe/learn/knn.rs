//! The nearest neighbours' votes.

use super::series::deviation;
use super::table::Table;
use crate::observe::stats;
use rand_chacha::ChaCha8Rng;

/// Neighbours that vote.
const NEAREST: usize = 9;
/// Deviations from the mean beyond which a feature counts no further: one freak gap must not decide.
const FARTHEST: f64 = 5.0;
/// Sums of squares that run side by side, which lets a processor add them at once.
const LANES: usize = 8;

/// For each row of `judged` the votes, by class, of the nearest rows of `learnt`. Features are measured in deviations
/// from the mean of `learnt`, and classes weigh alike. Of rows equally near, chance decides which vote.
pub fn votes(table: &Table, learnt: &[usize], judged: &[usize], rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    let mut learnt = learnt.to_vec();
    stats::shuffle(&mut learnt, rng);
    let scale = Scale::of(table, &learnt);
    let weights = table.weights(&learnt);
    let known: Vec<f32> = learnt.iter().flat_map(|row| scale.apply(table.row(*row))).collect();
    let mut near: Vec<(f32, usize)> = Vec::with_capacity(learnt.len());
    judged
        .iter()
        .map(|row| {
            let row: Vec<f32> = scale.apply(table.row(*row)).collect();
            near.clear();
            near.extend(known.chunks_exact(row.len().max(1)).map(|other| distance(&row, other)).zip(0..));
            if near.len() > NEAREST {
                near.select_nth_unstable_by(NEAREST, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            }
            let mut votes = vec![0.0; table.kinds()];
            for (_, at) in near.iter().take(NEAREST) {
                let class = table.class(learnt[*at]);
                votes[class] += weights[class];
            }
            votes
        })
        .collect()
}

struct Scale {
    centres: Vec<f64>,
    factors: Vec<f64>,
    padding: usize,
}

impl Scale {
    fn of(table: &Table, rows: &[usize]) -> Self {
        let mut scale = Self { centres: Vec::new(), factors: Vec::new(), padding: 0 };
        for feature in 0..table.width() {
            let values: Vec<f64> = rows.iter().map(|row| table.row(*row)[feature]).collect();
            let (centre, spread) = (stats::mean(&values), deviation(&values));
            let flat = spread <= 1e-9 * (1.0 + centre.abs());
            scale.centres.push(centre);
            scale.factors.push(if flat { 0.0 } else { 1.0 / spread });
        }
        scale.padding = scale.centres.len().next_multiple_of(LANES) - scale.centres.len();
        scale
    }

    fn apply(&self, row: &[f64]) -> impl Iterator<Item = f32> {
        let scaled = row.iter().zip(&self.centres).zip(&self.factors);
        let scaled = scaled.map(|((value, centre), factor)| (value - centre) * factor);
        #[expect(clippy::cast_possible_truncation, reason = "distances need no more than single precision")]
        let single = scaled.map(|value| value.clamp(-FARTHEST, FARTHEST) as f32);
        single.chain(std::iter::repeat_n(0.0, self.padding))
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += (a - b) * (a - b);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::judge::{accuracy, tests as judged};
    use super::*;
    use rand_core::SeedableRng;

    #[test]
    fn neighbours_tell_classes_apart() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let table = judged::noise(300, 3, 3, 6, true, 8.0, &mut rng);
        assert!(accuracy(&table, votes, &mut rng).value > 0.9);
    }

    #[test]
    fn noise_is_noise() {
        for mixed in [true, false] {
            let alarms = judged::false_alarms(votes, mixed);
            assert!(alarms <= 6, "{alarms} of 40, blocks mixed: {mixed}");
        }
    }

    #[test]
    fn equal_rows_vote_by_chance() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let labels: Vec<u16> = (0..200).map(|row| row % 2).collect();
        let blocks: Vec<u32> = (0..200).map(|row| row / 10).collect();
        let table = Table::new(vec![vec![1000.0, 0.1]; 200], &labels, &blocks);
        assert!(accuracy(&table, votes, &mut rng).interval.holds(0.5));
    }

    #[test]
    fn the_seed_decides() {
        let table = judged::noise(120, 3, 2, 6, true, 0.5, &mut ChaCha8Rng::seed_from_u64(7));
        let run =
            || votes(&table, &(0..60).collect::<Vec<_>>(), &[60, 61], &mut ChaCha8Rng::seed_from_u64(8));
        assert_eq!(run(), run());
    }
}
