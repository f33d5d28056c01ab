//! Capture files, written from their specifications and not with what reads them.

/// What a frame begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Link {
    Ethernet,
    Vlan,
    Raw,
    Cooked,
    Cooked2,
}

impl Link {
    pub(crate) const ALL: [Self; 5] = [Self::Ethernet, Self::Vlan, Self::Raw, Self::Cooked, Self::Cooked2];

    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Ethernet | Self::Vlan => 1,
            Self::Raw => 101,
            Self::Cooked => 113,
            Self::Cooked2 => 276,
        }
    }

    /// The frame of an IP packet.
    pub(crate) fn frame(self, packet: &[u8]) -> Vec<u8> {
        let ethertype: [u8; 2] = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0] };
        let header = match self {
            Self::Ethernet => [&[2; 12][..], &ethertype].concat(),
            Self::Vlan => [&[2; 12][..], &[0x81, 0, 0, 7], &ethertype].concat(),
            Self::Raw => Vec::new(),
            Self::Cooked => [&[0, 4, 0, 1, 0, 6][..], &[2; 8], &ethertype].concat(),
            Self::Cooked2 => [&ethertype[..], &[0; 2], &[0, 0, 0, 3], &[0, 1, 4, 6], &[2; 8]].concat(),
        };
        [&header, packet].concat()
    }
}

/// A UDP datagram between the hosts `from` and `to` of the documentation's networks, each with its port.
pub(crate) fn udp(from: (u8, u16), to: (u8, u16), v6: bool, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap();
    let mut udp = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    if v6 {
        let host = |last| [&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[last]].concat();
        let [high, low] = length.to_be_bytes();
        return [&[0x60, 0, 0, 0, high, low, 17, 64][..], &host(from.0), &host(to.0), &udp].concat();
    }
    let [high, low] = (length + 20).to_be_bytes();
    let hosts = [192, 0, 2, from.0, 192, 0, 2, to.0];
    [&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0][..], &hosts, &udp].concat()
}

/// Nanoseconds since 1970 and a frame.
pub(crate) type Packet = (u64, Vec<u8>);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    pub(crate) big: bool,
}

impl Bytes {
    fn u16(self, value: u16) -> [u8; 2] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn u32(self, value: u32) -> [u8; 4] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn words<const N: usize>(self, values: [u32; N]) -> Vec<u8> {
        values.map(|value| self.u32(value)).concat()
    }
}

pub(crate) fn pcap(bytes: Bytes, nanos: bool, link_type: u32, packets: &[Packet]) -> Vec<u8> {
    let (magic, unit) = if nanos { (0xa1b2_3c4d, 1) } else { (0xa1b2_c3d4, 1000) };
    let mut file = [&bytes.u32(magic)[..], &bytes.u16(2), &bytes.u16(4)].concat();
    file.extend(bytes.words([0, 0, 262_144, link_type]));
    for (at, frame) in packets {
        let length = u32::try_from(frame.len()).unwrap();
        let seconds = u32::try_from(at / 1_000_000_000).unwrap();
        let fraction = u32::try_from(at % 1_000_000_000 / unit).unwrap();
        file.extend(bytes.words([seconds, fraction, length, length]));
        file.extend(frame);
    }
    file
}

/// `resolution` as `if_tsresol` has it; `offset` in seconds, taken off the times of the packets.
pub(crate) fn pcapng(
    bytes: Bytes,
    resolution: u8,
    offset: u64,
    link_type: u32,
    packets: &[Packet],
) -> Vec<u8> {
    let per_second: u128 = match resolution {
        0..=0x7f => 10_u128.pow(u32::from(resolution)),
        _ => 1 << (resolution & 0x7f),
    };
    // Version 1.0, and a section of unknown length.
    let section = [&bytes.u32(0x1a2b_3c4d)[..], &bytes.u16(1), &bytes.u16(0), &[0xff; 8]].concat();
    let mut file = block(bytes, 0x0a0d_0d0a, &section);
    let mut interface = [&bytes.u16(u16::try_from(link_type).unwrap())[..], &[0; 2], &[0; 4]].concat();
    interface.extend([&bytes.u16(2)[..], &bytes.u16(3), b"eth\0"].concat());
    interface.extend([&bytes.u16(9)[..], &bytes.u16(1), &[resolution, 0, 0, 0]].concat());
    let shift = if bytes.big { offset.to_be_bytes() } else { offset.to_le_bytes() };
    interface.extend([&bytes.u16(14)[..], &bytes.u16(8), &shift, &[0; 4]].concat());
    file.extend(block(bytes, 1, &interface));
    // A block that nobody knows, and statistics.
    file.extend(block(bytes, 0x0bad, &[7; 12]));
    for (at, frame) in packets {
        let ticks = u128::from(at - offset * 1_000_000_000) * per_second / 1_000_000_000;
        let ticks = u64::try_from(ticks).unwrap();
        let (high, low) = (u32::try_from(ticks >> 32).unwrap(), u32::try_from(ticks & 0xffff_ffff).unwrap());
        let length = u32::try_from(frame.len()).unwrap();
        let mut packet = bytes.words([0, high, low, length, length]);
        packet.extend(frame);
        packet.resize(packet.len().next_multiple_of(4), 0);
        file.extend(block(bytes, 6, &packet));
    }
    file.extend(block(bytes, 5, &[0; 12]));
    file
}

fn block(bytes: Bytes, kind: u32, body: &[u8]) -> Vec<u8> {
    let length = bytes.u32(u32::try_from(body.len() + 12).unwrap());
    [&bytes.u32(kind)[..], &length, body, &length].concat()
}
