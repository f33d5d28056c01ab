//! The processor that a worker runs on.

use std::time::Duration;

use super::device::Interface;
use super::plan::{Plan, WorkerPlace};
use super::report::{Report, Verdict};
use crate::config::PollMode;
use crate::host::cpu::{self, CpuSet, IdleState, Ticks, format_list};
use crate::host::gaps::{self, Gaps, Seen, Wakes};
use crate::host::link::Device;
use crate::worker::LONGEST_LEAD;

/// How long a core is watched; as long again where its worker sleeps.
const WATCH: Duration = Duration::from_millis(500);
/// A gap that the engine does not feel: cells are sealed that long before their slot (`engine::Limits::lead`).
const LONGEST_GAP: Duration = Duration::from_micros(200);
/// A wake-up that an adaptive worker has time for without spinning longer for it (`worker::lead`), in microseconds.
const WAKE_LIMIT: u64 = 15;

/// What was read of one.
#[derive(Clone, Debug)]
struct Processor {
    number: usize,
    online: CpuSet,
    isolated: CpuSet,
    /// `None` on a kernel that cannot stop its timer.
    tickless: Option<CpuSet>,
    siblings: CpuSet,
    node: Option<u32>,
    /// Processors of the interface's node; all where there is but one.
    near: CpuSet,
    idle: Option<IdleState>,
    governor: Option<String>,
    ticks: Option<Ticks>,
}

impl Processor {
    fn read(number: usize, device: Option<u32>) -> Self {
        Self {
            number,
            online: cpu::online(),
            isolated: cpu::isolated(),
            tickless: cpu::tickless(),
            siblings: cpu::siblings(number),
            node: cpu::node(number),
            near: device.map_or_else(cpu::online, cpu::of_node),
            idle: cpu::deepest_idle(number),
            governor: cpu::governor(number),
            ticks: cpu::ticks(number),
        }
    }
}

/// Judges the processor of each worker, and watches all of them at once.
pub(super) fn judge_all(plan: &Plan, interface: Option<&Interface>, report: &mut Report) {
    // A worker at work on the core would be held up, and would be taken for a gap.
    let at_work = interface.is_some_and(|interface| interface.link.xdp.is_some());
    let watched = if at_work { vec![None; plan.workers.len()] } else { watch(plan) };
    let device = interface.and_then(|interface| interface.device.node());
    for (index, (worker, seen)) in plan.workers.iter().zip(watched).enumerate() {
        let place = worker.cpu.map_or_else(|| "not pinned".to_owned(), |cpu| format!("CPU {cpu}"));
        let part = format!("worker {index} (queue {}, {place})", worker.queue);
        let processor = worker.cpu.map(|cpu| Processor::read(cpu, device));
        match &processor {
            None => judge_unpinned(plan, index, device, &part, report),
            Some(processor) => judge(processor, plan, index, device, &part, report),
        }
        if let Some(interface) = interface {
            judge_interrupts(interface, plan, worker, processor.as_ref(), &part, report);
        }
        if at_work {
            let what = "not looked for under a relay at work";
            report.unknown(&part, "gaps", what, ["stop the relay, and look again"]);
        } else {
            judge_gaps(seen.map(|seen| seen.gaps), worker, &part, report);
        }
        if let Some(wakes) = seen.and_then(|seen| seen.wakes) {
            judge_wakes(wakes, &part, report);
        }
    }
}

fn watch(plan: &Plan) -> Vec<Option<Seen>> {
    let sleeps = plan.poll == PollMode::Adaptive;
    std::thread::scope(|scope| {
        let watch = |worker: &WorkerPlace| gaps::watch(worker.cpu, WATCH, sleeps);
        let watching: Vec<_> = plan.workers.iter().map(|worker| scope.spawn(move || watch(worker))).collect();
        watching.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    })
}

fn judge_unpinned(plan: &Plan, index: usize, device: Option<u32>, part: &str, report: &mut Report) {
    let near = device.map_or_else(cpu::online, cpu::of_node);
    let choice = choose(&near, &cpu::isolated(), plan.workers.len());
    let fix = match choice {
        Some(cpus) => format!("in the relay's file: [worker] cpus = {cpus:?}"),
        None => format!("there are {} CPUs near the interface: set [worker] count to fewer", near.len()),
    };
    let what = if index == 0 { "not pinned: the scheduler moves it" } else { "not pinned" };
    report.add(part, "CPU", Verdict::Warn, what, [fix]);
}

/// `count` processors out of `near`: isolated ones first, then the last, since the first serves most interrupts.
fn choose(near: &CpuSet, isolated: &CpuSet, count: usize) -> Option<Vec<usize>> {
    let mut cpus: Vec<usize> = near.intersection(isolated).copied().collect();
    cpus.extend(near.iter().rev().filter(|cpu| !isolated.contains(cpu)));
    cpus.truncate(count);
    (cpus.len() == count).then_some(cpus)
}

fn judge(
    processor: &Processor,
    plan: &Plan,
    index: usize,
    device: Option<u32>,
    part: &str,
    report: &mut Report,
) {
    let cpu = processor.number;
    let others = plan.workers.iter().enumerate();
    if !processor.online.contains(&cpu) {
        let what = format!("CPU {cpu} is not online; {} are", format_list(&processor.online));
        let fix =
            [format!("echo 1 > /sys/devices/system/cpu/cpu{cpu}/online, or name another in [worker] cpus")];
        report.add(part, "CPU", Verdict::Problem, what, fix);
        return;
    }
    if let Some((other, _)) = others.clone().find(|(other, place)| *other != index && place.cpu == Some(cpu))
    {
        let what = format!("CPU {cpu} is worker {other}'s as well");
        report.add(
            part,
            "CPU",
            Verdict::Problem,
            what,
            ["give each worker a CPU of its own in [worker] cpus"],
        );
    } else {
        report.ok(part, "CPU", format!("{cpu}, of {} online", format_list(&processor.online)));
    }
    judge_core(processor, part, report);
    judge_node(processor, device, part, report);
    judge_isolation(processor, part, report);
    judge_sleep(processor, plan.poll, part, report);
    judge_steal(processor, part, report);
}

fn judge_core(processor: &Processor, part: &str, report: &mut Report) {
    let mut siblings = processor.siblings.clone();
    siblings.remove(&processor.number);
    let Some(first) = siblings.first() else {
        report.ok(part, "core", "shared with no other CPU");
        return;
    };
    let what = format!("shared with CPU {}", format_list(&siblings));
    let fix = format!("echo 0 > /sys/devices/system/cpu/cpu{first}/online");
    report.add(part, "core", Verdict::Warn, what, [fix]);
}

fn judge_node(processor: &Processor, device: Option<u32>, part: &str, report: &mut Report) {
    match (processor.node, device) {
        (Some(node), Some(device)) if node != device => {
            let what = format!("CPU on node {node}, interface on node {device}");
            let fix = format!("take [worker] cpus from {}", format_list(&processor.near));
            report.add(part, "NUMA node", Verdict::Warn, what, [fix]);
        }
        (Some(node), Some(_)) => report.ok(part, "NUMA node", format!("{node}, the interface's")),
        (Some(node), None) => report.ok(part, "NUMA node", format!("{node}; the interface has none")),
        (None, _) => report.ok(part, "NUMA node", "the machine has one"),
    }
}

fn judge_isolation(processor: &Processor, part: &str, report: &mut Report) {
    let cpu = processor.number;
    let isolated = processor.isolated.contains(&cpu);
    let tickless = processor.tickless.as_ref().map(|cpus| cpus.contains(&cpu));
    let mut lacking = Vec::new();
    if !isolated {
        lacking.push(format!("isolcpus=managed_irq,domain,{cpu}"));
    }
    if tickless == Some(false) {
        lacking.push(format!("nohz_full={cpu} rcu_nocbs={cpu}"));
    }
    let shown = |yes: bool| if yes { "yes" } else { "no" };
    let timer = match tickless {
        Some(stops) => shown(stops),
        None => "not with this kernel (NO_HZ_FULL)",
    };
    let what = format!("isolated: {}, timer stops: {timer}", shown(isolated));
    if lacking.is_empty() {
        report.ok(part, "isolation", what);
    } else {
        let fix = format!("on the kernel's command line: {}", lacking.join(" "));
        report.add(part, "isolation", Verdict::Warn, what, [fix]);
    }
}

fn judge_sleep(processor: &Processor, poll: PollMode, part: &str, report: &mut Report) {
    let cpu = processor.number;
    match &processor.idle {
        None => report.ok(part, "idle states", "none that the kernel chooses"),
        Some(state) => {
            let what = format!("deepest is {}, {} µs to wake", state.name, state.latency);
            if state.latency <= WAKE_LIMIT || poll == PollMode::Busy {
                report.ok(part, "idle states", what);
            } else {
                let place = format!("/sys/devices/system/cpu/cpu{cpu}/cpuidle");
                let fix = format!("echo 1 > {place}/state{}/disable", state.index);
                report.add(part, "idle states", Verdict::Warn, what, [fix]);
            }
        }
    }
    match processor.governor.as_deref() {
        None => report.ok(part, "frequency", "not the kernel's to choose"),
        Some("performance") => report.ok(part, "frequency", "performance"),
        Some(other) => {
            let file = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
            let fix = format!("echo performance > {file}");
            report.add(part, "frequency", Verdict::Warn, format!("governor {other}"), [fix]);
        }
    }
}

fn judge_steal(processor: &Processor, part: &str, report: &mut Report) {
    let Some(ticks) = processor.ticks.filter(|ticks| ticks.total > 0) else {
        report.unknown(part, "steal", "not told", ["grep cpu /proc/stat"]);
        return;
    };
    // Hundredths of a percent.
    let share = ticks.stolen * 10_000 / ticks.total;
    let what = format!("{}.{:02} % of the time since boot", share / 100, share % 100);
    if ticks.stolen == 0 {
        report.ok(part, "steal", "none since boot");
    } else {
        let fix = "the hypervisor gave the core to others: ask for a dedicated one";
        report.add(part, "steal", Verdict::Warn, what, [fix]);
    }
}

fn judge_gaps(gaps: Option<Gaps>, worker: &WorkerPlace, part: &str, report: &mut Report) {
    let Some(gaps) = gaps else {
        let cpu = worker.cpu.map_or_else(String::new, |cpu| format!(" of CPU {cpu}"));
        report.unknown(part, "gaps", format!("no use{cpu} is permitted"), ["taskset -pc $$"]);
        return;
    };
    // Hundredths of a percent.
    let share = gaps.lost.as_nanos() * 10_000 / gaps.watched.as_nanos().max(1);
    let what = format!(
        "longest {} µs, {}.{:02} % lost, in {} ms",
        gaps.longest.as_micros(),
        share / 100,
        share % 100,
        gaps.watched.as_millis()
    );
    if gaps.longest <= LONGEST_GAP {
        report.ok(part, "gaps", what);
    } else {
        let fix = format!(
            "slots are missed beyond {} µs: see isolation, steal and interrupts of this worker",
            LONGEST_GAP.as_micros()
        );
        report.add(part, "gaps", Verdict::Warn, what, [fix]);
    }
}

/// A core that nobody takes away from a spinner may still come back late once it was left.
fn judge_wakes(wakes: Wakes, part: &str, report: &mut Report) {
    let lead = Duration::from_nanos(LONGEST_LEAD.0);
    let micros = |late: Duration| late.as_micros();
    let what = format!(
        "p99 {} µs late, longest {} µs, of {}",
        micros(wakes.p99),
        micros(wakes.longest),
        wakes.count
    );
    if wakes.p99 <= lead {
        report.ok(part, "wakes", what);
    } else {
        let fix = format!(
            "a worker wakes {} µs ahead at most: poll = \"busy\", or the kernel command line idle=poll, this machine's own where it is \
             a virtual one",
            micros(lead)
        );
        report.add(part, "wakes", Verdict::Warn, what, [fix]);
    }
}

fn judge_interrupts(
    interface: &Interface,
    plan: &Plan,
    worker: &WorkerPlace,
    processor: Option<&Processor>,
    part: &str,
    report: &mut Report,
) {
    let name = "interrupt";
    let found = interface.interrupts.iter().find(|interrupt| interrupt.queue == worker.queue);
    let Some(interrupt) = found else {
        match &interface.device {
            Device::None => report.ok(part, name, "none: no hardware behind the interface"),
            Device::Hidden => {
                let fix = "run it where /sys shows the same network namespace (ip netns exec mounts it)";
                report.unknown(part, name, "/sys shows another network namespace", [fix]);
            }
            Device::At(_) => {
                let what = format!("none found for queue {}", worker.queue);
                report.unknown(part, name, what, ["cat /proc/interrupts"]);
            }
        }
        return;
    };
    let what = format!("{} is served by CPU {}", interrupt.number, format_list(&interrupt.serving));
    let Some(processor) = processor else {
        report.ok(part, name, what);
        return;
    };
    let cpus: CpuSet = plan.workers.iter().filter_map(|worker| worker.cpu).collect();
    let free = |cpu: &&usize| !cpus.contains(cpu) && !processor.siblings.contains(cpu);
    let other = processor.near.intersection(&processor.online).find(free);
    let own = interrupt.serving.contains(&processor.number);
    let far = interrupt.serving.is_disjoint(&processor.near);
    // A worker that spins leaves its core to the driver only by losing time itself, unless it runs the driver's loop.
    let held_up = own && plan.poll == PollMode::Busy && !interface.is_polled(plan);
    let verdict = if held_up || far { Verdict::Warn } else { Verdict::Ok };
    match other {
        Some(other) if verdict == Verdict::Warn => {
            let fix = format!("echo {other} > /proc/irq/{}/smp_affinity_list", interrupt.number);
            report.add(part, name, verdict, what, [fix]);
        }
        _ => report.ok(part, name, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::interrupts::QueueInterrupt;

    /// What is looked at, its verdict, a part of its remedy, and how to come by it.
    type Fault = (&'static str, Verdict, &'static str, fn(&mut Processor));

    fn good(number: usize) -> Processor {
        Processor {
            number,
            online: (0..8).collect(),
            isolated: (2..4).collect(),
            tickless: Some((2..4).collect()),
            siblings: CpuSet::from([number]),
            node: Some(0),
            near: (0..4).collect(),
            idle: Some(IdleState { index: 1, name: "C1".to_owned(), latency: 2 }),
            governor: Some("performance".to_owned()),
            ticks: Some(Ticks { total: 1000, stolen: 0 }),
        }
    }

    fn plan(poll: PollMode) -> Plan {
        let mut plan = Plan::of_interface("wire0");
        plan.workers = vec![WorkerPlace { queue: 0, cpu: Some(2) }, WorkerPlace { queue: 1, cpu: Some(3) }];
        plan.poll = poll;
        plan
    }

    fn report(processor: &Processor, plan: &Plan) -> Report {
        let mut report = Report::new(plan);
        judge(processor, plan, 0, Some(0), "worker 0", &mut report);
        report
    }

    #[test]
    fn a_good_processor_has_nothing_against_it() {
        let report = report(&good(2), &plan(PollMode::Adaptive));
        assert_eq!(
            [Verdict::Problem, Verdict::Warn, Verdict::Unknown].map(|verdict| report.count(verdict)),
            [0; 3]
        );
    }

    #[test]
    fn each_fault_is_named_with_its_remedy() {
        let faults: [Fault; 8] = [
            ("CPU", Verdict::Problem, "cpu2/online", |processor| processor.online = CpuSet::from([0, 1])),
            ("CPU", Verdict::Problem, "of its own", |processor| processor.number = 3),
            ("core", Verdict::Warn, "cpu6/online", |processor| processor.siblings = CpuSet::from([2, 6])),
            ("NUMA node", Verdict::Warn, "0-3", |processor| processor.node = Some(1)),
            ("isolation", Verdict::Warn, "nohz_full=2", |processor| processor.tickless = Some(CpuSet::new())),
            ("isolation", Verdict::Warn, "isolcpus=", |processor| processor.isolated.clear()),
            ("idle states", Verdict::Warn, "cpu2/cpuidle/state1/disable", |processor| {
                processor.idle = Some(IdleState { index: 1, name: "C6".to_owned(), latency: 133 });
            }),
            ("frequency", Verdict::Warn, "performance", |processor| {
                processor.governor = Some("powersave".to_owned())
            }),
        ];
        for (name, verdict, remedy, spoil) in faults {
            let mut processor = good(2);
            spoil(&mut processor);
            let report = report(&processor, &plan(PollMode::Adaptive));
            let finding = report.find(name);
            assert_eq!(finding.verdict, verdict, "{name}");
            assert!(finding.remedy.concat().contains(remedy), "{finding:?}");
        }
    }

    #[test]
    fn a_worker_that_spins_lets_no_core_sleep() {
        let mut processor = good(2);
        processor.idle = Some(IdleState { index: 3, name: "C6".to_owned(), latency: 133 });
        assert_eq!(report(&processor, &plan(PollMode::Busy)).find("idle states").verdict, Verdict::Ok);
    }

    #[test]
    fn isolated_processors_are_chosen_first() {
        let (near, isolated) = ((0..4).collect(), CpuSet::from([2, 6]));
        assert_eq!(choose(&near, &isolated, 3), Some(vec![2, 3, 1]));
        assert_eq!(choose(&near, &isolated, 5), None);
    }

    #[test]
    fn gaps_are_held_against_the_lead() {
        let plan = plan(PollMode::Busy);
        for (micros, verdict) in [(200, Verdict::Ok), (201, Verdict::Warn)] {
            let mut report = Report::new(&plan);
            let longest = Duration::from_micros(micros);
            let gaps = Gaps { watched: Duration::from_millis(500), lost: longest, longest };
            judge_gaps(Some(gaps), &plan.workers[0], "worker 0", &mut report);
            assert_eq!(report.find("gaps").verdict, verdict);
        }
    }

    #[test]
    fn wakes_are_held_against_the_longest_lead() {
        for (micros, verdict) in [(60, Verdict::Ok), (61, Verdict::Warn)] {
            let mut report = Report::new(&plan(PollMode::Adaptive));
            let p99 = Duration::from_micros(micros);
            judge_wakes(Wakes { count: 1000, p99, longest: Duration::from_secs(1) }, "worker 0", &mut report);
            assert_eq!(report.find("wakes").verdict, verdict);
        }
    }

    #[test]
    fn interrupts_stay_near_and_off_a_spinning_worker() {
        let on_device = |mut wire: Interface, cpu: usize| {
            let cpus = CpuSet::from([cpu]);
            wire.interrupts =
                vec![QueueInterrupt { queue: 0, number: 77, allowed: cpus.clone(), serving: cpus }];
            wire
        };
        let on = |cpu| on_device(Interface::bare("wire0"), cpu);
        let verdict = |wire: &Interface, poll| {
            let plan = plan(poll);
            let mut report = Report::new(&plan);
            judge_interrupts(wire, &plan, &plan.workers[0], Some(&good(2)), "worker 0", &mut report);
            let finding = report.find("interrupt");
            (finding.verdict, finding.remedy.concat())
        };
        assert_eq!(verdict(&on(2), PollMode::Adaptive).0, Verdict::Ok);
        let moved = "echo 0 > /proc/irq/77/smp_affinity_list".to_owned();
        assert_eq!(verdict(&on(2), PollMode::Busy), (Verdict::Warn, moved.clone()));
        let polled = on_device(Interface::able("wire0"), 2);
        assert_eq!(
            verdict(&polled, PollMode::Busy).0,
            Verdict::Ok,
            "the worker runs the driver's loop itself"
        );
        assert_eq!(verdict(&on(0), PollMode::Busy).0, Verdict::Ok);
        assert_eq!(verdict(&on(7), PollMode::Adaptive), (Verdict::Warn, moved));
        assert_eq!(verdict(&Interface::bare("wire0"), PollMode::Busy).0, Verdict::Ok);
    }
}
