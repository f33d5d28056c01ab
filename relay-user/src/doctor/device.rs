//! The interface and its driver.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use relay_common::wire::CELL_LEN;

use super::plan::Plan;
use super::queues::complaint;
use super::report::{Report, Verdict};
use crate::config::{BindMode, BusyPoll, DatapathMode, PollMode};
use crate::host::ethtool::{
    Channels, Feature, PortRule, Range, parse_channels, parse_driver, parse_features, parse_indirection,
    parse_rings, parse_rules, run,
};
use crate::host::interrupts::{self, QueueInterrupt};
use crate::host::link::{Device, Link};
use crate::host::netdev::{XdpFeatures, xdp_features};
use crate::host::text;
use crate::xsk::Arena;

/// Bytes of IP and UDP header in front of a cell.
const HEADERS_V4: usize = 20 + 8;
const HEADERS_V6: usize = 40 + 8;
/// Bytes of a frame that XDP keeps for itself (`XDP_PACKET_HEADROOM` of uapi/linux/bpf.h).
const XDP_HEADROOM: usize = 256;
/// Bytes of an Ethernet header with two VLAN tags.
const ETHERNET: usize = 14 + 8;

/// For how many empty polls, and nanoseconds, interrupts stay away: the example of the series that brought busy polling
/// to AF_XDP ("Introduce preferred busy-polling", netdev, 30 November 2020). Longer than a turn of the worker takes.
const DEFER_POLLS: u32 = 2;
const FLUSH_NANOS: u32 = 200_000;

/// Everything that is known of an interface.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) link: Link,
    pub(super) device: Device,
    pub(super) driver: Option<(String, String)>,
    pub(super) channels: Option<Channels>,
    pub(super) rings: Option<(Range, Range)>,
    pub(super) features: BTreeMap<String, Feature>,
    pub(super) rules: Vec<PortRule>,
    pub(super) indirection: BTreeSet<u32>,
    pub(super) interrupts: Vec<QueueInterrupt>,
    xdp: Result<XdpFeatures, String>,
    /// `napi_defer_hard_irqs` and `gro_flush_timeout`.
    deferral: (Option<u32>, Option<u64>),
    /// Why `ethtool` could not be asked.
    ethtool: Option<String>,
}

impl Interface {
    /// Asks netlink, /sys and `ethtool`.
    pub(super) fn read(name: &str, link: Link) -> Self {
        let mut trouble = None;
        let mut ask = |option: &str| {
            let answer = run(&[option, name]);
            if let Err(error) = &answer {
                trouble = trouble.take().or_else(|| complaint(error));
            }
            answer.ok()
        };
        let driver = ask("-i").and_then(|text| parse_driver(&text));
        let channels = ask("-l").map(|text| parse_channels(&text));
        let rings = ask("-g").and_then(|text| parse_rings(&text));
        let features = ask("-k").map(|text| parse_features(&text)).unwrap_or_default();
        let rules = ask("-n").map(|text| parse_rules(&text)).unwrap_or_default();
        let indirection = ask("-x").map(|text| parse_indirection(&text)).unwrap_or_default();
        let device = Device::of(name, link.index);
        let place = if let Device::At(place) = &device { Some(place.as_path()) } else { None };
        let seen = if device == Device::Hidden { None } else { Some(Path::new("/sys/class/net").join(name)) };
        let setting = |file: &str| seen.as_ref().and_then(|place| text(place.join(file)));
        Self {
            deferral: (
                setting("napi_defer_hard_irqs").and_then(|value| value.parse().ok()),
                setting("gro_flush_timeout").and_then(|value| value.parse().ok()),
            ),
            interrupts: interrupts::of_interface(name, place),
            xdp: xdp_features(link.index).map_err(|error| error.to_string()),
            name: name.to_owned(),
            link,
            device,
            driver,
            channels,
            rings,
            features,
            rules,
            indirection,
            ethtool: trouble,
        }
    }

    /// The heading of its findings.
    pub(super) fn part(&self) -> String {
        format!("interface {}", self.name)
    }

    pub(super) fn feature(&self, name: &str) -> Option<Feature> {
        self.features.get(name).copied()
    }

    /// Receive queues in use.
    pub(super) fn receive_queues(&self) -> u32 {
        self.channels
            .map(|channels| channels.receiving())
            .filter(|count| *count > 0)
            .unwrap_or(self.link.rx_queues)
    }

    /// Whether the workers of `plan` would run the driver's receive loop themselves.
    pub(super) fn is_polled(&self, plan: &Plan) -> bool {
        let zero_copy = self.xdp.as_ref().is_ok_and(|features| features.zero_copy);
        let wanted = plan.poll == PollMode::Busy && plan.busy_poll == BusyPoll::Auto;
        zero_copy && wanted && plan.bind != BindMode::Copy
    }

    fn is_veth(&self) -> bool {
        self.link.kind.as_deref() == Some("veth")
    }
}

/// Judges what is the same for every worker.
pub(super) fn judge(interface: &Interface, plan: &Plan, report: &mut Report) {
    let part = interface.part();
    judge_state(interface, &part, report);
    judge_driver(interface, &part, report);
    judge_xdp(interface, plan, &part, report);
    judge_mtu(interface, plan, &part, report);
    judge_offloads(interface, &part, report);
    if interface.is_veth() {
        judge_veth(interface, &part, report);
    }
}

fn judge_state(interface: &Interface, part: &str, report: &mut Report) {
    if interface.link.up {
        report.ok(part, "state", "up");
    } else {
        let fix = format!("ip link set dev {} up", interface.name);
        report.add(part, "state", Verdict::Problem, "down", [fix]);
    }
    if let Some(mode) = interface.link.xdp {
        let what = format!(
            "a program is attached ({mode}): a running relay's, or one that keeps a relay from starting"
        );
        let fix = format!("ip -d link show dev {}", interface.name);
        report.unknown(part, "XDP program", what, [fix]);
    }
}

fn judge_driver(interface: &Interface, part: &str, report: &mut Report) {
    match (&interface.driver, &interface.ethtool) {
        (Some((driver, version)), _) => report.ok(part, "driver", format!("{driver} {version}")),
        (None, Some(trouble)) => report.unknown(part, "driver", trouble, ["apt-get install ethtool"]),
        (None, None) => report.ok(part, "driver", "none: the kernel's own"),
    }
}

fn judge_xdp(interface: &Interface, plan: &Plan, part: &str, report: &mut Report) {
    let features = match &interface.xdp {
        Ok(features) => *features,
        Err(error) => {
            let probe = format!("relay doctor {} --probe", interface.name);
            report.unknown(part, "native XDP", error, [probe.as_str()]);
            report.unknown(part, "zero-copy", "as above", [probe]);
            return;
        }
    };
    if features.native && features.redirect {
        report.ok(part, "native XDP", "the driver runs programs and hands frames to sockets");
    } else {
        let verdict = if plan.mode == DatapathMode::Native { Verdict::Problem } else { Verdict::Warn };
        let what = "the driver has none: each cell takes a socket buffer in the generic hook";
        // drivers/net/veth.c, veth_xdp_set and veth_set_xdp_features.
        let fix = if interface.is_veth() {
            "ethtool -L at its other end: fewer transmit queues than this one has receive queues, or as many"
        } else {
            "use an interface whose driver has native XDP"
        };
        report.add(part, "native XDP", verdict, what, [fix]);
    }
    if features.zero_copy {
        let segments = features.zero_copy_segments.unwrap_or(1);
        let plural = if segments == 1 { "" } else { "s" };
        report.ok(part, "zero-copy", format!("the driver has it, {segments} descriptor{plural} a packet"));
        judge_busy_poll(interface, plan, part, report);
    } else if plan.bind == BindMode::ZeroCopy {
        let fix = "set datapath.bind to \"auto\", or use an interface whose driver has zero-copy";
        report.add(
            part,
            "zero-copy",
            Verdict::Problem,
            "the driver has none, and datapath.bind asks for it",
            [fix],
        );
    } else {
        report.ok(part, "zero-copy", "the driver has none: the kernel copies each cell");
    }
}

/// With busy polling the driver's interrupts only hold workers up; the kernel keeps them off where both are set
/// (Documentation/networking/napi.rst, IRQ mitigation).
fn judge_busy_poll(interface: &Interface, plan: &Plan, part: &str, report: &mut Report) {
    let name = "busy polling";
    if !interface.is_polled(plan) {
        return;
    }
    let (Some(defer), Some(flush)) = interface.deferral else {
        let what = "whether interrupts stay away is not told here (/sys shows another network namespace)";
        report.unknown(
            part,
            name,
            what,
            [format!("cat /sys/class/net/{}/napi_defer_hard_irqs", interface.name)],
        );
        return;
    };
    if defer > 0 && flush > 0 {
        report.ok(part, name, format!("interrupts stay away for {flush} ns, {defer} times"));
        return;
    }
    let place = format!("/sys/class/net/{}", interface.name);
    let fix = [
        format!("echo {DEFER_POLLS} > {place}/napi_defer_hard_irqs"),
        format!("echo {FLUSH_NANOS} > {place}/gro_flush_timeout"),
    ];
    report.add(part, name, Verdict::Warn, "interrupts come between: their deferral is off", fix);
}

fn judge_mtu(interface: &Interface, plan: &Plan, part: &str, report: &mut Report) {
    let v4 = plan.address.is_some_and(|address| address.is_ipv4());
    let least = CELL_LEN + if v4 { HEADERS_V4 } else { HEADERS_V6 };
    let most = Arena::CHUNK - XDP_HEADROOM - ETHERNET;
    let mtu = interface.link.mtu as usize;
    let set = |mtu: usize| [format!("ip link set dev {} mtu {mtu}", interface.name)];
    if mtu < least {
        let what = format!("{mtu}: a cell's packet has {least} bytes");
        report.add(part, "MTU", Verdict::Problem, what, set(1500));
    } else if mtu > most {
        let what =
            format!("{mtu}: packets beyond {most} bytes fit no frame, and drivers may refuse native XDP");
        report.add(part, "MTU", Verdict::Warn, what, set(1500));
    } else {
        report.ok(part, "MTU", mtu.to_string());
    }
}

fn judge_offloads(interface: &Interface, part: &str, report: &mut Report) {
    let name = "offloads";
    if interface.features.is_empty() {
        let what = interface.ethtool.clone().unwrap_or_else(|| "the driver does not tell".to_owned());
        report.unknown(part, name, what, [format!("ethtool -k {}", interface.name)]);
        return;
    }
    // What merges datagrams before the program, or the socket, sees them.
    let merging = [
        ("large-receive-offload", "lro"),
        ("rx-gro-list", "rx-gro-list"),
        ("rx-udp-gro-forwarding", "rx-udp-gro-forwarding"),
    ];
    let on: Vec<&str> = merging
        .into_iter()
        .filter(|(long, _)| interface.feature(long).is_some_and(|feature| feature.on && !feature.fixed))
        .map(|(_, short)| short)
        .collect();
    if on.is_empty() {
        report.ok(part, name, "none merges received datagrams");
    } else {
        let what = format!("{} may merge received datagrams, and native XDP may be refused", on.join(", "));
        let fix = on.iter().map(|short| format!("ethtool -K {} {short} off", interface.name));
        report.add(part, name, Verdict::Warn, what, fix);
    }
}

fn judge_veth(interface: &Interface, part: &str, report: &mut Report) {
    if interface.feature("tx-checksumming").is_some_and(|feature| feature.on) {
        let what = "on: the kernel's own packets (handshakes) leave with half a checksum";
        let fix = format!("ethtool -K {} tx off", interface.name);
        report.add(part, "tx checksum", Verdict::Warn, what, [fix]);
    } else {
        report.ok(part, "tx checksum", "whole");
    }
    if interface.link.qdisc.as_deref() == Some("noqueue") {
        let what = "none: a cell that meets a full ring at the other end is lost without a word";
        let fix = format!("tc qdisc replace dev {} root pfifo", interface.name);
        report.add(part, "transmit queue", Verdict::Warn, what, [fix]);
    } else {
        report.ok(part, "transmit queue", interface.link.qdisc.as_deref().unwrap_or("not told"));
    }
}

#[cfg(test)]
impl Interface {
    /// An interface that is up and of which nothing else is known.
    pub(super) fn bare(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            link: Link { index: 9, up: true, mtu: 1500, rx_queues: 1, ..Link::default() },
            device: Device::None,
            driver: None,
            channels: None,
            rings: None,
            features: BTreeMap::new(),
            rules: Vec::new(),
            indirection: BTreeSet::new(),
            interrupts: Vec::new(),
            xdp: Err("not asked".to_owned()),
            deferral: (None, None),
            ethtool: None,
        }
    }

    /// The same with a driver that does everything.
    pub(super) fn able(name: &str) -> Self {
        let xdp = XdpFeatures { native: true, redirect: true, zero_copy: true, zero_copy_segments: Some(1) };
        Self { xdp: Ok(xdp), ..Self::bare(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(interface: &Interface, plan: &Plan) -> Report {
        let mut report = Report::new(plan);
        judge(interface, plan, &mut report);
        report
    }

    #[test]
    fn a_cell_must_fit() {
        let mut plan = Plan::of_interface("wire0");
        let mut wire = Interface::bare("wire0");
        for (address, mtu, verdict) in [
            (Some(([192, 0, 2, 1], 7443).into()), 1388, Verdict::Ok),
            (Some(([192, 0, 2, 1], 7443).into()), 1387, Verdict::Problem),
            (None, 1408, Verdict::Ok),
            (None, 1407, Verdict::Problem),
            (None, 9000, Verdict::Warn),
        ] {
            plan.address = address;
            wire.link.mtu = mtu;
            assert_eq!(report(&wire, &plan).find("MTU").verdict, verdict, "{mtu}");
        }
    }

    #[test]
    fn what_the_driver_cannot_is_a_problem_only_where_it_must() {
        let mut plan = Plan::of_interface("wire0");
        let mut wire = Interface::bare("wire0");
        assert_eq!(report(&wire, &plan).find("native XDP").verdict, Verdict::Unknown);
        let features =
            XdpFeatures { native: false, redirect: false, zero_copy: false, zero_copy_segments: None };
        wire.xdp = Ok(features);
        assert_eq!(report(&wire, &plan).find("native XDP").verdict, Verdict::Warn);
        assert_eq!(report(&wire, &plan).find("zero-copy").verdict, Verdict::Ok);
        (plan.mode, plan.bind) = (DatapathMode::Native, BindMode::ZeroCopy);
        assert_eq!(report(&wire, &plan).find("native XDP").verdict, Verdict::Problem);
        assert_eq!(report(&wire, &plan).find("zero-copy").verdict, Verdict::Problem);
        wire.xdp = Ok(XdpFeatures { native: true, redirect: true, zero_copy: true, ..features });
        assert_eq!(report(&wire, &plan).find("native XDP").verdict, Verdict::Ok);
        assert_eq!(report(&wire, &plan).find("zero-copy").verdict, Verdict::Ok);
    }

    #[test]
    fn busy_polling_wants_interrupts_deferred() {
        let mut plan = Plan::of_interface("wire0");
        plan.poll = PollMode::Busy;
        let mut wire = Interface::able("wire0");
        for (deferral, verdict) in [
            ((None, None), Verdict::Unknown),
            ((Some(0), Some(0)), Verdict::Warn),
            ((Some(2), Some(0)), Verdict::Warn),
            ((Some(2), Some(200_000)), Verdict::Ok),
        ] {
            wire.deferral = deferral;
            assert_eq!(report(&wire, &plan).find("busy polling").verdict, verdict, "{deferral:?}");
        }
        plan.poll = PollMode::Adaptive;
        assert!(!report(&wire, &plan).table().contains("busy polling"));
    }

    #[test]
    fn only_what_can_be_changed_is_held_against_a_device() {
        let plan = Plan::of_interface("wire0");
        let mut wire = Interface::bare("wire0");
        assert_eq!(report(&wire, &plan).find("offloads").verdict, Verdict::Unknown);
        let lro = |on, fixed| ("large-receive-offload".to_owned(), Feature { on, fixed });
        for (on, fixed, verdict) in
            [(true, false, Verdict::Warn), (true, true, Verdict::Ok), (false, false, Verdict::Ok)]
        {
            wire.features = BTreeMap::from([lro(on, fixed)]);
            assert_eq!(report(&wire, &plan).find("offloads").verdict, verdict);
        }
    }

    #[test]
    fn a_veth_is_asked_for_its_pitfalls() {
        let plan = Plan::of_interface("wire0");
        let mut wire = Interface::bare("wire0");
        (wire.link.kind, wire.link.qdisc) = (Some("veth".to_owned()), Some("noqueue".to_owned()));
        wire.features = BTreeMap::from([("tx-checksumming".to_owned(), Feature { on: true, fixed: false })]);
        wire.link.up = false;
        let report = report(&wire, &plan);
        assert_eq!(report.find("tx checksum").remedy, ["ethtool -K wire0 tx off"]);
        assert_eq!(report.find("transmit queue").remedy, ["tc qdisc replace dev wire0 root pfifo"]);
        assert_eq!(report.find("state").verdict, Verdict::Problem);
    }
}
