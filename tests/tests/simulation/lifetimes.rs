//! Circuits close and links go: both ends hear of it, numbers can be used again, frames come back.

use crate::edge::packet;
use crate::net::{CIRCUIT, CLIENT, ENTRY, EXIT, MIDDLE, MS, Net, RATES};
use crate::node::split;
use crate::scenario::Traffic;
use relay_common::wire::DestroyReason;
use relay_user::crypto::{LinkKeys, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, Session};

/// How far a gap of 500 µs may be off, in nanoseconds: 200 ppm, and what is cut off.
const OFF: u64 = 101;

fn carries(net: &mut Net, id: u64) {
    let now = Nanos(net.now);
    net.nodes[CLIENT].send_packet(CIRCUIT, &packet(id, 1000), now);
    net.run(200 * MS);
    assert_eq!(net.nodes[EXIT].edge.arrived.get(&id), Some(&1), "packet {id}");
}

#[test]
fn closing_at_the_client_reaches_the_exit_and_numbers_serve_again() {
    for cover in [true, false] {
        let mut net = Net::with_circuit(41, Law::Jittered, cover);
        for key in 2..6 {
            Traffic::Overload.run(&mut net, 30 * MS);
            carries(&mut net, 1_000_000 + key);
            let reason = DestroyReason::Finished;
            net.command(CLIENT, Command::CloseCircuit { circuit: CIRCUIT, reason });
            net.run(200 * MS);
            assert_eq!(net.circuits(), [0; 4]);
            for node in &mut net.nodes {
                assert_eq!(node.engine.waiting_cells(), 0, "no cell waits for a circuit that is gone");
                assert!(node.edge.open_circuits().is_empty());
                assert_eq!(std::mem::take(&mut node.closed).len(), 1);
            }
            // Same number at the client, and even the same name on its link.
            net.build(1, cover);
        }
        carries(&mut net, 2_000_000);
    }
}

#[test]
fn closing_in_the_middle_reaches_both_ends() {
    let mut net = Net::with_circuit(42, Law::Constant, true);
    net.command(MIDDLE, Command::CloseCircuit { circuit: 0, reason: DestroyReason::NoCapacity });
    net.run(200 * MS);
    assert_eq!(net.circuits(), [0; 4]);
    for node in [CLIENT, ENTRY, MIDDLE, EXIT] {
        assert_eq!(net.nodes[node].closed.len(), 1);
        assert_eq!(net.nodes[node].closed[0].1, DestroyReason::NoCapacity);
    }
}

#[test]
fn a_lost_destroy_is_said_again() {
    let mut net = Net::with_circuit(43, Law::Constant, true);
    net.faults.loss = 1000;
    net.command(MIDDLE, Command::CloseCircuit { circuit: 0, reason: DestroyReason::Finished });
    net.run(100 * MS);
    assert_eq!(net.circuits(), [1, 1, 0, 1]);
    net.faults.loss = 0;
    net.run(200 * MS);
    assert_eq!(net.circuits()[..3], [0, 0, 0], "whoever sends on a dead circuit is told");
}

#[test]
fn a_link_that_goes_takes_its_circuits_and_comes_back() {
    let mut net = Net::with_circuit(44, Law::Jittered, true);
    Traffic::Overload.run(&mut net, 50 * MS);
    net.command(MIDDLE, Command::RemoveLink { link: 1 });
    let quiet_from = net.now;
    net.run(300 * MS);
    assert_eq!(net.circuits(), [0, 0, 0, 1], "the exit's own link still counts as up");
    assert_eq!(net.nodes[CLIENT].closed, [(CIRCUIT, DestroyReason::LinkDown)]);
    let last = net.egress[&(MIDDLE, 1)].last().unwrap().0;
    assert!(last <= quiet_from, "a link that is gone sends nothing");

    net.run(2_000 * MS);
    assert_eq!(net.nodes[EXIT].silent, [0], "told once");
    net.command(EXIT, Command::RemoveLink { link: 0 });
    net.run(10 * MS);
    assert_eq!(net.circuits(), [0; 4]);
    assert!(net.nodes[EXIT].edge.open_circuits().is_empty());

    net.join(MIDDLE);
    net.run(100 * MS);
    net.build(9, true);
    carries(&mut net, 2_000_000);
}

#[test]
fn a_link_replaced_while_its_slots_are_filed_keeps_to_the_new_slots_alone() {
    for gap in [0, 50_000, 300_000, 700_000] {
        let mut net = Net::with_circuit(45, Law::Constant, true);
        for _ in 0..20 {
            net.command(MIDDLE, Command::RemoveLink { link: 1 });
            net.command(EXIT, Command::RemoveLink { link: 0 });
            net.run(gap);
            net.join(MIDDLE);
            net.run(100_000);
        }
        net.run(100 * MS);
        let missed: u64 = net.nodes.iter().map(|node| node.engine.counters().missed_slots).sum();
        assert_eq!(missed, 0, "nobody was late");
        for side in [(MIDDLE, 1), (EXIT, 0)] {
            let from = net.egress[&side].len();
            net.run(500 * MS);
            let cells = &net.egress[&side][from..];
            let period = 1_000 * MS / u64::from(RATES[MIDDLE]);
            assert!(
                (cells.len() as u64).abs_diff(500 * MS / period) <= 1,
                "slots neither stopped nor doubled"
            );
            assert!(cells.windows(2).all(|pair| (pair[1].0 - pair[0].0).abs_diff(period) <= OFF));
        }
    }
}

#[test]
fn the_slots_of_a_replaced_link_leave_nothing_behind() {
    const LINK: u32 = 2;
    for old_rate in [5, 2000] {
        for phase in 0..12 {
            let mut net = Net::new(46, Law::Constant);
            let place = |net: &mut Net, rate| {
                let now = Nanos(net.now);
                let schedule = Box::new(Schedule::new(Law::Constant, rate, now, [3; 32]));
                net.command(MIDDLE, Command::AddLink { link: LINK, schedule });
                let keys = LinkKeys::derive(&split(46, 900), Suite::Aes256Gcm, true);
                let peer = net.nodes[EXIT].address;
                let session = Box::new(Session::new(LINK, 901, 902, keys, peer, now));
                net.command(MIDDLE, Command::InstallSession { session, send_now: true });
            };
            place(&mut net, old_rate);
            net.run(10 * MS + phase * 47_000);
            net.egress.clear();
            place(&mut net, 2000);
            net.run(100 * MS);
            let cells = &net.egress[&(MIDDLE, LINK)];
            assert!((199..=201).contains(&cells.len()), "{} cells in 100 ms", cells.len());
            assert!(
                cells.windows(2).all(|pair| (pair[1].0 - pair[0].0).abs_diff(500_000) <= OFF),
                "a slot of the old link"
            );
            assert_eq!(net.nodes[MIDDLE].engine.counters().missed_slots, 0);
        }
    }
}
