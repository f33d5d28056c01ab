//! What an observer reads from a frame: pure functions over bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header without VLAN tags.
const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Next header of IPv6's hop-by-hop options (RFC 8200, 4.3).
const HOP_BY_HOP: u8 = 0;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: u16 = 8;
/// Where the payload of a UDP datagram over IPv4 without options begins.
pub(crate) const UDP_PAYLOAD_IPV4: usize = UDP_PORTS_IPV4 + 8;
/// Where its ports are.
pub(crate) const UDP_PORTS_IPV4: usize = ETHERNET + 20;

/// What kind of frame it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// A whole UDP datagram.
    Udp {
        /// Sender in the outer header.
        source: IpAddr,
        /// Receiver in the outer header.
        destination: IpAddr,
        /// Bytes of UDP payload, from the UDP header.
        length: u16,
    },
    /// Address resolution of IPv4.
    Arp,
    /// ICMPv6, which carries neighbour discovery and, behind a router alert, reports of multicast listeners.
    Icmpv6,
    /// Any other IP packet.
    Other {
        /// Sender in the outer header.
        source: IpAddr,
        /// Receiver in the outer header.
        destination: IpAddr,
    },
    /// Neither IP nor ARP, or cut short.
    Foreign,
}

impl Sight {
    /// Whether an address that belongs inside the tunnel stands in the outer header.
    pub fn shows_inner_address(&self) -> bool {
        match *self {
            Self::Udp { source, destination, .. } | Self::Other { source, destination } => {
                is_inner(source) || is_inner(destination)
            }
            Self::Arp | Self::Icmpv6 | Self::Foreign => false,
        }
    }
}

/// Addresses that only occur inside the tunnel: clients and pools (100.64.0.0/10, fd6e:7765::/32) and the service's
/// network (198.51.100.0/24).
pub fn is_inner(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            (a == 100 && b & 0xc0 == 64) || [a, b, c] == [198, 51, 100]
        }
        IpAddr::V6(address) => address.segments()[..2] == [0xfd6e, 0x7765],
    }
}

/// Reads an Ethernet frame of which at least the headers were captured.
pub fn look_at(frame: &[u8]) -> Sight {
    let sight = match be16(frame, ETHERNET - 2) {
        Some(ETHERTYPE_ARP) => Some(Sight::Arp),
        Some(ETHERTYPE_IPV4) => frame.get(ETHERNET..).and_then(look_at_ipv4),
        Some(ETHERTYPE_IPV6) => frame.get(ETHERNET..).and_then(look_at_ipv6),
        _ => None,
    };
    sight.unwrap_or(Sight::Foreign)
}

fn look_at_ipv4(packet: &[u8]) -> Option<Sight> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source = IpAddr::from(Ipv4Addr::from(array::<4>(packet, 12)?));
    let destination = IpAddr::from(Ipv4Addr::from(array::<4>(packet, 16)?));
    // Fragments have no UDP header to trust, so they never count as datagrams.
    let is_fragment = be16(packet, 6)? & 0x3fff != 0;
    if packet.get(9) == Some(&UDP) && !is_fragment {
        return udp(source, destination, packet, header);
    }
    Some(Sight::Other { source, destination })
}

fn look_at_ipv6(packet: &[u8]) -> Option<Sight> {
    let source = IpAddr::from(Ipv6Addr::from(array::<16>(packet, 8)?));
    let destination = IpAddr::from(Ipv6Addr::from(array::<16>(packet, 24)?));
    let (next, header) = match *packet.get(6)? {
        HOP_BY_HOP => {
            let [next, eights] = array(packet, IPV6_HEADER)?;
            (next, IPV6_HEADER + 8 * (1 + usize::from(eights)))
        }
        next => (next, IPV6_HEADER),
    };
    match next {
        UDP => udp(source, destination, packet, header),
        ICMPV6 => Some(Sight::Icmpv6),
        _ => Some(Sight::Other { source, destination }),
    }
}

fn udp(source: IpAddr, destination: IpAddr, packet: &[u8], header: usize) -> Option<Sight> {
    let length = be16(packet, header + 4)?.checked_sub(UDP_HEADER)?;
    Some(Sight::Udp { source, destination, length })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipv4_udp(source: [u8; 4], destination: [u8; 4], payload: u16) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        let mut header = [0; 20];
        header[0] = 0x45;
        header[9] = UDP;
        header[12..16].copy_from_slice(&source);
        header[16..20].copy_from_slice(&destination);
        frame.extend(header);
        frame.extend([0, 1, 0, 2]);
        frame.extend((payload + UDP_HEADER).to_be_bytes());
        frame.extend([0, 0]);
        frame
    }

    #[test]
    fn a_datagram_shows_its_ends_and_its_length() {
        let frame = ipv4_udp([192, 0, 2, 1], [192, 0, 2, 2], 1360);
        let sight = look_at(&frame);
        let expected = Sight::Udp {
            source: Ipv4Addr::new(192, 0, 2, 1).into(),
            destination: Ipv4Addr::new(192, 0, 2, 2).into(),
            length: 1360,
        };
        assert_eq!(sight, expected);
        assert!(!sight.shows_inner_address());
    }

    #[test]
    fn inner_addresses_in_an_outer_header_are_seen() {
        for inner in [[100, 64, 0, 2], [100, 127, 255, 255], [198, 51, 100, 80]] {
            assert!(
                look_at(&ipv4_udp(inner, [192, 0, 2, 2], 9)).shows_inner_address(),
                "{inner:?} as source"
            );
            assert!(
                look_at(&ipv4_udp([192, 0, 2, 2], inner, 9)).shows_inner_address(),
                "{inner:?} as destination"
            );
        }
        assert!(!look_at(&ipv4_udp([100, 128, 0, 1], [198, 51, 101, 1], 9)).shows_inner_address());
        assert!(is_inner("fd6e:7765::2".parse().expect("address")));
        assert!(!is_inner("fd6e:7766::2".parse().expect("address")));
    }

    #[test]
    fn a_fragment_is_no_datagram() {
        let mut frame = ipv4_udp([192, 0, 2, 1], [192, 0, 2, 2], 1360);
        frame[ETHERNET + 6] = 0x20;
        assert!(matches!(look_at(&frame), Sight::Other { .. }));
    }

    #[test]
    fn a_report_of_multicast_listeners_is_icmpv6() {
        let mut frame = vec![0; ETHERNET];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
        let mut packet = [0; IPV6_HEADER];
        packet[6] = HOP_BY_HOP;
        frame.extend(packet);
        // A router alert and padding (RFC 2711, 2.1), as RFC 3810, 5, asks for.
        frame.extend([ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
        frame.extend([143, 0]);
        assert_eq!(look_at(&frame), Sight::Icmpv6);
        frame[ETHERNET + IPV6_HEADER] = 6;
        assert!(matches!(look_at(&frame), Sight::Other { .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in prop_oneof![Just(ETHERTYPE_IPV4), Just(ETHERTYPE_IPV6), Just(ETHERTYPE_ARP), any::<u16>()],
        ) {
            if bytes.len() >= ETHERNET {
                bytes[12..14].copy_from_slice(&kind.to_be_bytes());
            }
            let sight = look_at(&bytes);
            prop_assert!(bytes.len() >= ETHERNET || sight == Sight::Foreign);
        }
    }
}
