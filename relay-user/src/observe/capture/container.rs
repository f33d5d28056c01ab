//! Records out of a capture file: pcap with microseconds or nanoseconds and pcapng, in either byte order.
//!
//! Read front to back through one buffer, however long the file is. The best kept crate for this, `pcap-parser` (0.17),
//! knows no clocks in powers of two and reads clocks' offsets in one byte order only. What is needed here are the few
//! layouts below, and the byte and the packet at which a file breaks off.
//!
//! Layouts: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.

use std::io::{ErrorKind, Read};

use super::CaptureError;
use super::order::Order;

/// Bytes of a packet, at most: libpcap's `MAXIMUM_SNAPLEN`.
const PACKET_MAX: u32 = 262_144;
/// Bytes of a pcapng block that is read and not skipped, at most: a packet and its options.
const BLOCK_MAX: u32 = PACKET_MAX + 65_536;
/// Interfaces of a pcapng section, at most.
const INTERFACES_MAX: usize = 4096;

/// What a pcapng section begins with, in either byte order.
const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const INTERFACE_DESCRIPTION: u32 = 1;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const OPTION_END: u16 = 0;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_OFFSET: u16 = 14;

const NANOSECONDS: u128 = 1_000_000_000;

/// One captured packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Nanoseconds since 1970.
    pub at: u64,
    /// What stands in front of the network header, by the registry of link types.
    pub link_type: u32,
    /// Bytes that the packet had on the wire; the capture may hold fewer.
    pub length: u32,
    /// The bytes that were captured.
    pub bytes: &'a [u8],
}

/// A packet whose bytes stand in the buffer.
#[derive(Clone, Copy, Debug)]
struct Buffered {
    at: u64,
    link_type: u32,
    length: u32,
    first: usize,
    captured: u32,
}

/// How a clock's ticks become nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clock {
    per_second: u64,
    /// Seconds to add.
    offset: i64,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: u32,
    clock: Clock,
}

#[derive(Debug)]
enum Format {
    Pcap { order: Order, link_type: u32, per_second: u64 },
    PcapNg { order: Order, interfaces: Vec<Interface> },
}

/// A capture file that is being read.
#[derive(Debug)]
pub struct Records<R> {
    input: R,
    format: Format,
    buffer: Vec<u8>,
    offset: u64,
    /// Read so far.
    packets: u64,
}

impl<R: Read> Records<R> {
    /// Reads what a capture begins with.
    ///
    /// # Errors
    /// [`CaptureError`] where the file is empty, no capture, or cannot be read.
    pub fn open(input: R) -> Result<Self, CaptureError> {
        let format = Format::PcapNg { order: Order::Little, interfaces: Vec::new() };
        let mut records = Self { input, format, buffer: Vec::new(), offset: 0, packets: 0 };
        let start = match records.start::<4>()? {
            None => return Err(CaptureError::Empty),
            Some(start) => start,
        };
        if start == SECTION_HEADER {
            records.section()?;
            return Ok(records);
        }
        let (order, per_second) = match u32::from_le_bytes(start) {
            0xa1b2_c3d4 => (Order::Little, 1_000_000),
            0xd4c3_b2a1 => (Order::Big, 1_000_000),
            0xa1b2_3c4d => (Order::Little, 1_000_000_000),
            0x4d3c_b2a1 => (Order::Big, 1_000_000_000),
            _ => return Err(CaptureError::NotACapture),
        };
        let header = records.exactly::<20>()?;
        // The upper half may hold the length of a frame check sequence.
        let link_type = order.u32(&header, 16) & 0xffff;
        records.format = Format::Pcap { order, link_type, per_second };
        Ok(records)
    }

    /// The next packet; `None` at the end of a whole file.
    ///
    /// # Errors
    /// [`CaptureError`] where the file breaks off inside a packet, contradicts itself, or cannot be read.
    pub fn record(&mut self) -> Result<Option<Record<'_>>, CaptureError> {
        let found = match self.format {
            Format::Pcap { order, link_type, per_second } => {
                let Some(header) = self.start::<16>()? else { return Ok(None) };
                let [seconds, fraction, captured, length] =
                    [0, 4, 8, 12].map(|offset| order.u32(&header, offset));
                if captured > PACKET_MAX {
                    return Err(self.malformed("a packet is longer than any capture's"));
                }
                self.fill(captured)?;
                let nanos = u64::from(fraction).saturating_mul(1_000_000_000 / per_second);
                let at = (u64::from(seconds) * 1_000_000_000).saturating_add(nanos);
                Buffered { at, link_type, length, first: 0, captured }
            }
            Format::PcapNg { .. } => match self.next_block()? {
                None => return Ok(None),
                Some(found) => found,
            },
        };
        self.packets += 1;
        let Buffered { at, link_type, length, first, captured } = found;
        let bytes = self.buffer.get(first..first.saturating_add(captured as usize)).unwrap_or_default();
        Ok(Some(Record { at, link_type, length, bytes }))
    }

    /// Reads blocks up to and including the next packet.
    fn next_block(&mut self) -> Result<Option<Buffered>, CaptureError> {
        loop {
            let Some(kind) = self.start::<4>()? else { return Ok(None) };
            if kind == SECTION_HEADER {
                self.section()?;
                continue;
            }
            let Format::PcapNg { order, .. } = self.format else { return Ok(None) };
            let kind = order.u32(&kind, 0);
            let length = order.u32(&self.exactly::<4>()?, 0);
            let Some(body) = length.checked_sub(12).filter(|body| body % 4 == 0) else {
                return Err(self.malformed("a block's length is none"));
            };
            match kind {
                INTERFACE_DESCRIPTION | ENHANCED_PACKET if body > BLOCK_MAX => {
                    return Err(self.malformed("a packet is longer than any capture's"));
                }
                INTERFACE_DESCRIPTION | ENHANCED_PACKET => self.fill(body)?,
                SIMPLE_PACKET => return Err(self.malformed("it holds packets without times")),
                _ => self.skip(body)?,
            }
            self.end_block(order, length)?;
            match kind {
                INTERFACE_DESCRIPTION => self.interface(order)?,
                ENHANCED_PACKET => return self.enhanced(order).map(Some),
                _ => {}
            }
        }
    }

    /// A section header, whose type has been read.
    fn section(&mut self) -> Result<(), CaptureError> {
        let [l0, l1, l2, l3, magic @ ..] = self.exactly::<8>()?;
        let order = match (u32::from_le_bytes(magic), u32::from_be_bytes(magic)) {
            (BYTE_ORDER_MAGIC, _) => Order::Little,
            (_, BYTE_ORDER_MAGIC) => Order::Big,
            _ => return Err(self.malformed("a section has no byte order")),
        };
        let length = order.u32(&[l0, l1, l2, l3], 0);
        let Some(rest) = length.checked_sub(16).filter(|rest| rest % 4 == 0) else {
            return Err(self.malformed("a section's header is too short"));
        };
        self.skip(rest)?;
        self.end_block(order, length)?;
        self.format = Format::PcapNg { order, interfaces: Vec::new() };
        Ok(())
    }

    fn skip(&mut self, count: u32) -> Result<(), CaptureError> {
        let count = u64::from(count);
        let skipped = std::io::copy(&mut (&mut self.input).take(count), &mut std::io::sink())?;
        self.offset += skipped;
        if skipped < count { Err(self.truncated()) } else { Ok(()) }
    }

    /// A block ends with its length, as it begins.
    fn end_block(&mut self, order: Order, length: u32) -> Result<(), CaptureError> {
        if order.u32(&self.exactly::<4>()?, 0) == length {
            Ok(())
        } else {
            Err(self.malformed("a block's two lengths differ"))
        }
    }

    fn interface(&mut self, order: Order) -> Result<(), CaptureError> {
        let (Some(link_type), Some(mut options)) = (self.buffer.get(..2), self.buffer.get(8..)) else {
            return Err(self.malformed("an interface's description is too short"));
        };
        let link_type = u32::from(order.u16(link_type, 0));
        let mut clock = Clock { per_second: 1_000_000, offset: 0 };
        let mut resolution = Some(clock.per_second);
        while let Some((head, rest)) = options.split_first_chunk::<4>() {
            let (code, length) = (order.u16(head, 0), usize::from(order.u16(head, 2)));
            if code == OPTION_END {
                break;
            }
            let Some(value) = rest.get(..length) else {
                return Err(self.malformed("an option reaches beyond its block"));
            };
            match (code, value) {
                (OPTION_RESOLUTION, [exponent]) => resolution = per_second(*exponent),
                (OPTION_OFFSET, [_, _, _, _, _, _, _, _]) => clock.offset = order.i64(value),
                _ => {}
            }
            options = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        let Some(per_second) = resolution else {
            return Err(self.malformed("an interface's clock is finer than can be read"));
        };
        clock.per_second = per_second;
        if let Format::PcapNg { interfaces, .. } = &mut self.format
            && interfaces.len() < INTERFACES_MAX
        {
            interfaces.push(Interface { link_type, clock });
            return Ok(());
        }
        Err(self.malformed("it has too many interfaces"))
    }

    fn enhanced(&self, order: Order) -> Result<Buffered, CaptureError> {
        const HEADER: u32 = 20;
        let Some(header) = self.buffer.first_chunk::<{ HEADER as usize }>() else {
            return Err(self.malformed("a packet's block is too short"));
        };
        let [interface, high, low, captured, length] =
            [0, 4, 8, 12, 16].map(|offset| order.u32(header, offset));
        if captured > PACKET_MAX || (self.buffer.len() as u64) < u64::from(HEADER) + u64::from(captured) {
            return Err(self.malformed("a packet reaches beyond its block"));
        }
        let Format::PcapNg { interfaces, .. } = &self.format else {
            return Err(self.malformed("it is no pcapng"));
        };
        let described = usize::try_from(interface).ok().and_then(|number| interfaces.get(number));
        let Some(Interface { link_type, clock }) = described else {
            return Err(self.malformed("a packet's interface is not described"));
        };
        let at = clock.nanos(u64::from(high) << 32 | u64::from(low));
        let at = at.ok_or_else(|| self.malformed("a packet's time is out of range"))?;
        Ok(Buffered { at, link_type: *link_type, length, first: HEADER as usize, captured })
    }

    /// `N` bytes, or nothing where the file ends here.
    fn start<const N: usize>(&mut self) -> Result<Option<[u8; N]>, CaptureError> {
        let mut bytes = [0; N];
        let mut have = 0;
        while let Some(space) = bytes.get_mut(have..).filter(|space| !space.is_empty()) {
            match self.input.read(space) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.offset += have as u64;
        match have {
            0 if N > 0 => Ok(None),
            _ if have == N => Ok(Some(bytes)),
            _ => Err(self.truncated()),
        }
    }

    fn exactly<const N: usize>(&mut self) -> Result<[u8; N], CaptureError> {
        self.start()?.ok_or_else(|| self.truncated())
    }

    /// Puts the next `count` bytes into the buffer, which grows with what is there and not with what is promised.
    fn fill(&mut self, count: u32) -> Result<(), CaptureError> {
        self.buffer.clear();
        let read = (&mut self.input).take(u64::from(count)).read_to_end(&mut self.buffer)?;
        self.offset += read as u64;
        if (read as u64) < u64::from(count) { Err(self.truncated()) } else { Ok(()) }
    }

    fn truncated(&self) -> CaptureError {
        if self.offset < 4 {
            return CaptureError::NotACapture;
        }
        CaptureError::Truncated { offset: self.offset, packets: self.packets }
    }

    fn malformed(&self, what: &'static str) -> CaptureError {
        CaptureError::Malformed { offset: self.offset, packets: self.packets, what }
    }
}

impl Clock {
    fn nanos(self, ticks: u64) -> Option<u64> {
        let nanos = u128::from(ticks) * NANOSECONDS / u128::from(self.per_second);
        let nanos = i128::try_from(nanos).ok()?;
        let nanos = nanos.checked_add(i128::from(self.offset) * 1_000_000_000)?;
        u64::try_from(nanos).ok().filter(|&nanos| nanos <= LATEST)
    }
}

/// Times beyond the year 2262 are no times: what is computed with them must not overflow.
const LATEST: u64 = i64::MAX as u64;

/// Ticks per second by `if_tsresol`: a power of ten or, with the top bit, of two.
fn per_second(exponent: u8) -> Option<u64> {
    let power = u32::from(exponent & 0x7f);
    if exponent & 0x80 == 0 { 10_u64.checked_pow(power) } else { 1_u64.checked_shl(power) }
}
