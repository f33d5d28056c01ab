//! What decides the class of one direction of one link, epoch by epoch.

use super::{
    Bound, Breaker, Cause, ClassNumber, Epochs, Ledger, LossMeter, LossRules, Policy, SECONDS_PER_DAY,
    StepDown,
};
use crate::engine::time::Nanos;
use rand_core::Rng;

/// How links of one kind come by their classes; shared by all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Before loss has its say.
    pub policy: Policy,
    /// Where lasting loss leads, by falling rate; empty where it leads nowhere.
    pub ladder: Vec<ClassNumber>,
    /// When loss has consequences.
    pub loss: LossRules,
    /// Cells per second of each class of the network, by its number.
    pub rates: Vec<u32>,
}

impl Plan {
    /// Cells per second of a class; 0 for a number that is none.
    pub fn rate(&self, class: ClassNumber) -> u32 {
        self.rates.get(usize::from(class.0)).copied().unwrap_or(0)
    }

    /// The slowest rate that the policy gives: what a trunk has to offer to circuits that stay for hours.
    pub fn slowest(&self) -> u32 {
        self.policy.classes().into_iter().map(|class| self.rate(class)).min().unwrap_or(0)
    }

    /// The fastest rate that the policy gives: what a client's circuit may come to need.
    pub fn fastest(&self) -> u32 {
        self.policy.classes().into_iter().map(|class| self.rate(class)).max().unwrap_or(0)
    }

    /// Bits that one direction of one link may tell in an epoch, at most.
    pub fn bits_per_epoch(&self) -> f64 {
        let policy = match &self.policy {
            Policy::Adaptive { mechanism, .. } => {
                Bound::private(mechanism.classes().len(), mechanism.epsilon()).bits()
            }
            Policy::Fixed(_) | Policy::Scheduled(_) => 0.0,
        };
        let steps = match self.ladder.len() {
            0 => 1,
            1 => 2,
            _ => 3,
        };
        policy + Bound::of_choices(steps).bits()
    }

    /// Bits that one direction of one link may tell in a day, at most.
    pub fn bits_per_day(&self, epochs: Epochs) -> f64 {
        let seconds = (epochs.length().0 / Nanos::SECOND.0).max(1);
        self.bits_per_epoch() * f64::from(SECONDS_PER_DAY)
            / f64::from(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    fn slower(&self, one: ClassNumber, other: ClassNumber) -> ClassNumber {
        if self.rate(other) < self.rate(one) { other } else { one }
    }
}

/// The class of a coming epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The class.
    pub class: ClassNumber,
    /// It is another one than before.
    pub changed: bool,
}

/// Decides for one direction of one link, at the end that sends.
#[derive(Clone, Debug)]
pub struct Governor {
    /// The last epoch decided, and its class.
    epoch: u64,
    class: ClassNumber,
    /// The last choice of an adaptive policy, and the epoch from which it counts.
    chosen: Option<(u64, ClassNumber)>,
    coming: Option<(u64, ClassNumber)>,
    meter: LossMeter,
    steps: StepDown,
    breaker: Breaker,
}

impl Governor {
    /// For a link that comes up during `epoch`.
    pub fn new(plan: &Plan, epochs: Epochs, epoch: u64) -> Self {
        Self {
            epoch,
            class: plan.policy.class_at(epochs.start(epoch), None),
            chosen: None,
            coming: None,
            meter: LossMeter::default(),
            steps: StepDown::default(),
            breaker: Breaker::default(),
        }
    }

    /// The class of the last epoch decided.
    pub const fn class(&self) -> ClassNumber {
        self.class
    }

    /// The choice that waits for its epoch, and that epoch.
    pub const fn coming(&self) -> Option<(u64, ClassNumber)> {
        self.coming
    }

    /// The last epoch decided.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Chooses the class of `epoch` from the demand (cells per second) since the last choice, which is asked for once; at the client's end
    /// of an adaptive link. `None` where there is nothing to choose or it was chosen already.
    pub fn choose(
        &mut self,
        plan: &Plan,
        epochs: Epochs,
        epoch: u64,
        demand: impl FnOnce() -> u64,
        rng: &mut impl Rng,
        ledger: &mut Ledger,
    ) -> Option<ClassNumber> {
        let Policy::Adaptive { base, mechanism } = &plan.policy else { return None };
        let done = self.coming.or(self.chosen).is_some_and(|(until, _)| until >= epoch);
        if done || epoch <= self.epoch {
            return None;
        }
        let before = self.chosen.map_or(*base, |(_, class)| class);
        let class = mechanism.choose(demand(), rng);
        let bound = Bound::private(mechanism.classes().len(), mechanism.epsilon());
        ledger.enter(epochs.start(epoch), Cause::Adaptive, bound, class != before);
        self.coming = Some((epoch, class));
        Some(class)
    }

    /// Takes what the peer chose for `epoch`, which must lie ahead, and be the next one, and of the classes that may be
    /// chosen. False, and no change, where it is not so.
    pub fn on_chosen(&mut self, plan: &Plan, epoch: u64, class: ClassNumber) -> bool {
        let Policy::Adaptive { mechanism, .. } = &plan.policy else { return false };
        let fits = epoch == self.epoch + 1 && mechanism.classes().contains(&class);
        if fits {
            self.coming = Some((epoch, class));
        }
        fits
    }

    /// Takes a report of the receiver: cells expected and received since the link came up. True where the breaker
    /// trips: the link must stop.
    pub fn on_report(&mut self, plan: &Plan, expected: u64, received: u64, now: Nanos) -> bool {
        let Some(window) = self.meter.note(expected, received) else { return false };
        self.steps.note(window, &plan.loss);
        self.breaker.note(window, &plan.loss, now)
    }

    /// Decides the class of `epoch`, which must lie behind the last one decided; to be called once for each boundary,
    /// shortly before it. Enters the opportunity into the ledger.
    pub fn decide(&mut self, plan: &Plan, epochs: Epochs, epoch: u64, ledger: &mut Ledger) -> Decision {
        let start = epochs.start(epoch);
        if let Some(coming) = self.coming.take_if(|(from, _)| *from <= epoch) {
            self.chosen = Some(coming);
        }
        let by_policy = plan.policy.class_at(start, self.chosen.map(|(_, class)| class));
        if matches!(plan.policy, Policy::Scheduled(_)) {
            let before = plan.policy.class_at(epochs.start(self.epoch), None);
            ledger.enter(start, Cause::Scheduled, Bound::NOTHING, by_policy != before);
        }
        if !plan.ladder.is_empty() {
            let choices = self.steps.choices(plan.ladder.len());
            let moved = self.steps.at_boundary(plan.ladder.len(), &plan.loss);
            ledger.enter(start, Cause::Loss, Bound::of_choices(choices as usize), moved);
        }
        let below = self.steps.level().checked_sub(1).and_then(|at| plan.ladder.get(at));
        let class = below.map_or(by_policy, |&below| plan.slower(by_policy, below));
        let changed = class != self.class;
        (self.epoch, self.class) = (epoch, class);
        Decision { class, changed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rates::{DayTable, Mechanism, Unix};
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
}
