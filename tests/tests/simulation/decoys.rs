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
