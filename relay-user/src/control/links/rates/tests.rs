//! A client's and a relay's links, joined by hand: datagrams and cells of the link go across, time is a number.

use super::*;
use crate::control::action::Action;
use crate::control::links::Identity;
use crate::crypto::{StaticKey, Suite};
use crate::engine::schedule::Law;
use crate::rates::{DayTable, LossRules, Mechanism};
use crate::xsk::Arena;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

const SECOND: u64 = Nanos::SECOND.0;
/// Of an epoch.
const EPOCH: u64 = 100;
const LOW: ClassNumber = ClassNumber(0);
const HIGH: ClassNumber = ClassNumber(1);
const RATES: [u32; 2] = [300, 1500];
const TICK: u64 = 20_000_000;
/// The wall clock when the node's own shows one second: ten seconds into an epoch, shortly after midnight.
const WALL: Unix = Unix::from_seconds(20_000 * 86_400 + 10);

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 7443))
}

fn plan(policy: Policy, ladder: &[ClassNumber]) -> Arc<Plan> {
    let loss = LossRules { seconds: 5, pause: 30, ..LossRules::default() };
    Arc::new(Plan { policy, ladder: ladder.to_vec(), loss, rates: RATES.to_vec() })
}

fn adaptive(epsilon: f64) -> Policy {
    let mechanism = Mechanism::new(vec![(LOW, RATES[0]), (HIGH, RATES[1])], epsilon).unwrap();
    Policy::Adaptive { base: HIGH, mechanism }
}

/// A change of class as the engine of one end is told: the second on the wall at which it comes, and the period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    relay: bool,
    second: u64,
    rate: u64,
}

/// To the nearest: a link is up to 200 ppm off its class.
fn rate_of(schedule: &Schedule) -> u64 {
    let period = schedule.period().0;
    (SECOND + period / 2) / period
}

struct End {
    links: Links,
    out: Outbox,
    totals: [u64; 2],
}

struct Pair {
    ends: [End; 2],
    now: Nanos,
    rng: ChaCha20Rng,
    changes: Vec<Change>,
    told: Vec<u64>,
    reports: [u64; 2],
    /// Cells lost of each hundred on the way to the client and to the relay.
    loss: [u64; 2],
    /// Until when the control plane of either end stands still.
    still: [u64; 2],
    /// What the client's and the relay's latest links began with, in cells per second.
    begun: [u64; 2],
}

const CLIENT: usize = 0;
const RELAY: usize = 1;

impl Pair {
    fn new(client: &Arc<Plan>, relay: &Arc<Plan>) -> Self {
        let mut rng = ChaCha20Rng::from_seed([9; 32]);
        let now = Nanos(SECOND);
        let arena = Arena::anonymous(256).unwrap();
        let rates = || {
            let paces = RATES.map(|rate| Pace { law: Law::Constant, rate });
            Rates::new(paces.to_vec(), Epochs::new(u32::try_from(EPOCH).unwrap()), WALL, now, [4; 16])
        };
        let key = StaticKey::generate();
        let peer = Peer {
            name: "entry".into(),
            id: [1; 16],
            public: *key.public(),
            address: address(2),
            lane: 0,
            plan: Arc::clone(client),
            initiates: true,
        };
        let identity = Identity::new([1; 16], key, 7443, Arc::clone(relay), now, &mut rng);
        let suite = Suite::Aes256Gcm;
        let ends = [
            Links::new(suite, None, vec![peer], 8, 1, rates()),
            Links::new(suite, Some(identity), vec![], 8, 1, rates()),
        ];
        let ends = ends.map(|links| End { links, out: Outbox::new(arena), totals: [0; 2] });
        let (changes, told) = (Vec::new(), Vec::new());
        Self { ends, now, rng, changes, told, reports: [0; 2], loss: [0; 2], still: [0; 2], begun: [0; 2] }
    }

    fn wall(&self, at: Nanos) -> u64 {
        (WALL.0 + at.0 - SECOND) / SECOND - 20_000 * 86_400
    }

    /// Lets time pass until so many seconds after midnight; the client's programs move so many cells a second.
    fn run_to(&mut self, second: u64, cells: u64) {
        while self.wall(self.now) < second {
            self.now = self.now + Nanos(TICK);
            let unix = Unix(WALL.0 + self.now.0 - SECOND);
            let bytes = cells * relay_common::wire::DATA_LEN as u64 * TICK / SECOND;
            self.ends[CLIENT].totals[1] += bytes;
            for (place, end) in self.ends.iter_mut().enumerate() {
                if (WALL.0 + self.now.0 - SECOND) / SECOND - 20_000 * 86_400 < self.still[place] {
                    continue;
                }
                end.links.rates.on_clock(unix, self.now);
                end.links.rates.on_payload(end.totals, self.now);
                end.links.on_tick(self.now, &mut self.rng, &mut end.out);
            }
            self.carry();
        }
    }

    fn carry(&mut self) {
        loop {
            let taken = [CLIENT, RELAY].map(|end| std::mem::take(&mut self.ends[end].out.actions));
            if taken.iter().all(Vec::is_empty) {
                return;
            }
            for (from, actions) in taken.into_iter().enumerate() {
                for action in actions {
                    self.act(from, action);
                }
            }
        }
    }

    fn act(&mut self, from: usize, action: Action) {
        let (now, other) = (self.now, 1 - from);
        match action {
            Action::Datagram { bytes, .. } => {
                let source = address(u8::try_from(from + 1).unwrap());
                let End { links, out, .. } = &mut self.ends[other];
                links.on_datagram(&bytes, source, 0, now, &mut self.rng, out);
            }
            Action::Worker(Command::InstallSession { session, send_now: false }) => {
                let End { links, out, .. } = &mut self.ends[from];
                links.on_confirmed(session.link, session.receive_index, now, out);
            }
            Action::Worker(Command::SendCell { circ_id: 0, command, frame, .. }) => {
                if command == CellCommand::Rate {
                    self.told.push(self.wall(now));
                }
                self.control(other, command, frame);
            }
            Action::Worker(Command::ReportLoss { .. }) => {
                self.reports[from] += 1;
                let sent = 1000 * self.reports[from];
                let totals = LossTotals { expected: sent, received: sent - sent / 100 * self.loss[from] };
                let frame = self.ends[from].out.cell(&[&totals.encode()]).unwrap();
                self.control(other, CellCommand::Loss, frame);
            }
            Action::Worker(Command::AddLink { schedule, .. }) => self.begun[from] = rate_of(&schedule),
            Action::Worker(Command::SetSchedule { from: at, schedule, .. }) => {
                assert!(at > now && schedule.deadline() >= at);
                let rate = rate_of(&schedule);
                let change = Change { relay: from == RELAY, second: self.wall(at), rate };
                assert_eq!((WALL.0 + at.0 - SECOND) % (EPOCH * SECOND), 0, "{change:?} off a boundary");
                self.changes.push(change);
            }
            _ => {}
        }
    }

    fn control(&mut self, to: usize, command: CellCommand, frame: Frame) {
        let End { links, out, .. } = &mut self.ends[to];
        let Some(&number) = links.links.keys().next() else { return };
        links.on_link_control(number, command, frame, self.now, &mut self.rng, out);
    }

    fn up(&self) -> [usize; 2] {
        [CLIENT, RELAY].map(|end| self.ends[end].links.links.len())
    }

    fn summary(&self, end: usize) -> LedgerSummary {
        self.ends[end].links.rates.summary()
    }
}

#[test]
fn both_ends_go_over_at_the_documents_hours() {
    let table = DayTable::new(vec![(0, HIGH), (200, LOW), (400, HIGH)]).unwrap();
    let plan = plan(Policy::Scheduled(table), &[]);
    let mut pair = Pair::new(&plan, &plan);
    pair.run_to(450, 700);
    assert_eq!(pair.up(), [1, 1]);
    let mut changes = pair.changes.clone();
    changes.sort_by_key(|change| (change.relay, change.second));
    let expected = [(false, 200, 300), (false, 400, 1500), (true, 200, 300), (true, 400, 1500)];
    assert_eq!(changes, expected.map(|(relay, second, rate)| Change { relay, second, rate }));
    for end in [CLIENT, RELAY] {
        let summary = pair.summary(end);
        assert_eq!((summary.bits_since_start, summary.opportunities, summary.changes), (0.0, 2, 2));
    }
}

#[test]
fn a_clients_choice_reaches_the_relay_and_both_go_over_together() {
    let plan = plan(adaptive(16.0), &[]);
    let mut pair = Pair::new(&plan, &plan);
    // At this ε the noise is nothing; little use in the first two epochs, much in the next two.
    pair.run_to(200, 1);
    pair.run_to(450, 1000);
    let mut changes = pair.changes.clone();
    changes.sort_by_key(|change| (change.relay, change.second));
    let expected = [(false, 100, 300), (false, 300, 1500), (true, 100, 300), (true, 300, 1500)];
    assert_eq!(changes, expected.map(|(relay, second, rate)| Change { relay, second, rate }));
    assert_eq!(pair.told, [90, 92, 95, 190, 192, 195, 290, 292, 295, 390, 392, 395]);
    let summary = pair.summary(CLIENT);
    assert_eq!((summary.bits_since_start, summary.opportunities, summary.changes), (4.0, 4, 2));
    assert_eq!(summary.epsilon_since_start, 64.0);
    assert_eq!(pair.summary(RELAY).opportunities, 0, "the choice is the client's");
}

#[test]
fn what_is_told_and_entered_does_not_depend_on_use() {
    let plan = plan(adaptive(0.5), &[]);
    let run = |cells| {
        let mut pair = Pair::new(&plan, &plan);
        pair.run_to(450, cells);
        (pair.told.clone(), pair.reports, pair.summary(CLIENT).bits_since_start)
    };
    let (told, reports, bits) = run(0);
    assert_eq!((told.clone(), reports, bits), run(1000));
    assert!((bits - 4.0 * 0.5 * std::f64::consts::LOG2_E).abs() < 1e-5, "{bits}");
    // Every second, in each direction.
    assert!(reports.iter().all(|count| (438..=442).contains(count)), "{reports:?}");
}

#[test]
fn a_client_that_chooses_nothing_keeps_the_documents_class() {
    let mut pair = Pair::new(&plan(Policy::Fixed(HIGH), &[]), &plan(adaptive(1.0), &[]));
    pair.run_to(450, 1);
    assert!(pair.changes.is_empty() && pair.told.is_empty());
    assert_eq!(pair.summary(CLIENT).opportunities, 0);
    assert_eq!(pair.summary(CLIENT).bits_since_start, 0.0);
}

#[test]
fn a_class_that_nobody_may_choose_is_refused() {
    let plan = plan(adaptive(1.0), &[]);
    let mut pair = Pair::new(&plan, &plan);
    pair.run_to(20, 0);
    for (epoch, class) in [(0, 0), (u64::MAX, 0), (20_000 * 864 + 1, 7)] {
        let frame = pair.ends[RELAY].out.cell(&[&RateChoice { epoch, class }.encode()]).unwrap();
        pair.control(RELAY, CellCommand::Rate, frame);
    }
    assert_eq!(pair.ends[RELAY].out.refusals[Refusal::Unexpected as usize], 3);
    let frame =
        pair.ends[CLIENT].out.cell(&[&RateChoice { epoch: 20_000 * 864 + 1, class: 0 }.encode()]).unwrap();
    pair.control(CLIENT, CellCommand::Rate, frame);
    assert_eq!(pair.ends[CLIENT].out.refusals[Refusal::Unexpected as usize], 1, "a relay chooses nothing");
}

#[test]
fn lasting_loss_lowers_the_direction_that_has_it_and_a_client_follows_its_entry() {
    let plan = plan(Policy::Fixed(HIGH), &[LOW]);
    let mut pair = Pair::new(&plan, &plan);
    // The relay's cells arrive badly at the client; the client says so, and the relay slows down. It tells the client,
    // whose cells would be answered faster than the relay can pass the answers on.
    pair.loss = [5, 0];
    pair.run_to(110, 0);
    pair.changes.sort_by_key(|change| change.relay);
    assert_eq!(pair.changes, [false, true].map(|relay| Change { relay, second: 100, rate: 300 }));
    assert_eq!(pair.told, [90, 92, 95]);
    pair.loss = [0, 0];
    pair.run_to(610, 0);
    pair.changes[2..].sort_by_key(|change| change.relay);
    assert_eq!(pair.changes[2..], [false, true].map(|relay| Change { relay, second: 500, rate: 1500 }));
    assert_eq!(pair.told.len(), 18, "whatever the step is, it is told");
    let summary = pair.summary(RELAY);
    assert_eq!((summary.opportunities, summary.changes, summary.bits_by_loss), (6, 2, 6.0));
    assert_eq!(pair.summary(CLIENT).changes, 0, "what it follows is in the relay's books");
    assert_eq!(pair.up(), [1, 1]);
}

#[test]
fn where_a_clients_own_cells_are_lost_its_entry_stays() {
    let plan = plan(Policy::Fixed(HIGH), &[LOW]);
    let mut pair = Pair::new(&plan, &plan);
    pair.loss = [0, 5];
    pair.run_to(110, 0);
    assert_eq!(pair.changes, [Change { relay: false, second: 100, rate: 300 }]);
    assert_eq!((pair.summary(CLIENT).changes, pair.summary(RELAY).changes), (1, 0));
}

/// A control plane that stands still over a boundary: the class stays until the next one, for which there is a choice,
/// which is told; so both ends agree again.
#[test]
fn a_stall_over_a_boundary_costs_one_epoch_and_nothing_more() {
    let plan = plan(adaptive(16.0), &[]);
    let run = |end: usize, until: u64| {
        let mut pair = Pair::new(&plan, &plan);
        // Little use, so that both go down at the first boundary that they see.
        pair.run_to(98, 1);
        pair.still[end] = until;
        pair.run_to(290, 1);
        pair.run_to(450, 1000);
        pair.changes.sort_by_key(|change| (change.relay, change.second));
        let up = pair.up();
        assert_eq!(up, [1, 1]);
        pair
    };
    let change = |relay, second, rate| Change { relay, second, rate };
    // The client chose and told before it stood still. It goes down an epoch late.
    let late = run(CLIENT, 103);
    let expected =
        [change(false, 200, 300), change(false, 400, 1500), change(true, 100, 300), change(true, 400, 1500)];
    assert_eq!(late.changes, expected);
    assert_eq!(late.told, [90, 92, 95, 190, 192, 195, 290, 292, 295, 390, 392, 395]);
    let summary = late.summary(CLIENT);
    assert_eq!((summary.opportunities, summary.bits_by_delay, summary.bits_since_start), (5, 1.0, 5.0));
    // The relay does.
    let late = run(RELAY, 103);
    let expected =
        [change(false, 100, 300), change(false, 400, 1500), change(true, 200, 300), change(true, 400, 1500)];
    assert_eq!(late.changes, expected);
    assert_eq!((late.summary(RELAY).bits_by_delay, late.summary(CLIENT).bits_by_delay), (1.0, 0.0));
}

#[test]
fn a_choice_that_could_not_be_told_in_time_is_left_to_the_next_epoch() {
    let plan = plan(adaptive(16.0), &[]);
    let mut pair = Pair::new(&plan, &plan);
    pair.run_to(89, 1);
    pair.still[CLIENT] = 97;
    pair.run_to(250, 1);
    pair.changes.sort_by_key(|change| (change.relay, change.second));
    let expected = [false, true].map(|relay| Change { relay, second: 200, rate: 300 });
    assert_eq!(pair.changes, expected, "both at the next");
    assert_eq!(pair.told, [190, 192, 195]);
    let summary = pair.summary(CLIENT);
    assert_eq!((summary.opportunities, summary.bits_by_delay, summary.bits_by_demand), (2, 1.0, 1.0));
    // One that still can be told well before the peer decides is told at once.
    let mut pair = Pair::new(&plan, &plan);
    pair.run_to(89, 1);
    pair.still[CLIENT] = 94;
    pair.run_to(110, 1);
    assert_eq!((pair.told, pair.changes.len()), (vec![94, 94, 95], 2));
}

#[test]
fn a_client_that_comes_up_again_goes_on_as_it_was_and_its_entry_has_forgotten_it() {
    let plan = plan(adaptive(16.0), &[]);
    let mut pair = Pair::new(&plan, &plan);
    pair.run_to(110, 1);
    let restart = |pair: &mut Pair| {
        for end in &mut pair.ends {
            let number = *end.links.links.keys().next().unwrap();
            end.links.on_silent(number, pair.now, &mut end.out);
        }
    };
    restart(&mut pair);
    pair.run_to(120, 1);
    assert_eq!((pair.up(), pair.begun), ([1, 1], [300, 1500]), "no faster than its entry");
    assert!(pair.ends[RELAY].links.rates.kept.is_empty());
    pair.run_to(210, 1);
    assert_eq!(pair.changes.last(), Some(&Change { relay: true, second: 200, rate: 300 }));
    pair.run_to(310, 1000);
    restart(&mut pair);
    pair.run_to(320, 1000);
    assert_eq!((pair.up(), pair.begun), ([1, 1], [1500, 1500]));
}

#[test]
fn a_step_for_loss_outlives_its_link() {
    let plan = plan(Policy::Fixed(HIGH), &[LOW]);
    let mut pair = Pair::new(&plan, &plan);
    pair.loss = [0, 5];
    pair.run_to(110, 0);
    for end in &mut pair.ends {
        let number = *end.links.links.keys().next().unwrap();
        end.links.on_silent(number, pair.now, &mut end.out);
    }
    pair.loss = [0, 0];
    pair.run_to(120, 0);
    assert_eq!((pair.up(), pair.begun), ([1, 1], [300, 1500]), "an entry keeps nothing of a client");
    pair.run_to(490, 0);
    assert_eq!(pair.changes.len(), 1, "it is not forgotten before its time");
    pair.run_to(510, 0);
    assert_eq!(pair.changes.last(), Some(&Change { relay: false, second: 500, rate: 1500 }));
}

#[test]
fn circuits_are_admitted_by_the_slowest_step() {
    let (with, without) = (plan(Policy::Fixed(HIGH), &[LOW]), plan(Policy::Fixed(HIGH), &[]));
    let pair = Pair::new(&without, &without);
    let usable = |plan: &Plan| pair.ends[RELAY].links.rates.usable(plan, Some(&without));
    assert_eq!((usable(&with), usable(&without)), (298, 1494));
}

#[test]
fn a_link_that_loses_too_much_stays_down_for_its_time() {
    let plan = plan(Policy::Fixed(HIGH), &[]);
    let mut pair = Pair::new(&plan, &plan);
    pair.run_to(20, 0);
    assert_eq!(pair.up(), [1, 1]);
    pair.loss = [50, 0];
    pair.run_to(27, 0);
    assert_eq!(pair.up()[RELAY], 0, "the relay stopped it");
    assert_eq!(pair.ends[RELAY].links.rates.trips(), 1);
    let summary = pair.summary(RELAY);
    assert_eq!((summary.opportunities, summary.changes), (1, 1));
    assert!((summary.bits_by_breaker - 86_401_f64.log2()).abs() < 1e-5, "{}", summary.bits_by_breaker);
    // The client finds it silent and knocks again.
    let number = *pair.ends[CLIENT].links.links.keys().next().unwrap();
    let End { links, out, .. } = &mut pair.ends[CLIENT];
    links.on_silent(number, pair.now, out);
    pair.loss = [0, 0];
    pair.run_to(50, 0);
    assert_eq!(pair.up(), [0, 0], "nobody gets in before its time");
    assert!(pair.ends[RELAY].out.refusals[Refusal::Stopped as usize] > 2);
    pair.run_to(65, 0);
    assert_eq!(pair.up(), [1, 1]);
    assert!(pair.ends[RELAY].links.rates.stopped.is_empty(), "the address is forgotten");
}

#[test]
fn a_client_stops_its_own_link_as_well() {
    let plan = plan(Policy::Fixed(HIGH), &[]);
    let mut pair = Pair::new(&plan, &plan);
    pair.run_to(20, 0);
    pair.loss = [0, 50];
    pair.run_to(45, 0);
    assert_eq!(pair.up()[CLIENT], 0);
    assert_eq!(pair.ends[CLIENT].links.rates.trips(), 1);
    pair.loss = [0, 0];
    pair.run_to(70, 0);
    assert_eq!(pair.up()[CLIENT], 1);
}
