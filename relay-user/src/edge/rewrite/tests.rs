use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::edge::ip::{CLIENT_V4, CLIENT_V6};

const POOL_V4: Ipv4Addr = Ipv4Addr::new(100, 96, 7, 9);
const POOL_V6: Ipv6Addr = Ipv6Addr::new(0xfd6e, 0x7765, 0, 0, 0, 0, 0, 0x709);
const PEER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);

/// The checksum of `bytes` behind `start`, computed from nothing.
fn full_sum(start: u64, bytes: &[u8]) -> u16 {
    !fold(start + words(bytes).map(u64::from).sum::<u64>())
}

/// A whole IP packet around `body` with every checksum right.
pub(crate) fn packet(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let length = u16::try_from(body.len()).unwrap();
    let pseudo = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend([0x45, 0]);
            out.extend((length + 20).to_be_bytes());
            out.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
            out.extend(from.octets());
            out.extend(to.octets());
            let sum = full_sum(0, &out);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
            words(&out[12..20]).map(u64::from).sum::<u64>()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.extend([0x60, 0, 0, 0]);
            out.extend(length.to_be_bytes());
            out.extend([protocol, 64]);
            out.extend(from.octets());
            out.extend(to.octets());
            words(&out[8..40]).map(u64::from).sum::<u64>()
        }
        _ => panic!("two families"),
    } + u64::from(protocol)
        + u64::from(length);
    let start = out.len();
    out.extend(body);
    let (at, pseudo) = match protocol {
        TCP => (start + TCP_CHECKSUM, pseudo),
        UDP => (start + UDP_CHECKSUM, pseudo),
        ICMPV6 => (start + ICMP_CHECKSUM, pseudo),
        ICMP => (start + ICMP_CHECKSUM, 0),
        _ => return out,
    };
    out[at..at + 2].fill(0);
    let sum = match full_sum(pseudo, &out[start..]) {
        0 if protocol == UDP => 0xFFFF,
        sum => sum,
    };
    out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    out
}

fn addresses(six: bool) -> (IpAddr, IpAddr, IpAddr) {
    if six {
        (CLIENT_V6.into(), POOL_V6.into(), PEER_V6.into())
    } else {
        (CLIENT_V4.into(), POOL_V4.into(), PEER_V4.into())
    }
}

fn rewritten(mut packet: Vec<u8>, side: Side, to: IpAddr) -> Result<Vec<u8>, EdgeDrop> {
    let inner = Inner::parse(&packet)?;
    rewrite(&mut packet, &inner, side, to)?;
    Ok(packet)
}

fn echo(protocol: u8, mut body: Vec<u8>) -> Vec<u8> {
    body[0] = if protocol == ICMP { 8 } else { 128 };
    body
}

proptest! {
    #[test]
    fn equal_to_computing_every_checksum_anew(
        six in any::<bool>(),
        which in 0..4usize,
        body in prop::collection::vec(any::<u8>(), 20..1200),
    ) {
        let (client, pool, peer) = addresses(six);
        let icmp = if six { ICMPV6 } else { ICMP };
        let (protocol, body) = match which {
            0 => (TCP, body),
            1 => (UDP, body),
            2 => (icmp, echo(icmp, body)),
            _ => (132, body),
        };
        let outward = rewritten(packet(client, peer, protocol, &body), Side::Source, pool);
        prop_assert_eq!(outward, Ok(packet(pool, peer, protocol, &body)));
        let inward = rewritten(packet(peer, pool, protocol, &body), Side::Destination, client);
        prop_assert_eq!(inward, Ok(packet(peer, client, protocol, &body)));
    }

    #[test]
    fn errors_quote_the_address_that_their_receiver_knows(
        six in any::<bool>(),
        protocol in prop::sample::select(vec![TCP, UDP, 132]),
        body in prop::collection::vec(any::<u8>(), 20..300),
        cut in 0..300usize,
    ) {
        // A quote that ends inside TCP's checksum leaves a byte of it that nobody can mend.
        prop_assume!(protocol != TCP || cut != 9);
        let (client, pool, peer) = addresses(six);
        let (icmp, kind, header) = if six { (ICMPV6, 1, 40) } else { (ICMP, 3, 20) };
        let error = |from, to, quoted: Vec<u8>| {
            let mut body = vec![kind, 4, 0, 0, 0, 0, 0, 0];
            body.extend(&quoted[..quoted.len().min(header + 8 + cut)]);
            packet(from, to, icmp, &body)
        };
        // A router on the way complains to the client about what it sent.
        let inward = rewritten(error(peer, pool, packet(pool, peer, protocol, &body)), Side::Destination, client);
        prop_assert_eq!(inward, Ok(error(peer, client, packet(client, peer, protocol, &body))));
        // The client complains about what it was sent.
        let outward = rewritten(error(client, peer, packet(peer, client, protocol, &body)), Side::Source, pool);
        prop_assert_eq!(outward, Ok(error(pool, peer, packet(peer, pool, protocol, &body))));
        let foreign = rewritten(error(client, peer, packet(peer, peer, protocol, &body)), Side::Source, pool);
        prop_assert_eq!(foreign, Err(EdgeDrop::IcmpForeign));
    }

    #[test]
    fn damage_stays_detectable(at in 20..60usize, bit in 0..8u8, body in prop::collection::vec(any::<u8>(), 60..80)) {
        // In the checksum itself a flipped bit may carry into others.
        prop_assume!(!(36..38).contains(&at));
        let (client, pool, peer) = addresses(false);
        let mut damaged = packet(client, peer, TCP, &body);
        damaged[at] ^= 1 << bit;
        let whole = packet(pool, peer, TCP, &body);
        let out = rewritten(damaged, Side::Source, pool).unwrap();
        prop_assert_eq!(out.iter().zip(&whole).filter(|(a, b)| a != b).count(), 1);
    }

    #[test]
    fn segment_sizes_are_clamped_and_summed(six in any::<bool>(), mss in any::<u16>(), nops in 0..4usize, ack in any::<bool>()) {
        let (client, _, peer) = addresses(six);
        let segment = |mss: u16| {
            let mut body = vec![0; 20];
            body.extend(vec![1; nops]);
            body.extend([2, 4]);
            body.extend(mss.to_be_bytes());
            body.extend([4, 2]);
            body.resize(body.len().next_multiple_of(4), 0);
            body[12] = u8::try_from(body.len() / 4).unwrap() << 4;
            body[13] = if ack { 0x12 } else { 2 };
            packet(client, peer, TCP, &body)
        };
        let mut clamped = segment(mss);
        let inner = Inner::parse(&clamped).unwrap();
        clamp_mss(&mut clamped, &inner);
        prop_assert_eq!(clamped, segment(mss.min(if six { 1340 } else { 1360 })));
    }

    #[test]
    fn any_packet_that_parses_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..160), six in any::<bool>(), kind in any::<u8>()) {
        let (client, pool, _) = addresses(six);
        let protocol = [TCP, UDP, ICMP, ICMPV6, 0, 44, 60][usize::from(kind % 7)];
        let mut body = bytes;
        body.resize(body.len().max(20), 0);
        if kind % 2 == 0 && body.len() > 40 {
            body[0] = 3;
            body[8] = if six { 0x60 } else { 0x45 };
        }
        let mut packet = packet(client, client, protocol, &body);
        if let Ok(inner) = Inner::parse(&packet) {
            clamp_mss(&mut packet, &inner);
            let _refused = rewrite(&mut packet, &inner, Side::Source, pool);
        }
    }
}

#[test]
fn no_udp_checksum_stays_none_on_v4() {
    let mut without = packet(CLIENT_V4.into(), PEER_V4.into(), UDP, &[7; 30]);
    without[26..28].fill(0);
    let out = rewritten(without, Side::Source, POOL_V4.into()).unwrap();
    assert_eq!(out[26..28], [0, 0]);
    assert_eq!(out[..20], packet(POOL_V4.into(), PEER_V4.into(), UDP, &[7; 30])[..20]);
}

#[test]
fn later_fragments_keep_their_bytes() {
    let mut fragment = packet(CLIENT_V4.into(), PEER_V4.into(), UDP, &[7; 64]);
    fragment[7] = 5;
    let out = rewritten(fragment.clone(), Side::Source, POOL_V4.into()).unwrap();
    assert_eq!(out[20..], fragment[20..]);
    assert_eq!(out[12..16], POOL_V4.octets());
}

#[test]
fn families_do_not_mix() {
    let v4 = packet(CLIENT_V4.into(), PEER_V4.into(), UDP, &[7; 30]);
    assert_eq!(rewritten(v4, Side::Source, POOL_V6.into()), Err(EdgeDrop::Version));
}
