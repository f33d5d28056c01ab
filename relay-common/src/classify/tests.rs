extern crate std;

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::cursor::SliceCursor;

const PORT: u16 = 7443;
const INDEX: u32 = 0xabcd_1234;
const V4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 10];
const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn payload(kind: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if let Some(first) = bytes.first_mut() {
        *first = kind;
    }
    if let Some(index) = bytes.get_mut(4..8) {
        index.copy_from_slice(&INDEX.to_be_bytes());
    }
    bytes
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len() + 8).expect("short");
    let mut out = Vec::new();
    for field in [4000, PORT, len, 0] {
        out.extend(u16::to_be_bytes(field));
    }
    out.extend(payload);
    out
}

fn ethernet(tags: usize, ethertype: u16, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![2; 12];
    for tag in 0..tags {
        out.extend(if tag == 0 { [0x88, 0xa8, 0, 7] } else { [0x81, 0, 0, 9] });
    }
    out.extend(ethertype.to_be_bytes());
    out.extend(rest);
    out
}

fn ipv4(options: usize, fragment: u16, datagram: &[u8]) -> Vec<u8> {
    let header = 20 + options;
    let mut out = vec![0; header];
    out[0] = 0x40 | u8::try_from(header / 4).expect("short");
    out[2..4].copy_from_slice(&u16::try_from(header + datagram.len()).expect("short").to_be_bytes());
    out[6..8].copy_from_slice(&fragment.to_be_bytes());
    out[9] = 17;
    out[12..16].copy_from_slice(&V4[12..]);
    out.extend(datagram);
    ethernet(0, 0x0800, &out)
}

fn ipv6(chain: &[(u8, Vec<u8>)], datagram: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    for (at, (_, header)) in chain.iter().enumerate() {
        let mut header = header.clone();
        header[0] = chain.get(at + 1).map_or(17, |(kind, _)| *kind);
        rest.extend(header);
    }
    rest.extend(datagram);
    let mut out = vec![0; 40];
    out[0] = 0x60;
    out[4..6].copy_from_slice(&u16::try_from(rest.len()).expect("short").to_be_bytes());
    out[6] = chain.first().map_or(17, |(kind, _)| *kind);
    out[8..24].copy_from_slice(&V6);
    out.extend(rest);
    ethernet(0, 0x86dd, &out)
}

fn tagged(tags: usize, frame: &[u8]) -> Vec<u8> {
    ethernet(tags, u16::from_be_bytes([frame[12], frame[13]]), &frame[14..])
}

fn verdict_with(frame: &[u8], entry: SessionEntry) -> Verdict {
    classify(SliceCursor::new(frame), PORT.into(), |slot, _| {
        (slot == session_slot(entry.receiver_index)).then_some(entry)
    })
}

fn verdict(frame: &[u8]) -> Verdict {
    let source = if frame.get(12..14) == Some(&[0x86, 0xdd]) { V6 } else { V4 };
    verdict_with(frame, SessionEntry::new(INDEX, source, 4000, 3))
}

const REDIRECT: Verdict = Verdict::Redirect { slot: session_slot(INDEX), queue: 3 };

fn cell4() -> Vec<u8> {
    ipv4(0, 0x4000, &udp(&payload(1, CELL_LEN)))
}

fn cell6() -> Vec<u8> {
    ipv6(&[], &udp(&payload(1, CELL_LEN)))
}

#[test]
fn cells_are_redirected_over_both_families_and_up_to_two_tags() {
    assert_eq!(verdict(&cell4()), REDIRECT);
    assert_eq!(verdict(&cell6()), REDIRECT);
    for tags in 1..=2 {
        assert_eq!(verdict(&tagged(tags, &cell4())), REDIRECT);
        let entry = SessionEntry::new(INDEX, V6, 4000, 3);
        assert_eq!(verdict_with(&tagged(tags, &cell6()), entry), REDIRECT);
    }
    assert_eq!(verdict(&tagged(3, &cell4())), Verdict::Pass);
    let mut padded = cell4();
    padded.extend([0; 40]);
    assert_eq!(verdict(&padded), REDIRECT);
}

#[test]
fn the_datagram_is_located_where_it_stands() {
    for (tags, frame, source) in [(0, cell4(), V4), (1, cell4(), V4), (2, cell6(), V6)] {
        let frame = tagged(tags, &frame);
        let mut cursor = SliceCursor::new(&frame);
        let found = locate(&mut cursor, PORT.into()).expect("ours");
        assert_eq!(found.source.octets(), source);
        assert_eq!(found.source_port, 4000);
        assert_eq!(usize::from(found.payload_len), CELL_LEN);
        assert_eq!(usize::from(found.payload_offset), frame.len() - CELL_LEN);
        assert_eq!(cursor.rest(), &frame[frame.len() - CELL_LEN..]);
    }
}

#[test]
fn handshakes_go_to_the_control_plane() {
    for (byte, kind) in [(2, DatagramType::HsInit), (3, DatagramType::HsResp), (4, DatagramType::Retry)] {
        let datagram = udp(&payload(byte, kind.datagram_len()));
        assert_eq!(verdict(&ipv4(0, 0, &datagram)), Verdict::Handshake(kind));
        assert_eq!(verdict(&ipv6(&[], &datagram)), Verdict::Handshake(kind));
    }
}

#[test]
fn foreign_frames_pass() {
    let with = |at: usize, byte: u8| {
        let mut frame = cell4();
        frame[at] = byte;
        frame
    };
    for frame in [
        ethernet(0, 0x0806, &[0; 28]),
        with(14, 0x65),
        with(14, 0x44),
        with(23, 6),
        with(37, 0x14),
        ipv4(0, 0x2001, &udp(&payload(1, CELL_LEN))),
        ipv4(0, 0x0001, &udp(&payload(1, CELL_LEN))),
        ipv6(&[(44, vec![0, 0, 0, 9, 0, 0, 0, 1])], &udp(&payload(1, CELL_LEN))),
        ipv6(&[(50, vec![0; 8])], &udp(&payload(1, CELL_LEN))),
        ipv6(&vec![(60, vec![0; 8]); 6], &udp(&payload(1, CELL_LEN))),
    ] {
        assert_eq!(verdict(&frame), Verdict::Pass);
    }
    let port_zero = classify(SliceCursor::new(&with(36, 0)), 0.into(), |_, _| None);
    assert_eq!(port_zero, Verdict::Pass);
    let mut version = cell6();
    version[14] = 0x40;
    assert_eq!(verdict(&version), Verdict::Pass);
}

#[test]
fn every_reason_to_drop() {
    let drop = |frame: &[u8], reason| assert_eq!(verdict(frame), Verdict::Drop(reason), "{reason:?}");
    let cell = udp(&payload(1, CELL_LEN));
    drop(&ipv4(0, 0x2000, &cell), DropReason::Fragment);
    drop(&ipv4(8, 0x2000, &cell), DropReason::Fragment);
    drop(&ipv6(&[(44, vec![0; 8])], &cell), DropReason::Fragment);
    drop(&ipv6(&[(0, vec![0; 8]), (44, vec![0; 8])], &cell), DropReason::Fragment);
    for options in [4, 8, 40] {
        drop(&ipv4(options, 0, &cell), DropReason::Ipv4Options);
    }
    for kind in [0, 43, 60] {
        drop(&ipv6(&[(kind, vec![0; 8])], &cell), DropReason::ExtensionHeader);
    }
    let mut long = vec![0; 8 * 256];
    long[1] = 255;
    drop(&ipv6(&[(60, long), (43, vec![0; 8])], &cell), DropReason::ExtensionHeader);
    for (at, reason) in [(17, DropReason::LengthMismatch), (39, DropReason::LengthMismatch)] {
        let mut frame = cell4();
        frame[at] ^= 1;
        drop(&frame, reason);
    }
    let mut short = cell4();
    short[16..18].copy_from_slice(&19u16.to_be_bytes());
    drop(&short, DropReason::LengthMismatch);
    let mut jumbo = cell6();
    jumbo[18..20].fill(0);
    drop(&jumbo, DropReason::LengthMismatch);
    for len in [0, 1, 63, 65, 1359, 1361] {
        drop(&ipv4(0, 0, &udp(&payload(1, len))), DropReason::PayloadLength);
    }
    for byte in [0, 5, 255] {
        drop(&ipv4(0, 0, &udp(&payload(byte, CELL_LEN))), DropReason::UnknownType);
    }
    drop(&ipv4(0, 0, &udp(&payload(4, CELL_LEN))), DropReason::TypeLength);
    for byte in 1..=3 {
        drop(&ipv4(0, 0, &udp(&payload(byte, RETRY_LEN))), DropReason::TypeLength);
    }
    for at in 1..4 {
        let mut bytes = payload(1, CELL_LEN);
        bytes[at] = 1;
        drop(&ipv4(0, 0, &udp(&bytes)), DropReason::ReservedBits);
    }
    drop(&cell4()[..cell4().len() - 1], DropReason::Truncated);
}

#[test]
fn a_cell_needs_the_whole_index_and_the_peers_address_and_port() {
    let good = SessionEntry::new(INDEX, V4, 4000, 3);
    let cases = [
        (SessionEntry { in_use: 0, ..good }, DropReason::NoSession),
        (SessionEntry { receiver_index: INDEX ^ 0x8000_0000, ..good }, DropReason::NoSession),
        (SessionEntry { receiver_index: INDEX ^ 1, ..good }, DropReason::NoSession),
        (SessionEntry { source: V6, ..good }, DropReason::UnexpectedSource),
        (SessionEntry { source_port: 4001, ..good }, DropReason::UnexpectedSource),
    ];
    for (entry, reason) in cases {
        assert_eq!(verdict_with(&cell4(), entry), Verdict::Drop(reason));
    }
}

#[test]
fn a_frame_cut_off_anywhere_is_passed_before_the_port_and_dropped_behind_it() {
    for (frame, port_end) in [(cell4(), 38), (cell6(), 58)] {
        for len in 0..frame.len() {
            let expected = if len < port_end { Verdict::Pass } else { Verdict::Drop(DropReason::Truncated) };
            assert_eq!(verdict(&frame[..len]), expected, "cut to {len}");
        }
    }
}

#[test]
fn reasons_number_without_gaps() {
    for (number, reason) in (0u32..).zip(DropReason::ALL) {
        assert_eq!(reason as u32, number);
    }
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..1600)) {
        let redirected = matches!(verdict(&bytes), Verdict::Redirect { .. });
        prop_assert!(!redirected);
    }

    #[test]
    fn a_changed_cell_is_only_redirected_as_a_cell(
        six: bool,
        tags in 0usize..4,
        changes in prop::collection::vec((0usize..90, any::<u8>()), 0..4),
        cut in 0usize..1600,
    ) {
        let mut frame = tagged(tags, &if six { cell6() } else { cell4() });
        for (at, byte) in changes {
            frame[at] = byte;
        }
        frame.truncate(cut.max(14));
        let source = if six { V6 } else { V4 };
        if let Verdict::Redirect { slot, .. } = verdict_with(&frame, SessionEntry::new(INDEX, source, 4000, 3)) {
            prop_assert_eq!(slot, session_slot(INDEX));
            let found = locate(&mut SliceCursor::new(&frame), PORT.into()).expect("redirected");
            let payload = &frame[usize::from(found.payload_offset)..];
            prop_assert_eq!(&payload[..4], &[1, 0, 0, 0]);
            prop_assert_eq!(&payload[4..8], &INDEX.to_be_bytes());
            prop_assert!(payload.len() >= CELL_LEN);
            prop_assert_eq!(found.source.octets(), source);
        }
    }
}

#[test]
fn ports_are_a_row_and_none_matches_nothing() {
    let ports = super::Ports { first: 65_534, count: 2 };
    assert!(ports.contains(65_534) && ports.contains(65_535));
    assert!(!ports.contains(65_533) && !ports.contains(0));
    assert!(!super::Ports::from(0).contains(0));
    assert!(super::Ports::from(7443).contains(7443) && !super::Ports::from(7443).contains(7444));
}
