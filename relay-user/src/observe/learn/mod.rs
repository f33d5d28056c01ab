//! Attacks that learn: what windows look like in numbers, and who tells activities apart by them.
//!
//! A [`table::Table`] holds one row of [`features`] for each window. [`judge`] lets [`knn`] or a [`forest`] learn from
//! some blocks and judge others; [`figure`] draws blocks, never windows, to say how sure the result is. [`series`] holds
//! what compares two windows.

pub mod features;
pub mod figure;
pub mod forest;
pub mod judge;
pub mod knn;
pub mod likeness;
pub mod series;
pub mod table;
pub mod threshold;
