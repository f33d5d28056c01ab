use proptest::prelude::*;

use super::*;
use crate::edge::offload::split::{Splitter, tests::split};
use crate::edge::offload::test_packets::{IPV4, IPV6, tcp, udp};
use crate::edge::offload::{FIN, GSO_NONE};

/// What is written for `packets` and the end of the turn: bytes and how many packets they are.
fn written(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<(Vec<u8>, u64)> {
    let mut out = Vec::new();
    for packet in packets {
        if !coalescer.take(packet, &mut |bytes, count| out.push((bytes.to_vec(), count))) {
            out.push(([&[0; HEADER_LEN][..], packet].concat(), 1));
        }
    }
    coalescer.flush(&mut |bytes, count| out.push((bytes.to_vec(), count)));
    coalescer.flush(&mut |_, _| panic!("nothing is left after the end of a turn"));
    out
}

fn counts(packets: &[Vec<u8>]) -> Vec<u64> {
    written(&mut Coalescer::new(true), packets).into_iter().map(|(_, count)| count).collect()
}

fn burst(sequence: u32, lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut at = sequence;
    (0_u16..)
        .zip(lengths)
        .map(|(id, &length)| {
            let packet = tcp(IPV4, at, ACK, id, &vec![id.to_be_bytes()[1]; length]);
            at = at.wrapping_add(u32::try_from(length).unwrap());
            packet
        })
        .collect()
}

#[test]
fn segments_in_order_go_in_one_write_and_come_apart_again() {
    let packets = burst(u32::MAX - 1500, &[1348, 1348, 1348, 700]);
    let out = written(&mut Coalescer::new(false), &packets);
    let [(bytes, 4)] = &out[..] else { panic!("{} writes", out.len()) };
    let header = Header::from_bytes(bytes.first_chunk().unwrap());
    let expected = Header {
        flags: NEEDS_CHECKSUM,
        gso_type: GSO_TCP_V4,
        headers_len: 52,
        segment: 1348,
        checksum_start: 20,
        checksum_offset: 16,
    };
    assert_eq!(header, expected);
    assert_eq!(split(&mut Splitter::new(HEADER_LEN + MAX_SUPER), bytes), packets);
}

#[test]
fn a_short_segment_and_a_push_end_a_piece() {
    assert_eq!(counts(&burst(1, &[1000, 1000, 400, 1000, 1000])), [3, 2]);
    let mut packets = burst(1, &[1000, 1000, 1000]);
    packets[1] = tcp(IPV4, 1001, ACK | PSH, 1, &[1; 1000]);
    assert_eq!(counts(&packets), [2, 1]);
}

#[test]
fn what_does_not_belong_together_stays_apart() {
    let base = || tcp(IPV4, 1, ACK, 0, &[1; 100]);
    let next = |flags| tcp(IPV4, 101, flags, 1, &[2; 100]);
    let odd = |change: &dyn Fn(&mut Vec<u8>)| {
        // With checksums that are right, so that nothing but the difference decides.
        let mut packet = next(ACK);
        change(&mut packet);
        seal_v4(&mut packet[..20]);
        packet[36..38].fill(0);
        let sum = !transport_sum(&packet, true, TCP, 20);
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    assert_eq!(counts(&[base(), next(ACK)]), [2]);
    assert_eq!(counts(&[base(), odd(&|_| {})]), [2]);
    let others = [
        next(ACK | FIN),
        next(ACK | 0x40),
        tcp(IPV4, 102, ACK, 1, &[2; 100]),
        tcp(IPV4, 101, ACK, 1, &[2; 101]),
        tcp(IPV4, 101, ACK, 1, &[]),
        odd(&|packet| packet[1] = 3),
        odd(&|packet| packet[8] = 63),
        odd(&|packet| packet[6] = 0),
        odd(&|packet| packet[21] = 1),
        odd(&|packet| packet[31] = 78),
        odd(&|packet| packet[35] = 9),
        odd(&|packet| packet[51] = 9),
    ];
    for (at, other) in others.into_iter().enumerate() {
        let out = written(&mut Coalescer::new(true), &[base(), other.clone()]);
        let whole: Vec<_> = out.iter().map(|(bytes, _)| bytes[HEADER_LEN..].to_vec()).collect();
        assert_eq!(whole, [base(), other], "{at}");
    }
    let mut fragment = base();
    fragment[6] = 0x20;
    assert_eq!(counts(&[fragment.clone(), fragment]), [1, 1]);
}

#[test]
fn a_damaged_packet_goes_alone_and_stays_damaged() {
    for damaged in 0..3 {
        let mut packets = burst(1, &[500, 500, 500]);
        packets[damaged][200] ^= 1;
        let out = written(&mut Coalescer::new(true), &packets);
        let alone: Vec<_> = out.iter().filter(|(bytes, _)| bytes[HEADER_LEN..] == packets[damaged]).collect();
        assert!(matches!(alone[..], [(bytes, 1)] if bytes[1] == GSO_NONE), "{damaged}");
        assert_eq!(out.iter().map(|(_, count)| count).sum::<u64>(), 3);
    }
}

#[test]
fn datagrams_are_put_together_where_the_kernel_takes_them() {
    let packets: Vec<_> =
        [1200, 1200, 300, 1200].into_iter().map(|length| udp(IPV6, 0, &vec![4; length])).collect();
    assert_eq!(counts(&packets), [3, 1]);
    let alone = written(&mut Coalescer::new(false), &packets);
    assert!(alone.iter().all(|(bytes, count)| *count == 1 && bytes[1] == GSO_NONE));
    assert_eq!(alone.len(), 4);
    // Without a checksum none can be checked, so none is made.
    let mut bare = udp(IPV4, 0, &[4; 500]);
    bare[26..28].fill(0);
    assert_eq!(counts(&[bare.clone(), bare]), [1, 1]);
}

#[test]
fn pieces_and_flows_are_bounded() {
    let many: Vec<usize> = vec![400; 200];
    assert_eq!(counts(&burst(1, &many)), [64, 64, 64, 8]);
    assert_eq!(counts(&burst(1, &[1448; 60])), [45, 15]);
    let flow = |port: u8, sequence| {
        let mut packet = tcp(IPV4, sequence, ACK, 0, &[1; 100]);
        packet[20] = port;
        packet
    };
    // One flow more than there are places: nothing is lost, and each flow keeps its order.
    let packets: Vec<_> =
        [1, 101].into_iter().flat_map(|at| (0..9).map(move |port| flow(port, at))).collect();
    let out = written(&mut Coalescer::new(true), &packets);
    assert_eq!(out.iter().map(|(_, count)| count).sum::<u64>(), 18);
    for port in 0..9 {
        let sequences: Vec<_> = out
            .iter()
            .filter(|(bytes, _)| bytes[HEADER_LEN + 20] == port)
            .map(|(bytes, _)| bytes[HEADER_LEN + 24..HEADER_LEN + 28].to_vec())
            .collect();
        assert!(sequences.is_sorted(), "{port}");
    }
}

proptest! {
    #[test]
    fn whatever_goes_in_comes_out_in_order_by_flow(
        steps in prop::collection::vec((0..4_u8, 1..1400_usize, any::<bool>(), 0..12_u8), 1..120),
    ) {
        let mut next = [1_u32, 500, 0, 0];
        let mut ids = [0_u16; 4];
        let packets: Vec<_> = steps
            .into_iter()
            .map(|(flow, length, same, odd)| {
                let at = usize::from(flow);
                let length = if same { 900 } else { length };
                let payload = vec![flow; length];
                let id = ids[at];
                ids[at] = id.wrapping_add(1);
                if flow > 1 {
                    return udp(if flow == 2 { IPV4 } else { IPV6 }, id, &payload);
                }
                let sequence = next[at];
                next[at] = sequence.wrapping_add(u32::try_from(length + usize::from(odd == 1)).unwrap());
                let flags = if odd == 0 { ACK | PSH } else if odd == 2 { ACK | FIN } else { ACK };
                tcp(if flow == 0 { IPV4 } else { IPV6 }, sequence, flags, id, &payload)
            })
            .collect();
        let out = written(&mut Coalescer::new(true), &packets);
        let mut splitter = Splitter::new(HEADER_LEN + MAX_SUPER);
        let mut got = Vec::new();
        for (bytes, count) in out {
            let apart = split(&mut splitter, &bytes);
            prop_assert_eq!(apart.len() as u64, count);
            got.extend(apart);
        }
        let flow = |packet: &Vec<u8>| (packet[0], packet[if packet[0] == 0x45 { 9 } else { 6 }]);
        for key in packets.iter().map(flow) {
            let of = |all: &[Vec<u8>]| all.iter().filter(|one| flow(one) == key).cloned().collect::<Vec<_>>();
            prop_assert_eq!(of(&got), of(&packets));
        }
    }
}
