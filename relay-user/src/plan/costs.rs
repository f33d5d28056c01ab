//! What cells cost: bytes on the wire, processor time, memory. Measured figures are those of docs/benchmarks.md, on the
//! machine that is described there; who plans for another one takes them as a first estimate.

use std::net::IpAddr;

use relay_common::wire::{CELL_LEN, DATA_LEN};
use serde::Serialize;

use crate::config::{BindMode, Datapath, DatapathMode};
use crate::edge::packing::BLOCK_HEADER_LEN;
use crate::xsk::Arena;

/// Bytes of a UDP header.
const UDP: usize = 8;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes that a frame takes beside itself: checksum 4, preamble 8, gap 12.
const BETWEEN_FRAMES: usize = 24;
/// Seconds of a month of 30 days.
const MONTH: f64 = 30.0 * 86_400.0;

/// Bytes of an idle link, measured.
const LINK_BYTES: u64 = 3101;
/// Bytes of a circuit, measured.
const CIRCUIT_BYTES: u64 = 1904;
/// Nanoseconds of one AEAD pass over a cell: a third of the three passes that were measured together.
const PASS_NANOS: f64 = 459.0 / 3.0;
/// The share of a core that may be used, so that slots are kept (docs/bare-metal.md).
const LOAD: f64 = 0.8;

/// Bytes of an IP header without options.
const fn ip_header(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    }
}

/// Mbit/s that `rate` cells per second to `address` take of an Ethernet wire, with everything around them.
pub(super) fn wire_mbit(rate: f64, address: IpAddr) -> f64 {
    rate * (CELL_LEN + UDP + ip_header(address) + ETHERNET + BETWEEN_FRAMES) as f64 * 8.0 / 1e6
}

/// GB (10^9 bytes) that they are in 30 days as interfaces count them: frames with their header.
pub(super) fn month_gb(rate: f64, address: IpAddr) -> f64 {
    rate * (CELL_LEN + UDP + ip_header(address) + ETHERNET) as f64 * MONTH / 1e9
}

/// Mbit/s of IP packets of `mtu` bytes that `rate` cells per second carry.
pub(super) fn goodput_mbit(rate: f64, mtu: u16) -> f64 {
    let mtu = f64::from(mtu);
    rate * DATA_LEN as f64 * 8.0 / 1e6 * mtu / (mtu + BLOCK_HEADER_LEN as f64)
}

/// How many cells one core carries over one kind of port.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Speed {
    pub(super) datapath: &'static str,
    /// Cells per second, each received and sent on.
    cells: f64,
    pub(super) source: &'static str,
}

const ZERO_COPY: Speed = Speed {
    datapath: "AF_XDP, zero-copy",
    cells: 1_320_000.0,
    source: "predicted by the model of docs/bare-metal.md",
};
const COPY: Speed =
    Speed { datapath: "AF_XDP, copying", cells: 430_000.0, source: "measured on veth, docs/benchmarks.md" };
const UDP_SOCKETS: Speed =
    Speed { datapath: "UDP sockets", cells: 201_000.0, source: "measured on veth, docs/benchmarks.md" };

/// The kinds of port that this part of a file may come to use, the one that it prefers first.
pub(super) fn speeds(datapath: &Datapath) -> Vec<Speed> {
    let mut speeds = match (datapath.mode, datapath.bind) {
        (DatapathMode::Udp, _) => return vec![UDP_SOCKETS],
        // The generic hook sees packets that the kernel has copied already.
        (DatapathMode::Generic, _) | (_, BindMode::Copy) => vec![COPY],
        (_, BindMode::ZeroCopy) => vec![ZERO_COPY],
        (_, BindMode::Auto) => vec![ZERO_COPY, COPY],
    };
    if datapath.mode == DatapathMode::Auto {
        speeds.push(UDP_SOCKETS);
    }
    speeds
}

/// What a node does with a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Opens link and hop, seals for the next link: three passes, which the speeds were measured with.
    Relaying,
    /// As an exit: a hop layer is added on the way back, too.
    Ending,
    /// As a client: link and three hops, both ways.
    Beginning,
}

impl Work {
    const fn passes(self) -> f64 {
        match self {
            Self::Relaying => 3.0,
            Self::Ending => 4.0,
            Self::Beginning => 8.0,
        }
    }
}

impl Speed {
    /// Cores that `cells` per second each way take, each used to 80 %.
    pub(super) fn cores(self, cells: f64, work: Work) -> f64 {
        let nanos = 1e9 / self.cells + (work.passes() - Work::Relaying.passes()) * PASS_NANOS;
        cells * nanos / 1e9 / LOAD
    }
}

/// What a node takes of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// Frames of the arena: taken at the start, whatever comes.
    pub(crate) frames: u64,
    /// Tables and keys of the links.
    pub(crate) links: u64,
    /// Tables and keys of the circuits.
    pub(crate) circuits: u64,
}

impl Memory {
    pub(super) fn of(frames: u32, links: u32, circuits: u32) -> Self {
        Self {
            frames: u64::from(frames) * Arena::CHUNK as u64,
            links: u64::from(links) * LINK_BYTES,
            circuits: u64::from(circuits) * CIRCUIT_BYTES,
        }
    }

    /// All of it.
    pub(crate) const fn total(self) -> u64 {
        self.frames + self.links + self.circuits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= expected * 1e-6, "{found} is not {expected}");
    }

    #[test]
    fn bytes_on_the_wire_are_those_of_the_headers() {
        // 1360 + 8 + 20 + 14 + 24 = 1426 bytes, and 20 more with IPv6.
        near(wire_mbit(1500.0, V4), 17.112);
        near(wire_mbit(1500.0, V6), 17.352);
        // 1402 bytes, 1500 times a second, 2,592,000 s.
        near(month_gb(1500.0, V4), 5450.976);
        near(month_gb(1.0, V6), 3.685_824);
        // 1248 bytes a cell, of which 1400 in 1403 are a packet's.
        near(goodput_mbit(1500.0, 1400), 14.943_977_2);
    }

    #[test]
    fn cores_follow_from_passes_and_load() {
        // 1 s / 1,320,000 = 757.58 ns a cell, a million of them, at 80 %.
        near(ZERO_COPY.cores(1e6, Work::Relaying), 0.946_969_7);
        near(UDP_SOCKETS.cores(201_000.0, Work::Relaying), 1.25);
        // One pass more: 153 ns; five more for a client: 765 ns beside 4975.1.
        near(COPY.cores(430_000.0, Work::Ending), 1.25 + 430_000.0 * 153e-9 / 0.8);
        near(UDP_SOCKETS.cores(1500.0, Work::Beginning), 1500.0 * 5_740.124_38e-9 / 0.8);
    }

    #[test]
    fn memory_is_frames_links_and_circuits() {
        let memory = Memory::of(16_384, 3, 10);
        assert_eq!(memory, Memory { frames: 33_554_432, links: 9303, circuits: 19_040 });
        assert_eq!(memory.total(), 33_582_775);
    }
}
