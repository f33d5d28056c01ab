//! Changing addresses and segment sizes inside packets. Checksums follow by difference (RFC 1624, equation 3) and are
//! never computed anew: a packet that was damaged before stays detectably damaged.

use std::net::IpAddr;

use super::drops::EdgeDrop;
use super::ip::{ICMP, ICMPV6, INNER_MTU, Inner, TCP, UDP, V4_HEADER_LEN, V6_HEADER_LEN, u16_at};

/// Largest TCP segment over IPv4 that fits the inner MTU without options: 1360 bytes.
pub const MSS_V4: u16 = INNER_MTU - 40;
/// Largest TCP segment over IPv6 that fits the inner MTU without options: 1340 bytes.
pub const MSS_V6: u16 = INNER_MTU - 60;

const ICMP_HEADER_LEN: usize = 8;
const V4_CHECKSUM: usize = 10;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;

/// Which address of a packet is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    fn of(self, inner: &Inner) -> IpAddr {
        match self {
            Self::Source => inner.source,
            Self::Destination => inner.destination,
        }
    }
}

/// Replaces one address of `packet`, whose headers [`Inner::parse`] read, by `to`, of the same family. In an ICMP error
/// the packet that it quotes went the other way: its other address is replaced too.
///
/// # Errors
/// [`EdgeDrop::Version`] where the families differ, [`EdgeDrop::IcmpForeign`] for an ICMP error that quotes a packet
/// without that address. The packet is then to be dropped; it may be half changed.
pub fn rewrite(packet: &mut [u8], inner: &Inner, side: Side, to: IpAddr) -> Result<(), EdgeDrop> {
    let from = side.of(inner);
    let mut pseudo = replace_address(packet, side, to)?;
    let Some(transport) = inner.transport else { return Ok(()) };
    if let Some(quoted_at) = quoted(packet, inner) {
        let quote = packet.get_mut(quoted_at..).ok_or(EdgeDrop::Length)?;
        let quoted_inner = Inner::parse_truncated(quote).map_err(|_| EdgeDrop::IcmpForeign)?;
        if side.other().of(&quoted_inner) != from {
            return Err(EdgeDrop::IcmpForeign);
        }
        let before = Difference::minus_all(quote);
        let quoted_pseudo = replace_address(quote, side.other(), to)?;
        if let Some(at) = quoted_inner.transport {
            fix_transport(quote, quoted_inner.protocol, at, quoted_pseudo);
        }
        let change = before.plus_all(quote);
        if inner.protocol == ICMP {
            change.apply(packet, transport + ICMP_CHECKSUM);
            return Ok(());
        }
        pseudo = pseudo.and(change);
    }
    fix_transport(packet, inner.protocol, transport, pseudo);
    Ok(())
}

/// Lowers the segment size that a TCP SYN in `packet` announces to what fits the inner MTU.
pub fn clamp_mss(packet: &mut [u8], inner: &Inner) {
    const SYN: u8 = 2;
    const OPTION_END: u8 = 0;
    const OPTION_NOP: u8 = 1;
    const OPTION_MSS: u8 = 2;
    let (TCP, Some(start)) = (inner.protocol, inner.transport) else { return };
    let Some(&[offset, flags]) = packet.get(start + 12..start + 14).and_then(|bytes| bytes.first_chunk())
    else {
        return;
    };
    if flags & SYN == 0 {
        return;
    }
    let limit = if inner.source.is_ipv4() { MSS_V4 } else { MSS_V6 };
    let end = packet.len().min(start + usize::from(offset >> 4) * 4);
    let mut at = start + 20;
    // Every option but the two of one byte is at least two long, and all of them end within forty bytes.
    while at < end {
        match packet[at] {
            OPTION_END => return,
            OPTION_NOP => at += 1,
            kind => {
                let length = usize::from(packet.get(at + 1).copied().unwrap_or(0));
                if length < 2 || at + length > end {
                    return;
                }
                if kind == OPTION_MSS && length == 4 {
                    lower(packet, start, at + 2, limit);
                    return;
                }
                at += length;
            }
        }
    }
}

fn lower(packet: &mut [u8], transport: usize, at: usize, limit: u16) {
    let Some(old) = u16_at(packet, at).filter(|&old| old > limit) else { return };
    packet[at..at + 2].copy_from_slice(&limit.to_be_bytes());
    let odd = (at - transport) % 2 == 1;
    // At an odd place the value's bytes stand in two words; the sum of both is that of the swapped value.
    let place = |value: u16| if odd { value.swap_bytes() } else { value };
    Difference::default().minus(place(old)).plus(place(limit)).apply(packet, transport + TCP_CHECKSUM);
}

/// Where the packet that an ICMP error quotes starts.
fn quoted(packet: &[u8], inner: &Inner) -> Option<usize> {
    let at = inner.transport?;
    let kind = *packet.get(at)?;
    let error = match (inner.protocol, inner.source) {
        // RFC 792: unreachable, quench, redirect, time exceeded, parameter problem.
        (ICMP, IpAddr::V4(_)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        // RFC 4443, section 2.1: types below 128 are errors.
        (ICMPV6, IpAddr::V6(_)) => kind < 128,
        _ => false,
    };
    error.then_some(at + ICMP_HEADER_LEN)
}

/// Writes the address and mends IPv4's header checksum; returns how the pseudo header changed.
fn replace_address(packet: &mut [u8], side: Side, to: IpAddr) -> Result<Difference, EdgeDrop> {
    let is_v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    match (to, side) {
        (IpAddr::V4(to), side) if is_v4 && packet.len() >= V4_HEADER_LEN => {
            let at = if side == Side::Source { 12 } else { 16 };
            let change = replace(&mut packet[at..at + 4], &to.octets());
            change.apply(packet, V4_CHECKSUM);
            Ok(change)
        }
        (IpAddr::V6(to), side) if !is_v4 && packet.len() >= V6_HEADER_LEN => {
            let at = if side == Side::Source { 8 } else { 24 };
            Ok(replace(&mut packet[at..at + 16], &to.octets()))
        }
        _ => Err(EdgeDrop::Version),
    }
}

fn replace(place: &mut [u8], new: &[u8]) -> Difference {
    let before = Difference::minus_all(place);
    place.copy_from_slice(new);
    before.plus_all(place)
}

/// Mends the transport checksum, where there is one and it is still in the packet.
fn fix_transport(packet: &mut [u8], protocol: u8, start: usize, change: Difference) {
    match protocol {
        TCP => change.apply(packet, start + TCP_CHECKSUM),
        UDP => {
            let at = start + UDP_CHECKSUM;
            // Zero means that there is none (RFC 768).
            if u16_at(packet, at).is_some_and(|sum| sum != 0) {
                change.apply(packet, at);
                if u16_at(packet, at) == Some(0) {
                    packet[at..at + 2].fill(0xFF);
                }
            }
        }
        ICMPV6 => change.apply(packet, start + ICMP_CHECKSUM),
        _ => {}
    }
}

/// A one's complement sum of words taken away and added.
#[derive(Clone, Copy, Debug, Default)]
struct Difference(u64);

impl Difference {
    fn minus(self, word: u16) -> Self {
        Self(self.0 + u64::from(!word))
    }

    fn plus(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    fn minus_all(bytes: &[u8]) -> Self {
        words(bytes).fold(Self::default(), Self::minus)
    }

    fn plus_all(self, bytes: &[u8]) -> Self {
        words(bytes).fold(self, Self::plus)
    }

    fn apply(self, packet: &mut [u8], at: usize) {
        let Some(sum) = u16_at(packet, at) else { return };
        let new = !fold(self.0 + u64::from(!sum));
        packet[at..at + 2].copy_from_slice(&new.to_be_bytes());
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
}

fn fold(mut sum: u64) -> u16 {
    loop {
        match u16::try_from(sum) {
            Ok(folded) => return folded,
            Err(_) => sum = (sum & 0xFFFF) + (sum >> 16),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
