//! Segmentation offload on a TUN: the kernel hands over TCP and UDP segments of one flow in one piece of up to 64 KiB
//! behind a virtio header, and takes such pieces back.
//!
//! ```text
//! read  | virtio header | IP, TCP | payload 1 | payload 2 | .. |
//!                       |---- packet 1 -------|
//!                             |IP, TCP| --- packet 2 -----|        headers written over payload already taken
//! write | virtio header | IP, TCP | payload 1 | payload 2 | .. |   packets of one flow as they come, one behind another
//! ```
//!
//! Both ways work in buffers allocated once. The kernel leaves checksums half done where it counts on hardware; they
//! are completed here, before anything else looks at the packet, so that address changes by difference stay right.

pub(super) mod coalesce;
pub(super) mod split;
#[cfg(test)]
mod test_packets;

use std::ops::Range;

/// Bytes of the virtio header in front of every packet (`struct virtio_net_hdr`).
pub(super) const HEADER_LEN: usize = 10;
const _: () = assert!(HEADER_LEN == tun_rs::VIRTIO_NET_HDR_LEN);
/// Bytes of the longest packet that an IP header can announce.
pub(super) const MAX_SUPER: usize = 65_535;

pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;
pub(super) const UDP_HEADER_LEN: usize = 8;
pub(super) const TCP_HEADER_LEN: usize = 20;
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

/// A checksum is half done: the field holds the pseudo header's sum.
pub(super) const NEEDS_CHECKSUM: u8 = 1;
/// An ordinary packet.
pub(super) const GSO_NONE: u8 = 0;
pub(super) const GSO_TCP_V4: u8 = 1;
pub(super) const GSO_TCP_V6: u8 = 4;
pub(super) const GSO_UDP: u8 = 5;
/// Goes with a type of TCP: only the first segment may carry CWR.
pub(super) const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr` of `linux/virtio_net.h`; a TUN has it in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    /// Bytes of IP and transport header.
    pub(super) headers_len: u16,
    /// Bytes of payload in each segment but the last.
    pub(super) segment: u16,
    pub(super) checksum_start: u16,
    /// From `checksum_start`.
    pub(super) checksum_offset: u16,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        let word = |low, high| u16::from_ne_bytes([low, high]);
        Self {
            flags,
            gso_type,
            headers_len: word(h0, h1),
            segment: word(s0, s1),
            checksum_start: word(c0, c1),
            checksum_offset: word(o0, o1),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [h0, h1] = self.headers_len.to_ne_bytes();
        let [s0, s1] = self.segment.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

/// Where both addresses stand in a packet of IPv4 or IPv6.
pub(super) const fn addresses(is_v4: bool) -> Range<usize> {
    if is_v4 { 12..20 } else { 8..40 }
}

/// The sum of the pseudo header, not complemented: what the kernel calls a partial checksum.
pub(super) fn pseudo_sum(packet: &[u8], is_v4: bool, protocol: u8, transport_len: usize) -> u16 {
    let rest = u64::from(protocol) + transport_len as u64;
    tun_rs::checksum(packet.get(addresses(is_v4)).unwrap_or(&[]), rest)
}

/// The sum over pseudo header and transport part: all ones for a packet whose checksum is right.
pub(super) fn transport_sum(packet: &[u8], is_v4: bool, protocol: u8, transport: usize) -> u16 {
    let body = packet.get(transport..).unwrap_or(&[]);
    tun_rs::checksum(body, u64::from(pseudo_sum(packet, is_v4, protocol, body.len())))
}

/// Makes an IPv4 header's checksum anew.
pub(super) fn seal_v4(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = !tun_rs::checksum(header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}
