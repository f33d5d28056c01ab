//! What holds for the machine as a whole, and for this process on it.

use std::path::Path;

use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

use super::plan::Plan;
use super::report::{Report, Verdict};
use crate::config::{HugePages as WantedPages, PollMode};
use crate::host::memory::{self, HUGE_PAGE, HugePages};
use crate::host::{kernel_version, number, text};
use crate::steering::{effective_capabilities, missing_capabilities};

/// The oldest kernel that the relay is made for.
const FLOOR: (u32, u32) = (5, 15);
/// Heading of these findings.
const PART: &str = "machine";
/// Clock sources that programs read without a system call (the `vdso_clock_mode`s of the kernel's drivers).
const FAST_CLOCKS: [&str; 4] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];
const CLOCKS: &str = "/sys/devices/system/clocksource/clocksource0";
/// Bytes that a UDP port asks for as its buffers, and an AF_XDP port as its send buffer.
const UDP_BUFFER: u64 = 4 << 20;
const AF_XDP_BUFFER: u64 = 32 << 20;

/// What was read.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    release: String,
    capabilities: CapabilitySet,
    clock: Option<String>,
    clocks: String,
    huge: Option<HugePages>,
    transparent: Option<String>,
    /// Bytes that this process may lock; `None` without a limit.
    memlock: Option<u64>,
    rmem_max: Option<u64>,
    wmem_max: Option<u64>,
    jit: Option<u32>,
    numa_balancing: Option<u32>,
    nodes: usize,
    rt_runtime: Option<i64>,
}

impl Machine {
    pub(super) fn read() -> Self {
        let sysctl = |key: &str| Path::new("/proc/sys").join(key);
        let nodes = std::fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
        let is_node = |name: &str| name.strip_prefix("node").is_some_and(|rest| rest.parse::<u32>().is_ok());
        Self {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            capabilities: effective_capabilities(),
            clock: text(Path::new(CLOCKS).join("current_clocksource")),
            clocks: text(Path::new(CLOCKS).join("available_clocksource")).unwrap_or_default(),
            huge: memory::huge_pages(),
            transparent: memory::transparent(),
            memlock: getrlimit(Resource::Memlock).current,
            rmem_max: number(sysctl("net/core/rmem_max")),
            wmem_max: number(sysctl("net/core/wmem_max")),
            jit: number(sysctl("net/core/bpf_jit_enable")),
            numa_balancing: number(sysctl("kernel/numa_balancing")),
            nodes: nodes.filter(|entry| entry.file_name().to_str().is_some_and(is_node)).count(),
            rt_runtime: number(sysctl("kernel/sched_rt_runtime_us")),
        }
    }
}

pub(super) fn judge(machine: &Machine, plan: &Plan, report: &mut Report) {
    judge_kernel(machine, report);
    judge_capabilities(machine, plan, report);
    judge_clock(machine, report);
    judge_huge_pages(machine, plan, report);
    judge_limits(machine, plan, report);
    judge_sysctls(machine, plan, report);
}

fn judge_kernel(machine: &Machine, report: &mut Report) {
    let release = machine.release.clone();
    match kernel_version(&release) {
        Some(version) if version >= FLOOR => report.ok(PART, "kernel", release),
        Some(_) => {
            let what = format!("{release}: older than {}.{}", FLOOR.0, FLOOR.1);
            report.add(PART, "kernel", Verdict::Problem, what, ["install a newer kernel, and boot it"]);
        }
        None => report.unknown(PART, "kernel", release, ["uname -r"]),
    }
}

fn judge_capabilities(machine: &Machine, plan: &Plan, report: &mut Report) {
    let held = machine.capabilities;
    let mut missing: Vec<&str> = Vec::new();
    if plan.interface.is_some() {
        missing.extend(missing_capabilities(held));
        // An AF_XDP socket takes CAP_NET_RAW (net/xdp/xsk.c, xsk_create).
        if !held.contains(CapabilitySet::NET_RAW) {
            missing.push("CAP_NET_RAW");
        }
    }
    let all_missing = !missing.is_empty();
    // Real-time priority and a nice value below zero.
    if !held.contains(CapabilitySet::SYS_NICE) {
        missing.push("CAP_SYS_NICE");
    }
    if missing.is_empty() {
        report.ok(PART, "capabilities", "all that a relay needs");
        return;
    }
    let verdict = if all_missing { Verdict::Problem } else { Verdict::Warn };
    let grant = missing.join(",").to_lowercase();
    let fix = [
        "run as root, or in a systemd unit:".to_owned(),
        format!("AmbientCapabilities={}", missing.join(" ")),
        format!("or: setcap {grant}+ep \"$(command -v relay)\""),
    ];
    report.add(PART, "capabilities", verdict, format!("this process lacks {}", missing.join(", ")), fix);
}

fn judge_clock(machine: &Machine, report: &mut Report) {
    let Some(clock) = machine.clock.clone() else {
        report.unknown(PART, "clock source", "not told", [format!("cat {CLOCKS}/current_clocksource")]);
        return;
    };
    if FAST_CLOCKS.contains(&clock.as_str()) {
        report.ok(PART, "clock source", clock);
        return;
    }
    let fix = FAST_CLOCKS
        .iter()
        .find(|fast| machine.clocks.split(' ').any(|one| one == **fast))
        .map_or("dmesg | grep -i -e tsc -e clocksource".to_owned(), |fast| {
            format!("echo {fast} > {CLOCKS}/current_clocksource")
        });
    let what = format!("{clock}: each look at the clock is a system call");
    report.add(PART, "clock source", Verdict::Warn, what, [fix]);
}

fn judge_huge_pages(machine: &Machine, plan: &Plan, report: &mut Report) {
    let name = "huge pages";
    let with_udp = plan.interface.is_none() && plan.huge_pages == WantedPages::Auto;
    if plan.huge_pages == WantedPages::Off || with_udp {
        report.ok(PART, name, "not wanted (datapath.huge_pages, or UDP sockets)");
        return;
    }
    let wanted = memory::pages_for(plan.frame_bytes());
    let Some(huge) = machine.huge else {
        report.unknown(PART, name, "this kernel has none of 2 MiB", ["grep -i huge /proc/meminfo"]);
        return;
    };
    let what = format!("{} of 2 MiB free, {wanted} hold the frames", huge.free);
    if huge.free >= wanted {
        report.ok(PART, name, what);
        return;
    }
    let transparent = machine.transparent.as_deref().unwrap_or("not told");
    let what = format!("{what}; transparent ones: {transparent}");
    let total = huge.total + wanted - huge.free;
    let verdict = if plan.huge_pages == WantedPages::Require { Verdict::Problem } else { Verdict::Warn };
    report.add(PART, name, verdict, what, [format!("sysctl -w vm.nr_hugepages={total}")]);
}

fn judge_limits(machine: &Machine, plan: &Plan, report: &mut Report) {
    let exempt = machine.capabilities.contains(CapabilitySet::IPC_LOCK);
    // net/xdp/xdp_umem.c, xdp_umem_account_pages.
    let bytes = plan.frame_bytes();
    match machine.memlock {
        Some(limit) if !exempt && limit < bytes && plan.interface.is_some() => {
            let what = format!("{} KiB, and the frames take {}", limit >> 10, bytes >> 10);
            let fix = [
                format!("ulimit -l {}", bytes >> 10),
                "or in a systemd unit: LimitMEMLOCK=infinity".to_owned(),
            ];
            report.add(PART, "memlock limit", Verdict::Problem, what, fix);
        }
        _ if exempt => report.ok(PART, "memlock limit", "none for this process (CAP_IPC_LOCK)"),
        None => report.ok(PART, "memlock limit", "none"),
        Some(limit) => report.ok(PART, "memlock limit", format!("{} KiB", limit >> 10)),
    }
    let forced = machine.capabilities.contains(CapabilitySet::NET_ADMIN);
    let sockets = if plan.interface.is_some() {
        // SO_SNDBUFFORCE goes beyond the limit.
        let limit = ("net.core.wmem_max", machine.wmem_max, AF_XDP_BUFFER);
        (!forced).then_some(limit).into_iter().collect()
    } else {
        [
            ("net.core.rmem_max", machine.rmem_max, UDP_BUFFER),
            ("net.core.wmem_max", machine.wmem_max, UDP_BUFFER),
        ]
        .to_vec()
    };
    let hidden = |(_, limit, _): &(_, Option<u64>, _)| limit.is_none();
    if !sockets.is_empty() && sockets.iter().all(hidden) {
        let what = "their limits are not told in this network namespace";
        let fix = ["sysctl net.core.rmem_max net.core.wmem_max, in the first one"];
        report.unknown(PART, "socket buffers", what, fix);
        return;
    }
    let low: Vec<_> =
        sockets.into_iter().filter(|(_, limit, wanted)| limit.is_some_and(|limit| limit < *wanted)).collect();
    if low.is_empty() {
        report.ok(PART, "socket buffers", "as large as asked for");
    } else {
        let what: Vec<_> =
            low.iter().map(|(key, limit, _)| format!("{key} = {}", limit.unwrap_or(0))).collect();
        let fix = low.iter().map(|(key, _, wanted)| format!("sysctl -w {key}={wanted}"));
        report.add(PART, "socket buffers", Verdict::Warn, format!("limited by {}", what.join(", ")), fix);
    }
}

fn judge_sysctls(machine: &Machine, plan: &Plan, report: &mut Report) {
    if plan.interface.is_some() {
        match machine.jit {
            Some(0) => {
                let what = "off: the XDP program is interpreted";
                report.add(PART, "BPF JIT", Verdict::Problem, what, ["sysctl -w net.core.bpf_jit_enable=1"]);
            }
            Some(_) => report.ok(PART, "BPF JIT", "on"),
            None => {
                let what = "not told in this network namespace";
                report.unknown(PART, "BPF JIT", what, ["sysctl net.core.bpf_jit_enable, in the first one"]);
            }
        }
    }
    if machine.nodes > 1 && machine.numa_balancing.is_some_and(|balancing| balancing != 0) {
        let what = "on: it takes the worker's pages away to see who touches them";
        let fix = ["sysctl -w kernel.numa_balancing=0"];
        report.add(PART, "NUMA balancing", Verdict::Warn, what, fix);
    }
    if plan.poll == PollMode::Adaptive {
        match machine.rt_runtime {
            Some(limit) if limit >= 0 => {
                let what = format!(
                    "real-time threads may run {limit} µs of their period: a full worker is stopped for the rest"
                );
                let fix = ["sysctl -w kernel.sched_rt_runtime_us=-1"];
                report.add(PART, "real-time limit", Verdict::Warn, what, fix);
            }
            Some(_) => report.ok(PART, "real-time limit", "none"),
            None => report.unknown(
                PART,
                "real-time limit",
                "not told",
                ["cat /proc/sys/kernel/sched_rt_runtime_us"],
            ),
        }
    }
}

/// Keeps the two ways to say 2 MiB together.
const _: () = assert!(HUGE_PAGE == 2048 << 10);

#[cfg(test)]
mod tests {
    use super::*;

    /// What is looked at, its verdict, a part of its remedy, and how to come by it.
    type Fault = (&'static str, Verdict, &'static str, fn(&mut Machine));

    fn good() -> Machine {
        Machine {
            release: "6.12.9-amd64".to_owned(),
            capabilities: CapabilitySet::all(),
            clock: Some("tsc".to_owned()),
            clocks: "tsc hpet acpi_pm".to_owned(),
            huge: Some(HugePages { total: 16, free: 16 }),
            transparent: Some("madvise".to_owned()),
            memlock: Some(8 << 20),
            rmem_max: Some(212_992),
            wmem_max: Some(212_992),
            jit: Some(1),
            numa_balancing: Some(1),
            nodes: 1,
            rt_runtime: Some(-1),
        }
    }

    fn report(machine: &Machine, plan: &Plan) -> Report {
        let mut report = Report::new(plan);
        judge(machine, plan, &mut report);
        report
    }

    fn on_wire() -> Plan {
        Plan::of_interface("wire0")
    }

    #[test]
    fn a_good_machine_has_nothing_against_it() {
        let report = report(&good(), &on_wire());
        assert_eq!(
            [Verdict::Problem, Verdict::Warn, Verdict::Unknown].map(|verdict| report.count(verdict)),
            [0; 3]
        );
    }

    #[test]
    fn each_fault_is_named_with_its_remedy() {
        let faults: [Fault; 8] = [
            ("kernel", Verdict::Problem, "install", |machine| machine.release = "5.10.0-30-amd64".to_owned()),
            ("capabilities", Verdict::Problem, "root", |machine| {
                machine.capabilities = CapabilitySet::NET_ADMIN
            }),
            ("clock source", Verdict::Warn, "echo tsc", |machine| machine.clock = Some("hpet".to_owned())),
            ("huge pages", Verdict::Warn, "vm.nr_hugepages=23", |machine| {
                machine.huge = Some(HugePages { total: 10, free: 3 });
            }),
            ("memlock limit", Verdict::Problem, "ulimit -l 32768", |machine| {
                machine.capabilities.remove(CapabilitySet::IPC_LOCK);
            }),
            ("BPF JIT", Verdict::Problem, "bpf_jit_enable=1", |machine| machine.jit = Some(0)),
            ("NUMA balancing", Verdict::Warn, "numa_balancing=0", |machine| machine.nodes = 2),
            ("real-time limit", Verdict::Warn, "rt_runtime_us=-1", |machine| {
                machine.rt_runtime = Some(950_000)
            }),
        ];
        for (name, verdict, remedy, spoil) in faults {
            let mut machine = good();
            spoil(&mut machine);
            let report = report(&machine, &on_wire());
            let finding = report.find(name);
            assert_eq!(finding.verdict, verdict, "{name}");
            assert!(finding.remedy.concat().contains(remedy), "{finding:?}");
        }
    }

    #[test]
    fn huge_pages_are_a_problem_where_they_are_required() {
        let mut machine = good();
        machine.huge = Some(HugePages { total: 0, free: 0 });
        for (wanted, verdict) in [
            (WantedPages::Off, Verdict::Ok),
            (WantedPages::Auto, Verdict::Warn),
            (WantedPages::Require, Verdict::Problem),
        ] {
            let mut plan = on_wire();
            plan.huge_pages = wanted;
            assert_eq!(report(&machine, &plan).find("huge pages").verdict, verdict);
        }
    }

    #[test]
    fn lacking_only_priority_is_no_problem() {
        let mut machine = good();
        machine.capabilities.remove(CapabilitySet::SYS_NICE);
        assert_eq!(report(&machine, &on_wire()).find("capabilities").verdict, Verdict::Warn);
    }

    #[test]
    fn udp_sockets_keep_to_the_systems_limits() {
        let mut plan = on_wire();
        plan.interface = None;
        let mut machine = good();
        let report = |machine: &Machine| report(machine, &plan);
        let finding = report(&machine).find("socket buffers").clone();
        assert_eq!(
            finding.remedy,
            ["sysctl -w net.core.rmem_max=4194304", "sysctl -w net.core.wmem_max=4194304"]
        );
        (machine.rmem_max, machine.wmem_max) = (Some(4 << 20), Some(4 << 20));
        assert_eq!(report(&machine).find("socket buffers").verdict, Verdict::Ok);
    }
}
