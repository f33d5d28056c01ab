//! UDP datagrams out of captured frames, through the classifier that relays use.

use relay_common::classify::{Ports, Refusal, locate};
use relay_common::cursor::SliceCursor;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of the longest IPv4 header and of a UDP header behind it.
const HEADERS: usize = 68;
const UDP: usize = 8;

// IEEE's registry of EtherTypes.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// An address (IPv4 as `::ffff:a.b.c.d`) and a port. Never printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    address: [u8; 16],
    port: u16,
}

impl Endpoint {
    /// The UDP port.
    pub const fn port(self) -> u16 {
        self.port
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "_:{}", self.port)
    }
}

/// What stands in front of the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// Ethernet.
    Ethernet,
    /// Nothing: IPv4 or IPv6, by its version.
    Raw,
    /// What Linux gives for interfaces of several kinds.
    Cooked,
    /// Its second version, with the interface's number.
    Cooked2,
}

impl LinkType {
    /// By tcpdump.org's registry; BSDs' own numbers of raw IP among them.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Ethernet),
            12 | 14 | 101 | 228 | 229 => Some(Self::Raw),
            113 => Some(Self::Cooked),
            276 => Some(Self::Cooked2),
            _ => None,
        }
    }

    /// The EtherType of what a frame carries, and where that begins.
    fn network(self, bytes: &[u8]) -> Option<(u16, usize)> {
        let word = |at: usize| {
            let pair: &[u8; 2] = bytes.get(at..)?.first_chunk()?;
            Some(u16::from_be_bytes(*pair))
        };
        let (mut ethertype, mut at) = match self {
            Self::Ethernet => (word(12)?, 14),
            Self::Raw => match bytes.first()? >> 4 {
                4 => (IPV4, 0),
                6 => (IPV6, 0),
                _ => return None,
            },
            Self::Cooked => (word(14)?, 16),
            Self::Cooked2 => (word(0)?, 20),
        };
        for _ in 0..relay_common::classify::MAX_VLAN_TAGS {
            if ethertype == VLAN || ethertype == SERVICE_VLAN {
                (ethertype, at) = (word(at + 2)?, at + 4);
            }
        }
        Some((ethertype, at))
    }
}

/// A UDP datagram, unfragmented, in IPv4 without options or IPv6 without extension headers, as every port sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: Endpoint,
    /// To whom.
    pub to: Endpoint,
    /// Bytes of its payload on the wire.
    pub length: u16,
    /// As many of them as were captured.
    pub payload: &'a [u8],
}

/// What a packet is if not a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Other {
    /// TCP.
    Tcp,
    /// ICMP of either version.
    Icmp,
    /// UDP that no port sends: fragments, options, contradictory lengths.
    OddUdp,
    /// Another protocol over IP.
    Ip,
    /// ARP.
    Arp,
    /// Another protocol, or a frame cut too short to say.
    Foreign,
    /// From an interface whose link type is not read.
    LinkType,
}

impl Other {
    /// All, in the order of reports.
    pub const ALL: [Self; 7] =
        [Self::Tcp, Self::Icmp, Self::OddUdp, Self::Ip, Self::Arp, Self::Foreign, Self::LinkType];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Icmp => "ICMP",
            Self::OddUdp => "UDP in fragments or with options",
            Self::Ip => "other IP",
            Self::Arp => "ARP",
            Self::Foreign => "not IP or cut short",
            Self::LinkType => "of unread link types",
        }
    }
}

/// What a captured packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// A datagram.
    Udp(Datagram<'a>),
    /// Something else.
    Other(Other),
}

/// Finds the datagram in a captured frame. Total: every sequence of bytes has an answer.
pub fn look(link_type: LinkType, bytes: &[u8]) -> Seen<'_> {
    let Some((ethertype, network)) = link_type.network(bytes) else { return Seen::Other(Other::Foreign) };
    let packet = bytes.get(network..).unwrap_or_default();
    match ethertype {
        IPV4 | IPV6 => {}
        ARP => return Seen::Other(Other::Arp),
        _ => return Seen::Other(Other::Foreign),
    }
    // The classifier reads Ethernet: it gets the headers behind one of its own.
    let mut frame = [0; ETHERNET + HEADERS];
    let count = packet.len().min(HEADERS);
    for (to, from) in frame.iter_mut().skip(ETHERNET).zip(packet) {
        *to = *from;
    }
    let [high, low] = ethertype.to_be_bytes();
    (frame[12], frame[13]) = (high, low);
    let mut cursor = SliceCursor::new(frame.get(..ETHERNET + count).unwrap_or_default());
    match locate(&mut cursor, Ports { first: 1, count: u16::MAX }) {
        Ok(datagram) => {
            let payload = usize::from(datagram.payload_offset) - ETHERNET;
            let end = payload.saturating_add(usize::from(datagram.payload_len)).min(packet.len());
            let Some((to, port)) = destination(packet, payload) else { return Seen::Other(Other::Foreign) };
            Seen::Udp(Datagram {
                from: Endpoint { address: datagram.source.octets(), port: datagram.source_port },
                to: Endpoint { address: to, port },
                length: datagram.payload_len,
                payload: packet.get(payload..end).unwrap_or_default(),
            })
        }
        Err(Refusal::Drop(_)) => Seen::Other(Other::OddUdp),
        Err(Refusal::NotOurs) => Seen::Other(kind(packet, ethertype)),
    }
}

/// Where a datagram goes whose payload begins at `payload` of `packet`.
fn destination(packet: &[u8], payload: usize) -> Option<([u8; 16], u16)> {
    let udp = payload.checked_sub(UDP)?;
    let port: [u8; 2] = *packet.get(udp + 2..)?.first_chunk()?;
    let address = if packet.first()? >> 4 == 4 {
        let [a, b, c, d]: [u8; 4] = *packet.get(udp.checked_sub(4)?..)?.first_chunk()?;
        std::net::Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets()
    } else {
        *packet.get(udp.checked_sub(16)?..)?.first_chunk()?
    };
    Some((address, u16::from_be_bytes(port)))
}

fn kind(packet: &[u8], ethertype: u16) -> Other {
    match packet.get(if ethertype == IPV4 { 9 } else { 6 }) {
        Some(6) => Other::Tcp,
        Some(1 | 58) => Other::Icmp,
        Some(17 | 44) => Other::OddUdp,
        Some(_) => Other::Ip,
        None => Other::Foreign,
    }
}
