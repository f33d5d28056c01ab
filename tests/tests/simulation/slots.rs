//! What an observer can tell from the slots: nothing. And what a late worker does to them.

use crate::edge::packet;
use crate::net::{CIRCUIT, CLIENT, EXIT, Egress, MIDDLE, MS, Net, RATES, laws};
use crate::scenario::{Traffic, send_both};
use proptest::prelude::*;
use relay_common::wire::CELL_LEN;
use relay_user::engine::DropReason;
use relay_user::engine::schedule::{Law, Pattern};
use relay_user::engine::time::Nanos;

fn observed(seed: u64, law: Law, cover: bool, traffic: Traffic, duration: u64) -> (Egress, Net) {
    let mut net = Net::with_circuit(seed, law, cover);
    traffic.run(&mut net, duration);
    (std::mem::take(&mut net.egress), net)
}

/// Runs one law with every traffic and both covers: the observer's notes must not differ in a single time or size.
fn assert_equal_whatever_is_sent(law: Law) {
    for cover in [true, false] {
        let (idle, net) = observed(11, law, cover, Traffic::Idle, 1000 * MS);
        assert!(net.nodes.iter().all(|node| node.engine.counters().missed_slots == 0));
        assert_eq!(idle.len(), 6, "three links, both directions");
        for ((node, link), cells) in &idle {
            // 2.2 s in all, less the time until the responder hears of the link.
            let near = if *link == 1 { *node } else { node - 1 };
            let expected = f64::from(RATES[near]) * 2.2;
            // Five standard deviations of a count of independent slots.
            let spread = if law == Law::Poisson { 5.0 * expected.sqrt() } else { 5.0 };
            let sent = cells.len() as f64;
            assert!((expected * 0.98 - spread..=expected + spread).contains(&sent), "{node}/{link}: {sent}");
            assert!(cells.iter().all(|&(_, size)| size == CELL_LEN));
        }
        for traffic in [Traffic::Chat, Traffic::Bulk, Traffic::Overload] {
            let (busy, net) = observed(11, law, cover, traffic, 1000 * MS);
            assert!(idle == busy, "{law}, cover {cover}, {traffic:?}: the observer can tell");
            let got = net.nodes[EXIT].edge.arrived.len().min(net.nodes[CLIENT].edge.arrived.len());
            assert!(got > 50, "{traffic:?}: only {got} packets arrived: the test would show nothing");
            if traffic == Traffic::Overload {
                let refused = net.nodes[CLIENT].edge.refused + net.nodes[CLIENT].edge.aged_out();
                assert!(refused > 100, "the overload was none");
            }
        }
    }
}

#[test]
fn constant_egress_is_equal_with_and_without_traffic() {
    assert_equal_whatever_is_sent(laws()[0]);
}

#[test]
fn jittered_egress_is_equal_with_and_without_traffic() {
    assert_equal_whatever_is_sent(laws()[1]);
}

#[test]
fn poisson_egress_is_equal_with_and_without_traffic() {
    assert_equal_whatever_is_sent(laws()[2]);
}

#[test]
fn pattern_egress_is_equal_with_and_without_traffic() {
    assert_equal_whatever_is_sent(laws()[3]);
}

#[test]
fn every_size_arrives_in_both_directions() {
    for cover in [true, false] {
        let mut net = Net::with_circuit(5, Law::Jittered, cover);
        let (up, down) = (net.nodes[EXIT].edge.arrived.len(), net.nodes[CLIENT].edge.arrived.len());
        let sizes = 20..=1400_usize;
        for (index, len) in sizes.clone().enumerate() {
            send_both(&mut net, 2 * index as u64, len);
            net.run(MS);
        }
        net.run(500 * MS);
        for (node, before) in [(EXIT, up), (CLIENT, down)] {
            let edge = &net.nodes[node].edge;
            assert_eq!(edge.arrived.len() - before, sizes.clone().count(), "cover {cover}, node {node}");
            assert!(edge.arrived.values().all(|&times| times == 1));
            assert_eq!((edge.corrupt, edge.refused, edge.aged_out()), (0, 0, 0));
        }
    }
}

#[test]
fn circuit_cover_hides_an_idle_circuit_from_its_relays() {
    let cells = |traffic| {
        let (_, net) = observed(3, Law::Jittered, true, traffic, 500 * MS);
        net.nodes.iter().map(|node| (node.engine.counters().received, node.engine.waiting_cells())).collect()
    };
    let idle: Vec<_> = cells(Traffic::Idle);
    assert_eq!(idle, cells(Traffic::Overload));
}

/// A packet each way in each of 100 ms, of which the middle relay sleeps 5; and half a second for all to arrive.
fn stall_amid_traffic(net: &mut Net) {
    for at in 0..100_u64 {
        if at == 30 {
            net.nodes[MIDDLE].stalled_until = Nanos(net.now + 5 * MS);
        }
        send_both(net, 2 * at, 900);
        net.run(MS);
    }
    net.run(500 * MS);
}

#[test]
fn a_stalled_worker_skips_slots_without_a_burst_and_loses_no_cell() {
    for law in [Law::Constant, Law::Jittered] {
        for phase in [0, 170_000, 333_000, 480_000] {
            let mut net = Net::with_circuit(8, law, false);
            net.run(phase);
            let before = net.nodes[MIDDLE].engine.counters().missed_slots;
            assert_eq!(before, 0);
            let from = net.now;
            stall_amid_traffic(&mut net);
            let missed = net.nodes[MIDDLE].engine.counters().missed_slots;
            // Two links at 2000 cells per second stood still for 5 ms: ten slots each, less four that are made up for.
            assert!((10..=14).contains(&missed), "{law:?}: {missed} slots missed");
            for link in [0, 1] {
                let cells = &net.egress[&(MIDDLE, link)];
                let end = from + 35 * MS;
                let late = cells.iter().filter(|&&(at, _)| at >= end && at < end + 250_000).count();
                assert!(late <= 6, "{law:?}: {late} cells at once behind the stall");
                let all = cells.iter().filter(|&&(at, _)| at >= from && at < from + 500 * MS).count() as u64;
                let slots = 1000 - missed / 2;
                assert!(all.abs_diff(slots) <= 6, "{law:?}: {all} cells in about {slots} slots");
            }
            for node in [CLIENT, EXIT] {
                let edge = &net.nodes[node].edge;
                let got = (0..200).filter(|id| edge.arrived.contains_key(id)).count();
                assert_eq!(got, 100, "{law:?}: packets lost by the stall at node {node}");
                assert_eq!(edge.corrupt, 0);
            }
            assert_eq!(net.dropped(MIDDLE, DropReason::QueueFull), 0);
        }
    }
}

/// Uneven gaps leave more or fewer slots within a stall, and never one twice.
#[test]
fn a_stall_costs_uneven_slots_no_cell_either() {
    for law in &laws()[2..] {
        let mut net = Net::with_circuit(8, *law, false);
        let from = net.now;
        stall_amid_traffic(&mut net);
        let missed = net.nodes[MIDDLE].engine.counters().missed_slots;
        assert!((2..=30).contains(&missed), "{law}: {missed} slots missed");
        for link in [0, 1] {
            let cells = &net.egress[&(MIDDLE, link)];
            assert!(cells.windows(2).all(|pair| pair[0].0 <= pair[1].0));
            let end = from + 35 * MS;
            let late = cells.iter().filter(|&&(at, _)| at >= end && at < end + 100_000).count();
            assert!(late <= 16, "{law}: {late} cells at once behind the stall");
        }
        for node in [CLIENT, EXIT] {
            let edge = &net.nodes[node].edge;
            let got = (0..200).filter(|id| edge.arrived.contains_key(id)).count();
            assert_eq!((got, edge.corrupt), (100, 0), "{law}: packets lost by the stall at node {node}");
        }
        assert_eq!(net.dropped(MIDDLE, DropReason::QueueFull), 0);
    }
}

#[test]
fn a_worker_that_slept_for_long_goes_on_at_once() {
    let mut net = Net::with_circuit(8, Law::Jittered, true);
    net.nodes[CLIENT].stalled_until = Nanos(net.now + 1_500 * MS);
    net.run(1_500 * MS);
    let missed = net.nodes[CLIENT].engine.counters().missed_slots;
    assert!((2240..=2255).contains(&missed) || missed == 0, "before its first turn: {missed}");
    net.run(100 * MS);
    let missed = net.nodes[CLIENT].engine.counters().missed_slots;
    assert!((2240..=2255).contains(&missed), "{missed}");
    let now = Nanos(net.now);
    net.nodes[CLIENT].send_packet(CIRCUIT, &packet(1, 500), now);
    net.run(200 * MS);
    assert_eq!(net.nodes[EXIT].edge.arrived.get(&1), Some(&1));
}

fn law() -> impl Strategy<Value = Law> {
    let pattern = prop::collection::vec(1_i64..=100, 2..=32);
    prop_oneof![
        1 => Just(Law::Constant),
        1 => Just(Law::Jittered),
        2 => Just(Law::Poisson),
        2 => pattern.prop_map(|gaps| Law::Pattern(Pattern::new(&gaps).expect("a pattern"))),
    ]
}

fn traffic() -> impl Strategy<Value = Traffic> {
    prop_oneof![Just(Traffic::Chat), Just(Traffic::Bulk), Just(Traffic::Overload)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_seed_hides_any_traffic(seed: u64, law in law(), cover: bool, traffic in traffic()) {
        let (idle, _) = observed(seed, law, cover, Traffic::Idle, 200 * MS);
        let (busy, _) = observed(seed, law, cover, traffic, 200 * MS);
        prop_assert!(idle == busy);
    }
}
