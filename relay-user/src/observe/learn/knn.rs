//! The nearest neighbours' votes.

use super::table::Table;
use crate::observe::stats;
use rand_chacha::ChaCha8Rng;

/// Neighbours that vote.
const NEAREST: usize = 9;
/// Sums of squares that run side by side, which lets a processor add them at once.
const LANES: usize = 8;

/// For each row of `judged` the votes, by class, of the nearest rows of `learnt`. Features are measured by their rank among
/// `learnt`, so that one freak gap does not decide, and count by how far the classes of `learnt` lie apart in them: dozens
/// that tell nothing would hide the few that do. Classes weigh alike. Of rows equally near, chance decides which vote.
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
    /// Each feature's values, in order.
    known: Vec<Vec<f64>>,
    factors: Vec<f64>,
    padding: usize,
}

impl Scale {
    fn of(table: &Table, rows: &[usize]) -> Self {
        let mut scale = Self { known: Vec::new(), factors: Vec::new(), padding: 0 };
        for feature in 0..table.width() {
            let mut known: Vec<f64> = rows.iter().map(|row| table.row(*row)[feature]).collect();
            known.sort_unstable_by(f64::total_cmp);
            let ranks: Vec<f64> = rows.iter().map(|row| rank(&known, table.row(*row)[feature])).collect();
            // Ranks would make much of what differs by rounding only.
            let ends = known.first().zip(known.last());
            let flat = ends.is_none_or(|(least, most)| most - least <= 1e-9 * (1.0 + least.abs()));
            scale.factors.push(if flat { 0.0 } else { apart(table, rows, &ranks) });
            scale.known.push(known);
        }
        scale.padding = scale.known.len().next_multiple_of(LANES) - scale.known.len();
        scale
    }

    fn apply(&self, row: &[f64]) -> impl Iterator<Item = f32> {
        let scaled = row.iter().zip(&self.known).zip(&self.factors);
        let scaled = scaled.map(|((value, known), factor)| rank(known, *value) * factor);
        #[expect(clippy::cast_possible_truncation, reason = "distances need no more than single precision")]
        let single = scaled.map(|value| value as f32);
        single.chain(std::iter::repeat_n(0.0, self.padding))
    }
}

/// The share of `known` below a value, equal ones counted half.
fn rank(known: &[f64], value: f64) -> f64 {
    let below = known.partition_point(|known| *known < value);
    let end = known.partition_point(|known| *known <= value);
    (below + end) as f64 / 2.0 / known.len().max(1) as f64
}

/// The deviation of the classes' mean ranks.
fn apart(table: &Table, rows: &[usize], ranks: &[f64]) -> f64 {
    let mut sums = vec![(0.0, 0.0); table.kinds()];
    for (row, rank) in rows.iter().zip(ranks) {
        let (sum, count) = &mut sums[table.class(*row)];
        *sum += rank;
        *count += 1.0;
    }
    let means = sums.into_iter().filter(|(_, count)| *count > 0.0).map(|(sum, count)| sum / count);
    stats::variance(&means.collect::<Vec<_>>()).sqrt()
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
    fn what_tells_nothing_does_not_hide_what_does() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let table = judged::noise(360, 60, 3, 6, true, 8.0, &mut rng);
        let found = accuracy(&table, votes, &mut rng);
        assert!(found.value > 0.9, "{found:?}");
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
