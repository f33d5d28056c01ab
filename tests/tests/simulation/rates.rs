//! Changes of class at the boundaries of epochs: what the observer sees of them follows from the classes alone.

use crate::net::{CLIENT, ENTRY, EXIT, Egress, Faults, MIDDLE, MS, Net};
use crate::scenario::{Traffic, send_both};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use relay_common::wire::{Command as CellCommand, LossTotals};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, DropReason};
use relay_user::rates::{
    ClassNumber, DayTable, DemandMeter, Epochs, Governor, Ledger, LossRules, Mechanism, Plan, Policy, Unix,
};
use std::collections::BTreeMap;

/// Cells per second by class number: two for clients' links, three for trunks.
const RATES: [u32; 5] = [750, 1500, 1600, 2000, 3000];
const LIGHT: ClassNumber = ClassNumber(0);
const STANDARD: ClassNumber = ClassNumber(1);
const TRUNK_LOW: ClassNumber = ClassNumber(2);
const TRUNK: ClassNumber = ClassNumber(3);
const TRUNK_HIGH: ClassNumber = ClassNumber(4);
/// How long before a boundary classes are decided.
const LEAD: u64 = 50 * MS;
const EPOCH: u64 = 1000 * MS;
/// Both directions of the three links: the node that sends, its link, the node that hears it.
const DIRECTIONS: [(usize, u32, usize); 6] =
    [(0, 1, 1), (1, 0, 0), (1, 1, 2), (2, 0, 1), (2, 1, 3), (3, 0, 2)];

fn plan(policy: Policy, ladder: &[ClassNumber]) -> Plan {
    let loss = LossRules { recover: 1, ..LossRules::default() };
    Plan { policy, ladder: ladder.to_vec(), loss, rates: RATES.to_vec() }
}

fn fixed(class: ClassNumber) -> Plan {
    plan(Policy::Fixed(class), &[])
}

fn adaptive(epsilon: f64) -> Plan {
    let mechanism = Mechanism::new(vec![(LIGHT, 750), (STANDARD, 1500)], epsilon).unwrap();
    plan(Policy::Adaptive { base: STANDARD, mechanism }, &[])
}

/// The control plane's part: a governor for each direction of each link, on the simulation's own clock.
struct Paced {
    net: Net,
    law: Law,
    client: Plan,
    trunk: Plan,
    governors: BTreeMap<(usize, u32), Governor>,
    ledger: Ledger,
    demand: DemandMeter,
    rng: ChaCha8Rng,
    sent: u64,
    /// Classes of the client's link by epoch, as they were decided.
    classes: Vec<ClassNumber>,
    /// Classes to take instead of what the mechanism chooses.
    replay: Option<Vec<ClassNumber>>,
    /// What the entry hears of its cells to the client: this share of each thousand is lost.
    heard: Option<u64>,
    /// Whether the client hears of its entry's steps.
    follows: bool,
    reports: u64,
}

impl Paced {
    fn new(seed: u64, law: Law, client: Plan, trunk: Plan) -> Self {
        let net = Net::with_circuit(seed, law, true);
        let epochs = Epochs::new(1);
        let epoch = epochs.number(Unix(net.now));
        let governors = DIRECTIONS.map(|(node, link, _)| {
            let plan = if Self::is_clients(node, link) { &client } else { &trunk };
            ((node, link), Governor::new(plan, epochs, epoch))
        });
        Self {
            net,
            law,
            client,
            trunk,
            governors: governors.into_iter().collect(),
            ledger: Ledger::default(),
            demand: DemandMeter::new(Nanos(EPOCH)),
            rng: ChaCha8Rng::from_seed([8; 32]),
            sent: 0,
            classes: Vec::new(),
            replay: None,
            heard: None,
            follows: true,
            reports: 0,
        }
    }

    fn is_clients(node: usize, link: u32) -> bool {
        (node, link) == (CLIENT, 1) || (node, link) == (CLIENT + 1, 0)
    }

    /// Runs to the end of so many epochs with this traffic.
    fn run(mut self, traffic: Traffic, epochs: u64) -> Self {
        let end = (self.net.now / EPOCH + epochs) * EPOCH + EPOCH / 2;
        let mut bytes = 0;
        while self.net.now < end {
            let (count, len) = traffic.packets(self.net.now / MS);
            for _ in 0..count {
                self.sent += 2;
                bytes += len as u64;
                send_both(&mut self.net, self.sent, len);
            }
            self.demand.note(Nanos(self.net.now), [bytes; 2]);
            self.net.run(MS);
            if (self.net.now / MS).is_multiple_of(50) {
                self.report();
            }
            if self.net.now % EPOCH == EPOCH - LEAD {
                self.decide();
            }
        }
        self
    }

    fn report(&mut self) {
        for (node, link, _) in DIRECTIONS {
            self.net.command(node, Command::ReportLoss { link });
        }
        self.reports += 1;
        for node in 0..self.net.nodes.len() {
            for (link, mut totals) in std::mem::take(&mut self.net.nodes[node].losses) {
                let plan = if Self::is_clients(node, link) { &self.client } else { &self.trunk };
                let governor = self.governors.get_mut(&(node, link)).unwrap();
                if let Some(lost) = self.heard.filter(|_| (node, link) == (ENTRY, 0)) {
                    let expected = 100 * self.reports;
                    totals = LossTotals { expected, received: expected - expected * lost / 1000 };
                }
                governor.on_report(plan, totals.expected, totals.received, Nanos(self.net.now));
            }
        }
    }

    fn decide(&mut self) {
        let epochs = Epochs::new(1);
        let coming = epochs.number(Unix(self.net.now)) + 1;
        let governor = self.governors.get_mut(&(CLIENT, 1)).unwrap();
        let (demand, ledger) = (&mut self.demand, &mut self.ledger);
        let mut chosen =
            governor.choose(&self.client, epochs, coming, || demand.take(), &mut self.rng, ledger);
        if let Some(class) = self.replay.as_ref().and_then(|replay| replay.get(self.classes.len())) {
            assert!(governor.on_chosen(&self.client, coming, *class));
            chosen = Some(*class);
        }
        if let Some(class) = chosen {
            assert!(self.governors.get_mut(&(1, 0)).unwrap().on_chosen(&self.client, coming, class));
        }
        let entry = self.governors.get_mut(&(ENTRY, 0)).unwrap();
        let step = entry.step(&self.client, epochs, coming, &mut self.ledger);
        if self.follows && !self.client.ladder.is_empty() {
            let client = self.governors.get_mut(&(CLIENT, 1)).unwrap();
            assert!(client.on_stepped(&self.client, epochs, coming, step));
        }
        let from = Nanos(epochs.start(coming).0);
        for (node, link, _) in DIRECTIONS {
            let plan = if Self::is_clients(node, link) { &self.client } else { &self.trunk };
            let governor = self.governors.get_mut(&(node, link)).unwrap();
            let decision = governor.decide(plan, epochs, coming, &mut self.ledger);
            if (node, link) == (CLIENT, 1) {
                self.classes.push(decision.class);
            }
            if decision.changed {
                let mut seed = [0; 32];
                seed[..8].copy_from_slice(&coming.to_be_bytes());
                seed[8] = u8::try_from(2 * node).unwrap() + u8::try_from(link).unwrap();
                let schedule = Schedule::new(self.law, plan.rate(decision.class), from, seed);
                self.net.command(node, Command::SetSchedule { link, from, schedule: Box::new(schedule) });
            }
        }
    }

    /// Cells that left in one direction during an epoch.
    fn cells(&self, direction: (usize, u32), epoch: u64) -> usize {
        let cells = &self.net.egress[&direction];
        cells.iter().filter(|&&(at, _)| at / EPOCH == epoch).count()
    }

    fn bits(&self) -> f64 {
        self.ledger.summary(Unix(self.net.now)).bits_since_start
    }
}

/// Classes by second of the day; the simulation's first whole epoch is second 1 of one.
fn table(entries: &[(u32, ClassNumber)]) -> Plan {
    plan(Policy::Scheduled(DayTable::new(entries.to_vec()).unwrap()), &[])
}

fn scheduled(seed: u64, law: Law, traffic: Traffic) -> Paced {
    let client = table(&[(0, STANDARD), (2, LIGHT), (4, STANDARD)]);
    let trunk = table(&[(0, TRUNK), (2, TRUNK_HIGH), (3, TRUNK)]);
    Paced::new(seed, law, client, trunk).run(traffic, 5)
}

#[test]
fn scheduled_classes_hide_all_traffic() {
    for law in [Law::Constant, Law::Jittered] {
        let idle = scheduled(31, law, Traffic::Idle);
        assert!(idle.net.nodes.iter().all(|node| node.engine.counters().missed_slots == 0));
        let first = idle.net.now / EPOCH - 5;
        for (direction, rates) in [
            ((CLIENT, 1), [1500, 750, 750, 1500]),
            ((CLIENT + 1, 0), [1500, 750, 750, 1500]),
            ((MIDDLE, 0), [2000, 3000, 2000, 2000]),
            ((EXIT, 0), [2000, 3000, 2000, 2000]),
        ] {
            for (epoch, rate) in (first + 1..).zip(rates) {
                let cells = idle.cells(direction, epoch);
                assert!(cells.abs_diff(rate) <= 2, "{law:?} {direction:?} epoch {epoch}: {cells} of {rate}");
            }
        }
        assert_eq!(idle.bits(), 0.0);
        for traffic in [Traffic::Chat, Traffic::Bulk, Traffic::Overload] {
            let busy = scheduled(31, law, traffic);
            assert!(idle.net.egress == busy.net.egress, "{law:?}, {traffic:?}: the observer can tell");
            assert!(busy.net.nodes[EXIT].edge.arrived.len() > 100, "{traffic:?}: nothing came through");
        }
    }
}

/// The gaps around each boundary are those of the laws on its two sides.
#[test]
fn classes_change_at_boundaries_without_burst_or_gap() {
    let run = scheduled(32, Law::Constant, Traffic::Bulk);
    for (node, link, _) in DIRECTIONS {
        let at: Vec<u64> = run.net.egress[&(node, link)].iter().map(|&(at, _)| at).collect();
        for pair in at.windows(2) {
            let gap = pair[1] - pair[0];
            let (before, behind) = (pair[0] / EPOCH, pair[1] / EPOCH);
            if before == behind {
                // A link is up to 200 ppm off its class.
                let mut periods = RATES.iter().map(|&rate| Nanos::SECOND.0 / u64::from(rate));
                let period = periods.find(|&period| period.abs_diff(gap) <= period / 5000 + 1);
                assert!(period.is_some(), "{node}/{link}: a gap of {gap} is no class's");
            } else {
                let slowest = Nanos::SECOND.0 / u64::from(RATES[0]);
                assert!(behind == before + 1 && gap <= 2 * slowest, "{node}/{link}: a gap of {gap}");
            }
        }
        // Within an epoch there is one period only.
        for epoch in run.net.now / EPOCH - 4..run.net.now / EPOCH {
            let within: Vec<u64> = at.iter().copied().filter(|at| at / EPOCH == epoch).collect();
            assert!(
                within.windows(3).all(|w| (w[2] - w[1]).abs_diff(w[1] - w[0]) <= 1),
                "{node}/{link} in {epoch}"
            );
        }
    }
}

#[test]
fn a_fixed_class_hides_all_traffic_and_tells_nothing() {
    let run = |traffic| Paced::new(33, Law::Jittered, fixed(STANDARD), fixed(TRUNK)).run(traffic, 3);
    let idle = run(Traffic::Idle);
    assert!(idle.net.egress == run(Traffic::Overload).net.egress);
    assert_eq!((idle.bits(), idle.ledger.summary(Unix(0)).opportunities), (0.0, 0));
}

#[test]
fn what_an_adaptive_link_shows_of_its_use_is_its_classes() {
    let run = |traffic, epsilon, replay| {
        let mut paced = Paced::new(34, Law::Jittered, adaptive(epsilon), fixed(TRUNK));
        paced.replay = replay;
        paced.run(traffic, 5)
    };
    // Without noise to speak of, use shows: the statistic of this test is able to see it.
    let (idle, busy) = (run(Traffic::Idle, 16.0, None), run(Traffic::Bulk, 16.0, None));
    assert_ne!(idle.classes, busy.classes);
    assert!(idle.net.egress != busy.net.egress);
    let boundary = busy.net.now / EPOCH * EPOCH - 4 * EPOCH;
    let until = |egress: &Egress| -> Vec<usize> {
        egress.values().map(|cells| cells.iter().filter(|&&(at, _)| at < boundary).count()).collect()
    };
    assert_eq!(until(&idle.net.egress), until(&busy.net.egress), "not before the first boundary");
    // With the same classes there is nothing left to see, at any ε.
    for traffic in [Traffic::Bulk, Traffic::Overload, Traffic::Chat] {
        let again = run(traffic, 16.0, Some(idle.classes.clone()));
        assert_eq!(again.classes, idle.classes);
        assert!(again.net.egress == idle.net.egress, "{traffic:?}: more than the classes can be told");
    }
    // Five choices of one bit each at most, whatever happened.
    assert_eq!((idle.bits(), busy.bits()), (5.0, 5.0));
    let noised = run(Traffic::Bulk, 0.2, None);
    assert!((noised.bits() - 5.0 * 0.2 * std::f64::consts::LOG2_E).abs() < 1e-5);
}

#[test]
fn lasting_loss_lowers_the_class_and_says_nothing_of_payload() {
    let run = |traffic, loss| {
        let client = plan(Policy::Fixed(STANDARD), &[LIGHT]);
        let mut paced = Paced::new(35, Law::Jittered, client, plan(Policy::Fixed(TRUNK), &[TRUNK_LOW]));
        paced.net.faults = Faults { loss, ..Faults::default() };
        paced.run(traffic, 4)
    };
    let clean = run(Traffic::Idle, 0);
    let last = clean.net.now / EPOCH - 1;
    assert!(DIRECTIONS.iter().all(|&(node, link, _)| clean.cells((node, link), last) >= 1490));
    let idle = run(Traffic::Idle, 50);
    for (node, link, _) in DIRECTIONS {
        let slow = if Paced::is_clients(node, link) { 750 } else { 1600 };
        assert!(idle.cells((node, link), last).abs_diff(slow) <= 2, "{node}/{link}");
        assert!(idle.cells((node, link), last - 3) > slow + 150, "{node}/{link}: before the first boundary");
    }
    for traffic in [Traffic::Bulk, Traffic::Overload] {
        let busy = run(traffic, 50);
        assert!(idle.net.egress == busy.net.egress, "{traffic:?}: the observer can tell");
    }
    // Six directions, four boundaries, two outcomes each.
    assert_eq!(idle.bits(), 24.0);
    assert!(idle.ledger.summary(Unix(0)).changes >= 6);
}

#[test]
fn reports_count_what_was_lost() {
    let mut paced = Paced::new(36, Law::Constant, fixed(STANDARD), fixed(TRUNK));
    paced.net.faults = Faults { loss: 100, ..Faults::default() };
    let before = paced.net.egress[&(MIDDLE, 1)].len();
    for _ in 0..40 {
        paced.net.run(50 * MS);
        for (node, link, _) in DIRECTIONS {
            paced.net.command(node, Command::ReportLoss { link });
        }
    }
    paced.net.run(100 * MS);
    let sent = (paced.net.egress[&(MIDDLE, 1)].len() - before) as f64;
    let (_, totals) = *paced.net.nodes[MIDDLE].losses.iter().rev().find(|&&(link, _)| link == 1).unwrap();
    let lost = (totals.expected - totals.received) as f64;
    assert!((lost / sent - 0.1).abs() < 0.02, "{lost} of {sent}");
}

/// A class from one cell a second to thousands and back: the engine neither waits for the slow slot nor bursts.
#[test]
fn from_very_slow_to_fast_and_back() {
    let mut paced = Paced::new(37, Law::Constant, fixed(STANDARD), fixed(TRUNK));
    let change = |paced: &mut Paced, rate, after: u64| {
        let from = Nanos(paced.net.now + after);
        let schedule = Box::new(Schedule::new(Law::Constant, rate, from, [rate.to_be_bytes()[3]; 32]));
        paced.net.command(MIDDLE, Command::SetSchedule { link: 1, from, schedule });
        from.0
    };
    let slow = change(&mut paced, 1, 20 * MS);
    paced.net.run(500 * MS);
    let fast = change(&mut paced, 5000, 20 * MS);
    paced.net.run(200 * MS);
    let back = change(&mut paced, 1, 0);
    paced.net.run(900 * MS);
    let at: Vec<u64> = paced.net.egress[&(MIDDLE, 1)].iter().map(|&(at, _)| at).collect();
    let count = |from: u64, to: u64| at.iter().filter(|&&at| (from..to).contains(&at)).count();
    assert!(count(slow, fast) <= 1);
    let cells = count(fast, back);
    assert!(cells.abs_diff(5000 * usize::try_from((back - fast) / MS).unwrap() / 1000) <= 2, "{cells}");
    // A change that comes at once begins behind what is sealed already.
    assert!(count(back, back + MS) <= 2 && count(back + MS, back + 899 * MS) <= 1);
    assert_eq!(paced.net.nodes[MIDDLE].engine.counters().missed_slots, 0);
}

/// An entry that lowers its direction for its loss takes the client's down with it; else the exit would answer more cells
/// than the entry can pass on.
#[test]
fn answers_fit_where_the_entry_went_down_a_step() {
    let dropped = |follows, traffic| {
        let mut paced = Paced::new(38, Law::Jittered, plan(Policy::Fixed(STANDARD), &[LIGHT]), fixed(TRUNK));
        (paced.heard, paced.follows) = (Some(50), follows);
        let paced = paced.run(traffic, 4);
        let last = paced.net.now / EPOCH - 1;
        let light = |direction| paced.cells(direction, last).abs_diff(750) <= 2;
        assert!(light((ENTRY, 0)) && light((CLIENT, 1)) == follows);
        (paced.net.dropped(ENTRY, DropReason::QueueFull), paced.net.egress)
    };
    let (lost, _) = dropped(false, Traffic::Idle);
    assert!(lost > 1000, "half of the answers find no slot: {lost}");
    let (idle, egress) = dropped(true, Traffic::Idle);
    // Those that were under way at the boundary.
    assert!(idle < 100, "{idle}");
    assert!(egress == dropped(true, Traffic::Bulk).1, "the observer can tell");
}

#[test]
fn a_report_of_more_than_was_sealed_is_refused() {
    let mut net = Net::with_circuit(39, Law::Constant, true);
    let report = |net: &mut Net, expected, received| {
        let frame = net.nodes[CLIENT].body(&LossTotals { expected, received }.encode());
        let command = CellCommand::Loss;
        net.command(CLIENT, Command::SendCell { link: 1, circ_id: 0, command, hop_seq: 0, frame });
        net.run(100 * MS);
    };
    let sealed = net.egress[&(ENTRY, 0)].len() as u64;
    for (expected, received) in [(1 << 40, 0), (sealed + 500, 0), (10, 11)] {
        report(&mut net, expected, received);
    }
    assert_eq!(net.dropped(ENTRY, DropReason::FalseReport), 3);
    assert!(net.nodes[ENTRY].losses.is_empty());
    report(&mut net, sealed, sealed - 10);
    net.command(CLIENT, Command::ReportLoss { link: 1 });
    net.run(100 * MS);
    assert_eq!((net.nodes[ENTRY].losses.len(), net.dropped(ENTRY, DropReason::FalseReport)), (2, 3));
}

/// A class of a cell a second, of which some are lost, on a link that knows of it, and on one that does not.
#[test]
fn a_slow_class_is_not_silent() {
    let silent = |expected: bool| {
        let mut net = Net::new(40, Law::Jittered);
        net.run(50 * MS);
        let slots =
            |rate: u32, from, place: u8| Box::new(Schedule::new(Law::Jittered, rate, from, [place; 32]));
        let from = Nanos(net.now + 10 * MS);
        for (place, (node, link, _)) in (0..).zip(DIRECTIONS) {
            let rate = if (node, link) == (MIDDLE, 1) { 1 } else { 20 };
            let schedule = slots(rate, from, place);
            net.command(node, Command::SetSchedule { link, from, schedule });
        }
        if expected {
            let schedule = slots(1, from, 0);
            net.command(EXIT, Command::Expect { link: 0, schedule });
        }
        net.faults = Faults { loss: 200, ..Faults::default() };
        net.run(60_000 * MS);
        net.nodes[EXIT].silent.len()
    };
    assert_eq!(silent(true), 0);
    assert!(silent(false) > 0, "the test sees silence");
}
