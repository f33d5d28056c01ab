//! Inner IP packets: what they are, and which of them may pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::drops::EdgeDrop;
use super::packing::BlockKind;

/// The IPv4 address of every client inside the tunnel: the same for all, so that it identifies none.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// The IPv6 address of every client inside the tunnel.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd6e, 0x7765, 0, 0, 0, 0, 0, 2);
/// MTU of the TUN devices, in bytes: a full packet takes one cell and an eighth.
pub const INNER_MTU: u16 = 1400;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;
pub(super) const V4_HEADER_LEN: usize = 20;
pub(super) const V6_HEADER_LEN: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// RFC 8200, section 4.1, recommends an order with at most five headers that are not refused here.
const MAX_EXTENSION_HEADERS: usize = 6;

/// Where things stand in a packet whose lengths have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol number of the transport header.
    pub protocol: u8,
    /// Where the transport header starts; none in fragments other than the first.
    pub transport: Option<usize>,
}

impl Inner {
    /// Reads the headers of `packet`, which must be exactly one IP packet.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn parse(packet: &[u8]) -> Result<Self, EdgeDrop> {
        let inner = Self::parse_truncated(packet)?;
        let said = match inner.source {
            IpAddr::V4(_) => usize::from(u16_at(packet, 2).unwrap_or(0)),
            IpAddr::V6(_) => V6_HEADER_LEN + usize::from(u16_at(packet, 4).unwrap_or(0)),
        };
        if said != packet.len() {
            return Err(EdgeDrop::Length);
        }
        let transport_len = inner.transport.map(|at| packet.len() - at);
        let needed = match inner.protocol {
            TCP => 20,
            UDP | ICMP => 8,
            ICMPV6 => 4,
            _ => 0,
        };
        if transport_len.is_some_and(|len| len < needed) {
            return Err(EdgeDrop::Length);
        }
        Ok(inner)
    }

    /// Reads the headers of a packet whose end may be missing, such as the one an ICMP error quotes.
    pub(super) fn parse_truncated(packet: &[u8]) -> Result<Self, EdgeDrop> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(EdgeDrop::Version),
        }
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, EdgeDrop> {
        let header = packet.first_chunk::<V4_HEADER_LEN>().ok_or(EdgeDrop::Length)?;
        match header[0] & 0x0F {
            5 => {}
            0..5 => return Err(EdgeDrop::Length),
            _ => return Err(EdgeDrop::Options),
        }
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        let first = u16::from_be_bytes([header[6], header[7]]) & 0x1FFF == 0;
        Ok(Self {
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            protocol: header[9],
            transport: first.then_some(V4_HEADER_LEN),
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, EdgeDrop> {
        let header = packet.first_chunk::<V6_HEADER_LEN>().ok_or(EdgeDrop::Length)?;
        let address = |at: usize| -> Ipv6Addr {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            octets.into()
        };
        let mut protocol = header[6];
        let mut at = V6_HEADER_LEN;
        let mut first = true;
        for _ in 0..MAX_EXTENSION_HEADERS {
            let length = match protocol {
                HOP_BY_HOP | DESTINATION_OPTIONS => {
                    8 + 8 * usize::from(*packet.get(at + 1).ok_or(EdgeDrop::Length)?)
                }
                FRAGMENT => {
                    first &= u16_at(packet, at + 2).ok_or(EdgeDrop::Length)? & 0xFFF8 == 0;
                    8
                }
                ROUTING => return Err(EdgeDrop::ExtensionHeader),
                _ => {
                    return Ok(Self {
                        source: address(8).into(),
                        destination: address(24).into(),
                        protocol,
                        transport: first.then_some(at),
                    });
                }
            };
            let next = packet[at];
            at += length;
            if at > packet.len() {
                return Err(EdgeDrop::Length);
            }
            protocol = next;
            if !first {
                // What follows is the middle of something, not a header.
                return Ok(Self {
                    source: address(8).into(),
                    destination: address(24).into(),
                    protocol,
                    transport: None,
                });
            }
        }
        Err(EdgeDrop::ExtensionHeader)
    }

    /// The kind of block that carries this packet.
    pub fn kind(&self) -> BlockKind {
        if self.source.is_ipv4() { BlockKind::Ipv4 } else { BlockKind::Ipv6 }
    }
}

/// Whether `address` is the client's own.
pub fn is_client(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address == CLIENT_V4,
        IpAddr::V6(address) => address == CLIENT_V6,
    }
}

/// Refuses destinations that no client may reach through an exit, whatever its policy.
///
/// # Errors
/// The reason.
pub fn check_destination(address: IpAddr) -> Result<(), EdgeDrop> {
    match address {
        IpAddr::V4(address) => match address.octets() {
            [127, ..] => Err(EdgeDrop::DestinationLoopback),
            [169, 254, ..] => Err(EdgeDrop::DestinationLinkLocal),
            [224..=239, ..] | [255, 255, 255, 255] => Err(EdgeDrop::DestinationMulticast),
            [0 | 240.., ..] => Err(EdgeDrop::DestinationReserved),
            _ if address == CLIENT_V4 => Err(EdgeDrop::DestinationPool),
            _ => Ok(()),
        },
        IpAddr::V6(address) => {
            if let Some(mapped) = address.to_ipv4_mapped() {
                // On no wire; a host that took it in would deliver it by IPv4, past the checks above.
                check_destination(mapped.into())?;
                return Err(EdgeDrop::DestinationReserved);
            }
            if address.is_loopback() {
                Err(EdgeDrop::DestinationLoopback)
            } else if address.is_unspecified() {
                Err(EdgeDrop::DestinationReserved)
            } else if address.is_unicast_link_local() {
                Err(EdgeDrop::DestinationLinkLocal)
            } else if address.is_multicast() {
                Err(EdgeDrop::DestinationMulticast)
            } else if address == CLIENT_V6 {
                Err(EdgeDrop::DestinationPool)
            } else {
                Ok(())
            }
        }
    }
}

pub(super) fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    packet.get(at..at + 2).and_then(|bytes| bytes.first_chunk()).map(|&bytes| u16::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn destinations_no_client_may_reach() {
        let cases = [
            ("127.0.0.1", EdgeDrop::DestinationLoopback),
            ("::1", EdgeDrop::DestinationLoopback),
            ("::ffff:127.0.0.1", EdgeDrop::DestinationLoopback),
            ("::ffff:192.0.2.1", EdgeDrop::DestinationReserved),
            ("169.254.169.254", EdgeDrop::DestinationLinkLocal),
            ("fe80::1", EdgeDrop::DestinationLinkLocal),
            ("224.0.0.1", EdgeDrop::DestinationMulticast),
            ("255.255.255.255", EdgeDrop::DestinationMulticast),
            ("ff02::1", EdgeDrop::DestinationMulticast),
            ("0.0.0.0", EdgeDrop::DestinationReserved),
            ("240.0.0.1", EdgeDrop::DestinationReserved),
            ("::", EdgeDrop::DestinationReserved),
            ("100.64.0.2", EdgeDrop::DestinationPool),
            ("fd6e:7765::2", EdgeDrop::DestinationPool),
        ];
        for (address, reason) in cases {
            assert_eq!(check_destination(address.parse().unwrap()), Err(reason), "{address}");
        }
        for address in ["198.51.100.80", "10.0.0.1", "2001:db8::1"] {
            assert_eq!(check_destination(address.parse().unwrap()), Ok(()), "{address}");
        }
    }

    #[test]
    fn wrong_lengths_and_headers_are_refused() {
        let mut packet = [0; 28];
        packet[..4].copy_from_slice(&[0x45, 0, 0, 28]);
        packet[9] = UDP;
        assert_eq!(Inner::parse(&packet).map(|inner| inner.transport), Ok(Some(20)));
        packet[6..8].copy_from_slice(&[0x20, 0]);
        assert_eq!(Inner::parse(&packet).map(|inner| inner.transport), Ok(Some(20)), "first fragment");
        packet[6..8].copy_from_slice(&[0, 1]);
        assert_eq!(Inner::parse(&packet).map(|inner| inner.transport), Ok(None), "later fragment");
        packet[6..8].copy_from_slice(&[0, 0]);
        for (at, value, reason) in [
            (3, 27, EdgeDrop::Length),
            (3, 29, EdgeDrop::Length),
            (0, 0x44, EdgeDrop::Length),
            (0, 0x46, EdgeDrop::Options),
            (0, 0x55, EdgeDrop::Version),
            (9, TCP, EdgeDrop::Length),
        ] {
            let mut bad = packet;
            bad[at] = value;
            assert_eq!(Inner::parse(&bad), Err(reason), "byte {at} = {value}");
        }
        assert_eq!(Inner::parse(&[]), Err(EdgeDrop::Version));

        let mut packet = [0; 64];
        packet[0] = 0x60;
        packet[5] = 24;
        packet[6] = HOP_BY_HOP;
        packet[40] = FRAGMENT;
        packet[48] = UDP;
        assert_eq!(Inner::parse(&packet).map(|inner| (inner.protocol, inner.transport)), Ok((UDP, Some(56))));
        packet[51] = 8;
        assert_eq!(Inner::parse(&packet).map(|inner| (inner.protocol, inner.transport)), Ok((UDP, None)));
        packet[41] = 3;
        assert_eq!(Inner::parse(&packet), Err(EdgeDrop::Length));
        packet[6] = ROUTING;
        assert_eq!(Inner::parse(&packet), Err(EdgeDrop::ExtensionHeader));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..120), six in any::<bool>()) {
            if let Some(first) = bytes.first_mut() {
                *first = if six { 0x60 } else { 0x45 };
            }
            let _parsed = Inner::parse(&bytes);
            if let Ok(inner) = Inner::parse_truncated(&bytes) {
                prop_assert!(inner.transport.unwrap_or(0) <= bytes.len());
            }
        }
    }
}
