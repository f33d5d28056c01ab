//! What the kernel hands over in one piece, cut into packets one at a time.

use std::ops::Range;

use super::{
    CWR, FIN, GSO_ECN, GSO_NONE, GSO_TCP_V4, GSO_TCP_V6, GSO_UDP, HEADER_LEN, Header, NEEDS_CHECKSUM, PSH,
    TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER_LEN, UDP_CHECKSUM, UDP_HEADER_LEN, seal_v4, transport_sum,
};
use crate::edge::ip::{TCP, UDP, V4_HEADER_LEN, V6_HEADER_LEN, u16_at};

/// Bytes of the longest headers that are repeated in front of each segment: IPv4 and TCP with all options take 120,
/// and IPv6 extension headers beyond the rest are refused later anyway.
const MAX_HEADERS: usize = 256;

/// The buffer that pieces are read into, and the place in it.
pub(in crate::edge) struct Splitter {
    buffer: Box<[u8]>,
    packet: Range<usize>,
    headers: [u8; MAX_HEADERS],
    rest: Option<Rest>,
}

/// Segments still to be made.
#[derive(Clone, Copy, Debug)]
struct Rest {
    plan: Plan,
    /// Where the next segment's payload starts.
    next: usize,
    /// Where the last one's ends.
    end: usize,
    index: u16,
}

/// How a piece is cut.
#[derive(Clone, Copy, Debug)]
struct Plan {
    is_v4: bool,
    protocol: u8,
    transport: usize,
    headers_len: usize,
    segment: usize,
}

impl Splitter {
    /// For reads of up to `longest` bytes.
    pub(in crate::edge) fn new(longest: usize) -> Self {
        Self {
            buffer: vec![0; longest].into_boxed_slice(),
            packet: 0..0,
            headers: [0; MAX_HEADERS],
            rest: None,
        }
    }

    /// Where the next piece is to be read to; may be exchanged for another of its length.
    pub(in crate::edge) fn space(&mut self) -> &mut Box<[u8]> {
        &mut self.buffer
    }

    /// Takes up a packet of `length` bytes in front of which stands no virtio header.
    pub(in crate::edge) fn accept_plain(&mut self, length: usize) {
        self.packet = 0..length.min(self.buffer.len());
        self.rest = None;
    }

    /// Takes up a piece of `length` bytes, virtio header included, and makes its first packet. True where it is more
    /// than a packet. What cannot be cut is handed on whole: the checks on packets refuse it.
    pub(in crate::edge) fn accept(&mut self, length: usize) -> bool {
        let end = length.max(HEADER_LEN).min(self.buffer.len());
        self.packet = HEADER_LEN..end;
        self.rest = None;
        let Some(header) = self.buffer.first_chunk().map(Header::from_bytes) else { return false };
        let packet = &mut self.buffer[HEADER_LEN..end];
        if header.gso_type == GSO_NONE {
            if header.flags & NEEDS_CHECKSUM != 0 {
                complete(packet, usize::from(header.checksum_start), usize::from(header.checksum_offset));
            }
            return false;
        }
        let Some(plan) = Plan::read(packet, &header) else { return true };
        let headers = &packet[..plan.headers_len];
        self.headers[..plan.headers_len].copy_from_slice(headers);
        self.rest = Some(Rest { plan, next: HEADER_LEN + plan.headers_len, end, index: 0 });
        self.advance();
        true
    }

    /// Makes the next packet of the piece; false when there is none.
    pub(in crate::edge) fn advance(&mut self) -> bool {
        let Some(rest) = &mut self.rest else { return false };
        let Rest { plan, next: start, end, index } = *rest;
        if start >= end {
            self.rest = None;
            return false;
        }
        let until = end.min(start + plan.segment);
        *rest = Rest { next: until, index: index.wrapping_add(1), ..*rest };
        // The segment before this one has been taken: its end gives room for this one's headers.
        let at = start - plan.headers_len;
        self.packet = at..until;
        let packet = &mut self.buffer[at..until];
        packet[..plan.headers_len].copy_from_slice(&self.headers[..plan.headers_len]);
        plan.finish(packet, index, until == end);
        true
    }

    /// The packet at hand.
    pub(in crate::edge) fn packet(&mut self) -> &mut [u8] {
        &mut self.buffer[self.packet.clone()]
    }
}

impl Plan {
    fn read(packet: &[u8], header: &Header) -> Option<Self> {
        let first = *packet.first()?;
        let is_v4 = first >> 4 == 4;
        let protocol = match (header.gso_type & !GSO_ECN, first >> 4) {
            (GSO_TCP_V4, 4) | (GSO_TCP_V6, 6) => TCP,
            (GSO_UDP, 4 | 6) => UDP,
            _ => return None,
        };
        let transport = if is_v4 {
            usize::from(first & 0x0F) * 4
        } else if header.flags & NEEDS_CHECKSUM != 0 {
            usize::from(header.checksum_start)
        } else {
            V6_HEADER_LEN
        };
        let transport_len = if protocol == UDP {
            UDP_HEADER_LEN
        } else {
            usize::from(*packet.get(transport + TCP_FLAGS - 1)? >> 4) * 4
        };
        let headers_len = transport + transport_len;
        // A piece whose end was cut off must not become packets that look whole.
        let said = if is_v4 {
            usize::from(u16_at(packet, 2)?)
        } else {
            V6_HEADER_LEN + usize::from(u16_at(packet, 4)?)
        };
        let sound = said == packet.len()
            && transport >= if is_v4 { V4_HEADER_LEN } else { V6_HEADER_LEN }
            && (protocol == UDP || transport_len >= TCP_HEADER_LEN)
            && headers_len <= MAX_HEADERS
            && headers_len < packet.len()
            && header.segment > 0;
        sound.then_some(Self {
            is_v4,
            protocol,
            transport,
            headers_len,
            segment: usize::from(header.segment),
        })
    }

    /// Turns a copy of the piece's headers into those of segment `index`.
    fn finish(&self, packet: &mut [u8], index: u16, is_last: bool) {
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
        let total = packet.len();
        if self.is_v4 {
            packet[2..4].copy_from_slice(&length(total));
            let id = u16_at(packet, 4).unwrap_or(0).wrapping_add(index);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            seal_v4(&mut packet[..self.transport]);
        } else {
            packet[4..6].copy_from_slice(&length(total - V6_HEADER_LEN));
        }
        let transport = &mut packet[self.transport..];
        let checksum = if self.protocol == TCP {
            let mut sequence = [0; 4];
            sequence.copy_from_slice(&transport[4..8]);
            // A piece has at most 64 KiB, so the product fits.
            let offset = u32::from(index) * u32::try_from(self.segment).unwrap_or(0);
            let sequence = u32::from_be_bytes(sequence).wrapping_add(offset);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            let flags = &mut transport[TCP_FLAGS];
            if index > 0 {
                *flags &= !CWR;
            }
            if !is_last {
                *flags &= !(FIN | PSH);
            }
            TCP_CHECKSUM
        } else {
            let total = transport.len();
            transport[4..6].copy_from_slice(&length(total));
            UDP_CHECKSUM
        };
        transport[checksum..checksum + 2].fill(0);
        let sum = !transport_sum(packet, self.is_v4, self.protocol, self.transport);
        write_checksum(packet, self.transport + checksum, checksum == UDP_CHECKSUM, sum);
    }
}

/// Finishes a checksum whose field holds the pseudo header's sum.
fn complete(packet: &mut [u8], start: usize, offset: usize) {
    let at = start + offset;
    if at + 2 > packet.len() {
        // Left as it is, and thus wrong: the receiver finds out.
        return;
    }
    let sum = !tun_rs::checksum(&packet[start..], 0);
    write_checksum(packet, at, offset == UDP_CHECKSUM, sum);
}

fn write_checksum(packet: &mut [u8], at: usize, is_udp: bool, sum: u16) {
    // Zero would say that there is none (RFC 768).
    let sum = if is_udp && sum == 0 { u16::MAX } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
pub(super) mod tests;
