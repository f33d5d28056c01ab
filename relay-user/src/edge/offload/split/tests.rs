use super::*;
use crate::edge::offload::test_packets::{IPV4, IPV6, assert_sound, tcp, udp};
use crate::edge::offload::{ACK, Header, pseudo_sum};

/// What the kernel hands over for `packet`, cut after every `segment` bytes of payload.
pub(in crate::edge::offload) fn piece(packet: &[u8], gso_type: u8, segment: u16) -> Vec<u8> {
    let is_v4 = packet[0] >> 4 == 4;
    let transport = if is_v4 { 20 } else { 40 };
    let (protocol, offset) = if gso_type == GSO_UDP { (UDP, UDP_CHECKSUM) } else { (TCP, TCP_CHECKSUM) };
    let mut packet = packet.to_vec();
    let sum = pseudo_sum(&packet, is_v4, protocol, packet.len() - transport);
    packet[transport + offset..transport + offset + 2].copy_from_slice(&sum.to_be_bytes());
    let header = Header {
        flags: NEEDS_CHECKSUM,
        gso_type,
        // Forwarded pieces come with other values here; nothing may depend on it.
        headers_len: 0,
        segment,
        checksum_start: u16::try_from(transport).unwrap(),
        checksum_offset: u16::try_from(offset).unwrap(),
    };
    [&header.to_bytes()[..], &packet].concat()
}

pub(in crate::edge::offload) fn split(splitter: &mut Splitter, piece: &[u8]) -> Vec<Vec<u8>> {
    splitter.space()[..piece.len()].copy_from_slice(piece);
    splitter.accept(piece.len());
    let mut out = vec![splitter.packet().to_vec()];
    while splitter.advance() {
        out.push(splitter.packet().to_vec());
    }
    out
}

fn splitter() -> Splitter {
    Splitter::new(HEADER_LEN + crate::edge::offload::MAX_SUPER)
}

#[test]
fn a_tcp_piece_becomes_packets_with_right_headers() {
    for (addresses, gso_type) in [(IPV4, GSO_TCP_V4), (IPV6, GSO_TCP_V6 | GSO_ECN)] {
        let payload: Vec<u8> = (0..5000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let whole = tcp(addresses, u32::MAX - 2000, CWR | ACK | PSH | FIN, 0xFFFE, &payload);
        let got = split(&mut splitter(), &piece(&whole, gso_type, 1348));
        assert_eq!(got.len(), 4);
        for (index, packet) in (0_u16..).zip(&got) {
            assert_sound(packet);
            let first = 1348 * usize::from(index);
            let part = &payload[first..payload.len().min(first + 1348)];
            let flags = ACK | [CWR, 0, 0, PSH | FIN][usize::from(index)];
            let sequence = (u32::MAX - 2000).wrapping_add(1348 * u32::from(index));
            assert_eq!(*packet, tcp(addresses, sequence, flags, 0xFFFE_u16.wrapping_add(index), part));
        }
    }
}

#[test]
fn a_udp_piece_becomes_datagrams() {
    for addresses in [IPV4, IPV6] {
        let whole = udp(addresses, 7, &[9; 2500]);
        let got = split(&mut splitter(), &piece(&whole, GSO_UDP, 1200));
        let expected: Vec<_> = [(7, 1200), (8, 1200), (9, 100)]
            .map(|(id, length)| udp(addresses, id, &vec![9; length]))
            .to_vec();
        assert_eq!(got, expected);
    }
}

#[test]
fn more_segments_than_a_turn_takes_are_all_there() {
    // The smallest segment that TCP has to take is 48 bytes on Linux; the piece is as long as one can be.
    let payload = vec![5; 65_535 - 52];
    let got = split(&mut splitter(), &piece(&tcp(IPV4, 1, ACK, 0, &payload), GSO_TCP_V4, 48));
    assert_eq!(got.len(), payload.len().div_ceil(48));
    assert_eq!(got.iter().map(|packet| packet.len() - 52).sum::<usize>(), payload.len());
    got.iter().for_each(|packet| assert_sound(packet));
}

#[test]
fn half_done_checksums_are_completed_and_done_ones_kept() {
    let mut splitter = splitter();
    for packet in [udp(IPV4, 1, &[1; 33]), tcp(IPV6, 5, ACK, 0, &[2; 1001])] {
        let whole = [&[0; HEADER_LEN][..], &packet].concat();
        assert_eq!(split(&mut splitter, &whole), std::slice::from_ref(&packet));
        let is_udp = packet[0] >> 4 == 4;
        let mut half = piece(&packet, if is_udp { GSO_UDP } else { GSO_TCP_V6 }, 1);
        half[1] = GSO_NONE;
        assert_eq!(split(&mut splitter, &half), [packet]);
    }
    // A datagram whose checksum comes out as zero says all ones.
    let mut packet = udp(IPV4, 1, &[0; 2]);
    let sum = u16_at(&packet, 26).unwrap();
    packet[28..30].copy_from_slice(&sum.to_be_bytes());
    let mut half = piece(&packet, GSO_UDP, 1);
    half[1] = GSO_NONE;
    assert_eq!(u16_at(&split(&mut splitter, &half)[0], 26), Some(u16::MAX));
}

#[test]
fn what_cannot_be_cut_is_handed_on_whole() {
    let mut splitter = splitter();
    let whole = tcp(IPV4, 1, ACK, 0, &[1; 4000]);
    let good = piece(&whole, GSO_TCP_V4, 1000);
    // A type of the other family, an unknown type, no segment size, and headers that are too short.
    let broken =
        [(1, GSO_TCP_V6), (1, 3), (HEADER_LEN, 0x41), (HEADER_LEN, 0x4F), (HEADER_LEN + 20 + 12, 0x40)];
    for (at, value) in broken {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(split(&mut splitter, &bad), [&bad[HEADER_LEN..]], "{at} {value}");
    }
    let mut bad = good.clone();
    bad[4..6].fill(0);
    assert_eq!(split(&mut splitter, &bad), [&bad[HEADER_LEN..]]);
    let cut_off = &good[..good.len() - 1];
    assert_eq!(split(&mut splitter, cut_off), [&cut_off[HEADER_LEN..]]);
    for length in 0..HEADER_LEN + 60 {
        let short = &good[..length];
        let got = split(&mut splitter, short);
        assert!(got.iter().all(|packet| packet.len() <= length), "{length}");
    }
    assert_eq!(split(&mut splitter, &good).len(), 4);
}
