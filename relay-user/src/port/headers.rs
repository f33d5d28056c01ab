//! The headers in front of a cell, made once per link.
//!
//! Every field is a constant of the link, so that nothing in a packet tells one cell from another but the sealed
//! bytes: TTL, DSCP, flow label and IPv4's identification never change.

use std::net::{IpAddr, SocketAddr};

use relay_common::wire::CELL_LEN;

use super::Peer;
use crate::xsk::Frame;

const ETHERNET_LEN: usize = 14;
const VLAN_LEN: usize = 4;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
const MAX_LEN: usize = ETHERNET_LEN + VLAN_LEN + IPV6_LEN + UDP_LEN;

/// EtherTypes: IEEE's registry.
const ETHERTYPE_IPV4: [u8; 2] = 0x0800u16.to_be_bytes();
const ETHERTYPE_IPV6: [u8; 2] = 0x86ddu16.to_be_bytes();
const ETHERTYPE_VLAN: [u8; 2] = 0x8100u16.to_be_bytes();
/// VLAN ids that name a network: IEEE 802.1Q keeps 0 and 4095.
const VLAN_IDS: std::ops::RangeInclusive<u16> = 1..=4094;
/// IANA's number of UDP.
const PROTOCOL_UDP: u8 = 17;
/// The TTL or hop limit that most systems send with (RFC 1700 recommends it).
const TTL: u8 = 64;
/// RFC 791: the bit that forbids fragments. With it the identification means nothing and stays zero (RFC 6864).
const DONT_FRAGMENT: u16 = 0x4000;

/// UDP header and cell, in bytes; the length field of UDP, and of IPv6.
const DATAGRAM_LEN: u16 = {
    assert!(UDP_LEN + CELL_LEN + IPV4_LEN <= u16::MAX as usize);
    #[expect(clippy::cast_possible_truncation, reason = "asserted one line above")]
    {
        (UDP_LEN + CELL_LEN) as u16
    }
};

/// Ethernet, at most one VLAN tag, IPv4 or IPv6, and UDP, as they stand in front of every cell of a link.
#[derive(Clone, Debug)]
pub(crate) struct HeaderTemplate {
    bytes: [u8; MAX_LEN],
    len: usize,
    /// Sum of IPv6's pseudo header and the UDP header, where a checksum has to be made per cell.
    checksum: Option<u64>,
}

impl HeaderTemplate {
    /// The headers of cells to `peer`. `None` while its MAC addresses are not known, and for a peer that cannot be:
    /// addresses of two families, a VLAN id out of range.
    pub(crate) fn new(peer: &Peer) -> Option<Self> {
        let (source_mac, destination_mac) = peer.macs?;
        let mut headers = Self { bytes: [0; MAX_LEN], len: 0, checksum: None };
        headers.put(&destination_mac);
        headers.put(&source_mac);
        if let Some(vlan) = peer.vlan {
            if !VLAN_IDS.contains(&vlan) {
                return None;
            }
            headers.put(&ETHERTYPE_VLAN);
            headers.put(&vlan.to_be_bytes());
        }
        let addresses = (peer.local.ip().to_canonical(), peer.remote.ip().to_canonical());
        let pseudo = match addresses {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                headers.put(&ETHERTYPE_IPV4);
                let mut ip = [0u8; IPV4_LEN];
                ip[0] = 0x45;
                ip[2..4].copy_from_slice(&(20 + DATAGRAM_LEN).to_be_bytes());
                ip[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
                ip[8] = TTL;
                ip[9] = PROTOCOL_UDP;
                ip[12..16].copy_from_slice(&local.octets());
                ip[16..20].copy_from_slice(&remote.octets());
                let checksum = fold(sum(&ip));
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                headers.put(&ip);
                None
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                headers.put(&ETHERTYPE_IPV6);
                headers.put(&[0x60, 0, 0, 0]);
                headers.put(&DATAGRAM_LEN.to_be_bytes());
                headers.put(&[PROTOCOL_UDP, TTL]);
                headers.put(&local.octets());
                headers.put(&remote.octets());
                // RFC 8200, 8.1.
                let words = u64::from(DATAGRAM_LEN) + u64::from(PROTOCOL_UDP);
                Some(sum(&local.octets()) + sum(&remote.octets()) + words)
            }
            _ => return None,
        };
        let udp = headers.len;
        headers.put(&peer.local.port().to_be_bytes());
        headers.put(&peer.remote.port().to_be_bytes());
        headers.put(&DATAGRAM_LEN.to_be_bytes());
        headers.put(&[0, 0]);
        headers.checksum = pseudo.map(|pseudo| pseudo + sum(&headers.bytes[udp..headers.len]));
        Some(headers)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Puts the headers in front of the cell that `frame` holds, in the same chunk. `false`, and nothing done, where it
    /// does not hold one or has no room in front of it.
    pub(crate) fn prepend(&self, frame: &mut Frame) -> bool {
        let Some(cell) = frame.cell() else { return false };
        let checksum = self.checksum.map(|header| match fold(header + sum(cell)) {
            // Zero means "none", which IPv6 does not allow; all ones is the same number.
            0 => u16::MAX,
            checksum => checksum,
        });
        let len = u16::try_from(self.len).expect("at most MAX_LEN");
        let Some(offset) = frame.offset().checked_sub(len) else { return false };
        frame.reset(offset, frame.len() + len);
        let headers = &mut frame.data_mut()[..self.len];
        headers.copy_from_slice(&self.bytes[..self.len]);
        if let Some(checksum) = checksum {
            headers[self.len - 2..].copy_from_slice(&checksum.to_be_bytes());
        }
        true
    }

    /// Takes the headers off again.
    pub(crate) fn strip(&self, frame: &mut Frame) {
        let len = u16::try_from(self.len).expect("at most MAX_LEN");
        frame.reset(frame.offset() + len, frame.len().saturating_sub(len));
    }

    /// Source and destination, for tests of other rooms of this module.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Sum of the big-endian 16-bit words of `bytes`, an odd last byte padded with zero (RFC 1071), not folded yet.
fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    // Words of 32 bits add up to the same once folded, at half the additions.
    let mut total: u64 =
        chunks.by_ref().map(|c| u64::from(u32::from_be_bytes([c[0], c[1], c[2], c[3]]))).sum();
    let mut rest = [0u8; 4];
    rest[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    total += u64::from(u32::from_be_bytes(rest));
    total
}

/// The Internet checksum of a sum: folded to 16 bits and complemented.
fn fold(mut total: u64) -> u16 {
    while total > u64::from(u16::MAX) {
        total = (total >> 16) + (total & u64::from(u16::MAX));
    }
    !u16::try_from(total).expect("folded above")
}

/// The address a socket or packet of `source` has, an IPv4-mapped one as IPv4.
pub(crate) fn socket_address(source: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(source).to_canonical(), port)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use relay_common::classify::locate;
    use relay_common::cursor::SliceCursor;

    use super::*;
    use crate::xsk::Arena;

    const MACS: Option<([u8; 6], [u8; 6])> = Some(([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]));

    fn peer(local: &str, remote: &str, vlan: Option<u16>) -> Peer {
        Peer { local: local.parse().unwrap(), remote: remote.parse().unwrap(), macs: MACS, vlan }
    }

    /// The definition, word by word.
    fn checksum(words: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in words.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            total = (total >> 16) + (total & 0xffff);
        }
        !u16::try_from(total).unwrap()
    }

    #[test]
    fn the_classifier_reads_what_is_written() {
        let arena = Arena::anonymous(1).unwrap();
        for (local, remote) in
            [("192.0.2.1:7001", "192.0.2.2:7443"), ("[2001:db8::1]:7001", "[2001:db8::2]:7443")]
        {
            for vlan in [None, Some(12)] {
                let mut frame = arena.take().unwrap();
                frame.data_mut().fill(0xa5);
                let template = HeaderTemplate::new(&peer(local, remote, vlan)).unwrap();
                assert!(template.prepend(&mut frame));
                let found = locate(&mut SliceCursor::new(frame.data()), 7443.into()).unwrap();
                assert_eq!(socket_address(found.source.octets(), found.source_port), local.parse().unwrap());
                assert_eq!(usize::from(found.payload_offset), template.bytes().len());
                assert_eq!(usize::from(found.payload_len), CELL_LEN);
                template.strip(&mut frame);
                assert_eq!(frame.offset(), Frame::CELL_OFFSET);
                assert!(frame.cell().unwrap().iter().all(|byte| *byte == 0xa5));
            }
        }
    }

    #[test]
    fn an_ipv4_header_checks_and_forbids_fragments() {
        let template = HeaderTemplate::new(&peer("192.0.2.1:1", "192.0.2.2:2", None)).unwrap();
        let ip = &template.bytes()[14..34];
        assert_eq!(checksum(ip), 0);
        assert_eq!(ip[4..9], [0, 0, 0x40, 0, 64]);
        assert_eq!(u16::from_be_bytes([ip[2], ip[3]]), 1388);
    }

    #[test]
    fn what_cannot_be_a_peer_has_no_template() {
        let good = peer("192.0.2.1:1", "192.0.2.2:2", None);
        assert!(HeaderTemplate::new(&Peer { macs: None, ..good }).is_none());
        for vlan in [0, 4095, u16::MAX] {
            assert!(HeaderTemplate::new(&Peer { vlan: Some(vlan), ..good }).is_none());
        }
        assert!(HeaderTemplate::new(&peer("192.0.2.1:1", "[2001:db8::2]:2", None)).is_none());
        assert!(HeaderTemplate::new(&peer("[::ffff:192.0.2.1]:1", "192.0.2.2:2", None)).is_some());
    }

    #[test]
    fn only_a_cell_with_room_in_front_is_sent() {
        let arena = Arena::anonymous(1).unwrap();
        let template = HeaderTemplate::new(&peer("192.0.2.1:1", "192.0.2.2:2", None)).unwrap();
        let mut frame = arena.take().unwrap();
        for (offset, len) in [(336, 1359), (336, 64), (41, 1360)] {
            frame.reset(offset, len);
            assert!(!template.prepend(&mut frame));
            assert_eq!((frame.offset(), frame.len()), (offset, len));
        }
        frame.reset(42, 1360);
        assert!(template.prepend(&mut frame));
    }

    proptest! {
        #[test]
        fn an_ipv6_datagram_checks(bytes in proptest::collection::vec(any::<u8>(), CELL_LEN), port: u16) {
            let arena = Arena::anonymous(1).unwrap();
            let mut frame = arena.take().unwrap();
            frame.data_mut().copy_from_slice(&bytes);
            let mut peer = peer("[2001:db8::1]:1", "[fe80::2]:2", None);
            peer.local.set_port(port);
            prop_assert!(HeaderTemplate::new(&peer).unwrap().prepend(&mut frame));
            let ip = &frame.data()[14..];
            // Addresses, then length and protocol as the pseudo header has them, then the datagram.
            let mut words = ip[8..40].to_vec();
            words.extend([0, 0, ip[4], ip[5], 0, 0, 0, ip[6]]);
            words.extend(&ip[40..]);
            prop_assert_eq!(checksum(&words), 0);
            prop_assert_ne!(&ip[46..48], &[0, 0]);
        }
    }
}
