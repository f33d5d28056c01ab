//! One scenario through one defence: stretches with payload and without, in random order within one run, so that what
//! drifts on the machine falls on both alike; and everything that passes the wire meanwhile, with the kernel's times.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;
use relay_tests::interrupt::Interrupt;
use relay_tests::recorder::Head;
use relay_tests::{Host, Lab, Recorder};
use relay_user::observe::trace::{Sample, Sight, Trace, Window};

use super::fault;
use super::network::{Defence, Network};
use super::scenario::{Generator, Scenario};

/// What is done for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Length of a stretch.
    pub block: Duration,
    /// Its beginning that belongs to no window: programs start and queues of the last stretch run dry.
    pub guard: Duration,
    /// Length of a window.
    pub window: Duration,
    /// Stretches; half of them with payload.
    pub blocks: u32,
}

/// One stretch, in nanoseconds of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Whether payload flowed.
    pub busy: bool,
    /// When it began.
    pub from: u64,
    /// When it ended.
    pub to: u64,
}

/// What somebody on the wire has of one run, and the truth beside it.
#[derive(Debug)]
pub struct Run {
    /// What stood between payload and wire.
    pub defence: Defence,
    /// The payload.
    pub scenario: Scenario,
    /// How it was laid out.
    pub plan: Plan,
    /// The stretches in order.
    pub blocks: Vec<Block>,
    /// Packets by sender and receiver.
    pub wires: BTreeMap<(Host, Host), Trace>,
    /// Beginnings of some of them.
    pub heads: Vec<Head>,
    /// The truth: packets from and to the client's programs.
    pub inside: [Trace; 2],
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

    /// Whether any packet of the client's programs passed from `from` up to, not including, `to`.
    pub fn is_active(&self, from: u64, to: u64) -> bool {
        self.inside.iter().any(|trace| !trace.window(from, to).sights().is_empty())
    }

    /// The windows of all stretches, as `(from, to, block, busy)`. Windows of a stretch with payload in which none
    /// flowed, and of one without in which some still did, belong to neither and are left out.
    pub fn windows(&self) -> Vec<(u64, u64, u32, bool)> {
        let (guard, width) = (nanos(self.plan.guard), nanos(self.plan.window).max(1));
        let mut windows = Vec::new();
        for (number, block) in (0..).zip(&self.blocks) {
            let mut from = block.from + guard;
            while from + width <= block.to {
                if self.scenario == Scenario::Idle || self.is_active(from, from + width) == block.busy {
                    windows.push((from, from + width, number, block.busy));
                }
                from += width;
            }
        }
        windows
    }

    /// Windows of `trace`, labelled 1 with payload and 0 without.
    pub fn samples<'a>(&self, trace: &'a Trace) -> Vec<Sample<'a>> {
        let sample = |(from, to, block, busy)| {
            let window: Window<'a> = trace.window(from, to);
            Sample { window, label: u16::from(busy), block }
        };
        self.windows().into_iter().map(sample).collect()
    }
}

/// Runs a scenario through a network that is up.
///
/// # Errors
/// Where a program, a fault or a recorder cannot be started, a node ends, or the user interrupts.
pub(super) fn record(
    lab: &Lab,
    network: &mut Network<'_>,
    (defence, scenario, plan): (Defence, Scenario, Plan),
    rng: &mut ChaCha8Rng,
    interrupt: &Interrupt,
) -> Result<Run> {
    if let Some(fault) = scenario.fault() {
        fault::apply(lab, fault).context("the link's fault cannot be had")?;
    }
    let run = watch(lab, network, (defence, scenario, plan), rng, interrupt);
    if let Some(fault) = scenario.fault() {
        fault::lift(lab, fault)?;
    }
    run
}

fn watch(
    lab: &Lab,
    network: &mut Network<'_>,
    (defence, scenario, plan): (Defence, Scenario, Plan),
    rng: &mut ChaCha8Rng,
    interrupt: &Interrupt,
) -> Result<Run> {
    let mut generator = Generator::start(lab, scenario)?;
    let wire = Recorder::on_wire(lab.netns(Host::Wire), lab.wire_ports())?;
    let inside = Recorder::at_interface(lab.netns(Host::Client), network.interface())?;
    let missed = network.missed_slots();
    std::thread::sleep(plan.guard);
    let began = now();
    let mut blocks = Vec::new();
    let mut due = Instant::now();
    for busy in order(plan.blocks, rng) {
        let from = now().saturating_sub(began);
        if busy {
            generator.begin()?;
        }
        due += plan.block;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if busy {
            generator.end()?;
        }
        blocks.push(Block { busy, from, to: now().saturating_sub(began) });
        if interrupt.is_set() {
            bail!("interrupted");
        }
    }
    // The recorders empty their sockets every 5 ms.
    std::thread::sleep(Duration::from_millis(30));
    let (outer, inner) = (wire.take(), inside.take());
    network.check()?;
    let missed_slots = network.missed_slots().saturating_sub(missed);
    let sight = |at: u64, length| Sight { at: at.saturating_sub(began), length };
    let mut wires: BTreeMap<(Host, Host), Vec<Sight>> = BTreeMap::new();
    for seen in outer.seen.iter().filter(|seen| seen.at >= began) {
        if let (Some(from), Some(to)) = (Host::by_address(seen.source), Host::by_address(seen.destination)) {
            wires.entry((from, to)).or_default().push(sight(seen.at, seen.length));
        }
    }
    let service = Host::Service.address();
    let inside = [true, false].map(|out| {
        let way = inner.seen.iter().filter(|seen| seen.at >= began && (Some(seen.destination) == service) == out);
        Trace::new(way.map(|seen| sight(seen.at, seen.length)).collect())
    });
    let mut run = Run {
        defence,
        scenario,
        plan,
        blocks,
        wires: wires.into_iter().map(|(hosts, sights)| (hosts, Trace::new(sights))).collect(),
        heads: outer.heads,
        inside,
        invalid: None,
        missed_slots,
    };
    run.invalid = complaint(&run, outer.lost + inner.lost, generator.failures);
    Ok(run)
}

fn complaint(run: &Run, lost: u64, failures: u32) -> Option<String> {
    if lost > 0 {
        return Some(format!("the capture lost {lost} packets"));
    }
    if failures > 0 {
        return Some(format!("a program that makes the payload ended by itself {failures} times"));
    }
    let busy = run.blocks.iter().filter(|block| block.busy);
    let silent = busy.filter(|block| !run.is_active(block.from, block.to)).count();
    (run.scenario != Scenario::Idle && silent > 0).then(|| format!("{silent} stretches carried no payload"))
}

/// As many stretches with payload as without, in random order.
fn order(blocks: u32, rng: &mut ChaCha8Rng) -> Vec<bool> {
    let mut order: Vec<bool> = (0..blocks).map(|number| number % 2 == 0).collect();
    for last in (1..order.len()).rev() {
        let bound = u64::try_from(last + 1).unwrap_or(1);
        order.swap(last, usize::try_from(rng.next_u64() % bound).unwrap_or(0));
    }
    order
}

/// The clock that the kernel stamps packets with, in nanoseconds.
fn now() -> u64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

    fn run(scenario: Scenario) -> Run {
        let ms = |ms: u64| ms * 1_000_000;
        let at = |times: &[u64]| {
            Trace::new(times.iter().map(|&at| Sight { at: ms(at), length: 100 }).collect())
        };
        Run {
            defence: Defence::PLAIN,
            scenario,
            plan: Plan {
                block: Duration::from_millis(50),
                guard: Duration::from_millis(10),
                window: Duration::from_millis(20),
                blocks: 2,
            },
            blocks: vec![
                Block { busy: false, from: 0, to: ms(50) },
                Block { busy: true, from: ms(50), to: ms(100) },
            ],
            wires: BTreeMap::new(),
            heads: Vec::new(),
            inside: [at(&[15]), at(&[85])],
            invalid: None,
            missed_slots: 0,
        }
    }

    #[test]
    fn windows_carry_the_label_that_the_payload_gave_them() {
        let ms = |ms: u64| ms * 1_000_000;
        // 10-30 is idle by the clock but not in truth, and 60-80 busy by the clock only.
        let windows = run(Scenario::Bulk).windows();
        assert_eq!(windows, [(ms(30), ms(50), 0, false), (ms(80), ms(100), 1, true)]);
        assert_eq!(run(Scenario::Idle).windows().len(), 4);
    }

    #[test]
    fn half_of_the_stretches_carry_payload_in_an_order_that_the_seed_gives() {
        let orders: Vec<_> = (0..2).map(|seed| order(40, &mut ChaCha8Rng::seed_from_u64(seed))).collect();
        assert!(orders.iter().all(|order| order.iter().filter(|busy| **busy).count() == 20));
        assert_ne!(orders[0], orders[1]);
        assert_eq!(orders[0], order(40, &mut ChaCha8Rng::seed_from_u64(0)));
    }

    #[test]
    fn a_run_that_lost_packets_or_carried_nothing_is_told() {
        let mut run = run(Scenario::Bulk);
        assert_eq!(complaint(&run, 0, 0), None);
        assert!(complaint(&run, 1, 0).is_some() && complaint(&run, 0, 1).is_some());
        run.inside[1] = Trace::default();
        assert!(complaint(&run, 0, 0).is_some_and(|text| text.contains("1 stretches")));
        run.scenario = Scenario::Idle;
        assert_eq!(complaint(&run, 0, 0), None);
    }
}
