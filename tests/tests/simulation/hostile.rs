//! Cells that somebody else throws at a relay: refused, counted by reason, and without a trace on the wire.

use crate::net::{MIDDLE, MS, Net};
use relay_common::wire::{CELL_LEN, LinkHeader};
use relay_user::engine::DropReason;
use relay_user::engine::schedule::Law;
use std::net::SocketAddr;

/// A network that has run for a while, and cells that reached the middle relay meanwhile.
fn tapped(law: Law) -> (Net, Vec<(SocketAddr, Vec<u8>)>) {
    let mut net = Net::with_circuit(31, law, true);
    net.tap = Some(MIDDLE);
    net.run(50 * MS);
    net.tap = None;
    let cells = std::mem::take(&mut net.tapped);
    assert!(cells.len() > 100);
    (net, cells)
}

/// Throws `cells` at the middle relay over 200 ms and lets the network run; the wire must look as if nobody had.
fn throw(law: Law, cells: impl Fn(&[(SocketAddr, Vec<u8>)]) -> Vec<(SocketAddr, Vec<u8>)>) -> Net {
    let (mut quiet, _) = tapped(law);
    quiet.run(300 * MS);

    let (mut net, seen) = tapped(law);
    let start = net.now;
    let thrown = cells(&seen);
    let count = thrown.len() as u64;
    for (index, (source, bytes)) in thrown.into_iter().enumerate() {
        net.run((start + 200 * MS * index as u64 / count).saturating_sub(net.now));
        net.throw(MIDDLE, source, &bytes);
    }
    net.run(start + 300 * MS - net.now);
    assert!(quiet.egress == net.egress, "the wire tells of the attack");
    let counters = |net: &Net| net.nodes[MIDDLE].engine.counters().received;
    assert_eq!(counters(&quiet), counters(&net), "a thrown cell was taken for one of the link");
    assert_eq!(net.circuits(), [1, 1, 1, 1]);
    net
}

#[test]
fn a_flip_at_every_byte_is_refused_for_its_reason() {
    for law in [Law::Constant, Law::Jittered] {
        let net = throw(law, |seen| {
            let (source, cell) = seen.last().cloned().unwrap();
            (0..CELL_LEN)
                .map(|at| {
                    let mut cell = cell.clone();
                    cell[at] ^= 1 << (at % 8);
                    (source, cell)
                })
                .collect()
        });
        let dropped = |reason| net.dropped(MIDDLE, reason);
        assert_eq!(dropped(DropReason::BadHeader), 4, "type and reserved bytes");
        // A flip in the index may name the relay's other session, which sits with the other peer.
        assert_eq!(dropped(DropReason::UnknownSession) + dropped(DropReason::WrongSource), 4, "index");
        assert_eq!(dropped(DropReason::Unauthentic), CELL_LEN as u64 - 8, "everything else");
    }
}

#[test]
fn replays_are_refused_however_often_they_come() {
    let net = throw(Law::Jittered, |seen| seen.iter().chain(seen).cloned().collect());
    assert!(net.dropped(MIDDLE, DropReason::Replayed) > 200);
}

#[test]
fn forgeries_are_refused_for_their_reason() {
    let net = throw(Law::Constant, |seen| {
        let (source, cell) = seen.last().cloned().unwrap();
        let mut forged = Vec::new();
        for counter in [0, 1, 1 << 20, u64::MAX] {
            let mut made = vec![0x5a; CELL_LEN];
            made[..4].copy_from_slice(&[1, 0, 0, 0]);
            made[4..8].copy_from_slice(&cell[4..8]);
            made[8..16].copy_from_slice(&u64::to_be_bytes(counter));
            forged.push((source, made));
        }
        for receiver_index in [0, u32::MAX, 0x0bad_cafe] {
            let mut made = cell.clone();
            made[..16].copy_from_slice(&LinkHeader { receiver_index, counter: 7 }.encode());
            forged.push((source, made));
        }
        forged.push((SocketAddr::from(([203, 0, 113, 9], 7443)), cell.clone()));
        forged.push((SocketAddr::new(source.ip(), 9), cell.clone()));
        for len in [0, 1, 15, 16, 64, CELL_LEN - 1] {
            forged.push((source, cell[..len].to_vec()));
        }
        forged.push((source, [&cell[..], &[0]].concat()));
        forged
    });
    let dropped = |reason| net.dropped(MIDDLE, reason);
    assert_eq!(dropped(DropReason::Unauthentic), 4);
    assert_eq!(dropped(DropReason::UnknownSession), 3);
    assert_eq!(dropped(DropReason::WrongSource), 2);
    assert_eq!(dropped(DropReason::BadHeader), 7);
}
