//! Which cells land on which receive queue, and the commands that put it right.

use std::collections::BTreeSet;

use super::device::Interface;
use super::plan::Plan;
use super::report::{Report, Verdict};
use crate::host::ethtool::{EthtoolError, PortRule, Range};

/// A call of `ethtool`: its arguments.
pub(super) type Arguments = Vec<String>;

/// `arguments` as an operator would type them.
pub(super) fn command(arguments: &Arguments) -> String {
    format!("ethtool {}", arguments.join(" "))
}

/// The calls that set `interface` up for `plan`, in the order to make them in. Empty where nothing is left to do, or
/// nothing can be done.
pub(super) fn commands(interface: &Interface, plan: &Plan) -> Vec<Arguments> {
    [channels(interface, plan), rings(interface, plan), rules(interface, plan), spread(interface, plan)]
        .concat()
}

/// Judges queues, steering and hardware rings.
pub(super) fn judge(interface: &Interface, plan: &Plan, report: &mut Report) {
    let part = interface.part();
    judge_count(interface, plan, &part, report);
    judge_steering(interface, plan, &part, report);
    judge_rings(interface, plan, &part, report);
}

fn judge_count(interface: &Interface, plan: &Plan, part: &str, report: &mut Report) {
    let (have, want) = (interface.receive_queues(), plan.queues());
    let what = format!("{have} receive, {want} read by workers");
    let fix: Vec<String> = channels(interface, plan).iter().map(command).collect();
    if have == want {
        report.ok(part, "queues", what);
    } else if have < want {
        let fallback = format!("or set worker.count to {have}");
        report.add(part, "queues", Verdict::Problem, what, fix.into_iter().chain([fallback]));
    } else if missing_rules(interface, plan).is_some_and(|missing| missing.is_empty()) {
        report.ok(part, "queues", format!("{what}; rules keep cells off the others"));
    } else if others_unused(interface, want) {
        report.ok(part, "queues", format!("{what}; hashing leaves the others out"));
    } else {
        let what = format!("{what}; cells that arrive on others are dropped (xdp_no_socket in the status)");
        let fix = if fix.is_empty() { spread(interface, plan).iter().map(command).collect() } else { fix };
        let fix = if fix.is_empty() {
            vec![format!("make {} with {want} receive queues; its driver cannot change them", interface.name)]
        } else {
            fix
        };
        // drivers/net/veth.c, veth_xdp_set.
        let other_end = (interface.link.kind.as_deref() == Some("veth")).then(|| {
            "and at its other end: native XDP wants no fewer queues than that one sends on".to_owned()
        });
        report.add(part, "queues", Verdict::Problem, what, fix.into_iter().chain(other_end));
    }
}

fn judge_steering(interface: &Interface, plan: &Plan, part: &str, report: &mut Report) {
    let name = "steering";
    let many = plan.queues() > 1;
    if interface.receive_queues() == 1 {
        report.ok(part, name, "one queue takes everything");
        return;
    }
    match missing_rules(interface, plan) {
        Some(missing) if missing.is_empty() => {
            report.ok(part, name, "an ntuple rule for each lane's UDP port");
        }
        Some(missing) => {
            let verdict = if many { Verdict::Problem } else { Verdict::Warn };
            let what = format!("no ntuple rule for {} of {} lanes' ports", missing.len(), plan.workers.len());
            report.add(part, name, verdict, what, rules(interface, plan).iter().map(command));
        }
        None if plan.address.is_none() => {
            let what = "which UDP ports to look for is in a relay's file only";
            report.unknown(part, name, what, ["relay doctor --config FILE"]);
        }
        None if many => {
            let what =
                "the device takes no ntuple rules: its hash decides which worker a lane's cells come to";
            report.add(part, name, Verdict::Warn, what, spread(interface, plan).iter().map(command));
        }
        None => report.ok(part, name, "the device takes no ntuple rules, and one worker needs none"),
    }
}

fn judge_rings(interface: &Interface, plan: &Plan, part: &str, report: &mut Report) {
    let name = "hardware rings";
    let Some((rx, tx)) = interface.rings else {
        report.ok(part, name, "none to set with this driver");
        return;
    };
    let what = format!("{} of {} receive, {} of {} transmit", rx.now, rx.max, tx.now, tx.max);
    let fix = rings(interface, plan);
    if fix.is_empty() {
        report.ok(part, name, what);
    } else {
        report.add(part, name, Verdict::Warn, what, fix.iter().map(command));
    }
}

fn channels(interface: &Interface, plan: &Plan) -> Vec<Arguments> {
    let want = plan.queues();
    let steered = missing_rules(interface, plan).is_some_and(|missing| missing.is_empty());
    let Some(channels) = interface.channels else { return Vec::new() };
    let have = channels.receiving();
    if have == want || (have > want && (steered || others_unused(interface, want))) {
        return Vec::new();
    }
    let set = channels.set(want).into_iter();
    set.map(|set| [arguments(["-L", &interface.name]), set].concat()).collect()
}

/// As deep as the socket's rings, so that a worker that was held up finds what came meanwhile.
fn rings(interface: &Interface, plan: &Plan) -> Vec<Arguments> {
    let Some((rx, tx)) = interface.rings else { return Vec::new() };
    let want = |range: Range| range.max.min(plan.ring).max(range.now);
    if want(rx) == rx.now && want(tx) == tx.now {
        return Vec::new();
    }
    let (rx, tx) = (want(rx).to_string(), want(tx).to_string());
    vec![arguments(["-G", &interface.name, "rx", &rx, "tx", &tx])]
}

fn rules(interface: &Interface, plan: &Plan) -> Vec<Arguments> {
    let Some(missing) = missing_rules(interface, plan) else { return Vec::new() };
    // One worker that reads the one queue there is, or will be, needs no rule.
    if missing.is_empty() || plan.queues() == 1 && !channels(interface, plan).is_empty() {
        return Vec::new();
    }
    if interface.receive_queues() == 1 && plan.queues() == 1 {
        return Vec::new();
    }
    let mut calls = Vec::new();
    if interface.feature("ntuple-filters").is_some_and(|feature| !feature.on) {
        calls.push(arguments(["-K", &interface.name, "ntuple", "on"]));
    }
    for rule in missing {
        let kind = if rule.v6 { "udp6" } else { "udp4" };
        let (port, queue) = (rule.port.to_string(), rule.queue.to_string());
        calls.push(arguments([
            "-N",
            &interface.name,
            "flow-type",
            kind,
            "dst-port",
            &port,
            "action",
            &queue,
        ]));
    }
    calls
}

/// Without rules for ports: hashing that leaves no worker out, uses no other queue, and looks at ports.
fn spread(interface: &Interface, plan: &Plan) -> Vec<Arguments> {
    if missing_rules(interface, plan).is_some() || interface.indirection.is_empty() {
        return Vec::new();
    }
    let want = plan.queues();
    let mut calls = Vec::new();
    if interface.indirection != (0..want).collect::<BTreeSet<_>>() && channels(interface, plan).is_empty() {
        calls.push(arguments(["-X", &interface.name, "equal", &want.to_string()]));
    }
    if want > 1
        && let Some(address) = plan.address
    {
        let kind = if address.is_ipv6() { "udp6" } else { "udp4" };
        calls.push(arguments(["-N", &interface.name, "rx-flow-hash", kind, "sdfn"]));
    }
    calls
}

/// The rules that lanes lack. `None` where the device takes no rules, or the ports are not known.
fn missing_rules(interface: &Interface, plan: &Plan) -> Option<Vec<PortRule>> {
    let feature = interface.feature("ntuple-filters")?;
    if !feature.on && feature.fixed {
        return None;
    }
    let v6 = plan.address?.is_ipv6();
    let wanted =
        plan.workers.iter().enumerate().filter_map(|(index, worker)| {
            Some(PortRule { v6, port: plan.port(index)?, queue: worker.queue })
        });
    Some(wanted.filter(|rule| !feature.on || !interface.rules.contains(rule)).collect())
}

fn others_unused(interface: &Interface, want: u32) -> bool {
    !interface.indirection.is_empty() && interface.indirection.iter().all(|queue| *queue < want)
}

fn arguments<const N: usize>(words: [&str; N]) -> Arguments {
    words.map(str::to_owned).to_vec()
}

/// Why `ethtool` did not tell what a driver has, as far as it is worth telling.
pub(super) fn complaint(error: &EthtoolError) -> Option<String> {
    match error {
        EthtoolError::Refused(_) => None,
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::WorkerPlace;
    use super::*;
    use crate::host::ethtool::{Channels, Feature};

    fn plan(workers: u32, port: u16) -> Plan {
        let mut plan = Plan::of_interface("wire0");
        plan.workers = (0..workers).map(|queue| WorkerPlace { queue, cpu: None }).collect();
        plan.address = Some(([192, 0, 2, 1], port).into());
        plan
    }

    fn nic(queues: u32, ntuple: Feature) -> Interface {
        let mut nic = Interface::bare("wire0");
        nic.channels =
            Some(Channels { combined: Some(Range { now: queues, max: 16 }), ..Channels::default() });
        nic.features.insert("ntuple-filters".to_owned(), ntuple);
        nic.indirection = (0..queues).collect();
        nic.rings = Some((Range { now: 4096, max: 4096 }, Range { now: 4096, max: 4096 }));
        nic
    }

    const OFF: Feature = Feature { on: false, fixed: false };
    const ON: Feature = Feature { on: true, fixed: false };
    const NEVER: Feature = Feature { on: false, fixed: true };

    fn calls(interface: &Interface, plan: &Plan) -> Vec<String> {
        commands(interface, plan).iter().map(command).collect()
    }

    fn verdicts(interface: &Interface, plan: &Plan) -> [Verdict; 3] {
        let mut report = Report::new(plan);
        judge(interface, plan, &mut report);
        ["queues", "steering", "hardware rings"].map(|name| report.find(name).verdict)
    }

    #[test]
    fn one_worker_wants_one_queue() {
        let plan = plan(1, 7443);
        assert_eq!(calls(&nic(8, NEVER), &plan), ["ethtool -L wire0 combined 1"]);
        assert_eq!(verdicts(&nic(8, NEVER), &plan), [Verdict::Problem, Verdict::Ok, Verdict::Ok]);
        assert!(calls(&nic(1, OFF), &plan).is_empty());
        assert_eq!(verdicts(&nic(1, OFF), &plan), [Verdict::Ok; 3]);
    }

    #[test]
    fn each_lane_gets_a_rule() {
        let plan = plan(2, 7443);
        let mut nic = nic(8, OFF);
        assert_eq!(
            calls(&nic, &plan),
            [
                "ethtool -L wire0 combined 2",
                "ethtool -K wire0 ntuple on",
                "ethtool -N wire0 flow-type udp4 dst-port 7443 action 0",
                "ethtool -N wire0 flow-type udp4 dst-port 7444 action 1",
            ]
        );
        assert_eq!(verdicts(&nic, &plan), [Verdict::Problem, Verdict::Problem, Verdict::Ok]);
        nic.features.insert("ntuple-filters".to_owned(), ON);
        nic.rules = vec![PortRule { v6: false, port: 7443, queue: 0 }];
        assert_eq!(
            calls(&nic, &plan).last().unwrap(),
            "ethtool -N wire0 flow-type udp4 dst-port 7444 action 1"
        );
        nic.rules.push(PortRule { v6: false, port: 7444, queue: 1 });
        assert!(calls(&nic, &plan).is_empty(), "rules keep cells off the other six queues");
        assert_eq!(verdicts(&nic, &plan), [Verdict::Ok; 3]);
        nic.rules[1].v6 = true;
        assert_eq!(verdicts(&nic, &plan)[1], Verdict::Problem, "a rule for IPv6 is none for IPv4");
    }

    #[test]
    fn without_rules_the_hash_has_to_do() {
        let plan = plan(2, 7443);
        let mut nic = nic(2, NEVER);
        assert_eq!(calls(&nic, &plan), ["ethtool -N wire0 rx-flow-hash udp4 sdfn"]);
        assert_eq!(verdicts(&nic, &plan), [Verdict::Ok, Verdict::Warn, Verdict::Ok]);
        nic.channels = None;
        nic.link.rx_queues = 4;
        nic.indirection = (0..4).collect();
        assert_eq!(calls(&nic, &plan)[0], "ethtool -X wire0 equal 2");
        assert_eq!(verdicts(&nic, &plan)[0], Verdict::Problem);
        nic.indirection = (0..2).collect();
        assert_eq!(verdicts(&nic, &plan)[0], Verdict::Ok);
    }

    #[test]
    fn too_few_queues_are_a_problem_even_where_nothing_helps() {
        let nic = nic(1, NEVER);
        let plan = plan(17, 7443);
        let mut report = Report::new(&plan);
        judge(&nic, &plan, &mut report);
        assert_eq!(report.find("queues").verdict, Verdict::Problem);
        assert_eq!(report.find("queues").remedy, ["or set worker.count to 1"]);
    }

    #[test]
    fn rings_grow_and_never_shrink() {
        let plan = plan(1, 7443);
        let mut nic = nic(1, NEVER);
        let ring = |now, max| Range { now, max };
        nic.rings = Some((ring(512, 8192), ring(256, 1024)));
        assert_eq!(calls(&nic, &plan), ["ethtool -G wire0 rx 4096 tx 1024"]);
        assert_eq!(verdicts(&nic, &plan)[2], Verdict::Warn);
        nic.rings = Some((ring(8192, 8192), ring(1024, 1024)));
        assert!(calls(&nic, &plan).is_empty());
    }
}
