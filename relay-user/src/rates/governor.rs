//! What decides the class of one direction of one link, epoch by epoch.

use super::{
    Bound, Breaker, Cause, ClassNumber, Epochs, Ledger, LossMeter, LossRules, Policy, SECONDS_PER_DAY,
    StepDown, Unix,
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

    /// All classes that a link may come to have, repeats included: those of the policy, and those that loss leads to.
    pub fn classes(&self) -> Vec<ClassNumber> {
        let mut classes = self.policy.classes();
        classes.extend(&self.ladder);
        classes
    }

    /// The slowest rate that a link may come to have: what a trunk has to offer to circuits that stay for hours.
    pub fn slowest(&self) -> u32 {
        self.classes().into_iter().map(|class| self.rate(class)).min().unwrap_or(0)
    }

    /// Whether a link may ever come to have another class than its first.
    pub fn may_change(&self) -> bool {
        !matches!(self.policy, Policy::Fixed(_)) || !self.ladder.is_empty()
    }

    /// Whether its class may follow what goes on: demand, noised, or loss.
    pub const fn follows(&self) -> bool {
        matches!(self.policy, Policy::Adaptive { .. }) || !self.ladder.is_empty()
    }

    /// The class that a level leads to from that of the policy.
    fn below(&self, by_policy: ClassNumber, level: usize) -> ClassNumber {
        let below = level.checked_sub(1).and_then(|at| self.ladder.get(at));
        below.map_or(by_policy, |&below| self.slower(by_policy, below))
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
    /// The last epoch whose step is decided.
    stepped: u64,
    /// The level that the peer's direction has, at the client's end, and what the peer said of a coming one.
    followed: usize,
    to_follow: Option<(u64, usize)>,
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
            stepped: epoch,
            followed: 0,
            to_follow: None,
            breaker: Breaker::default(),
        }
    }

    /// For a link that comes up again during `epoch`: it keeps its step and its last choice. Where `peer_forgets`, as an
    /// entry forgets its clients, the peer begins in the policy's first class, and this end in the slower of both, so that
    /// nothing comes faster than it can be answered; and at the next boundary both go on from the first class, unless
    /// another is chosen and told until then.
    #[must_use]
    pub fn resumed(mut self, plan: &Plan, epochs: Epochs, epoch: u64, peer_forgets: bool) -> Self {
        (self.meter, self.breaker) = (LossMeter::default(), Breaker::default());
        (self.followed, self.to_follow) = (0, None);
        // Within the last second of an epoch it begins in the class that is decided for the next.
        if self.epoch != epoch + 1 {
            self.anchor(epoch);
            self.class = self.class_at(plan, epochs.start(epoch));
        }
        if peer_forgets {
            self.class = plan.slower(self.class, plan.policy.class_at(epochs.start(epoch), None));
            self.chosen = None;
        }
        self
    }

    /// Notes that `current` runs. A boundary that passed without a decision, as while the host stood still, is lost: the
    /// class stays until the next one, which everybody has together, and what was chosen for it counts from there on. How
    /// late an end was shows then, so it is entered into the ledger. A clock that was set back loses nothing either.
    pub fn keep_up(&mut self, plan: &Plan, epochs: Epochs, current: u64, ledger: &mut Ledger) {
        let missed = current.saturating_sub(self.epoch);
        if missed > 0 && plan.may_change() {
            ledger.miss(epochs.start(current), missed);
        }
        if missed > 0 || self.epoch > current + 1 {
            self.anchor(current);
        }
    }

    fn anchor(&mut self, current: u64) {
        self.epoch = current;
        self.stepped = self.stepped.min(current + 1);
        if let Some(coming) = self.coming.take_if(|(from, _)| *from <= current) {
            self.chosen = Some(coming);
        }
        self.coming.take_if(|(from, _)| *from > current + 1);
        self.chosen = self.chosen.map(|(from, class)| (from.min(current), class));
        if let Some((_, level)) = self.to_follow.take_if(|(from, _)| *from <= current) {
            self.followed = level;
        }
        self.to_follow.take_if(|(from, _)| *from > current + 1);
    }

    fn class_at(&self, plan: &Plan, start: Unix) -> ClassNumber {
        let by_policy = plan.policy.class_at(start, self.chosen.map(|(_, class)| class));
        plan.below(by_policy, self.steps.level().max(self.followed))
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
        if self.has_choice_for(epoch) || epoch <= self.epoch {
            return None;
        }
        let before = self.chosen.map_or(*base, |(_, class)| class);
        let class = mechanism.choose(demand(), rng);
        let bound = Bound::private(mechanism.classes().len(), mechanism.epsilon());
        ledger.enter(epochs.start(epoch), Cause::Adaptive, bound, class != before);
        self.coming = Some((epoch, class));
        Some(class)
    }

    /// Whether a class was chosen for `epoch`, or for one behind it.
    pub fn has_choice_for(&self, epoch: u64) -> bool {
        self.coming.or(self.chosen).is_some_and(|(from, _)| from >= epoch)
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

    /// Takes what the peer says of the class that its own direction has for its loss from `epoch` on: one of the ladder's,
    /// or the policy's. This direction goes with it, since a client that fills its slots is answered at its own rate, and
    /// what the entry cannot pass on would be dropped. False, and no change, where it does not fit.
    pub fn on_stepped(&mut self, plan: &Plan, epochs: Epochs, epoch: u64, class: ClassNumber) -> bool {
        let place = plan.ladder.iter().position(|&step| step == class);
        let policys = plan.policy.class_at(epochs.start(epoch), None) == class;
        let level = place.map(|place| place + 1).or(policys.then_some(0));
        match level.filter(|_| epoch == self.epoch + 1 && !plan.ladder.is_empty()) {
            Some(level) => {
                self.to_follow = Some((epoch, level));
                true
            }
            None => false,
        }
    }

    /// Takes a report of the receiver: cells expected and received since the link came up. True where the breaker
    /// trips: the link must stop.
    pub fn on_report(&mut self, plan: &Plan, expected: u64, received: u64, now: Nanos) -> bool {
        let rates = plan.classes().into_iter().map(|class| plan.rate(class));
        let fastest = rates.max().unwrap_or(0);
        let Some(window) = self.meter.note_at(expected, received, fastest, now) else { return false };
        self.steps.note(window, &plan.loss);
        self.breaker.note(window, &plan.loss, now)
    }

    /// Ends the windows of loss of the epoch that runs, and decides the step of `epoch`; early enough to tell the peer of
    /// it. Once for each: further calls say the same again. Returns the class that this direction has for its loss, the
    /// policy's where it has none. Enters the opportunity into the ledger.
    pub fn step(&mut self, plan: &Plan, epochs: Epochs, epoch: u64, ledger: &mut Ledger) -> ClassNumber {
        let start = epochs.start(epoch);
        if epoch > self.stepped && !plan.ladder.is_empty() {
            let choices = self.steps.choices(plan.ladder.len());
            let moved = self.steps.at_boundary(plan.ladder.len(), &plan.loss);
            ledger.enter(start, Cause::Loss, Bound::of_choices(choices as usize), moved);
        }
        self.stepped = self.stepped.max(epoch);
        let step = self.steps.level().checked_sub(1).and_then(|at| plan.ladder.get(at));
        step.copied().unwrap_or_else(|| plan.policy.class_at(start, None))
    }

    /// Decides the class of `epoch`, which must lie behind the last one decided; to be called once for each boundary,
    /// shortly before it. Enters the opportunity into the ledger.
    pub fn decide(&mut self, plan: &Plan, epochs: Epochs, epoch: u64, ledger: &mut Ledger) -> Decision {
        let start = epochs.start(epoch);
        if let Some(coming) = self.coming.take_if(|(from, _)| *from <= epoch) {
            self.chosen = Some(coming);
        }
        if let Some((_, level)) = self.to_follow.take_if(|(from, _)| *from <= epoch) {
            self.followed = level;
        }
        if matches!(plan.policy, Policy::Scheduled(_)) {
            let [before, then] =
                [epochs.start(self.epoch), start].map(|start| plan.policy.class_at(start, None));
            if then != before {
                ledger.enter(start, Cause::Scheduled, Bound::NOTHING, true);
            }
        }
        self.step(plan, epochs, epoch, ledger);
        let class = self.class_at(plan, start);
        let changed = class != self.class;
        (self.epoch, self.class) = (epoch, class);
        Decision { class, changed }
    }
}

#[cfg(test)]
mod tests;
