//! Classes by epoch: when the next one is chosen, told, decided and begun; and what loss does to a link.
//!
//! ```text
//! boundary less   10 s     7.5 s    5 s       1 s           0
//!                  |        |       |          |            |
//!                choose, step,   tell again   decide: the  first slot of
//!                tell                         engine knows the new class
//! ```
//!
//! A client tells what it chose, an entry which step for loss its direction to the client has. Shorter epochs have shorter
//! leads. All of it goes by the clock, whatever the link carries. A control plane that stood still over a boundary changes
//! nothing until the next.

use super::stops::Stops;
use super::{Links, Pace, Peer, Who};
use crate::control::action::{Outbox, Refusal};
use crate::engine::schedule::{RateOffset, Schedule};
use crate::engine::time::Nanos;
use crate::engine::{Command, Limits, body_mut};
use crate::rates::{
    Bound, Cause, ClassNumber, DemandMeter, Epochs, Governor, Ledger, LedgerSummary, Plan, Policy,
    SECONDS_PER_DAY, TELLINGS, Unix,
};
use crate::xsk::Frame;
use rand_core::CryptoRng;
use relay_common::wire::{Command as CellCommand, LossTotals, RateChoice};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Time between two reports of loss.
const REPORT: u64 = Nanos::SECOND.0;
/// Slots between two reports of loss, at least: of a slow class they would take too many.
const REPORT_SLOTS: u64 = 100;
/// Slots that a message of the link's and its answer may take.
const PATIENCE_SLOTS: u64 = 8;

/// What all links of a node have in common about classes.
pub(in crate::control) struct Rates {
    /// By class number.
    paces: Vec<Pace>,
    epochs: Epochs,
    /// A moment on both clocks.
    wall: (Unix, Nanos),
    ledger: Ledger,
    demand: DemandMeter,
    /// Who must not come back before when: in memory only, and no longer than the pause.
    stopped: Stops,
    /// What the last link to each peer was at, by index into the peers. Nothing of clients.
    kept: HashMap<usize, Governor>,
    trips: u64,
}

impl Rates {
    /// `paces` by class number; `unix` is the wall clock's time when the node's own shows `now`; `key` is random.
    pub(in crate::control) fn new(
        paces: Vec<Pace>,
        epochs: Epochs,
        unix: Unix,
        now: Nanos,
        key: [u8; 16],
    ) -> Self {
        Self {
            paces,
            epochs,
            wall: (unix, now),
            ledger: Ledger::default(),
            demand: DemandMeter::new(epochs.length()),
            stopped: Stops::new(key),
            kept: HashMap::new(),
            trips: 0,
        }
    }

    /// Sets the wall clock.
    pub(in crate::control) fn on_clock(&mut self, unix: Unix, now: Nanos) {
        self.wall = (unix, now);
    }

    /// Takes the bytes of payload that came from and went to the node's own programs so far.
    pub(in crate::control) fn on_payload(&mut self, totals: [u64; 2], now: Nanos) {
        self.demand.note(now, totals);
    }

    pub(in crate::control) fn summary(&self) -> LedgerSummary {
        self.ledger.summary(self.wall.0)
    }

    pub(in crate::control) const fn epoch_seconds(&self) -> u64 {
        self.epochs.length().0 / Nanos::SECOND.0
    }

    pub(in crate::control) const fn trips(&self) -> u64 {
        self.trips
    }

    fn unix(&self, now: Nanos) -> Unix {
        Unix(self.wall.0.0 + now.since(self.wall.1).0)
    }

    /// A governor for a link that comes up now, which goes on where `last` was.
    fn governor(&self, last: Option<Governor>, plan: &Plan, peer_forgets: bool, now: Nanos) -> Governor {
        let epoch = self.epochs.number(self.unix(now));
        match last {
            Some(last) => last.resumed(plan, self.epochs, epoch, peer_forgets),
            None => Governor::new(plan, self.epochs, epoch),
        }
    }

    /// Remembers what the link to a peer was at.
    pub(super) fn keep(&mut self, peer: usize, governor: Governor) {
        self.kept.insert(peer, governor);
    }

    /// A class's slots from `start` on, on a link that is off its class's rate by `offset`.
    pub(super) fn schedule(
        &self,
        class: ClassNumber,
        offset: RateOffset,
        start: Nanos,
        rng: &mut impl CryptoRng,
    ) -> Box<Schedule> {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let Pace { law, rate } = self.pace(class);
        Box::new(Schedule::with_offset(law, rate, offset, start, seed))
    }

    /// One in so many slots that no circuit of these clients may have, in whatever class they are.
    pub(in crate::control) fn spare(&self, clients: &Plan) -> u32 {
        let laws = clients.classes().into_iter().map(|class| self.pace(class).law.spare());
        laws.min().unwrap_or_else(|| Limits::default().spare)
    }

    /// Cells per second that circuits of these clients may have of a link whatever its class and theirs.
    pub(super) fn usable(&self, plan: &Plan, clients: Option<&Plan>) -> u32 {
        let clients: Vec<ClassNumber> = clients.map(Plan::classes).unwrap_or_default();
        let in_class = |class: ClassNumber| {
            let Pace { law, rate } = self.pace(class);
            law.usable_by_any(rate, clients.iter().map(|client| self.pace(*client).law))
        };
        plan.classes().into_iter().map(in_class).min().unwrap_or(0)
    }

    /// Slots of each class that a link may come to have, without an offset: for their lengths only.
    pub(super) fn slots_of(&self, plan: &Plan) -> impl Iterator<Item = Box<Schedule>> {
        let mut classes = plan.classes();
        classes.sort_unstable();
        classes.dedup();
        classes.into_iter().map(|class| {
            let Pace { law, rate } = self.pace(class);
            Box::new(Schedule::without_offset(law, rate, Nanos(0), [0; 32]))
        })
    }

    /// The class's pace. Class numbers are checked where they come in, and plans are made of the same document.
    fn pace(&self, class: ClassNumber) -> Pace {
        self.paces[usize::from(class.0)]
    }

    pub(super) fn is_stopped_peer(&self, at: usize, now: Nanos) -> bool {
        self.stopped.has_peer(at, now)
    }

    pub(super) fn is_stopped_source(&self, source: SocketAddr, now: Nanos) -> bool {
        self.stopped.has_source(source, now)
    }

    pub(super) fn forget_stopped(&mut self, now: Nanos) {
        self.stopped.forget(now);
    }
}

/// What a link knows of its classes.
#[derive(Debug)]
pub(super) struct Governed {
    pub(super) plan: Arc<Plan>,
    pub(super) governor: Governor,
    /// How far the link is off its classes' rates, for its whole life.
    offset: RateOffset,
    /// For which epoch something was told, and how often.
    told: (u64, u64),
    report_at: Nanos,
    /// When a report of the peer's is heard again: nobody votes more often than others.
    hear_at: Nanos,
}

impl Governed {
    pub(super) fn new(plan: Arc<Plan>, governor: Governor, offset: RateOffset, now: Nanos) -> Self {
        Self { plan, governor, offset, told: (0, 0), report_at: now, hear_at: now }
    }

    /// A fixed time, or a share of the slowest class's slots: the same whatever class the link has at the moment.
    fn report_interval(&self) -> Nanos {
        self.slots(REPORT_SLOTS).max(Nanos(REPORT))
    }

    /// How long a message to the peer and its answer may take where slots are few.
    pub(super) fn patience(&self) -> Nanos {
        self.slots(PATIENCE_SLOTS)
    }

    /// So many slots of the slowest class.
    fn slots(&self, count: u64) -> Nanos {
        Nanos(count * Nanos::SECOND.0 / u64::from(self.plan.slowest().max(1)))
    }

    /// What to tell of `word`, an epoch and its class, with `left` until that epoch.
    fn tell(&mut self, word: (u64, ClassNumber), epochs: Epochs, left: Nanos) -> Option<RateChoice> {
        let (epoch, class) = word;
        if self.told.0 != epoch {
            self.told = (epoch, 0);
        }
        let due = self.told.1 < TELLINGS && left <= epochs.telling(self.told.1);
        self.told.1 += u64::from(due);
        due.then_some(RateChoice { epoch, class: class.0 })
    }
}

impl Links {
    /// A governor for a link with `who` that comes up now.
    pub(super) fn governor_for(&mut self, who: Who, plan: &Plan, now: Nanos) -> Governor {
        let last = match who {
            Who::Client => None,
            Who::Peer(at) => {
                let running = self.links.values().find(|link| link.who == who && link.confirmed);
                running.map(|link| link.governed.governor.clone()).or_else(|| self.rates.kept.remove(&at))
            }
        };
        // A client's peer is an entry.
        self.rates.governor(last, plan, self.identity.is_none(), now)
    }

    /// Does what a link's clock asks for.
    pub(super) fn govern(&mut self, number: u32, now: Nanos, rng: &mut impl CryptoRng, out: &mut Outbox) {
        let client = self.identity.is_none();
        let rates = &mut self.rates;
        let Some(link) = self.links.get_mut(&number).filter(|link| link.confirmed) else { return };
        let governed = &mut link.governed;
        if now >= governed.report_at {
            // Never two at once, as after the node was asleep.
            governed.report_at = (governed.report_at + governed.report_interval()).max(now);
            out.worker(Command::ReportLoss { link: number });
        }
        let (unix, epochs) = (rates.unix(now), rates.epochs);
        let coming = epochs.number(unix) + 1;
        let left = Nanos(epochs.start(coming).0.saturating_sub(unix.0));
        let Governed { plan, governor, .. } = governed;
        governor.keep_up(plan, epochs, coming - 1, &mut rates.ledger);
        let chooses = client && matches!(plan.policy, Policy::Adaptive { .. });
        if left <= epochs.choice_lead() {
            let step = governor.step(plan, epochs, coming, &mut rates.ledger);
            // Made later, it could not be told in time: the last one holds for an epoch more.
            if chooses && left >= epochs.telling(TELLINGS - 1) {
                let (demand, ledger) = (&mut rates.demand, &mut rates.ledger);
                governor.choose(plan, epochs, coming, || demand.take(), rng, ledger);
            }
            let steps = !client && link.who == Who::Client && !plan.ladder.is_empty();
            let word = if steps { Some((coming, step)) } else { governor.coming().filter(|_| chooses) };
            if let Some(choice) = word.and_then(|word| governed.tell(word, epochs, left))
                && let Some(frame) = out.cell(&[&choice.encode()])
            {
                let command = CellCommand::Rate;
                out.worker(Command::SendCell { link: number, circ_id: 0, command, hop_seq: 0, frame });
            }
        }
        let Governed { plan, governor, offset, .. } = governed;
        if left <= epochs.decision_lead() && governor.epoch() < coming {
            let start = epochs.start(coming);
            if chooses && !governor.has_choice_for(coming) {
                rates.ledger.miss(start, 1);
            }
            let decision = governor.decide(plan, epochs, coming, &mut rates.ledger);
            if decision.changed {
                let from = start.on_clock(unix, now);
                let schedule = rates.schedule(decision.class, *offset, from, rng);
                out.worker(Command::SetSchedule { link: number, from, schedule });
            }
        }
    }

    /// A message of a link's peer about the link itself.
    pub(in crate::control) fn on_link_control(
        &mut self,
        number: u32,
        command: CellCommand,
        frame: Frame,
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        match command {
            CellCommand::Rate => self.on_rate(number, frame, now, out),
            CellCommand::Loss => self.on_loss(number, frame, now, out),
            _ => self.on_rekey(number, command, frame, now, rng, out),
        }
    }

    /// A client says which class it goes over to, or its entry which step it has for its loss.
    fn on_rate(&mut self, number: u32, mut frame: Frame, now: Nanos, out: &mut Outbox) {
        let Some(body) = body_mut(&mut frame).and_then(|body| body.first_chunk()) else { return };
        let RateChoice { epoch, class } = RateChoice::decode(body);
        let Some(link) = self.links.get_mut(&number) else { return };
        let Governed { plan, governor, .. } = &mut link.governed;
        let rates = &mut self.rates;
        let (epochs, current) = (rates.epochs, rates.epochs.number(rates.unix(now)));
        // It may come before the first look at the clock after a boundary.
        governor.keep_up(plan, epochs, current, &mut rates.ledger);
        let class = ClassNumber(class);
        let taken = match (link.who, &self.identity) {
            (Who::Client, _) => governor.on_chosen(plan, epoch, class),
            (Who::Peer(_), None) => governor.on_stepped(plan, epochs, epoch, class),
            (Who::Peer(_), Some(_)) => false,
        };
        // It is told three times, the last of them well before the boundary.
        if !taken {
            out.refuse(Refusal::Unexpected);
        }
    }

    /// The peer says what became of our cells.
    fn on_loss(&mut self, number: u32, mut frame: Frame, now: Nanos, out: &mut Outbox) {
        let Some(body) = body_mut(&mut frame).and_then(|body| body.first_chunk()) else { return };
        let LossTotals { expected, received } = LossTotals::decode(body);
        let Some(link) = self.links.get_mut(&number) else { return };
        if now < link.governed.hear_at {
            out.refuse(Refusal::Unexpected);
            return;
        }
        // Two that waited for a slot may come close together, so half of what lies between them.
        link.governed.hear_at = now + Nanos(link.governed.report_interval().0 / 2);
        let Governed { plan, governor, .. } = &mut link.governed;
        if governor.on_report(plan, expected, received, now) {
            self.stop_link(number, now, out);
        }
    }

    /// Takes a link down that loses too much, for the network's pause.
    fn stop_link(&mut self, number: u32, now: Nanos, out: &mut Outbox) {
        let Some(link) = self.links.get(&number) else { return };
        let pause = link.governed.plan.loss.pause;
        let until = now + Nanos(u64::from(pause) * Nanos::SECOND.0);
        let interval = link.governed.report_interval().0.max(1);
        let windows = u64::from(SECONDS_PER_DAY) * Nanos::SECOND.0 / interval;
        let rates = &mut self.rates;
        // In which window of a day it was, or in none.
        let bound = Bound::of_choices(usize::try_from(windows + 1).unwrap_or(usize::MAX));
        rates.ledger.enter(rates.unix(now), Cause::Breaker, bound, true);
        rates.trips += 1;
        match link.who {
            Who::Peer(at) => {
                let Peer { name, .. } = &self.peers[at];
                log::warn!("link to {name} loses too many cells; it stays down for {pause} s");
                self.dials[at].again = until;
                rates.stopped.stop_peer(at, until);
            }
            Who::Client => {
                log::warn!("a client's link loses too many cells; it stays down for {pause} s");
                rates.stopped.stop_source(link.address, until);
            }
        }
        self.close(number, out);
    }
}

#[cfg(test)]
mod tests;
