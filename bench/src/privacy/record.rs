//! One run through one defence: stretches of every payload and of none, in random order, so that what drifts on the
//! machine falls on all alike; and everything that passes the wire meanwhile, with the kernel's times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rand_core::Rng as _;
use relay_common::wire::{CELL_LEN, DatagramType};
use relay_tests::interrupt::Interrupt;
use relay_tests::lab::OUTSIDE;
use relay_tests::recorder::{Datagram, Seen};
use relay_tests::{Host, Lab, Recorder, Recording};
use relay_user::observe::attacks::connections::{Event, Kind};
use relay_user::observe::trace::{Sample, Sight, Trace, Window};

use super::fault::{self, Fault};
use super::links::LINKS;
use super::network::{Defence, Network};
use super::scenario::{Programs, Scenario};
use super::seed;
use super::stall::Stalls;

/// Time for programs and recorders to come to rest before the first stretch.
const SETTLE: Duration = Duration::from_millis(300);

/// Of a class's cells, at least so many are seen where the capture and the nodes do what they should: a machine that
/// stalls makes nodes miss slots. A fault takes none away, since it lies behind the place where cells are seen.
pub(super) const SEEN_AT_LEAST: f64 = 0.75;
/// Of so many frames that feel a fault, one may get lost by the box instead.
const SPOILT_IN: u64 = 1000;
/// Of so many stretches with payload, one may come out without: more, and the programs do not do what they are said to.
pub(super) const SILENT_IN: usize = 20;

/// What is done, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is wrong with the client's link meanwhile.
    pub fault: Option<Fault>,
    /// The beginning of each stretch that belongs to no window: programs start and queues of the last one run dry.
    pub guard: Duration,
    /// Length of a window.
    pub window: Duration,
    /// Stretches without payload, the others' counterpart.
    pub idle: u32,
    /// The payloads.
    pub scenarios: Vec<Scenario>,
    /// Stretches of each.
    pub each: u32,
    /// How long each stretch is; `None` for as long as its payload takes to show what it is.
    pub stretch: Option<Duration>,
}

impl Plan {
    /// How long all stretches take.
    pub fn lasts(&self) -> Duration {
        let of = |scenario: Scenario| self.stretch.unwrap_or_else(|| scenario.block());
        let busy: Duration = self.scenarios.iter().map(|&scenario| of(scenario) * self.each).sum();
        busy + of(Scenario::Idle) * self.idle
    }

    /// How a scenario of this plan is called in tables.
    pub fn name(&self, scenario: Scenario) -> String {
        let name = scenario.name();
        self.fault.map_or_else(|| name.to_owned(), |fault| format!("{name}, {}", fault.name()))
    }
}

/// One stretch, in nanoseconds of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The payload that flowed; `None` for the counterpart.
    pub scenario: Option<Scenario>,
    /// When it began.
    pub from: u64,
    /// When it ended.
    pub to: u64,
}

impl Block {
    /// Whether packets of programs are to be expected in it.
    pub fn is_busy(&self) -> bool {
        self.scenario.is_some_and(|scenario| scenario != Scenario::Idle)
    }
}

/// A window whose truth is known, before anybody's trace is cut by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// First nanosecond.
    pub from: u64,
    /// The one behind the last.
    pub to: u64,
    /// Number of its stretch.
    pub block: u32,
    /// The payload that flowed.
    pub scenario: Option<Scenario>,
}

/// Packets by sender and receiver.
pub type Wires = BTreeMap<(Host, Host), Trace>;

/// What somebody on the wire has of one run, and the truth beside it.
#[derive(Debug)]
pub struct Run {
    /// What stood between payload and wire.
    pub defence: Defence,
    /// How it was laid out.
    pub plan: Plan,
    /// The stretches in order.
    pub blocks: Vec<Block>,
    /// Packets by sender and receiver.
    pub wires: Wires,
    /// Some of them, whole.
    pub whole: Vec<Datagram>,
    /// The truth: packets from and to the client's programs.
    pub inside: [Trace; 2],
    /// Packets to the client's programs where they enter the tunnel, at the exit. When they leave it follows from the wire,
    /// whatever the wire follows from.
    pub entering: Trace,
    /// Handshakes and new flows on the client's link.
    pub begun: Vec<Event>,
    /// Gaps that no law explains.
    pub stalls: Stalls,
    /// Why none of it may be judged, if so.
    pub invalid: Option<String>,
    /// Slots that nodes missed meanwhile.
    pub missed_slots: u64,
}

impl Run {
    /// What is seen from one host to another; nothing where they never spoke.
    pub fn wire(&self, from: Host, to: Host) -> Option<&Trace> {
        self.wires.get(&(from, to))
    }

    /// Whether any packet of the client's programs, or to them, entered the tunnel from `from` up to, not including, `to`. When
    /// it comes out of the tunnel is the wire's doing: windows chosen by that would leave out those in which it stalled.
    pub fn is_active(&self, from: u64, to: u64) -> bool {
        [&self.inside[0], &self.entering].into_iter().any(|trace| !trace.window(from, to).sights().is_empty())
    }

    /// The stretches with this payload, and their counterparts.
    pub fn stretches(&self, scenario: Scenario) -> impl Iterator<Item = &Block> + Clone {
        self.blocks.iter().filter(move |block| block.scenario.is_none_or(|one| one == scenario))
    }

    /// The same behind their guards, each labelled 1 or, a counterpart, 0, and as long as the shortest is: of what comes in
    /// clusters, a longer one has other shares.
    pub fn stretches_alike(&self, scenario: Scenario) -> Vec<(u16, (u64, u64))> {
        let guard = nanos(self.plan.guard);
        let lengths = self.stretches(scenario).map(|block| (block.to - block.from).saturating_sub(guard));
        let shortest = lengths.min().unwrap_or(0);
        let of = |block: &Block| {
            let from = block.from + guard;
            (u16::from(block.scenario.is_some()), (from, from + shortest))
        };
        self.stretches(scenario).map(of).collect()
    }

    /// The windows of all stretches. Those of a stretch with payload in which none flowed, and of one without in which
    /// some still did, belong to neither and are left out; and so is, in either, what lies around gaps that no law explains, since
    /// payload that waits for answers does not flow there.
    pub fn cuts(&self) -> Vec<Cut> {
        self.cuts_of(self.plan.window, self.plan.window)
    }

    /// As [`Self::cuts`], of windows of another width, of which one begins every `step`.
    pub fn cuts_of(&self, width: Duration, step: Duration) -> Vec<Cut> {
        let (guard, width, step) = (nanos(self.plan.guard), nanos(width).max(1), nanos(step).max(1));
        let mut cuts = Vec::new();
        for (number, block) in (0..).zip(&self.blocks) {
            let mut from = block.from + guard;
            while from + width <= block.to {
                let is_true = self.is_active(from, from + width) == block.is_busy();
                if is_true && !self.stalls.meet(from, from + width) {
                    cuts.push(Cut { from, to: from + width, block: number, scenario: block.scenario });
                }
                from += step;
            }
        }
        cuts
    }

    /// Windows of `trace`: those of a scenario, labelled 1, and their counterpart, labelled 0. Labels are traded by stretch
    /// where chance is asked, so stretches of both kinds have to weigh alike: none gives more windows than the middle one of
    /// the kind that has fewer, though it be longer or payload flow in more of it.
    pub fn samples<'a>(&self, trace: &'a Trace, scenario: Scenario) -> Vec<Sample<'a>> {
        let of = |cut: &Cut| cut.scenario.is_none() || cut.scenario == Some(scenario);
        let cuts: Vec<Cut> = self.cuts().into_iter().filter(of).collect();
        let blocks: Vec<&[Cut]> = cuts.chunk_by(|a, b| a.block == b.block).collect();
        let usual = [true, false].map(|counterpart| {
            let kind = blocks.iter().filter(|cuts| cuts[0].scenario.is_none() == counterpart);
            let mut counts: Vec<usize> = kind.map(|cuts| cuts.len()).collect();
            counts.sort_unstable();
            counts.get(counts.len() / 2).copied().unwrap_or(0)
        });
        let most = usual[0].min(usual[1]);
        let sample = |cut: &Cut| {
            let window: Window<'a> = trace.window(cut.from, cut.to);
            Sample { window, label: u16::from(cut.scenario.is_some()), block: cut.block }
        };
        // Evenly over the stretch.
        let places = |count: usize| (0..most.min(count)).map(move |place| place * count / most.min(count));
        blocks.into_iter().flat_map(|cuts| places(cuts.len()).map(|place| sample(&cuts[place]))).collect()
    }
}

/// Carries a plan out through a network that is up. Beside the run: each packet of the wire, by the kernel's time, and when
/// the run began by it.
///
/// # Errors
/// Where a program, a fault or a recorder cannot be started, a node ends, or the user interrupts.
pub(super) fn record(
    lab: &Lab,
    network: &mut Network<'_>,
    (defence, plan): (Defence, Plan),
    seed: u64,
    interrupt: &Interrupt,
) -> Result<(Run, Vec<Seen>, u64)> {
    let fault = plan.fault.map(|fault| fault::apply(lab, fault, seed::of(seed, &["fault"]))).transpose();
    let fault = fault.context("the link's fault cannot be had")?;
    let run = watch(lab, network, (defence, plan), seed, interrupt);
    let Some(fault) = fault else { return run };
    let felt = fault.felt();
    let spoilt = fault.lift()?;
    let ((run, seen, began), felt) = (run?, felt?);
    let invalid = run.invalid.clone().or_else(|| unfelt(defence, felt, spoilt));
    Ok((Run { invalid, ..run }, seen, began))
}

/// A fault that nothing felt was none, and one that did more than it should was another. A tunnel without shaping need
/// not fill a narrow place.
fn unfelt(defence: Defence, felt: u64, spoilt: u64) -> Option<String> {
    if felt == 0 && defence.schedule.is_some() {
        return Some("no frame felt the link's fault".to_owned());
    }
    (spoilt * SPOILT_IN > felt).then(|| format!("the box lost {spoilt} frames of {felt}"))
}

fn watch(
    lab: &Lab,
    network: &mut Network<'_>,
    (defence, plan): (Defence, Plan),
    seed: u64,
    interrupt: &Interrupt,
) -> Result<(Run, Vec<Seen>, u64)> {
    let mut programs = Programs::start(lab, Host::Client, &plan.scenarios, seed)?;
    let wire = Recorder::on_wire(lab.netns(Host::Wire), lab.wire_ports())?;
    let inside = Recorder::at_interface(lab.netns(Host::Client), network.interface())?;
    let outside = Recorder::at_interface(lab.netns(Host::Exit), OUTSIDE)?;
    let missed = network.missed_slots();
    std::thread::sleep(SETTLE);
    let began = now();
    let mut blocks = Vec::new();
    let mut due = Instant::now();
    for scenario in order(&plan, seed) {
        let from = now().saturating_sub(began);
        let busy = scenario.filter(|scenario| *scenario != Scenario::Idle);
        if let Some(scenario) = busy {
            programs.begin(scenario)?;
        }
        due += plan.stretch.unwrap_or_else(|| scenario.unwrap_or(Scenario::Idle).block());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if busy.is_some() {
            programs.end()?;
        }
        blocks.push(Block { scenario, from, to: now().saturating_sub(began) });
        if interrupt.is_set() {
            bail!("interrupted");
        }
    }
    // The recorders empty their sockets every 5 ms.
    std::thread::sleep(Duration::from_millis(30));
    let listening = [&wire, &inside, &outside].into_iter().all(Recorder::is_listening);
    let (outer, inner, beyond) = (wire.take(), inside.take(), outside.take());
    network.check()?;
    let missed_slots = network.missed_slots().saturating_sub(missed);
    let service = Host::Service.address();
    let inside = [true, false].map(|out| {
        let way =
            inner.seen.iter().filter(|seen| seen.at >= began && (Some(seen.destination) == service) == out);
        Trace::new(way.map(|seen| sight(seen, began)).collect())
    });
    let entering = beyond.seen.iter().filter(|seen| seen.at >= began && Some(seen.source) == service);
    let mut wires = wires(&outer, began);
    wires.retain(|(from, _), _| network.judges(*from));
    let mut run = Run {
        defence,
        plan,
        blocks,
        stalls: Stalls::of(&wires, defence),
        wires,
        begun: begun(&outer, began),
        whole: outer.whole,
        inside,
        entering: Trace::new(entering.map(|seen| sight(seen, began)).collect()),
        invalid: None,
        missed_slots,
    };
    run.invalid = if listening {
        complaint(&run, |host| network.judges(host), outer.lost + inner.lost + beyond.lost, programs.failures)
    } else {
        Some("a recorder ended before the run did".to_owned())
    };
    Ok((run, outer.seen, began))
}

/// Packets of a recording by sender and receiver, from `began` on.
pub(super) fn wires(recording: &Recording, began: u64) -> Wires {
    let mut wires: BTreeMap<(Host, Host), Vec<Sight>> = BTreeMap::new();
    for seen in recording.seen.iter().filter(|seen| seen.at >= began) {
        if let (Some(from), Some(to)) = (Host::by_address(seen.source), Host::by_address(seen.destination)) {
            wires.entry((from, to)).or_default().push(sight(seen, began));
        }
    }
    wires.into_iter().map(|(hosts, sights)| (hosts, Trace::new(sights))).collect()
}

/// Handshakes, and flows that had not been seen before, between the client and others.
fn begun(recording: &Recording, began: u64) -> Vec<Event> {
    let client = Host::Client.address();
    let of_client = |seen: &&Seen| Some(seen.source) == client || Some(seen.destination) == client;
    let mut known = BTreeSet::new();
    let mut events = Vec::new();
    for seen in recording.seen.iter().filter(of_client) {
        let is_new = known.insert((seen.source, seen.destination, seen.ports));
        let is_handshake = usize::from(seen.length) == CELL_LEN
            && [DatagramType::HsInit as u8, DatagramType::HsResp as u8].contains(&seen.first);
        let at = seen.at.saturating_sub(began);
        // What is there before the first stretch began before anybody asked.
        if seen.at >= began {
            events.extend(is_new.then_some(Event { at, kind: Kind::Flow }));
            events.extend(is_handshake.then_some(Event { at, kind: Kind::Handshake }));
        }
    }
    events
}

fn sight(seen: &Seen, began: u64) -> Sight {
    Sight { at: seen.at.saturating_sub(began), length: seen.length }
}

fn complaint(run: &Run, judges: impl Fn(Host) -> bool, lost: u64, failures: u32) -> Option<String> {
    if lost > 0 {
        return Some(format!("the capture lost {lost} packets"));
    }
    if failures > 0 {
        return Some(format!("a program that makes the payload ended by itself {failures} times"));
    }
    if run.defence.schedule.is_some() {
        let judged = LINKS.into_iter().flat_map(|(wires, rate)| wires.iter().map(move |&wire| (wire, rate)));
        let nanoseconds = run.blocks.last().map_or(0, |block| block.to);
        let missing = missing_cells(&run.wires, judged.filter(|((from, _), _)| judges(*from)), nanoseconds);
        if missing.is_some() {
            return missing;
        }
    }
    // The windows of the few that the machine's stalls leave empty are in no sample.
    let busy = run.blocks.iter().filter(|block| block.is_busy());
    let silent = busy.clone().filter(|block| !run.is_active(block.from, block.to)).count();
    let count = busy.count();
    (silent * SILENT_IN > count).then(|| format!("{silent} of {count} stretches carried no payload"))
}

/// Says of which direction too few cells were seen, if of any, of its cells per second over so many nanoseconds.
pub(super) fn missing_cells(
    wires: &Wires,
    mut directions: impl Iterator<Item = ((Host, Host), u32)>,
    nanoseconds: u64,
) -> Option<String> {
    let seconds = nanoseconds as f64 / 1e9;
    directions.find_map(|((from, to), rate)| {
        let seen = wires.get(&(from, to)).map_or(0, |trace| trace.sights().len());
        let few = (seen as f64) < f64::from(rate) * seconds * SEEN_AT_LEAST;
        few.then(|| format!("from {} to {} came {seen} cells in {seconds:.0} s", from.name(), to.name()))
    })
}

/// The stretches of a plan, in random order: the same order of those that remain where a payload is left out.
fn order(plan: &Plan, seed: u64) -> Vec<Option<Scenario>> {
    let kinds = std::iter::once((None, plan.idle));
    let kinds = kinds.chain(plan.scenarios.iter().map(|&scenario| (Some(scenario), plan.each)));
    let mut order: Vec<(u64, Option<Scenario>)> = kinds
        .flat_map(|(kind, count)| {
            let mut rng = seed::rng(seed, &["order", kind.map_or("counterpart", Scenario::name)]);
            (0..count).map(move |_| (rng.next_u64(), kind))
        })
        .collect();
    order.sort_by_key(|(place, _)| *place);
    order.into_iter().map(|(_, kind)| kind).collect()
}

/// The clock that the kernel stamps packets with, in nanoseconds.
pub(super) fn now() -> u64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::links::{CLIENT, TRUNKS};
    use super::*;

    const fn ms(ms: u64) -> u64 {
        ms * 1_000_000
    }

    fn run() -> Run {
        let at =
            |times: &[u64]| Trace::new(times.iter().map(|&at| Sight { at: ms(at), length: 100 }).collect());
        let block = |scenario, from: u64| Block { scenario, from: ms(from), to: ms(from + 50) };
        Run {
            defence: Defence::PLAIN,
            plan: Plan {
                fault: None,
                guard: Duration::from_millis(10),
                window: Duration::from_millis(20),
                idle: 1,
                scenarios: vec![Scenario::Bulk, Scenario::Idle],
                each: 1,
                stretch: None,
            },
            blocks: vec![block(None, 0), block(Some(Scenario::Bulk), 50), block(Some(Scenario::Idle), 100)],
            wires: BTreeMap::new(),
            whole: Vec::new(),
            begun: Vec::new(),
            inside: [at(&[15]), Trace::default()],
            entering: at(&[85]),
            stalls: Stalls::default(),
            invalid: None,
            missed_slots: 0,
        }
    }

    #[test]
    fn windows_carry_the_label_that_the_payload_gave_them() {
        let run = run();
        let cuts: Vec<_> = run.cuts().into_iter().map(|cut| (cut.from / ms(1), cut.scenario)).collect();
        // 10 to 30 is idle by the clock but not in truth, and 60 to 80 busy by the clock only.
        let idle = Some(Scenario::Idle);
        assert_eq!(cuts, [(30, None), (80, Some(Scenario::Bulk)), (110, idle), (130, idle)]);
        let labels = |scenario| -> Vec<u16> {
            run.samples(&run.inside[0], scenario).iter().map(|sample| sample.label).collect()
        };
        assert_eq!((labels(Scenario::Bulk), labels(Scenario::Idle)), (vec![0, 1], vec![0, 1]));
        let stalled = Run { stalls: Stalls::close_by(vec![(ms(20), ms(90))]), ..run };
        assert_eq!(stalled.cuts().iter().map(|cut| cut.from / ms(1)).collect::<Vec<_>>(), [110, 130]);
    }

    #[test]
    fn stretches_that_are_counted_in_are_of_one_length() {
        let mut run = run();
        run.blocks[1].to += ms(30);
        let alike = |scenario| run.stretches_alike(scenario);
        let counterpart = (0, (ms(10), ms(50)));
        assert_eq!(alike(Scenario::Bulk), [counterpart, (1, (ms(60), ms(100)))]);
        assert_eq!(alike(Scenario::Idle), [counterpart, (1, (ms(110), ms(150)))]);
    }

    #[test]
    fn the_seed_gives_the_order_and_the_plan_what_is_in_it() {
        let plan = Plan { idle: 30, each: 10, ..run().plan };
        let orders: Vec<_> = (0..2).map(|seed| order(&plan, seed)).collect();
        for order in &orders {
            let count = |what| order.iter().filter(|scenario| **scenario == what).count();
            assert_eq!((count(None), count(Some(Scenario::Bulk)), order.len()), (30, 10, 50));
        }
        assert_ne!(orders[0], orders[1]);
        assert_eq!(orders[0], order(&plan, 0));
        let fewer = Plan { scenarios: vec![Scenario::Bulk], ..plan };
        let without = orders[0].iter().copied().filter(|kind| *kind != Some(Scenario::Idle));
        assert_eq!(order(&fewer, 0), without.collect::<Vec<_>>(), "the others keep their places");
    }

    #[test]
    fn a_fault_has_to_be_felt_by_those_who_fill_the_link() {
        let constant = Defence::schedule("constant");
        assert!(unfelt(constant, 0, 0).is_some());
        assert_eq!(unfelt(constant, 5000, 5), None);
        assert!(unfelt(constant, 5000, 6).is_some());
        assert_eq!(unfelt(Defence::PLAIN, 0, 0), None);
    }

    #[test]
    fn a_direction_that_was_half_silent_is_told() {
        let trace =
            |cells: u64| Trace::new((0..cells).map(|at| Sight { at: ms(at), length: 1360 }).collect());
        let [out, home] = CLIENT;
        let wires = Wires::from([(out, trace(800)), (home, trace(500))]);
        let missing = |directions: &[(Host, Host)]| {
            missing_cells(&wires, directions.iter().map(|&wire| (wire, 1000)), 1_000_000_000)
        };
        assert_eq!(missing(&[out]), None);
        assert!(missing(&CLIENT).is_some_and(|why| why == "from entry to client came 500 cells in 1 s"));
        assert!(missing(&TRUNKS).is_some());
    }

    #[test]
    fn a_run_that_lost_packets_or_carried_nothing_is_told() {
        let mut run = run();
        assert_eq!(complaint(&run, |_| true, 0, 0), None);
        assert!(complaint(&run, |_| true, 1, 0).is_some() && complaint(&run, |_| true, 0, 1).is_some());
        run.entering = Trace::default();
        assert!(complaint(&run, |_| true, 0, 0).is_some_and(|text| text.contains("1 stretches")));
        run.blocks.truncate(1);
        assert_eq!(complaint(&run, |_| true, 0, 0), None);
    }
}
