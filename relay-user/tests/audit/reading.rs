//! From files to links.

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use relay_common::wire::DatagramType;
use relay_user::observe::capture::{Capture, CaptureError, Limits, Other, read};

use crate::wire::{ENDS, SECOND, START, cell};
use crate::write::{Bytes, Link, Packet, pcap, pcapng, udp};

fn packets(link: Link, v6: bool) -> Vec<Packet> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut packets = Vec::new();
    for counter in 0..6 {
        let at = START * SECOND + counter * 1_000_000 + 123_456_789;
        let [near, far] = ENDS;
        packets.push((at, link.frame(&udp(near, far, v6, &cell(7, counter, &mut rng)))));
        packets.push((at + 2000, link.frame(&udp(far, near, v6, &cell(9, counter + 5, &mut rng)))));
    }
    packets
}

fn check(file: &[u8], what: &str) {
    let capture = read(file, Limits::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(capture.links.len(), 1, "{what}: {:?}", capture.totals);
    let link = &capture.links[0];
    assert_eq!((link.name.as_str(), link.directions.len()), ("A", 2), "{what}");
    assert_eq!(link.directions[0].ports, (40_112, 7443), "{what}: the client's direction comes first");
    for (place, direction) in link.directions.iter().enumerate() {
        assert_eq!((direction.cells, direction.sessions.lost(), direction.strange), (6, 0, 0), "{what}");
        assert_eq!((direction.bytes.cells(), direction.cut), (6, 0), "{what}");
        for (counter, sight) in (0..).zip(direction.trace.sights()) {
            let expected = START * SECOND + counter * 1_000_000 + 123_456_789 + place as u64 * 2000;
            // Microseconds, and 2^-20 s, are the coarsest of these clocks.
            assert!(sight.at.abs_diff(expected) < 1000, "{what}: {} is not {expected}", sight.at);
            assert_eq!(sight.length, 1360);
        }
    }
}

#[test]
fn every_container_and_link_type_holds_the_same_link() {
    for link in Link::ALL {
        for v6 in [false, true] {
            let packets = packets(link, v6);
            for big in [false, true] {
                let bytes = Bytes { big };
                for nanos in [false, true] {
                    let file = pcap(bytes, nanos, link.number(), &packets);
                    check(&file, &format!("pcap {link:?} {v6} {big} {nanos}"));
                }
                for (resolution, offset) in [(6, 0), (9, 0), (0x80 | 30, 0), (0x80 | 20, 1000), (9, START)] {
                    let file = pcapng(bytes, resolution, offset, link.number(), &packets);
                    check(&file, &format!("pcapng {link:?} {v6} {big} {resolution} {offset}"));
                }
            }
        }
    }
}

#[test]
fn sections_of_different_byte_orders_follow_each_other() {
    let packets = packets(Link::Ethernet, false);
    let (first, second) = packets.split_at(5);
    let file =
        [pcapng(Bytes { big: true }, 9, 0, 1, first), pcapng(Bytes { big: false }, 6, 0, 1, second)].concat();
    check(&file, "two sections");
}

#[test]
fn a_file_cut_anywhere_is_whole_or_said_to_be_cut() {
    let packets = packets(Link::Raw, false);
    for (file, header) in [
        (pcap(Bytes { big: false }, true, 101, &packets[..4]), 24),
        (pcapng(Bytes { big: true }, 9, 0, 101, &packets[..4]), 28),
    ] {
        let mut whole = 0;
        for end in 0..file.len() {
            match read(&file[..end], Limits::default()) {
                Ok(capture) => {
                    whole += 1;
                    assert!(end >= header && capture.totals.packets < 4 + 1, "{end}");
                }
                Err(CaptureError::Empty) => assert_eq!(end, 0),
                Err(CaptureError::NotACapture) => assert!(end < 4, "{end}"),
                Err(CaptureError::Truncated { offset, packets }) => {
                    assert!(offset == end as u64 && packets < 5, "{end}: {offset} {packets}");
                }
                Err(error) => panic!("{end}: {error}"),
            }
        }
        // Between packets and blocks a file may end.
        assert!((4..=8).contains(&whole), "{whole}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damage_never_panics(ng: bool, changes in proptest::collection::vec((any::<u32>(), any::<u8>()), 1..8)) {
        let packets = packets(Link::Ethernet, true);
        let mut file = if ng {
            pcapng(Bytes { big: false }, 9, 0, 1, &packets[..3])
        } else {
            pcap(Bytes { big: true }, false, 1, &packets[..3])
        };
        for (place, value) in changes {
            // Most in headers, where they matter.
            let place = place as usize % if place % 3 == 0 { file.len() } else { 200 };
            file[place] = value;
        }
        let _ = read(file.as_slice(), Limits::default());
    }

    #[test]
    fn noise_never_panics(magic in 0..3_usize, noise: Vec<u8>) {
        let start: &[u8] = [&b"\x0a\x0d\x0d\x0a"[..], b"\xd4\xc3\xb2\xa1", b""][magic];
        let _ = read([start, &noise].concat().as_slice(), Limits::default());
    }
}

fn capture(payloads: &[(bool, Vec<u8>)], limits: Limits) -> Capture {
    let [near, far] = ENDS;
    let packets: Vec<Packet> = payloads
        .iter()
        .zip(0..)
        .map(|((back, payload), place)| {
            let (from, to) = if *back { (far, near) } else { (near, far) };
            (START * SECOND + place * 1000, Link::Ethernet.frame(&udp(from, to, false, payload)))
        })
        .collect();
    read(pcap(Bytes { big: false }, true, 1, &packets).as_slice(), limits).unwrap()
}

fn handshake(kind: u8, length: usize) -> Vec<u8> {
    let mut datagram = vec![0x55; length];
    datagram[0] = kind;
    datagram[1..4].copy_from_slice(if kind == 2 { &[1, 0, 0] } else { &[0; 3] });
    if kind == 4 {
        datagram[4..8].fill(0);
    }
    if kind == 3 {
        datagram[12..16].fill(0);
    }
    datagram
}

#[test]
fn handshakes_losses_repetitions_and_strangers_are_counted() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut of = |counter| (false, cell(7, counter, &mut rng));
    let cells = [0, 1, 4, 3, 3, 9, 1 << 40].map(&mut of);
    let mut payloads = vec![
        (true, vec![9; 1360]),
        (true, handshake(4, 64)),
        (false, handshake(2, 1360)),
        (true, handshake(4, 64)),
        (false, handshake(2, 1360)),
        (true, handshake(3, 1360)),
    ];
    payloads.extend(cells);
    payloads.push((false, vec![1; 99]));
    let capture = capture(&payloads, Limits::default());
    let [out, back] = &capture.links[0].directions[..] else { panic!("two directions") };
    assert_eq!(capture.totals.udp, 2, "a RETRY that nobody asked for is none");
    let kinds: Vec<DatagramType> = back.handshakes.iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [DatagramType::Retry, DatagramType::HsResp]);
    assert_eq!((out.handshakes.len(), out.cells, out.late, out.repeated), (2, 5, 1, 1));
    assert_eq!(out.sessions.lost(), 5, "2, 5, 6, 7, 8");
    assert_eq!(out.strange, 2, "a counter beyond any key's, and 99 bytes");
    assert_eq!(out.lengths.clone().into_iter().collect::<Vec<_>>(), [(99, 1), (1360, 6)]);
}

#[test]
fn what_is_kept_has_a_bound() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let payloads: Vec<(bool, Vec<u8>)> =
        (0..60).map(|counter| (counter % 2 == 0, cell(7, counter / 2, &mut rng))).collect();
    let limits = Limits { directions: 2, cells: 20, all_cells: 30, tallied: 1 };
    let both = capture(&payloads, limits);
    let kept = |capture: &Capture| -> Vec<(usize, u64, u64, u32)> {
        let of = |link: &relay_user::observe::capture::Link| {
            link.directions
                .iter()
                .map(|of| (of.trace.sights().len(), of.unkept, of.cells, of.bytes.cells()))
                .collect::<Vec<_>>()
        };
        capture.links.iter().flat_map(of).collect::<Vec<(usize, u64, u64, u32)>>()
    };
    assert_eq!(kept(&both).iter().map(|kept| kept.0).sum::<usize>(), 30);
    assert!(kept(&both).iter().all(|kept| kept.0 <= 20 && kept.0 as u64 + kept.1 == 30 && kept.2 == 30));
    assert_eq!(kept(&both).iter().map(|kept| kept.3).sum::<u32>(), 30, "one direction's bytes");
    let one = capture(&payloads, Limits { directions: 1, ..limits });
    assert_eq!((kept(&one).len(), one.totals.unlisted), (1, 30));
}

#[test]
fn other_traffic_is_counted_by_kind() {
    let tcp = {
        let mut packet = udp(ENDS[0], ENDS[1], false, &[0; 20]);
        packet[9] = 6;
        packet
    };
    let fragment = {
        let mut packet = udp(ENDS[0], ENDS[1], false, &[0; 20]);
        packet[6] = 0x20;
        packet
    };
    let frames = [
        Link::Ethernet.frame(&tcp),
        Link::Ethernet.frame(&fragment),
        [&[2; 12][..], &[8, 6], &[0; 28]].concat(),
        [&[2; 12][..], &[0x88, 0xcc]].concat(),
        vec![1, 2, 3],
        Link::Vlan.frame(&udp(ENDS[0], ENDS[1], true, b"hello")),
    ];
    let packets: Vec<Packet> = frames.into_iter().map(|frame| (START * SECOND, frame)).collect();
    let totals =
        read(pcap(Bytes { big: false }, true, 1, &packets).as_slice(), Limits::default()).unwrap().totals;
    let others: Vec<(Other, u64)> = totals.others.into_iter().collect();
    assert_eq!(others, [(Other::Tcp, 1), (Other::OddUdp, 1), (Other::Arp, 1), (Other::Foreign, 2)]);
    assert_eq!((totals.udp, totals.packets), (1, 6));
}
