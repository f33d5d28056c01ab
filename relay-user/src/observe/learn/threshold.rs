//! The one number that tells two classes apart best, as a learner: what a single threshold on it could do.

use super::table::Table;
use crate::observe::stats::{auc, below};
use rand_chacha::ChaCha8Rng;

/// For each row of `judged` the votes, by class, of the feature by which the rows of `learnt` are told apart best. The
/// vote for the second class is the share of `learnt` that the row lies above, or below where the second class lies
/// below. For two classes; of others, none has more votes than the next.
pub fn votes(table: &Table, learnt: &[usize], judged: &[usize], rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    if table.kinds() != 2 || table.width() == 0 {
        return vec![vec![1.0; table.kinds()]; judged.len()];
    }
    let area = |feature: usize| {
        let of = |class: usize| -> Vec<f64> {
            let rows = learnt.iter().filter(|row| table.class(**row) == class);
            rows.map(|row| table.row(*row)[feature]).collect()
        };
        auc(&of(0), &of(1))
    };
    // From a place that chance names, so that of equals none is preferred.
    let first = below(rng, table.width());
    let features = (0..table.width()).map(|at| (first + at) % table.width());
    let areas = features.map(|feature| (feature, area(feature)));
    let told = |area: f64| if area.is_finite() { (area - 0.5).abs() } else { 0.0 };
    let best = areas.max_by(|a, b| told(a.1).total_cmp(&told(b.1)));
    let (feature, area) = best.unwrap_or((0, 0.5));
    let mut known: Vec<f64> = learnt.iter().map(|row| table.row(*row)[feature]).collect();
    known.sort_unstable_by(f64::total_cmp);
    let share = |value: f64| {
        let under = known.partition_point(|other| *other < value);
        let up_to = known.partition_point(|other| *other <= value);
        (under + up_to) as f64 / (2 * known.len()).max(1) as f64
    };
    let vote = |row: &usize| {
        let above = share(table.row(*row)[feature]);
        let second = if area < 0.5 { 1.0 - above } else { above };
        vec![1.0 - second, second]
    };
    judged.iter().map(vote).collect()
}

#[cfg(test)]
mod tests {
    use super::super::judge::{area, tests as judged};
    use super::*;
    use rand_core::SeedableRng;

    #[test]
    fn one_number_tells_two_classes_apart_whichever_way_it_goes() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for shift in [8.0, -8.0] {
            let table = judged::noise(400, 6, 2, 8, true, shift, &mut rng);
            assert!(area(&table, votes, &mut rng).value > 0.95, "{shift}");
        }
    }

    #[test]
    fn three_classes_get_equal_votes() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let table = judged::noise(90, 2, 3, 6, true, 8.0, &mut rng);
        assert_eq!(votes(&table, &[0, 1, 2], &[3, 4], &mut rng), vec![vec![1.0; 3]; 2]);
    }
}
