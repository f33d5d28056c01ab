//! Evenwire's benchmarks: each case measures ratios within one run, beside what the machine itself did meanwhile.
//!
//! ```text
//! cases/*  -> Session (figures, distributions, plots)  -> report/*: table, JSON, HTML with SVG, .hgrm
//!                ^ gap probe before and after each case
//! ```

pub mod cases;
pub mod cells;
pub mod cpu;
pub mod figure;
pub mod privacy;
pub mod probe;
pub mod report;
pub mod rig;
pub mod session;
