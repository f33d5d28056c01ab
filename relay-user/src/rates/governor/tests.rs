use super::*;
use crate::rates::{DayTable, Mechanism};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

const LOW: ClassNumber = ClassNumber(0);
const MID: ClassNumber = ClassNumber(1);
const HIGH: ClassNumber = ClassNumber(2);
const HOUR: u32 = 3600;

fn plan(policy: Policy, ladder: &[ClassNumber]) -> Plan {
    Plan { policy, ladder: ladder.to_vec(), loss: LossRules::default(), rates: vec![100, 500, 1000] }
}

fn adaptive(epsilon: f64) -> Policy {
    let mechanism = Mechanism::new(vec![(LOW, 100), (MID, 500), (HIGH, 1000)], epsilon).unwrap();
    Policy::Adaptive { base: MID, mechanism }
}

struct Run {
    plan: Plan,
    governor: Governor,
    ledger: Ledger,
    epoch: u64,
    totals: (u64, u64),
}

impl Run {
    fn new(plan: Plan) -> Self {
        let epochs = Epochs::new(HOUR);
        let epoch = epochs.number(Unix::from_seconds(20_000 * 86_400));
        let governor = Governor::new(&plan, epochs, epoch);
        Self { plan, governor, ledger: Ledger::default(), epoch, totals: (0, 0) }
    }

    /// An epoch with so many lost of each thousand cells; returns the class of the next.
    fn epoch(&mut self, lost: u64) -> ClassNumber {
        for second in 0..20 {
            self.totals = (self.totals.0 + 1000, self.totals.1 + 1000 - lost);
            let (expected, received) = self.totals;
            let tripped =
                self.governor.on_report(&self.plan, expected, received, Nanos(second * Nanos::SECOND.0));
            assert!(!tripped || lost > 200);
        }
        self.epoch += 1;
        let decision = self.governor.decide(&self.plan, Epochs::new(HOUR), self.epoch, &mut self.ledger);
        assert_eq!(decision.class, self.governor.class());
        decision.class
    }

    fn bits(&self) -> f64 {
        self.ledger.summary(Epochs::new(HOUR).start(self.epoch)).bits_since_start
    }
}

#[test]
fn a_fixed_class_stays_and_tells_nothing() {
    let mut run = Run::new(plan(Policy::Fixed(HIGH), &[]));
    assert!([0, 30, 900].into_iter().all(|lost| run.epoch(lost) == HIGH));
    assert_eq!((run.bits(), run.plan.bits_per_epoch()), (0.0, 0.0));
    assert_eq!(run.ledger.summary(Unix(0)).opportunities, 0);
}

#[test]
fn loss_lowers_the_class_and_is_entered_whatever_it_does() {
    let mut run = Run::new(plan(Policy::Fixed(HIGH), &[MID, LOW]));
    let classes: Vec<_> = [0, 30, 30, 0, 0, 0, 0, 0].into_iter().map(|lost| run.epoch(lost)).collect();
    assert_eq!(classes, [HIGH, MID, LOW, LOW, LOW, LOW, MID, MID]);
    // Two choices at either end of the ladder, three in the middle.
    let expected = 6.0 + 2.0 * 3.0_f64.log2();
    assert!((run.bits() - expected).abs() < 1e-5, "{}", run.bits());
    assert!(run.bits() <= 8.0 * run.plan.bits_per_epoch());
}

#[test]
fn the_slower_of_hour_and_loss_counts() {
    let table = DayTable::new(vec![(0, HIGH), (2 * HOUR, LOW), (4 * HOUR, HIGH)]).unwrap();
    let mut run = Run::new(plan(Policy::Scheduled(table), &[MID]));
    let classes: Vec<_> = [30, 0, 0, 0, 0].into_iter().map(|lost| run.epoch(lost)).collect();
    assert_eq!(classes, [MID, LOW, LOW, MID, HIGH]);
    assert_eq!(run.ledger.summary(Unix(0)).bits_by_demand, 0.0);
}

#[test]
fn the_breaker_is_asked_at_each_report() {
    let plan = plan(Policy::Fixed(HIGH), &[]);
    let mut governor = Governor::new(&plan, Epochs::new(HOUR), 5);
    let trips: Vec<u64> = (0..20)
        .filter(|&s| governor.on_report(&plan, 100 * (s + 1), 70 * (s + 1), Nanos(s * Nanos::SECOND.0)))
        .collect();
    assert_eq!(trips, [10]);
}

#[test]
fn a_choice_is_made_once_an_epoch_and_counts_from_it_on() {
    let plan = plan(adaptive(16.0), &[]);
    let epochs = Epochs::new(HOUR);
    let mut governor = Governor::new(&plan, epochs, 5);
    assert_eq!(governor.class(), MID);
    let (mut ledger, mut rng) = (Ledger::default(), ChaCha8Rng::from_seed([1; 32]));
    // At this ε the choice is the one that is asked for, but for one in millions.
    assert_eq!(governor.choose(&plan, epochs, 6, || 900, &mut rng, &mut ledger), Some(HIGH));
    assert_eq!(governor.choose(&plan, epochs, 6, || 0, &mut rng, &mut ledger), None, "chosen already");
    assert_eq!(governor.class(), MID, "not before the boundary");
    assert_eq!(governor.decide(&plan, epochs, 6, &mut ledger), Decision { class: HIGH, changed: true });
    assert_eq!(governor.choose(&plan, epochs, 6, || 0, &mut rng, &mut ledger), None, "it runs already");
    assert_eq!(governor.choose(&plan, epochs, 7, || 0, &mut rng, &mut ledger), Some(LOW));
    assert_eq!(governor.decide(&plan, epochs, 7, &mut ledger).class, LOW);
    let summary = ledger.summary(epochs.start(7));
    assert_eq!((summary.opportunities, summary.changes), (2, 2));
    assert!((summary.bits_by_demand - 2.0 * 3.0_f64.log2()).abs() < 1e-5);
    assert_eq!(summary.epsilon_since_start, 32.0);
}

#[test]
fn a_peers_choice_counts_for_the_next_epoch_only() {
    let plan = plan(adaptive(1.0), &[]);
    let epochs = Epochs::new(HOUR);
    let (mut governor, mut ledger) = (Governor::new(&plan, epochs, 5), Ledger::default());
    for (epoch, class, taken) in
        [(5, LOW, false), (7, LOW, false), (6, ClassNumber(3), false), (6, LOW, true)]
    {
        assert_eq!(governor.on_chosen(&plan, epoch, class), taken, "{epoch} {class:?}");
    }
    assert_eq!(governor.decide(&plan, epochs, 6, &mut ledger).class, LOW);
    assert_eq!(governor.decide(&plan, epochs, 7, &mut ledger).class, LOW, "until the next choice");
    assert_eq!(ledger.summary(epochs.start(7)).opportunities, 0, "whoever chose has it in the books");
    let fixed = self::plan(Policy::Fixed(HIGH), &[]);
    assert!(!Governor::new(&fixed, epochs, 5).on_chosen(&fixed, 6, LOW));
}

/// What the engine would be told where this end stood still over the boundary of epoch 6.
#[test]
fn a_boundary_that_was_missed_is_made_up_for_at_the_next_and_entered() {
    let plan = plan(adaptive(16.0), &[]);
    let epochs = Epochs::new(HOUR);
    let (mut ledger, mut rng) = (Ledger::default(), ChaCha8Rng::from_seed([1; 32]));
    let mut governor = Governor::new(&plan, epochs, 5);
    assert_eq!(governor.choose(&plan, epochs, 6, || 900, &mut rng, &mut ledger), Some(HIGH));
    governor.keep_up(&plan, epochs, 5, &mut ledger);
    assert_eq!(ledger.summary(Unix(0)).opportunities, 1, "nothing is missed yet");
    governor.keep_up(&plan, epochs, 6, &mut ledger);
    governor.keep_up(&plan, epochs, 6, &mut ledger);
    assert_eq!((governor.class(), governor.coming()), (MID, None), "not in the middle of an epoch");
    // What was chosen for the missed one counts where nothing else is chosen.
    let mut silent = governor.clone();
    assert_eq!(
        silent.decide(&plan, epochs, 7, &mut Ledger::default()),
        Decision { class: HIGH, changed: true }
    );
    assert_eq!(governor.choose(&plan, epochs, 7, || 0, &mut rng, &mut ledger), Some(LOW));
    assert_eq!(governor.decide(&plan, epochs, 7, &mut ledger).class, LOW);
    let summary = ledger.summary(epochs.start(7));
    assert_eq!((summary.opportunities, summary.bits_by_delay), (3, 1.0));
    // A peer that missed it hears of the next as well.
    let mut peer = Governor::new(&plan, epochs, 5);
    assert!(!peer.on_chosen(&plan, 7, LOW));
    peer.keep_up(&plan, epochs, 6, &mut ledger);
    assert!(peer.on_chosen(&plan, 7, LOW));
}

#[test]
fn what_never_changes_misses_nothing() {
    let (plan, epochs, mut ledger) = (plan(Policy::Fixed(HIGH), &[]), Epochs::new(HOUR), Ledger::default());
    let mut governor = Governor::new(&plan, epochs, 5);
    governor.keep_up(&plan, epochs, 1_000_000_000, &mut ledger);
    assert_eq!(ledger.summary(Unix(0)).opportunities, 0);
    assert_eq!(governor.epoch(), 1_000_000_000);
}

#[test]
fn a_clock_that_is_set_back_stops_no_choice() {
    let plan = plan(adaptive(16.0), &[]);
    let epochs = Epochs::new(HOUR);
    let (mut ledger, mut rng) = (Ledger::default(), ChaCha8Rng::from_seed([1; 32]));
    let mut governor = Governor::new(&plan, epochs, 500);
    governor.choose(&plan, epochs, 501, || 900, &mut rng, &mut ledger);
    governor.decide(&plan, epochs, 501, &mut ledger);
    governor.choose(&plan, epochs, 502, || 900, &mut rng, &mut ledger);
    governor.keep_up(&plan, epochs, 20, &mut ledger);
    assert_eq!((governor.class(), governor.coming()), (HIGH, None));
    assert_eq!(governor.choose(&plan, epochs, 21, || 0, &mut rng, &mut ledger), Some(LOW));
    assert_eq!(governor.decide(&plan, epochs, 21, &mut ledger).class, LOW);
}

#[test]
fn a_link_that_comes_up_again_has_its_step_and_its_choice() {
    let mut run = Run::new(plan(Policy::Fixed(HIGH), &[MID, LOW]));
    run.epoch(30);
    assert_eq!(run.epoch(30), LOW);
    let again = run.governor.clone().resumed(&run.plan, Epochs::new(HOUR), run.epoch + 3, false);
    assert_eq!((again.class(), again.epoch()), (LOW, run.epoch + 3));
    assert_eq!(Governor::new(&run.plan, Epochs::new(HOUR), run.epoch).class(), HIGH, "a new one has neither");

    let plan = plan(adaptive(16.0), &[]);
    let epochs = Epochs::new(HOUR);
    let (mut ledger, mut rng) = (Ledger::default(), ChaCha8Rng::from_seed([1; 32]));
    for (demand, forgets, class) in [(900, false, HIGH), (900, true, MID), (0, false, LOW), (0, true, LOW)] {
        let mut governor = Governor::new(&plan, epochs, 5);
        governor.choose(&plan, epochs, 6, || demand, &mut rng, &mut ledger);
        governor.decide(&plan, epochs, 6, &mut ledger);
        let mut again = governor.resumed(&plan, epochs, 6, forgets);
        assert_eq!(again.class(), class, "demand {demand}, forgets {forgets}");
        assert_eq!(again.choose(&plan, epochs, 6, || 0, &mut rng, &mut ledger), None);
        // Where nothing new is chosen, the choice holds on, if the peer knows of it.
        assert_eq!(again.decide(&plan, epochs, 7, &mut ledger).class, if forgets { MID } else { class });
    }
}

#[test]
fn a_client_goes_down_with_its_entry_and_up_again() {
    let plan = plan(Policy::Fixed(HIGH), &[MID, LOW]);
    let (epochs, mut ledger) = (Epochs::new(HOUR), Ledger::default());
    let mut client = Governor::new(&plan, epochs, 5);
    for (epoch, class, taken) in
        [(5, MID, false), (7, MID, false), (6, ClassNumber(9), false), (6, LOW, true), (6, MID, true)]
    {
        assert_eq!(client.on_stepped(&plan, epochs, epoch, class), taken, "{epoch} {class:?}");
    }
    assert_eq!(client.decide(&plan, epochs, 6, &mut ledger).class, MID);
    // Where the entry is not heard, it goes on as it was.
    assert_eq!(client.decide(&plan, epochs, 7, &mut ledger).class, MID);
    assert!(client.on_stepped(&plan, epochs, 8, HIGH));
    assert_eq!(client.decide(&plan, epochs, 8, &mut ledger).class, HIGH);
    let without = self::plan(Policy::Fixed(HIGH), &[]);
    assert!(!Governor::new(&without, epochs, 5).on_stepped(&without, epochs, 6, HIGH));
}

#[test]
fn a_step_is_decided_once_however_often_it_is_asked_for() {
    let mut run = Run::new(plan(Policy::Fixed(HIGH), &[MID, LOW]));
    let (epochs, coming) = (Epochs::new(HOUR), run.epoch + 1);
    for second in 0..5 {
        let (expected, received) = (1000 * (second + 1), 900 * (second + 1));
        run.governor.on_report(&run.plan, expected, received, Nanos(second * Nanos::SECOND.0));
    }
    for _ in 0..3 {
        assert_eq!(run.governor.step(&run.plan, epochs, coming, &mut run.ledger), MID);
    }
    assert_eq!(run.governor.class(), HIGH, "not before the boundary");
    assert_eq!(run.governor.decide(&run.plan, epochs, coming, &mut run.ledger).class, MID);
    assert_eq!(run.ledger.summary(Unix(0)).opportunities, 1);
}

#[test]
fn hours_are_opportunities_where_the_document_has_another_class() {
    let table = DayTable::new(vec![(0, HIGH), (2 * HOUR, LOW), (3 * HOUR, LOW), (4 * HOUR, HIGH)]).unwrap();
    let mut run = Run::new(plan(Policy::Scheduled(table), &[]));
    for _ in 0..24 {
        run.epoch(0);
    }
    let summary = run.ledger.summary(Unix(0));
    assert_eq!((summary.opportunities, summary.changes, summary.bits_since_start), (2, 2, 0.0));
}

proptest! {
    /// Two runs whose demand differs in any way see the same boundaries, and no choice outside the mechanism's.
    #[test]
    fn the_ledger_does_not_depend_on_demand(
        demands in prop::collection::vec((0u64..2000, 0u64..2000), 1..30), seed: [u8; 32],
    ) {
        let plan = plan(adaptive(0.7), &[]);
        let epochs = Epochs::new(HOUR);
        let mut bits = Vec::new();
        for busy in [false, true] {
            let (mut governor, mut ledger) = (Governor::new(&plan, epochs, 0), Ledger::default());
            let mut rng = ChaCha8Rng::from_seed(seed);
            for (epoch, (idle, used)) in (1..).zip(&demands) {
                let demand = if busy { *used } else { *idle };
                prop_assert!(governor.choose(&plan, epochs, epoch, || demand, &mut rng, &mut ledger).is_some());
                governor.decide(&plan, epochs, epoch, &mut ledger);
            }
            bits.push(ledger.summary(epochs.start(1)).bits_since_start);
        }
        prop_assert_eq!(bits[0], bits[1]);
        prop_assert!((bits[0] - plan.bits_per_epoch() * demands.len() as f64).abs() < 1e-9);
    }
}
