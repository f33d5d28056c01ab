//! How long packets take behind circuit cover, by law: the figures that `relay plan` is checked against
//! (relay-user/src/plan/delay.rs).

use crate::net::{CLIENT, ENTRY, EXIT, MIDDLE, MS, Net, laws};
use crate::scenario::send_both;

/// Means of the way out and home over 30 networks, in µs, less the wires; all links have the law.
const MEANS: [(f64, f64); 4] = [(1462.0, 1780.0), (1680.0, 2671.0), (4767.0, 6694.0), (2131.0, 2850.0)];
const NETWORKS: u64 = 4;
const PROBES: u64 = 25;

#[test]
fn packets_take_as_long_as_the_plan_is_checked_against() {
    for (number, law) in laws().into_iter().enumerate() {
        let (mut there, mut back) = (0.0, 0.0);
        for seed in 100..100 + NETWORKS {
            let mut net = Net::with_circuit(seed, law, true);
            let wires = |net: &Net, ends: [(usize, u32); 3]| {
                ends.iter().map(|&(node, link)| net.latency(node, link)).sum::<u64>()
            };
            let out = wires(&net, [(CLIENT, 1), (ENTRY, 1), (MIDDLE, 1)]);
            let home = wires(&net, [(EXIT, 0), (MIDDLE, 0), (ENTRY, 0)]);
            let mut sent = Vec::new();
            for probe in 0..PROBES {
                sent.push((probe, net.now));
                send_both(&mut net, 2 * probe, 100);
                // At no fixed place in any period.
                net.run(10 * MS + probe * 7_919_317 % 10_000_019);
            }
            net.run(200 * MS);
            for (probe, at) in sent {
                there += (net.nodes[EXIT].edge.came[&(2 * probe)] - at - out) as f64;
                back += (net.nodes[CLIENT].edge.came[&(2 * probe + 1)] - at - home) as f64;
            }
        }
        // Few networks, whose phases are what they are, and by poisson queues that come and go slowly.
        let tolerance = if number == 2 { 0.3 } else { 0.15 };
        let (out, home) = MEANS[number];
        for (found, expected) in [(there, out), (back, home)] {
            let mean = found / (NETWORKS * PROBES) as f64 / 1e3;
            assert!((mean / expected - 1.0).abs() < tolerance, "{law}: {mean:.0} µs, and not {expected}");
        }
    }
}
