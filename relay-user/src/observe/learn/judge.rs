//! How often a learner is right about blocks that it has not seen.
//!
//! Blocks are put in a random order and cut into parts; each part is judged by what was learnt from those before it.
//! The usual cross-validation, where each part is judged by all others, learns A from B and B from A: its errors come
//! in pairs, so that a bootstrap of blocks is too sure of itself and cries wolf more often than it says. Judged forward
//! only, a guess is right independently of all guesses before it.

use super::figure::{FEWEST, Figure, Scored, auc, by_block};
use super::table::Table;
use crate::observe::stats;
use rand_chacha::ChaCha8Rng;

/// Parts that the blocks are cut into, at most.
const PARTS: usize = 10;

/// Learns from the first rows and says, for each of the second, how far it votes for each class.
pub type Learner = fn(&Table, &[usize], &[usize], &mut ChaCha8Rng) -> Vec<Vec<f64>>;

/// How often `learner` names the right class, as the mean over classes, so that guessing gives 1/K however many rows
/// each class has. Nothing is said unless there are two classes, and each is in [`FEWEST`] blocks.
pub fn accuracy(table: &Table, learner: Learner, rng: &mut ChaCha8Rng) -> Figure {
    let mut right = vec![Tally::default(); table.groups() * table.kinds()];
    let mut samples = 0;
    forward(table, learner, rng, |row, votes| {
        let class = table.class(row);
        let tally = &mut right[table.block(row) * table.kinds() + class];
        tally.rows += 1.0;
        tally.right += credit(votes, class);
        samples += 1;
    });
    let judged: Vec<&[Tally]> = right
        .chunks(table.kinds().max(1))
        .filter(|block| block.iter().any(|tally| tally.rows > 0.0))
        .collect();
    by_block(judged.len(), samples, rng, |drawn| {
        let mut sums = vec![Tally::default(); table.kinds()];
        for block in drawn {
            for (sum, tally) in sums.iter_mut().zip(judged[*block]) {
                sum.rows += tally.rows;
                sum.right += tally.right;
            }
        }
        let recalls: Vec<f64> =
            sums.iter().filter(|sum| sum.rows > 0.0).map(|sum| sum.right / sum.rows).collect();
        stats::mean(&recalls)
    })
}

/// How likely `learner` gives more votes to the second of two classes for a row of it than for one of the first. Nothing
/// is said unless there are two classes, and each is in [`FEWEST`] blocks.
pub fn area(table: &Table, learner: Learner, rng: &mut ChaCha8Rng) -> Figure {
    if table.kinds() != 2 {
        return Figure::NONE;
    }
    let mut scored = Vec::with_capacity(table.len());
    forward(table, learner, rng, |row, votes| {
        let [first, second] = [0, 1].map(|class| votes.get(class).copied().unwrap_or(0.0));
        let block = u32::try_from(table.block(row)).unwrap_or(u32::MAX);
        scored.push(Scored { score: second - first, positive: table.class(row) == 1, block });
    });
    auc(&scored, rng)
}

/// Passes every judged row to `take`, with the votes of what was learnt before it.
fn forward(table: &Table, learner: Learner, rng: &mut ChaCha8Rng, mut take: impl FnMut(usize, &[f64])) {
    let parts = parts(table, rng);
    // The first parts are only learnt from.
    let first = (parts.len() / 5).max(1);
    for at in first..parts.len() {
        let learnt: Vec<usize> = parts[..at].iter().flatten().copied().collect();
        let votes = learner(table, &learnt, &parts[at], rng);
        for (row, votes) in parts[at].iter().zip(votes) {
            take(*row, &votes);
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Tally {
    rows: f64,
    right: f64,
}

/// 1 if `class` has the most votes, shared where several have.
fn credit(votes: &[f64], class: usize) -> f64 {
    let most = votes.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let equals = votes.iter().filter(|votes| **votes == most).count();
    if votes.get(class) == Some(&most) { 1.0 / equals as f64 } else { 0.0 }
}

/// The rows of each part. Whole blocks, in random order; those of one class only are spread evenly over the parts, so
/// that no part's classes can be told from what the earlier ones lack. None if there is too little to learn from.
fn parts(table: &Table, rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
    let mut holds = vec![vec![false; table.kinds()]; table.groups()];
    for row in 0..table.len() {
        holds[table.block(row)][table.class(row)] = true;
    }
    let rarest = (0..table.kinds()).map(|class| holds.iter().filter(|holds| holds[class]).count()).min();
    let count = rarest.unwrap_or(0).min(PARTS);
    if table.kinds() < 2 || count < FEWEST {
        return Vec::new();
    }
    let mut blocks: Vec<usize> = (0..table.groups()).collect();
    stats::shuffle(&mut blocks, rng);
    // Blocks of one class by class, those of several together.
    let mut alike = vec![Vec::new(); table.kinds() + 1];
    for block in blocks {
        let classes: Vec<usize> = (0..table.kinds()).filter(|class| holds[block][*class]).collect();
        alike[if let [only] = classes[..] { only } else { table.kinds() }].push(block);
    }
    let mut part = vec![0; table.groups()];
    for alike in alike {
        for (rank, block) in alike.iter().enumerate() {
            part[*block] = rank * count / alike.len();
        }
    }
    let mut parts = vec![Vec::new(); count];
    for row in 0..table.len() {
        parts[part[table.block(row)]].push(row);
    }
    parts
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rand_core::SeedableRng;

    /// Rows of `width` features of noise; the first feature of class c is `shift * c` greater. Each block holds all
    /// classes, or one.
    pub(in super::super) fn noise(
        rows: u32,
        width: usize,
        kinds: u16,
        per_block: u32,
        mixed: bool,
        shift: f64,
        rng: &mut ChaCha8Rng,
    ) -> Table {
        let label = |row: u32| {
            let at = if mixed { row } else { row / per_block };
            u16::try_from(at % u32::from(kinds)).unwrap()
        };
        let labels: Vec<u16> = (0..rows).map(label).collect();
        let blocks: Vec<u32> = (0..rows).map(|row| row / per_block).collect();
        // What a block's windows share, the machine's state: it must not be taken for the class.
        let mut shared: Vec<f64> = Vec::new();
        let values = (0..rows)
            .map(|row| {
                if row % per_block == 0 {
                    shared = (0..width).map(|_| stats::normal(rng)).collect();
                }
                let mut values: Vec<f64> = shared.iter().map(|shared| shared + stats::normal(rng)).collect();
                values[0] += shift * f64::from(label(row));
                values
            })
            .collect();
        Table::new(values, &labels, &blocks)
    }

    /// Runs on noise in which the interval of `learner` misses chance, of 40: 2 are expected, and more than 6 come once
    /// in 300 times.
    pub(in super::super) fn false_alarms(learner: Learner, mixed: bool) -> usize {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let alarm = |_: &u32| {
            let table = noise(288, 5, 3, 6, mixed, 0.0, &mut rng);
            let found = accuracy(&table, learner, &mut rng);
            assert!(found.samples >= 200);
            !found.interval.holds(1.0 / 3.0)
        };
        (0..40).filter(alarm).count()
    }

    #[test]
    fn areas_of_noise_hold_one_half_as_often_as_they_say() {
        for (learner, mixed) in [(forest_of_few as Learner, false), (super::super::threshold::votes, false)] {
            let mut rng = ChaCha8Rng::seed_from_u64(12);
            let tables = 60;
            let mut values = Vec::new();
            let alarm = |_: &u32| {
                let table = noise(320, 5, 2, 8, mixed, 0.0, &mut rng);
                let found = area(&table, learner, &mut rng);
                values.push(found.value);
                !found.interval.holds(0.5)
            };
            let alarms = (0..tables).filter(alarm).count();
            assert!(alarms <= 8, "{alarms} of {tables}");
            assert!((stats::mean(&values) - 0.5).abs() < 0.04, "{}", stats::mean(&values));
        }
    }

    fn forest_of_few(
        table: &Table,
        learnt: &[usize],
        judged: &[usize],
        rng: &mut ChaCha8Rng,
    ) -> Vec<Vec<f64>> {
        let forest = super::super::forest::Forest::grow(table, learnt, 10, rng);
        judged.iter().map(|row| forest.votes(table.row(*row))).collect()
    }

    fn only(class: usize, table: &Table) -> Vec<f64> {
        (0..table.kinds()).map(|other| f64::from(u8::from(other == class))).collect()
    }

    fn oracle(table: &Table, _: &[usize], judged: &[usize], _: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
        judged.iter().map(|row| only(table.class(*row), table)).collect()
    }

    fn one_sided(table: &Table, _: &[usize], judged: &[usize], _: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
        judged.iter().map(|_| only(0, table)).collect()
    }

    #[test]
    fn who_knows_is_right_and_who_always_says_the_same_is_at_chance() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for mixed in [true, false] {
            let table = noise(400, 2, 4, 10, mixed, 0.0, &mut rng);
            assert!((accuracy(&table, oracle, &mut rng).value - 1.0).abs() < 1e-12);
            let same = accuracy(&table, one_sided, &mut rng);
            assert!((same.value - 0.25).abs() < 1e-12 && same.interval.holds(0.25));
        }
    }

    #[test]
    fn nothing_is_learnt_from_the_blocks_judged_nor_from_later_ones() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let table = noise(300, 2, 3, 5, true, 0.0, &mut rng);
        let parts = parts(&table, &mut rng);
        assert_eq!(parts.len(), PARTS);
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 300);
        for (at, part) in parts.iter().enumerate() {
            for other in parts.iter().skip(at + 1).flatten() {
                assert!(part.iter().all(|row| table.block(*row) != table.block(*other)));
            }
        }
    }

    #[test]
    fn every_part_has_every_class_where_blocks_have_one_each() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let table = noise(300, 2, 3, 5, false, 0.0, &mut rng);
        for part in parts(&table, &mut rng) {
            let mut seen: Vec<usize> = part.iter().map(|row| table.class(*row)).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, [0, 1, 2]);
        }
    }

    #[test]
    fn too_few_blocks_of_a_class_say_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let table = noise(300, 2, 3, 60, true, 0.0, &mut rng);
        assert_eq!(accuracy(&table, oracle, &mut rng).samples, 0);
    }
}
