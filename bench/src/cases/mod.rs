//! The cases, in the order in which they run.

pub mod engine;
pub mod latency;
pub mod pacing;
pub mod peers;
pub mod pktgen;
pub mod relay;
pub mod ring;
pub mod tun;
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
pub const ALL: [Case; 9] = [
    Case { name: "engine", about: "ns per cell and per wheel event in memory", run: engine::run },
    Case { name: "xdp", about: "ns per packet of the XDP program, and floods it drops", run: xdp::run },
    Case { name: "ring", about: "rxdrop, txonly and l2fwd with the project's own rings", run: ring::run },
    Case {
        name: "relay",
        about: "greatest constant rate without loss, and CPU time per relayed cell",
        run: relay::run,
    },
    Case { name: "pacing", about: "how late slots are, idle and at 80 % load", run: pacing::run },
    Case { name: "latency", about: "what each hop adds to a packet's way", run: latency::run },
    Case { name: "tun", about: "packets per call and CPU per packet at the TUN edges", run: tun::run },
    Case {
        name: "peers",
        about: "CPU per forwarded payload beside userspace WireGuard and tor",
        run: peers::run,
    },
    Case { name: "pktgen", about: "a link while the kernel's packet generator floods it", run: pktgen::run },
];
