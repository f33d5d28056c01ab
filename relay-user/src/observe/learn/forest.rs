//! A random forest (Breiman, 2001): trees on bootstrapped rows, each split the best of a few random features by Gini's
//! impurity.
//!
//! Features are cut into at most 32 steps of equal share first, so that a split is found by counting.

use super::table::Table;
use crate::observe::stats;
use rand_chacha::ChaCha8Rng;

const TREES: usize = 100;
const DEPTH: usize = 12;
/// Rows of a leaf, at least.
const LEAF: usize = 3;
const STEPS: usize = 32;

/// For each row of `judged` the votes, by class, of a forest grown on `learnt`.
pub fn votes(table: &Table, learnt: &[usize], judged: &[usize], rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    let forest = Forest::grow(table, learnt, TREES, rng);
    judged.iter().map(|row| forest.votes(table.row(*row))).collect()
}

/// A grown forest.
#[derive(Clone, Debug)]
pub struct Forest {
    steps: Steps,
    trees: Vec<Vec<Node>>,
    importance: Vec<f64>,
    kinds: usize,
}

impl Forest {
    /// Grows `trees` trees on these rows; classes weigh alike.
    pub fn grow(table: &Table, rows: &[usize], trees: usize, rng: &mut ChaCha8Rng) -> Self {
        let steps = Steps::of(table, rows);
        let mut nursery = Nursery::new(table, rows, &steps);
        let trees = (0..trees).map(|_| nursery.grow(rng)).collect();
        let importance = nursery.importance;
        Self { steps, trees, importance, kinds: table.kinds() }
    }

    /// The mean share of each class in the leaves that a row comes to.
    pub fn votes(&self, row: &[f64]) -> Vec<f64> {
        let codes: Vec<u8> = self.steps.codes(row).collect();
        let mut votes = vec![0.0; self.kinds];
        for tree in &self.trees {
            for (vote, share) in votes.iter_mut().zip(leaf(tree, &codes)) {
                *vote += share / self.trees.len() as f64;
            }
        }
        votes
    }

    /// What share of all impurity each feature has removed: where to look for the cause of what the forest finds.
    pub fn importance(&self) -> Vec<f64> {
        let sum: f64 = self.importance.iter().sum();
        self.importance.iter().map(|part| if sum > 0.0 { part / sum } else { 0.0 }).collect()
    }
}

fn leaf<'t>(tree: &'t [Node], codes: &[u8]) -> &'t [f64] {
    let mut at = 0;
    loop {
        match tree.get(at) {
            Some(Node::Split { feature, code, below, above }) => {
                at = if codes[*feature] <= *code { *below } else { *above };
            }
            Some(Node::Leaf { shares }) => return shares,
            None => return &[],
        }
    }
}

#[derive(Clone, Debug)]
enum Node {
    /// Rows of `code` or less go to the node `below`.
    Split {
        feature: usize,
        code: u8,
        below: usize,
        above: usize,
    },
    Leaf {
        shares: Vec<f64>,
    },
}

/// For each feature the values that end its steps, ascending; none if it does not vary.
#[derive(Clone, Debug)]
struct Steps(Vec<Vec<f64>>);

impl Steps {
    fn of(table: &Table, rows: &[usize]) -> Self {
        let ends = |feature| {
            let mut values: Vec<f64> = rows.iter().map(|row| table.row(*row)[feature]).collect();
            values.sort_unstable_by(f64::total_cmp);
            let mut ends: Vec<f64> =
                (1..STEPS).filter_map(|i| values.get(values.len() * i / STEPS)).copied().collect();
            ends.dedup();
            // Nothing lies above the greatest value.
            ends.retain(|end| Some(end) < values.last());
            ends
        };
        Self((0..table.width()).map(ends).collect())
    }

    fn codes(&self, row: &[f64]) -> impl Iterator<Item = u8> {
        let code = |(ends, value): (&Vec<f64>, &f64)| {
            u8::try_from(ends.partition_point(|end| end < value)).unwrap_or(u8::MAX)
        };
        self.0.iter().zip(row).map(code)
    }
}

/// What growing trees needs, kept from tree to tree.
struct Nursery {
    /// Codes of a feature, for every row that is learnt from.
    codes: Vec<Vec<u8>>,
    classes: Vec<usize>,
    weights: Vec<f64>,
    kinds: usize,
    /// The features that vary; a few at its front are drawn for each split.
    varying: Vec<usize>,
    importance: Vec<f64>,
    /// Weights of each class, and rows, in each step.
    sums: Vec<f64>,
    rows: Vec<usize>,
}

struct Split {
    feature: usize,
    code: u8,
    gain: f64,
}

impl Nursery {
    fn new(table: &Table, rows: &[usize], steps: &Steps) -> Self {
        let mut codes = vec![Vec::with_capacity(rows.len()); table.width()];
        for row in rows {
            for (codes, code) in codes.iter_mut().zip(steps.codes(table.row(*row))) {
                codes.push(code);
            }
        }
        let kinds = table.kinds();
        Self {
            codes,
            classes: rows.iter().map(|row| table.class(*row)).collect(),
            weights: table.weights(rows),
            kinds,
            varying: (0..table.width()).filter(|feature| !steps.0[*feature].is_empty()).collect(),
            importance: vec![0.0; table.width()],
            sums: vec![0.0; STEPS * kinds],
            rows: vec![0; STEPS],
        }
    }

    fn grow(&mut self, rng: &mut ChaCha8Rng) -> Vec<Node> {
        let count = self.classes.len();
        if count == 0 {
            return Vec::new();
        }
        let mut bag: Vec<usize> = (0..count).map(|_| stats::below(rng, count)).collect();
        let mut tree = vec![Node::Leaf { shares: Vec::new() }];
        // Nodes to be settled: their place in the tree, their part of the bag, their depth.
        let mut open = vec![(0, 0..count, 0)];
        while let Some((node, part, depth)) = open.pop() {
            let totals = self.totals(&bag[part.clone()]);
            let split = if depth < DEPTH { self.split(&bag[part.clone()], &totals, rng) } else { None };
            let Some(Split { feature, code, gain }) = split else {
                let sum: f64 = totals.iter().sum();
                tree[node] = Node::Leaf { shares: totals.iter().map(|total| total / sum).collect() };
                continue;
            };
            self.importance[feature] += gain;
            let middle = part.start + divide(&mut bag[part.clone()], |row| self.codes[feature][row] <= code);
            let (below, above) = (tree.len(), tree.len() + 1);
            tree[node] = Node::Split { feature, code, below, above };
            tree.extend([Node::Leaf { shares: Vec::new() }, Node::Leaf { shares: Vec::new() }]);
            open.push((above, middle..part.end, depth + 1));
            open.push((below, part.start..middle, depth + 1));
        }
        tree
    }

    fn totals(&self, bag: &[usize]) -> Vec<f64> {
        let mut totals = vec![0.0; self.kinds];
        for row in bag {
            let class = self.classes[*row];
            totals[class] += self.weights[class];
        }
        totals
    }

    /// The best split by some of the features, if any makes the parts purer than the whole.
    fn split(&mut self, bag: &[usize], totals: &[f64], rng: &mut ChaCha8Rng) -> Option<Split> {
        if bag.len() < 2 * LEAF || totals.iter().filter(|total| **total > 0.0).count() < 2 {
            return None;
        }
        let mut best: Option<Split> = None;
        let tried = self.varying.len().isqrt().max(1).min(self.varying.len());
        for i in 0..tried {
            let other = i + stats::below(rng, self.varying.len() - i);
            self.varying.swap(i, other);
            let feature = self.varying[i];
            if let Some((code, gain)) = self.best_code(feature, bag, totals)
                && best.as_ref().is_none_or(|best| gain > best.gain)
            {
                best = Some(Split { feature, code, gain });
            }
        }
        best
    }

    /// Where to cut one feature, and the impurity that this removes.
    fn best_code(&mut self, feature: usize, bag: &[usize], totals: &[f64]) -> Option<(u8, f64)> {
        let codes = &self.codes[feature];
        let kinds = self.kinds;
        let (mut least, mut most) = (usize::from(u8::MAX), 0);
        for row in bag {
            let code = usize::from(codes[*row]);
            least = least.min(code);
            most = most.max(code);
        }
        if least >= most {
            return None;
        }
        self.sums[least * kinds..(most + 1) * kinds].fill(0.0);
        self.rows[least..=most].fill(0);
        for row in bag {
            let (code, class) = (usize::from(codes[*row]), self.classes[*row]);
            self.sums[code * kinds + class] += self.weights[class];
            self.rows[code] += 1;
        }
        let whole = purity(totals);
        let (mut below, mut above, mut rows) = (vec![0.0; kinds], totals.to_vec(), 0);
        let mut best: Option<(u8, f64)> = None;
        for code in least..most {
            rows += self.rows[code];
            let sums = &self.sums[code * kinds..][..kinds];
            for ((below, above), sum) in below.iter_mut().zip(&mut above).zip(sums) {
                *below += sum;
                *above -= sum;
            }
            if rows < LEAF || bag.len() - rows < LEAF {
                continue;
            }
            let gain = purity(&below) + purity(&above) - whole;
            if gain > 1e-9 && best.is_none_or(|(_, other)| gain > other) {
                best = Some((u8::try_from(code).unwrap_or(u8::MAX), gain));
            }
        }
        best
    }
}

/// The sum of squares over the sum: greatest, with the sum itself, where there is one class only. Gini's impurity is
/// the sum less this.
fn purity(totals: &[f64]) -> f64 {
    let sum: f64 = totals.iter().sum();
    if sum > 0.0 { totals.iter().map(|total| total * total).sum::<f64>() / sum } else { 0.0 }
}

/// Puts the rows that `first` wants in front; returns how many they are.
fn divide(rows: &mut [usize], first: impl Fn(usize) -> bool) -> usize {
    let mut count = 0;
    for i in 0..rows.len() {
        if first(rows[i]) {
            rows.swap(i, count);
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::judge::{accuracy, tests as judged};
    use super::*;
    use rand_core::SeedableRng;

    fn few(table: &Table, learnt: &[usize], judged: &[usize], rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
        let forest = Forest::grow(table, learnt, 10, rng);
        judged.iter().map(|row| forest.votes(table.row(*row))).collect()
    }

    #[test]
    fn a_forest_tells_classes_apart_and_says_by_what() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let table = judged::noise(300, 6, 3, 6, true, 8.0, &mut rng);
        assert!(accuracy(&table, few, &mut rng).value > 0.9);
        let importance = Forest::grow(&table, &(0..300).collect::<Vec<_>>(), 15, &mut rng).importance();
        assert!(importance[0] > 0.5, "{importance:?}");
        assert!((importance.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn two_features_that_say_nothing_alone_do_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let rows: Vec<Vec<f64>> =
            (0..400).map(|_| (0..2).map(|_| stats::normal(&mut rng)).collect()).collect();
        let labels: Vec<u16> = rows.iter().map(|row| u16::from(row[0] * row[1] > 0.0)).collect();
        let blocks: Vec<u32> = (0..400).map(|row| row / 10).collect();
        let table = Table::new(rows, &labels, &blocks);
        assert!(accuracy(&table, few, &mut rng).value > 0.8);
    }

    #[test]
    fn noise_is_noise() {
        for mixed in [true, false] {
            let alarms = judged::false_alarms(few, mixed);
            assert!(alarms <= 6, "{alarms} of 40, blocks mixed: {mixed}");
        }
    }

    #[test]
    fn rows_that_do_not_vary_make_leaves_of_equal_shares() {
        let labels: Vec<u16> = (0..90).map(|row| u16::from(row % 3 == 0)).collect();
        let table =
            Table::new(vec![vec![7.0; 4]; 90], &labels, &(0..90).map(|row| row / 9).collect::<Vec<_>>());
        let forest =
            Forest::grow(&table, &(0..90).collect::<Vec<_>>(), 50, &mut ChaCha8Rng::seed_from_u64(7));
        let votes = forest.votes(&[7.0; 4]);
        assert!((votes[0] - 0.5).abs() < 0.1 && (votes[0] + votes[1] - 1.0).abs() < 1e-9, "{votes:?}");
        assert!(forest.votes(&[]).iter().all(|vote| vote.is_finite()));
    }

    #[test]
    fn the_seed_decides() {
        let table = judged::noise(120, 3, 2, 6, true, 0.5, &mut ChaCha8Rng::seed_from_u64(8));
        let run = || few(&table, &(0..60).collect::<Vec<_>>(), &[60, 61], &mut ChaCha8Rng::seed_from_u64(9));
        assert_eq!(run(), run());
    }
}
