//! Maybenot machines on top of the schedule: the floor stays, and the guarantee does not.

use crate::net::{CLIENT, MS, Net};
use crate::scenario::Traffic;
use relay_user::engine::Command;
use relay_user::engine::extra::{Extra, parse_machines};
use relay_user::engine::schedule::Law;
use relay_user::engine::time::Nanos;
use std::collections::BTreeSet;

/// Answers each cell of payload with one more, 700 µs later.
const ECHO: &str = "02eNply8EJACAMA8DExXQ0P+7pCC4gilYpbe8TEshcD66R8SUJkkDV+VTRWzEZ+OsG4gkO9w==";

/// When cells left the client, in half a second of traffic and a pause of the same length.
fn client_egress(machines: bool, traffic: Traffic) -> Vec<u64> {
    let mut net = Net::with_circuit(31, Law::Constant, true);
    if machines {
        let machines = parse_machines(&[ECHO.to_owned()]).unwrap();
        let extra = Box::new(Extra::new(machines, 1.0, Nanos(net.now), [9; 32]).unwrap());
        net.command(CLIENT, Command::SetExtra { link: 1, extra });
    }
    net.egress.clear();
    traffic.run(&mut net, 500 * MS);
    net.egress[&(CLIENT, 1)].iter().map(|&(at, _)| at).collect()
}

#[test]
fn machines_add_cells_to_a_floor_that_stays() {
    let floor = client_egress(false, Traffic::Idle);
    assert!(client_egress(true, Traffic::Idle) == floor, "nothing to answer");
    let busy = client_egress(true, Traffic::Chat);
    let slots: BTreeSet<u64> = floor.iter().copied().collect();
    let extra = busy.iter().filter(|at| !slots.contains(at)).count();
    assert_eq!(busy.len(), floor.len() + extra, "no slot of the floor is empty");
    assert!(extra > 10, "{extra}: the observer can tell, which is what the configuration says");
}
