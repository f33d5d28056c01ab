//! Packets for the tests of both ways.

use super::{TCP_CHECKSUM, UDP_CHECKSUM, seal_v4, transport_sum};
use crate::edge::ip::{TCP, UDP};

/// Addresses as they stand in a header: the source first.
pub(super) const IPV4: &[u8] = &[100, 64, 0, 2, 198, 51, 100, 80];
pub(super) const IPV6: &[u8] = &[0xFD; 32];

/// A TCP packet with a timestamp option.
pub(super) fn tcp(addresses: &[u8], sequence: u32, flags: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![0x9C, 0x40, 0x01, 0xBB];
    body.extend(sequence.to_be_bytes());
    body.extend([0, 0, 0, 77, 0x80, flags, 2, 1, 0, 0, 0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    body.extend(payload);
    packet(addresses, TCP, id, &body)
}

pub(super) fn udp(addresses: &[u8], id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![0x9C, 0x40, 0x01, 0xBB];
    body.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    packet(addresses, UDP, id, &body)
}

fn packet(addresses: &[u8], protocol: u8, id: u16, body: &[u8]) -> Vec<u8> {
    let is_v4 = addresses.len() == 8;
    let length = u16::try_from(body.len()).unwrap();
    let mut out = Vec::new();
    if is_v4 {
        out.extend([0x45, 0]);
        out.extend((length + 20).to_be_bytes());
        out.extend(id.to_be_bytes());
        out.extend([0x40, 0, 64, protocol, 0, 0]);
    } else {
        out.extend([0x60, 0, 0, 0]);
        out.extend(length.to_be_bytes());
        out.extend([protocol, 64]);
    }
    out.extend(addresses);
    let start = out.len();
    if is_v4 {
        seal_v4(&mut out);
    }
    out.extend(body);
    let at = start + if protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    let sum = !transport_sum(&out, is_v4, protocol, start);
    out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    out
}

pub(super) fn assert_sound(packet: &[u8]) {
    let is_v4 = packet[0] >> 4 == 4;
    let (protocol, transport) = if is_v4 { (packet[9], 20) } else { (packet[6], 40) };
    assert_eq!(transport_sum(packet, is_v4, protocol, transport), u16::MAX, "transport checksum");
    if is_v4 {
        assert_eq!(tun_rs::checksum(&packet[..20], 0), u16::MAX, "header checksum");
    }
}
