//! Windows as rows of features, with the truth beside them.

use super::features;
use crate::observe::stats::numbered;
use crate::observe::trace::{Sample, Window};

/// Rows of features. All rows are of one length.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<f64>>,
    classes: Vec<usize>,
    blocks: Vec<usize>,
    kinds: usize,
    groups: usize,
}

impl Table {
    /// Rows, their labels and their blocks. What has no label or no block is left out.
    pub fn new(rows: Vec<Vec<f64>>, labels: &[u16], blocks: &[u32]) -> Self {
        let length = rows.len().min(labels.len()).min(blocks.len());
        let labels: Vec<u32> = labels[..length].iter().map(|label| u32::from(*label)).collect();
        let (classes, kinds) = numbered(&labels);
        let (blocks, groups) = numbered(&blocks[..length]);
        Self { rows, classes, blocks, kinds, groups }
    }

    /// One direction of each window.
    pub fn one_way(samples: &[Sample<'_>]) -> Self {
        Self::of(samples, samples.iter().map(|sample| features::of(&[sample.window])).collect())
    }

    /// Both directions of each window: `back` are those of the other one, in the same order.
    pub fn two_way(out: &[Sample<'_>], back: &[Window<'_>]) -> Self {
        let rows = out.iter().zip(back).map(|(out, back)| features::of(&[out.window, *back])).collect();
        Self::of(out, rows)
    }

    fn of(samples: &[Sample<'_>], rows: Vec<Vec<f64>>) -> Self {
        let labels: Vec<u16> = samples.iter().map(|sample| sample.label).collect();
        let blocks: Vec<u32> = samples.iter().map(|sample| sample.block).collect();
        Self::new(rows, &labels, &blocks)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// A row's features.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.rows[row]
    }

    /// How many features a row has.
    pub fn width(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// A row's label, as a number below [`Self::kinds`].
    pub fn class(&self, row: usize) -> usize {
        self.classes[row]
    }

    /// How many labels there are.
    pub const fn kinds(&self) -> usize {
        self.kinds
    }

    /// A row's block, as a number below [`Self::groups`].
    pub fn block(&self, row: usize) -> usize {
        self.blocks[row]
    }

    /// How many blocks there are.
    pub const fn groups(&self) -> usize {
        self.groups
    }

    /// What a row of each class weighs, so that the classes of `rows` weigh alike, however many rows each has.
    pub fn weights(&self, rows: &[usize]) -> Vec<f64> {
        let mut seen = vec![0_usize; self.kinds];
        for row in rows {
            seen[self.classes[*row]] += 1;
        }
        let share = rows.len() as f64 / self.kinds.max(1) as f64;
        seen.into_iter().map(|seen| if seen == 0 { 0.0 } else { share / seen as f64 }).collect()
    }
}
