//! A decoy circuit that is busy and quiet by turns beside the client's own.

use crate::net::{CIRCUIT, CLIENT, ENTRY, EXIT, MIDDLE, MS, Net};
use crate::scenario::send_both;
use relay_user::engine::Command;
use relay_user::engine::schedule::Law;
use relay_user::engine::time::Nanos;

const DECOY: u32 = 5;

/// A client without circuit cover, whose decoy is open and busy.
fn with_decoy(seed: u64) -> Net {
    let mut net = Net::with_circuit(seed, Law::Jittered, false);
    let now = Nanos(net.now);
    net.nodes[CLIENT].build(DECOY, [ENTRY, MIDDLE, EXIT], 2, true, now);
    net.run(600 * MS);
    assert!(net.nodes[CLIENT].is_open(DECOY) && net.nodes[CLIENT].is_open(CIRCUIT));
    net
}

/// Cells that end at the exit in the next second, behind those that are on their way.
fn cells_at_exit(net: &mut Net) -> u64 {
    net.run(200 * MS);
    let before = net.nodes[EXIT].edge.cells;
    net.run(1000 * MS);
    net.nodes[EXIT].edge.cells - before
}

#[test]
fn a_decoy_fills_slots_while_it_is_busy_and_none_while_it_is_quiet() {
    let mut net = with_decoy(21);
    let busy = cells_at_exit(&mut net);
    // The link's rate may be 200 ppm above its class's.
    assert!((1400..=1502).contains(&busy), "{busy} of 1500 slots");
    net.command(CLIENT, Command::SetCover { circuit: DECOY, cover: false });
    assert_eq!(cells_at_exit(&mut net), 0);
    net.command(CLIENT, Command::SetCover { circuit: DECOY, cover: true });
    assert!(cells_at_exit(&mut net) >= 1400);
}

#[test]
fn packets_pass_beside_a_decoy_and_the_wire_shows_neither() {
    let egress = |quiet: bool, packets: bool| {
        let mut net = with_decoy(22);
        if quiet {
            net.command(CLIENT, Command::SetCover { circuit: DECOY, cover: false });
        }
        for at in 0..200 {
            if packets {
                send_both(&mut net, 2 * at, 900);
            }
            net.run(5 * MS);
        }
        net.run(500 * MS);
        let got = (0..400).filter(|id| net.nodes[EXIT].edge.arrived.contains_key(id)).count();
        assert_eq!(got, if packets { 200 } else { 0 }, "quiet {quiet}");
        std::mem::take(&mut net.egress)
    };
    let idle = egress(true, false);
    for (quiet, packets) in [(false, false), (true, true), (false, true)] {
        assert!(idle == egress(quiet, packets), "quiet {quiet}, packets {packets}: the observer can tell");
    }
}

/// When the decoy's cells come to the exit, and the client's own count of cells there, over two seconds in which the client
/// without circuit cover sends packets or none.
fn beside_packets(one_in: u32, packets: bool) -> (Vec<u64>, usize) {
    let mut net = with_decoy(23);
    net.command(CLIENT, Command::SetShare { circuit: DECOY, one_in });
    // The decoy was built last.
    let [own, decoy] = net.nodes[EXIT].edge.open_circuits()[..] else { panic!("two circuits end here") };
    net.run(300 * MS);
    let from = net.now;
    for at in 0..2000 {
        if packets {
            send_both(&mut net, 2 * at, 1200);
        }
        net.run(MS);
    }
    let times = |circuit: u32| -> Vec<u64> {
        let all = net.nodes[EXIT].edge.times.get(&circuit).cloned().unwrap_or_default();
        all.into_iter().filter(|&at| at >= from).collect()
    };
    (times(decoy), times(own).len())
}

#[test]
fn what_a_decoy_shows_does_not_depend_on_packets() {
    let (idle, none) = beside_packets(4, false);
    let (busy, own) = beside_packets(4, true);
    assert!(idle.len().abs_diff(750) <= 5, "one slot in four: {}", idle.len());
    // The same slots of the client's link. Here both circuits share the trunks behind it too, where one waits for the other.
    assert_eq!(idle.len(), busy.len());
    assert!(idle.iter().zip(&busy).all(|(one, other)| one.abs_diff(*other) < 2 * MS), "other slots");
    assert_eq!(none, 0);
    assert!(own > 1900, "the client's own has the other three: {own} cells");
    let (idle, _) = beside_packets(1, false);
    let (busy, _) = beside_packets(1, true);
    assert!(idle.len() > busy.len() + 500, "the test sees what turns tell: {} {}", idle.len(), busy.len());
}

#[test]
fn beside_circuit_cover_both_have_half() {
    let mut net = Net::with_circuit(24, Law::Jittered, true);
    let now = Nanos(net.now);
    net.nodes[CLIENT].build(DECOY, [ENTRY, MIDDLE, EXIT], 2, true, now);
    net.run(600 * MS);
    net.command(CLIENT, Command::SetShare { circuit: DECOY, one_in: 2 });
    net.run(300 * MS);
    let from = net.now;
    net.run(1000 * MS);
    let counts: Vec<usize> = net.nodes[EXIT]
        .edge
        .times
        .values()
        .map(|times| times.iter().filter(|&&at| at >= from).count())
        .collect();
    assert_eq!(counts.len(), 2);
    assert!(counts.iter().all(|count| count.abs_diff(750) <= 3), "{counts:?}");
}
