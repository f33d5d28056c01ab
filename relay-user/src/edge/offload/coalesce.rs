//! Packets of one flow that leave one behind another, put together so that the kernel takes them in one write.
//!
//! Only what a receiver could not tell from the separate packets is put together: the rules are those of the kernel's
//! own receive offload (`net/ipv4/tcp_offload.c`), stricter where that is simpler. Since the kernel makes the segments'
//! checksums anew, those that came are checked before: a damaged packet goes alone, and stays detectably damaged.

use super::{
    ACK, GSO_TCP_V4, GSO_TCP_V6, GSO_UDP, HEADER_LEN, Header, MAX_SUPER, NEEDS_CHECKSUM, PSH, TCP_CHECKSUM,
    TCP_FLAGS, TCP_HEADER_LEN, UDP_CHECKSUM, UDP_HEADER_LEN, addresses, pseudo_sum, seal_v4, transport_sum,
};
use crate::edge::ip::{TCP, UDP, V4_HEADER_LEN, V6_HEADER_LEN, u16_at};

/// Flows put together at the same time: those of circuits whose cells arrive in one turn of a worker.
const FLOWS: usize = 8;
/// Segments in one write, at most: the least that any kernel with UDP segmentation takes (`UDP_MAX_SEGMENTS` of 5.x).
const MAX_SEGMENTS: u64 = 64;

/// What waits for the end of the turn.
pub(in crate::edge) struct Coalescer {
    flows: [Pending; FLOWS],
    occupied: usize,
    next_victim: usize,
    udp: bool,
}

/// Packets of one flow, behind room for the virtio header.
struct Pending {
    bytes: Box<[u8]>,
    /// Bytes in use, the virtio header's included; zero when free.
    len: usize,
    shape: Shape,
    segments: u64,
    /// Bytes of payload in each segment but the last.
    segment: usize,
    next_sequence: u32,
    /// Whether the first packet's checksum has been found right.
    verified: bool,
    /// Nothing may follow.
    closed: bool,
}

/// What a packet is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    is_v4: bool,
    protocol: u8,
    transport: usize,
    headers_len: usize,
}

impl Coalescer {
    /// With `udp`, datagrams are put together too.
    pub(in crate::edge) fn new(udp: bool) -> Self {
        Self { flows: std::array::from_fn(|_| Pending::new()), occupied: 0, next_victim: 0, udp }
    }

    /// Takes `packet` up, or says that it is to be written alone, now. `write` gets what must go before it: bytes with
    /// their virtio header, and how many packets they are.
    #[must_use]
    pub(in crate::edge) fn take(&mut self, packet: &[u8], write: &mut impl FnMut(&[u8], u64)) -> bool {
        let Some(shape) = Shape::read(packet) else { return false };
        let mergeable = (self.udp || shape.protocol == TCP) && shape.is_mergeable(packet);
        if self.occupied > 0
            && let Some(at) = self.flows.iter().position(|flow| flow.is_same_flow(packet, shape))
        {
            if mergeable && self.flows[at].append(packet, shape) {
                return true;
            }
            // Whatever comes of the packet, it must not overtake.
            self.release(at, write);
        }
        if !mergeable {
            return false;
        }
        let at = self.flows.iter().position(|flow| flow.len == 0).unwrap_or_else(|| {
            let victim = self.next_victim;
            self.next_victim = (victim + 1) % FLOWS;
            self.release(victim, write);
            victim
        });
        self.flows[at].begin(packet, shape);
        self.occupied += 1;
        true
    }

    /// Hands out everything that waits.
    pub(in crate::edge) fn flush(&mut self, write: &mut impl FnMut(&[u8], u64)) {
        if self.occupied == 0 {
            return;
        }
        for at in 0..FLOWS {
            if self.flows[at].len > 0 {
                self.release(at, write);
            }
        }
    }

    fn release(&mut self, at: usize, write: &mut impl FnMut(&[u8], u64)) {
        let flow = &mut self.flows[at];
        flow.finish();
        write(&flow.bytes[..flow.len], flow.segments);
        flow.len = 0;
        self.occupied -= 1;
    }
}

impl Pending {
    fn new() -> Self {
        Self {
            bytes: vec![0; HEADER_LEN + MAX_SUPER].into_boxed_slice(),
            len: 0,
            shape: Shape { is_v4: true, protocol: 0, transport: 0, headers_len: 0 },
            segments: 0,
            segment: 0,
            next_sequence: 0,
            verified: false,
            closed: false,
        }
    }

    fn packet(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..self.len.max(HEADER_LEN)]
    }

    fn is_same_flow(&self, packet: &[u8], shape: Shape) -> bool {
        if self.len == 0 || (self.shape.is_v4, self.shape.protocol) != (shape.is_v4, shape.protocol) {
            return false;
        }
        let (ours, ports) = (self.packet(), shape.transport..shape.transport + 4);
        ours[ports.clone()] == packet[ports] && ours[addresses(shape.is_v4)] == packet[addresses(shape.is_v4)]
    }

    fn begin(&mut self, packet: &[u8], shape: Shape) {
        self.len = HEADER_LEN + packet.len();
        self.bytes[HEADER_LEN..self.len].copy_from_slice(packet);
        self.shape = shape;
        self.segments = 1;
        self.segment = packet.len() - shape.headers_len;
        self.next_sequence = shape.sequence(packet).wrapping_add(low_u32(self.segment));
        self.verified = false;
        self.closed = shape.ends_burst(packet);
    }

    /// Puts a mergeable packet of the same flow behind the others, where that can be undone exactly.
    fn append(&mut self, packet: &[u8], shape: Shape) -> bool {
        let payload = packet.len() - shape.headers_len;
        let follows = !self.closed
            && self.shape == shape
            && self.segments < MAX_SEGMENTS
            && payload <= self.segment
            && self.len - HEADER_LEN + payload <= MAX_SUPER
            && shape.has_same_headers(self.packet(), packet)
            && (shape.protocol == UDP || shape.sequence(packet) == self.next_sequence);
        if !follows || !shape.is_sound(packet) || !(self.verified || shape.is_sound(self.packet())) {
            return false;
        }
        self.verified = true;
        self.bytes[self.len..self.len + payload].copy_from_slice(&packet[shape.headers_len..]);
        self.len += payload;
        self.segments += 1;
        self.next_sequence = self.next_sequence.wrapping_add(low_u32(payload));
        if shape.ends_burst(packet) {
            self.bytes[HEADER_LEN + shape.transport + TCP_FLAGS] |= PSH;
            self.closed = true;
        }
        self.closed |= payload < self.segment;
        true
    }

    /// Writes the virtio header and, where there is more than one segment, what the whole needs.
    fn finish(&mut self) {
        let Shape { is_v4, protocol, transport, headers_len } = self.shape;
        let (header, packet) = self.bytes[..self.len].split_at_mut(HEADER_LEN);
        if self.segments < 2 {
            header.fill(0);
            return;
        }
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        if is_v4 {
            let total = length(packet.len());
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            seal_v4(&mut packet[..transport]);
        } else {
            let total = length(packet.len() - V6_HEADER_LEN);
            packet[4..6].copy_from_slice(&total.to_be_bytes());
        }
        let transport_len = packet.len() - transport;
        let (gso_type, checksum) = match (protocol, is_v4) {
            (TCP, true) => (GSO_TCP_V4, TCP_CHECKSUM),
            (TCP, false) => (GSO_TCP_V6, TCP_CHECKSUM),
            _ => (GSO_UDP, UDP_CHECKSUM),
        };
        if protocol == UDP {
            packet[transport + 4..transport + 6].copy_from_slice(&length(transport_len).to_be_bytes());
        }
        let sum = pseudo_sum(packet, is_v4, protocol, transport_len);
        packet[transport + checksum..transport + checksum + 2].copy_from_slice(&sum.to_be_bytes());
        let virtio = Header {
            flags: NEEDS_CHECKSUM,
            gso_type,
            headers_len: length(headers_len),
            segment: length(self.segment),
            checksum_start: length(transport),
            checksum_offset: length(checksum),
        };
        header.copy_from_slice(&virtio.to_bytes());
    }
}

impl Shape {
    /// The shape of a whole TCP or UDP packet without IPv4 options or IPv6 extension headers.
    fn read(packet: &[u8]) -> Option<Self> {
        let (is_v4, protocol, transport) = match *packet.first()? {
            // Neither more fragments nor an offset.
            0x45 if u16_at(packet, 6)? & 0x3FFF == 0 => (true, *packet.get(9)?, V4_HEADER_LEN),
            0x60..=0x6F => (false, *packet.get(6)?, V6_HEADER_LEN),
            _ => return None,
        };
        let transport_len = match protocol {
            TCP => (usize::from(*packet.get(transport + TCP_FLAGS - 1)? >> 4) * 4).max(TCP_HEADER_LEN),
            UDP => UDP_HEADER_LEN,
            _ => return None,
        };
        let headers_len = transport + transport_len;
        (headers_len <= packet.len()).then_some(Self { is_v4, protocol, transport, headers_len })
    }

    /// Whether the packet carries nothing that being one of many would lose.
    fn is_mergeable(self, packet: &[u8]) -> bool {
        const DONT_FRAGMENT: u16 = 0x4000;
        let Self { is_v4, protocol, transport, headers_len } = self;
        // Without DF the identification would matter, and the kernel counts it up on its own.
        (!is_v4 || u16_at(packet, 6) == Some(DONT_FRAGMENT))
            && headers_len < packet.len()
            && if protocol == TCP {
                packet[transport + TCP_FLAGS] & !PSH == ACK && packet[transport + TCP_FLAGS - 1] & 0x0F == 0
            } else {
                u16_at(packet, transport + UDP_CHECKSUM) != Some(0)
                    && u16_at(packet, transport + 4).map(usize::from) == Some(packet.len() - transport)
            }
    }

    /// Whether the headers differ only in what the kernel makes anew for each segment. Addresses and ports are known
    /// to be the same.
    fn has_same_headers(self, one: &[u8], other: &[u8]) -> bool {
        let same = |from: usize, to: usize| one[from..to] == other[from..to];
        let ip = if self.is_v4 { same(0, 2) && same(6, 10) } else { same(0, 4) && same(6, 8) };
        let at = self.transport;
        // Acknowledgement and offset; window; urgent pointer and options.
        let tcp = || {
            same(at + 8, at + TCP_FLAGS)
                && same(at + TCP_FLAGS + 1, at + TCP_CHECKSUM)
                && same(at + TCP_CHECKSUM + 2, self.headers_len)
        };
        ip && (self.protocol == UDP || tcp())
    }

    fn is_sound(self, packet: &[u8]) -> bool {
        transport_sum(packet, self.is_v4, self.protocol, self.transport) == u16::MAX
    }

    fn sequence(self, packet: &[u8]) -> u32 {
        packet[self.transport + 4..].first_chunk().map_or(0, |&bytes| u32::from_be_bytes(bytes))
    }

    fn ends_burst(self, packet: &[u8]) -> bool {
        self.protocol == TCP && packet[self.transport + TCP_FLAGS] & PSH != 0
    }
}

/// Of a length below 64 KiB.
fn low_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
