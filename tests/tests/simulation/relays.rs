//! What relays on the path can tell of a circuit: with circuit cover, not even whether it is used.

use crate::net::{CLIENT, ENTRY, EXIT, Knows, MIDDLE, MS, Net};
use crate::scenario::Traffic;
use relay_user::engine::schedule::Law;
use std::collections::BTreeMap;

fn known(law: Law, cover: bool, traffic: Traffic) -> BTreeMap<usize, Vec<Knows>> {
    let mut net = Net::with_circuit(17, law, cover);
    net.watch = true;
    traffic.run(&mut net, 800 * MS);
    net.knows.remove(&CLIENT);
    net.knows
}

#[test]
fn an_idle_circuit_is_to_its_relays_what_a_busy_one_is() {
    for law in [Law::Constant, Law::Jittered] {
        let idle = known(law, true, Traffic::Idle);
        for relay in [ENTRY, MIDDLE, EXIT] {
            assert!(idle[&relay].len() > 1000, "relay {relay} was on the path");
        }
        for traffic in [Traffic::Chat, Traffic::Bulk, Traffic::Overload] {
            assert!(idle == known(law, true, traffic), "{law:?}, {traffic:?}: a relay can tell");
        }
    }
}

#[test]
fn without_circuit_cover_they_can_tell() {
    let idle = known(Law::Jittered, false, Traffic::Idle);
    let busy = known(Law::Jittered, false, Traffic::Bulk);
    assert!(idle[&EXIT].last().unwrap().ended < busy[&EXIT].last().unwrap().ended);
    assert!(idle != busy, "the comparison would show nothing");
}
