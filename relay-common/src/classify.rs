//! What becomes of a received frame. One classifier, run by the XDP program, by the userspace ports and by tests.
//!
//! ```text
//! frame -> locate: Ethernet, VLAN x 0..2, IPv4 | IPv6, UDP, our port? -> judge: length, type, session, source
//! ```
//!
//! A frame that is not provably for our port is left to the kernel; one that is must be exactly what a relay
//! accepts, or it is dropped.

use crate::{
    abi::{SessionEntry, session_slot},
    cursor::Cursor,
    wire::{CELL_LEN, DatagramType, LINK_HEADER_LEN, LinkHeader, RETRY_LEN},
};

#[cfg(test)]
mod tests;

/// Bytes of an Ethernet header.
const ETHERNET_LEN: u16 = 14;
/// Bytes of a VLAN tag.
const VLAN_LEN: u16 = 4;
/// Bytes of an IPv4 header without options.
const IPV4_LEN: u16 = 20;
/// Bytes of an IPv6 header.
const IPV6_LEN: u16 = 40;
/// Bytes of a UDP header.
const UDP_LEN: u16 = 8;
/// VLAN tags that are looked through.
pub const MAX_VLAN_TAGS: u8 = 2;
/// IPv6 extension headers that are looked through to find out whether a frame is for our port. RFC 8200, 4.1 lists
/// five that may stand in front of UDP.
pub const MAX_EXTENSION_HEADERS: u8 = 5;

// IEEE 802.1Q and the IEEE's registry of EtherTypes.
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

// IANA's registry of protocol numbers.
const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ROUTING: u8 = 43;
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_DESTINATION: u8 = 60;

/// RFC 791: the bit that says more fragments follow, and the offset below it.
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
/// RFC 8200: the offset, above three bits of flags.
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])+ $reason:ident = $number:literal $name:literal,)+) => {
        /// Why a frame for our port was dropped.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[$doc])+ $reason = $number,)+
        }

        impl DropReason {
            /// Every reason, in the order of its number; the numbers have no gaps.
            pub const ALL: [Self; [$($number),+].len()] = [$(Self::$reason),+];

            /// The reason's name in metrics and status output.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The frame ends before the datagram does.
    Truncated = 0 "truncated",
    /// The first fragment of a fragmented datagram, or an IPv6 "atomic" fragment. Later fragments carry no port and
    /// are passed; without the first one the kernel cannot put them together.
    Fragment = 1 "fragment",
    /// The IPv4 header has options.
    Ipv4Options = 2 "ipv4_options",
    /// An IPv6 extension header stands in front of UDP.
    ExtensionHeader = 3 "extension_header",
    /// The lengths in the IP header and in the UDP header contradict each other.
    LengthMismatch = 4 "length_mismatch",
    /// The payload has a length that no datagram has.
    PayloadLength = 5 "payload_length",
    /// The first byte is not a datagram type.
    UnknownType = 6 "unknown_type",
    /// The length is another type's.
    TypeLength = 7 "type_length",
    /// A reserved byte of the link header is set.
    ReservedBits = 8 "reserved_bits",
    /// No session has the receiver index.
    NoSession = 9 "no_session",
    /// The session's peer sends from another address or port.
    UnexpectedSource = 10 "unexpected_source",
    /// No socket is bound to the queue the cell arrived on. Found by the XDP program, not by [`classify`].
    NoSocket = 11 "no_socket",
}

impl DropReason {
    /// The number of reasons.
    #[expect(clippy::cast_possible_truncation, reason = "a dozen")]
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not for our port: the kernel's.
    Pass,
    /// A handshake datagram of the right size: the control plane's, by way of the kernel's socket.
    Handshake(DatagramType),
    /// A cell of a session we have, from where its peer sends.
    Redirect {
        /// The session's entry.
        slot: u32,
        /// The receive queue whose worker owns the session.
        queue: u32,
    },
    /// For our port, but nothing a relay accepts.
    Drop(DropReason),
}

/// UDP ports of a relay: one for each lane of its widest trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The lowest, that of lane 0.
    pub first: u16,
    /// How many; zero matches nothing.
    pub count: u16,
}

impl Ports {
    /// Whether `port` is one of them.
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        port.wrapping_sub(self.first) < self.count
    }
}

impl From<u16> for Ports {
    fn from(port: u16) -> Self {
        Self { first: port, count: if port == 0 { 0 } else { 1 } }
    }
}

/// The address that a datagram comes from; IPv4 as `::ffff:a.b.c.d`.
///
/// Kept as the two words that its 16 bytes make in memory: the program then compares it in two steps, where bytes
/// would be taken apart, held one by one on the stack and put together again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source([u64; 2]);

impl Source {
    #[inline(always)]
    const fn v4(octets: u32) -> Self {
        // `::ffff:0:0`, which an IPv4 address takes the last four bytes of.
        const MAPPED: [u8; 4] = [0, 0, 0xff, 0xff];
        let (first, last) = (u32::from_ne_bytes(MAPPED) as u64, octets as u64);
        Self([0, if cfg!(target_endian = "little") { first | last << 32 } else { first << 32 | last }])
    }

    #[inline(always)]
    const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])])
    }

    /// The address in network byte order.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.0[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.0[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

/// Where a UDP datagram for our port stands in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The source address.
    pub source: Source,
    /// The source port.
    pub source_port: u16,
    /// Bytes in front of the payload.
    pub payload_offset: u16,
    /// Bytes of the payload. Bytes behind it are padding of the link layer.
    pub payload_len: u16,
}

/// Why a frame holds no datagram for us: a verdict that needs no look at a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`Verdict::Pass`].
    NotOurs,
    /// [`Verdict::Drop`].
    Drop(DropReason),
}

impl From<Refusal> for Verdict {
    #[inline(always)]
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotOurs => Self::Pass,
            Refusal::Drop(reason) => Self::Drop(reason),
        }
    }
}

/// Decides about the frame that `cursor` stands in front of. `ports` are our UDP ports; `session` gives the entry of
/// a slot below [`crate::abi::SESSION_SLOTS`], or nothing where it cannot be that of the receiver index given with it.
#[inline(always)]
pub fn classify<C: Cursor>(
    mut cursor: C,
    ports: Ports,
    session: impl FnOnce(u32, u32) -> Option<SessionEntry>,
) -> Verdict {
    match locate(&mut cursor, ports) {
        Ok(datagram) => judge(cursor, &datagram, session),
        Err(refusal) => refusal.into(),
    }
}

/// Finds the datagram for one of `ports` in the frame, and leaves `cursor` in front of its payload.
///
/// # Errors
/// [`Refusal`] where there is none, or where one is there in a form that a relay does not accept.
#[inline(always)]
pub fn locate<C: Cursor>(cursor: &mut C, ports: Ports) -> Result<Datagram, Refusal> {
    let ethernet = cursor.take::<{ ETHERNET_LEN as usize }>().ok_or(Refusal::NotOurs)?;
    let mut ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    let mut offset = ETHERNET_LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
            break;
        }
        let tag = cursor.take::<{ VLAN_LEN as usize }>().ok_or(Refusal::NotOurs)?;
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        offset += VLAN_LEN;
    }
    match ethertype {
        ETHERTYPE_IPV4 => locate_ipv4(cursor, ports, offset),
        ETHERTYPE_IPV6 => locate_ipv6(cursor, ports, offset),
        _ => Err(Refusal::NotOurs),
    }
}

#[inline(always)]
fn locate_ipv4<C: Cursor>(cursor: &mut C, ports: Ports, offset: u16) -> Result<Datagram, Refusal> {
    let header = cursor.take::<{ IPV4_LEN as usize }>().ok_or(Refusal::NotOurs)?;
    let [version_length, _, t0, t1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, ..] = header;
    let fragment = u16::from_be_bytes([f0, f1]);
    if version_length >> 4 != 4 || protocol != PROTOCOL_UDP || fragment & IPV4_FRAGMENT_OFFSET != 0 {
        return Err(Refusal::NotOurs);
    }
    let header_len = u16::from(version_length & 0x0f) * 4;
    if header_len < IPV4_LEN {
        return Err(Refusal::NotOurs);
    }
    if header_len > IPV4_LEN {
        cursor.skip(header_len - IPV4_LEN).ok_or(Refusal::NotOurs)?;
    }
    let source_port = ours(cursor, ports)?;
    if fragment & IPV4_MORE_FRAGMENTS != 0 {
        return Err(Refusal::Drop(DropReason::Fragment));
    }
    if header_len > IPV4_LEN {
        return Err(Refusal::Drop(DropReason::Ipv4Options));
    }
    let total_len = u16::from_be_bytes([t0, t1]);
    let datagram_len = total_len.checked_sub(IPV4_LEN).ok_or(Refusal::Drop(DropReason::LengthMismatch))?;
    Ok(Datagram {
        source: Source::v4(u32::from_ne_bytes([s0, s1, s2, s3])),
        source_port,
        payload_offset: offset + IPV4_LEN + UDP_LEN,
        payload_len: payload_len(cursor, datagram_len)?,
    })
}

#[inline(always)]
fn locate_ipv6<C: Cursor>(cursor: &mut C, ports: Ports, offset: u16) -> Result<Datagram, Refusal> {
    let [version, _, _, _, l0, l1, mut next_header, _] = cursor.take::<8>().ok_or(Refusal::NotOurs)?;
    let source = Source::from_octets(cursor.take::<16>().ok_or(Refusal::NotOurs)?);
    let _destination = cursor.take::<16>().ok_or(Refusal::NotOurs)?;
    if version >> 4 != 6 {
        return Err(Refusal::NotOurs);
    }
    let mut refusal = None;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next_header {
            PROTOCOL_FRAGMENT => {
                let [next, _, o0, o1, ..] = cursor.take::<8>().ok_or(Refusal::NotOurs)?;
                if u16::from_be_bytes([o0, o1]) & IPV6_FRAGMENT_OFFSET != 0 {
                    return Err(Refusal::NotOurs);
                }
                next_header = next;
                refusal = Some(DropReason::Fragment);
            }
            PROTOCOL_HOP_BY_HOP | PROTOCOL_ROUTING | PROTOCOL_DESTINATION => {
                let [next, units, ..] = cursor.take::<8>().ok_or(Refusal::NotOurs)?;
                // The length leaves the first 8 bytes out.
                cursor.skip(u16::from(units) * 8).ok_or(Refusal::NotOurs)?;
                next_header = next;
                refusal = refusal.or(Some(DropReason::ExtensionHeader));
            }
            _ => break,
        }
    }
    if next_header != PROTOCOL_UDP {
        return Err(Refusal::NotOurs);
    }
    let source_port = ours(cursor, ports)?;
    if let Some(reason) = refusal {
        return Err(Refusal::Drop(reason));
    }
    Ok(Datagram {
        source,
        source_port,
        payload_offset: offset + IPV6_LEN + UDP_LEN,
        payload_len: payload_len(cursor, u16::from_be_bytes([l0, l1]))?,
    })
}

/// The source port of the UDP header ahead, if its destination is ours.
#[inline(always)]
fn ours<C: Cursor>(cursor: &mut C, ports: Ports) -> Result<u16, Refusal> {
    let [s0, s1, d0, d1] = cursor.take::<4>().ok_or(Refusal::NotOurs)?;
    if !ports.contains(u16::from_be_bytes([d0, d1])) {
        return Err(Refusal::NotOurs);
    }
    Ok(u16::from_be_bytes([s0, s1]))
}

/// The payload's length by the rest of the UDP header, which must agree with the IP header's `datagram_len`.
#[inline(always)]
fn payload_len<C: Cursor>(cursor: &mut C, datagram_len: u16) -> Result<u16, Refusal> {
    let [l0, l1, _, _] = cursor.take::<4>().ok_or(Refusal::Drop(DropReason::Truncated))?;
    let udp_len = u16::from_be_bytes([l0, l1]);
    if udp_len != datagram_len || udp_len < UDP_LEN {
        return Err(Refusal::Drop(DropReason::LengthMismatch));
    }
    Ok(udp_len - UDP_LEN)
}

/// Decides about a datagram for our port; `cursor` stands in front of its payload. A port that gets datagrams from
/// a UDP socket starts here.
#[inline(always)]
pub fn judge<C: Cursor>(
    mut cursor: C,
    datagram: &Datagram,
    session: impl FnOnce(u32, u32) -> Option<SessionEntry>,
) -> Verdict {
    let len = usize::from(datagram.payload_len);
    let complete = match len {
        CELL_LEN => cursor.has::<CELL_LEN>(),
        RETRY_LEN => cursor.has::<RETRY_LEN>(),
        _ => return Verdict::Drop(DropReason::PayloadLength),
    };
    let header = match cursor.take::<LINK_HEADER_LEN>() {
        Some(header) if complete => header,
        _ => return Verdict::Drop(DropReason::Truncated),
    };
    let Some(kind) = DatagramType::from_byte(header[0]) else {
        return Verdict::Drop(DropReason::UnknownType);
    };
    if kind.datagram_len() != len {
        return Verdict::Drop(DropReason::TypeLength);
    }
    if kind != DatagramType::Cell {
        return Verdict::Handshake(kind);
    }
    let Some(LinkHeader { receiver_index, .. }) = LinkHeader::decode(&header) else {
        return Verdict::Drop(DropReason::ReservedBits);
    };
    let slot = session_slot(receiver_index);
    let entry = match session(slot, receiver_index) {
        Some(entry) if entry.in_use == 1 && entry.receiver_index == receiver_index => entry,
        _ => return Verdict::Drop(DropReason::NoSession),
    };
    if entry.source_port != datagram.source_port || Source::from_octets(entry.source) != datagram.source {
        return Verdict::Drop(DropReason::UnexpectedSource);
    }
    Verdict::Redirect { slot, queue: entry.queue }
}
