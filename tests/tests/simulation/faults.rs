//! Wires that lose, repeat, delay and damage cells.

use crate::net::{CLIENT, EXIT, Faults, MS, Net};
use crate::scenario::Traffic;
use proptest::prelude::*;
use relay_user::engine::schedule::Law;
use relay_user::engine::{CONTROL_CELLS, DropReason};

/// Runs `traffic` over wires with `faults`; returns which share of the packets arrived, in thousandths.
fn delivered(seed: u64, law: Law, cover: bool, faults: Faults, traffic: Traffic) -> u64 {
    let mut quiet = Net::with_circuit(seed, law, cover);
    Traffic::Idle.run(&mut quiet, 1000 * MS);

    let mut net = Net::with_circuit(seed, law, cover);
    for edge in [CLIENT, EXIT] {
        net.nodes[edge].edge.arrived.clear();
    }
    net.faults = faults;
    let sent = traffic.run(&mut net, 1000 * MS);
    let mut share = 1000;
    for (node, sent) in [(EXIT, sent.up), (CLIENT, sent.down)] {
        let edge = &net.nodes[node].edge;
        assert_eq!(edge.corrupt, 0, "{faults:?}: a damaged packet came out");
        assert!(edge.arrived.values().all(|&times| times == 1), "{faults:?}: a packet came out twice");
        assert!(edge.arrived.keys().all(|id| sent.contains(id)), "{faults:?}: a packet came out of nowhere");
        share = share.min(1000 * edge.arrived.len() as u64 / sent.len() as u64);
    }
    for node in &net.nodes {
        let waiting = node.engine.waiting_cells();
        assert!(waiting <= 2 * 64 + 2 * CONTROL_CELLS, "{waiting} cells wait");
    }
    assert_eq!(net.circuits(), [1, 1, 1, 1], "a fault on the wire closes no circuit");
    assert!(quiet.egress == net.egress, "{faults:?}: the observer can tell");
    if faults.duplicate >= 20 {
        assert!((0..4).all(|node| net.dropped(node, DropReason::Replayed) > 0));
    }
    if faults.flip > 0 {
        assert!((0..4).all(|node| net.dropped(node, DropReason::Unauthentic) > 0));
    }
    share
}

#[test]
fn loss_costs_packets_and_nothing_else() {
    for (loss, at_least) in [(0, 1000), (10, 900), (50, 600), (200, 100)] {
        for cover in [true, false] {
            let faults = Faults { loss, ..Faults::default() };
            let share = delivered(21, Law::Jittered, cover, faults, Traffic::Bulk);
            assert!(share >= at_least, "loss {loss} of 1000, cover {cover}: {share} of 1000 packets arrived");
        }
    }
}

#[test]
fn loss_reordering_duplication_and_damage_together() {
    for loss in [10, 50, 200] {
        for (law, cover) in [(Law::Constant, true), (Law::Jittered, false)] {
            let faults = Faults { loss, duplicate: 50, reorder: 100, flip: 20 };
            assert!(delivered(22, law, cover, faults, Traffic::Bulk) > 20);
        }
    }
}

#[test]
fn reordering_and_duplication_alone_cost_nothing() {
    for cover in [true, false] {
        let faults = Faults { duplicate: 100, reorder: 200, ..Faults::default() };
        let share = delivered(23, Law::Jittered, cover, faults, Traffic::Bulk);
        assert!(share >= 990, "cover {cover}: {share} of 1000 packets arrived");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_faults(seed: u64, cover: bool, loss in 0u32..300, duplicate in 0u32..300, reorder in 0u32..500) {
        let faults = Faults { loss, duplicate, reorder, flip: 10 };
        delivered(seed, Law::Jittered, cover, faults, Traffic::Overload);
    }
}
