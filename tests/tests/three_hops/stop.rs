//! What a node leaves behind: nothing after a clean stop, and nothing that a restart minds after a kill.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use relay_tests::nodes::RELAYS;
use relay_tests::privilege::root_or_skip;
use relay_tests::{Host, Lab, Nodes};

use crate::support::{READY, Web, lab, relay_program, text};

const NODES: [Host; 4] = [Host::Client, Host::Entry, Host::Middle, Host::Exit];
const SWITCHES: [&str; 3] =
    ["net/ipv4/conf/out0/forwarding", "net/ipv4/conf/wire0/forwarding", "net/ipv6/conf/all/forwarding"];

/// All that a node could leave in its namespace, as the system's own tools print it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    links: String,
    addresses: String,
    routes: String,
    tables: String,
    switches: BTreeMap<&'static str, String>,
}

impl Traces {
    pub(crate) fn of(lab: &Lab, host: Host) -> Self {
        let ip = |arguments: &[&str]| text(lab, host, "ip", arguments);
        let routes = [
            &["-4", "route", "show", "table", "all"][..],
            &["-6", "route", "show", "table", "all"],
            &["-4", "rule", "show"],
            &["-6", "rule", "show"],
        ];
        let switches = SWITCHES.into_iter().filter_map(|switch| {
            let read = || Ok(std::fs::read_to_string(format!("/proc/sys/{switch}"))?);
            lab.netns(host).run(read).ok().map(|value| (switch, value))
        });
        Self {
            links: ip(&["-details", "-oneline", "link", "show"]),
            addresses: ip(&["-oneline", "address", "show"]),
            routes: routes.map(ip).concat(),
            tables: text(lab, host, "nft", &["list", "ruleset"]),
            switches: switches.collect(),
        }
    }
}

#[test]
fn nodes_stop_without_a_trace_and_start_over_after_a_kill() {
    if !root_or_skip("nodes_stop_without_a_trace_and_start_over_after_a_kill") {
        return;
    }
    let lab = lab();
    let web = Web::start(&lab);
    let before = NODES.map(|host| Traces::of(&lab, host));
    let mut nodes = Nodes::prepare(&lab, relay_program()).expect("nodes");
    nodes.start_all(READY).expect("ready");
    for (host, before) in NODES.into_iter().zip(&before) {
        let while_running = Traces::of(&lab, host);
        assert_ne!(
            &while_running,
            before,
            "{} leaves traces while it runs, or this test sees none",
            host.name()
        );
        assert_eq!(while_running.links.contains("prog/xdp"), host != Host::Client, "{}", while_running.links);
    }

    for host in NODES {
        nodes.kill(host).expect("kill");
    }
    nodes.start_all(READY).expect("ready again after SIGKILL");
    assert!(web.fetch(&lab, "20"), "after SIGKILL and a new start");

    for host in NODES {
        let status = nodes.stop(host).expect("stop");
        assert_eq!(status.code(), Some(0), "{}: {status}\n{}", host.name(), nodes.log_tail(host));
    }
    for (host, before) in NODES.into_iter().zip(&before) {
        assert_eq!(&Traces::of(&lab, host), before, "{}", host.name());
        assert!(!nodes.file(host, "sock").exists(), "the status socket of {} is left", host.name());
    }

    // In the other order, with every peer already gone or going.
    nodes.start_all(READY).expect("ready after a clean stop");
    for host in RELAYS.into_iter().chain([Host::Client]) {
        let status = nodes.stop(host).expect("stop");
        assert_eq!(status.code(), Some(0), "{}: {status}\n{}", host.name(), nodes.log_tail(host));
    }
    for (host, before) in NODES.into_iter().zip(&before) {
        assert_eq!(&Traces::of(&lab, host), before, "{}", host.name());
    }
}

#[test]
fn a_node_stopped_while_it_starts_leaves_nothing() {
    if !root_or_skip("a_node_stopped_while_it_starts_leaves_nothing") {
        return;
    }
    let lab = lab();
    let mut nodes = Nodes::prepare(&lab, relay_program()).expect("nodes");
    for host in [Host::Client, Host::Exit] {
        let before = Traces::of(&lab, host);
        for step in 0..12 {
            nodes.start(host).expect("start");
            // Somewhere between the first trace and the last.
            let until = Instant::now() + READY;
            while !nodes.file(host, "sock").exists() && Instant::now() < until {
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(Duration::from_millis(3 * step));
            let status = nodes.stop(host).expect("stop");
            assert_eq!(status.code(), Some(0), "{}: {status}\n{}", host.name(), nodes.log_tail(host));
            assert_eq!(Traces::of(&lab, host), before, "{} stopped in step {step}", host.name());
            assert!(!nodes.file(host, "sock").exists(), "{}: the status socket is left", host.name());
        }
    }
}
