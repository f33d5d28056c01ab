//! Why an edge lets a packet fall, counted.

/// A reason; a bounded set, so that counting never reveals anything but totals.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeDrop {
    /// Neither IPv4 nor IPv6, or the block's kind says the other.
    Version,
    /// The lengths in the headers do not fit the packet's.
    Length,
    /// Longer than the inner MTU.
    TooLong,
    /// IPv4 options: nothing common needs them, and some redirect a packet past the destination policy.
    Options,
    /// An IPv6 routing header, for the same reason, or more extension headers than are walked.
    ExtensionHeader,
    /// Not the address that the sender has.
    Source,
    /// To an unspecified or reserved address.
    DestinationReserved,
    /// To a loopback address.
    DestinationLoopback,
    /// To a link-local address.
    DestinationLinkLocal,
    /// To a multicast or broadcast address.
    DestinationMulticast,
    /// To an address of the exit's own pool, that is to another circuit or to the exit.
    DestinationPool,
    /// Not to the address that the receiver has.
    Destination,
    /// An ICMP error about a packet that was not the receiver's or sender's own.
    IcmpForeign,
    /// From a circuit that has no address.
    UnknownCircuit,
    /// To a pool address that no circuit has.
    UnknownAddress,
    /// The circuit's queue is full.
    QueueFull,
    /// The queue to the worker that has the packet's circuit is full.
    HandoverFull,
    /// The TUN device takes no more packets now.
    TunFull,
    /// The TUN device failed.
    TunFailed,
}

impl EdgeDrop {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 19] = [
        Self::Version,
        Self::Length,
        Self::TooLong,
        Self::Options,
        Self::ExtensionHeader,
        Self::Source,
        Self::DestinationReserved,
        Self::DestinationLoopback,
        Self::DestinationLinkLocal,
        Self::DestinationMulticast,
        Self::DestinationPool,
        Self::Destination,
        Self::IcmpForeign,
        Self::UnknownCircuit,
        Self::UnknownAddress,
        Self::QueueFull,
        Self::HandoverFull,
        Self::TunFull,
        Self::TunFailed,
    ];

    /// The reason's name in status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version => "inner_version",
            Self::Length => "inner_length",
            Self::TooLong => "inner_too_long",
            Self::Options => "inner_options",
            Self::ExtensionHeader => "inner_extension_header",
            Self::Source => "inner_source",
            Self::DestinationReserved => "inner_destination_reserved",
            Self::DestinationLoopback => "inner_destination_loopback",
            Self::DestinationLinkLocal => "inner_destination_link_local",
            Self::DestinationMulticast => "inner_destination_multicast",
            Self::DestinationPool => "inner_destination_pool",
            Self::Destination => "inner_destination",
            Self::IcmpForeign => "inner_icmp_foreign",
            Self::UnknownCircuit => "edge_unknown_circuit",
            Self::UnknownAddress => "edge_unknown_address",
            Self::QueueFull => "edge_queue_full",
            Self::HandoverFull => "edge_handover_full",
            Self::TunFull => "tun_full",
            Self::TunFailed => "tun_failed",
        }
    }
}

/// Counters, one for each [`EdgeDrop`].
#[derive(Clone, Debug, Default)]
pub struct EdgeDrops([u64; EdgeDrop::ALL.len()]);

impl EdgeDrops {
    /// Counts one packet.
    pub fn count(&mut self, reason: EdgeDrop) {
        self.add(reason, 1);
    }

    /// Counts several packets.
    pub fn add(&mut self, reason: EdgeDrop, packets: u64) {
        self.0[reason as usize] += packets;
    }

    /// Packets dropped for `reason` since the start.
    pub fn get(&self, reason: EdgeDrop) -> u64 {
        self.0[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut names: Vec<_> = EdgeDrop::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EdgeDrop::ALL.len());
        for (at, reason) in EdgeDrop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }
}
