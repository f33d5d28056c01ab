//! The cases, in the order in which they run.

pub mod engine;
pub mod xdp;

use crate::session::Session;

/// One benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it is called on the command line and in reports.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    /// Measures.
    pub run: fn(&mut Session) -> anyhow::Result<()>,
}

/// Every case.
pub const ALL: [Case; 2] = [
    Case { name: "engine", about: "ns per cell and per wheel event in memory", run: engine::run },
    Case { name: "xdp", about: "ns per packet of the XDP program, and floods it drops", run: xdp::run },
];
