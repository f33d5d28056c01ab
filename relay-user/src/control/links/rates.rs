//! Classes by epoch: when the next one is chosen, told, decided and begun; and what loss does to a link.
//!
//! ```text
//! boundary less   10 s     7.5 s    5 s       1 s           0
//!                  |        |       |          |            |
//!                choose, tell    tell again   decide: the  first slot of
//!                (adaptive client only)       engine knows the new class
//! ```
//!
//! Shorter epochs have shorter leads. All of it goes by the clock, whatever the link carries.

use super::{Links, Pace, Peer, Who};
use crate::control::action::{Outbox, Refusal};
use crate::engine::schedule::{RateOffset, Schedule};
use crate::engine::time::Nanos;
use crate::engine::{Command, Limits, body_mut};
use crate::rates::{ClassNumber, DemandMeter, Epochs, Governor, Ledger, LedgerSummary, Plan, Policy, Unix};
use crate::xsk::Frame;
use rand_core::CryptoRng;
use relay_common::wire::{Command as CellCommand, LossTotals, RateChoice};
use std::net::SocketAddr;
use std::sync::Arc;

/// How long before a boundary a choice is made, at most; a quarter of an epoch where that is shorter.
const CHOICE_LEAD: u64 = 10 * Nanos::SECOND.0;
/// How often a choice is told: each time a quarter of the lead later.
const TELLINGS: u64 = 3;
/// How long before a boundary the class is decided, at most; a tenth of an epoch where that is shorter.
const DECISION_LEAD: u64 = Nanos::SECOND.0;
/// Time between two reports of loss.
const REPORT: u64 = Nanos::SECOND.0;
/// Slots between two reports of loss, at least: of a slow class they would take too many.
const REPORT_SLOTS: u64 = 100;
/// Stopped links remembered, at most.
const MAX_STOPPED: usize = 256;

/// What all links of a node have in common about classes.
pub(in crate::control) struct Rates {
    /// By class number.
    paces: Vec<Pace>,
    epochs: Epochs,
    /// A moment on both clocks.
    wall: (Unix, Nanos),
    ledger: Ledger,
    demand: DemandMeter,
    /// Who must not come back before when.
    stopped: Vec<(Whom, Nanos)>,
    trips: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    Peer(usize),
    /// In memory only, and no longer than the pause.
    Source(SocketAddr),
}

impl Rates {
    /// `paces` by class number; `unix` is the wall clock's time when the node's own shows `now`.
    pub(in crate::control) fn new(paces: Vec<Pace>, epochs: Epochs, unix: Unix, now: Nanos) -> Self {
        Self {
            paces,
            epochs,
            wall: (unix, now),
            ledger: Ledger::default(),
            demand: DemandMeter::new(epochs.length()),
            stopped: Vec::new(),
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

    /// A governor for a link that comes up now.
    pub(super) fn governor(&self, plan: &Plan, now: Nanos) -> Governor {
        Governor::new(plan, self.epochs, self.epochs.number(self.unix(now)))
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
        let laws = clients.policy.classes().into_iter().map(|class| self.pace(class).law.spare());
        laws.min().unwrap_or_else(|| Limits::default().spare)
    }

    /// Cells per second that circuits of these clients may have of a link whatever its class and theirs.
    pub(super) fn usable(&self, plan: &Plan, clients: Option<&Plan>) -> u32 {
        let clients: Vec<ClassNumber> = clients.map(|plan| plan.policy.classes()).unwrap_or_default();
        let in_class = |class: ClassNumber| {
            let Pace { law, rate } = self.pace(class);
            law.usable_by_any(rate, clients.iter().map(|client| self.pace(*client).law))
        };
        plan.policy.classes().into_iter().map(in_class).min().unwrap_or(0)
    }

    /// The class's pace. Class numbers are checked where they come in, and plans are made of the same document.
    fn pace(&self, class: ClassNumber) -> Pace {
        self.paces[usize::from(class.0)]
    }

    fn stop(&mut self, whom: Whom, until: Nanos) {
        self.trips += 1;
        if self.stopped.len() >= MAX_STOPPED {
            self.stopped.remove(0);
        }
        self.stopped.push((whom, until));
    }

    pub(super) fn is_stopped_peer(&self, at: usize, now: Nanos) -> bool {
        self.is_stopped(Whom::Peer(at), now)
    }

    pub(super) fn is_stopped_source(&self, source: SocketAddr, now: Nanos) -> bool {
        self.is_stopped(Whom::Source(source), now)
    }

    fn is_stopped(&self, whom: Whom, now: Nanos) -> bool {
        self.stopped.iter().any(|&(other, until)| other == whom && now < until)
    }

    pub(super) fn forget_stopped(&mut self, now: Nanos) {
        self.stopped.retain(|&(_, until)| now < until);
    }
}

/// What a link knows of its classes.
#[derive(Debug)]
pub(super) struct Governed {
    pub(super) plan: Arc<Plan>,
    pub(super) governor: Governor,
    /// How far the link is off its classes' rates, for its whole life.
    offset: RateOffset,
    /// How often the coming choice was told.
    told: u64,
    report_at: Nanos,
    /// When a report of the peer's is heard again: nobody votes more often than others.
    hear_at: Nanos,
}

impl Governed {
    pub(super) fn new(plan: Arc<Plan>, governor: Governor, offset: RateOffset, now: Nanos) -> Self {
        Self { plan, governor, offset, told: 0, report_at: now, hear_at: now }
    }

    /// A fixed time, or a share of the slowest class's slots: the same whatever class the link has at the moment.
    fn report_interval(&self) -> Nanos {
        let ladder = self.plan.ladder.iter().map(|&class| self.plan.rate(class));
        let slowest = ladder.chain([self.plan.slowest()]).min().unwrap_or(1).max(1);
        Nanos((REPORT_SLOTS * Nanos::SECOND.0 / u64::from(slowest)).max(REPORT))
    }
}

impl Links {
    /// Does what a link's clock asks for.
    pub(super) fn govern(&mut self, number: u32, now: Nanos, rng: &mut impl CryptoRng, out: &mut Outbox) {
        let rates = &mut self.rates;
        let Some(link) = self.links.get_mut(&number).filter(|link| link.confirmed) else { return };
        let governed = &mut link.governed;
        if now >= governed.report_at {
            // Never two at once, as after the node was asleep.
            governed.report_at = (governed.report_at + governed.report_interval()).max(now);
            out.worker(Command::ReportLoss { link: number });
        }
        let unix = rates.unix(now);
        let coming = rates.epochs.number(unix) + 1;
        let left = rates.epochs.start(coming).0.saturating_sub(unix.0);
        let length = rates.epochs.length().0;
        let client = self.identity.is_none();
        if client && matches!(governed.plan.policy, Policy::Adaptive { .. }) {
            let lead = CHOICE_LEAD.min(length / 4);
            if left <= lead {
                let (demand, ledger) = (&mut rates.demand, &mut rates.ledger);
                governed.governor.choose(&governed.plan, rates.epochs, coming, || demand.take(), rng, ledger);
            }
            let told = governed.told;
            if told < TELLINGS
                && left <= lead - told * (lead / 4)
                && let Some((epoch, class)) = governed.governor.coming()
            {
                governed.told += 1;
                if let Some(frame) = out.cell(&[&RateChoice { epoch, class: class.0 }.encode()]) {
                    let command = CellCommand::Rate;
                    out.worker(Command::SendCell { link: number, circ_id: 0, command, hop_seq: 0, frame });
                }
            }
        }
        if left <= DECISION_LEAD.min(length / 10) && governed.governor.epoch() < coming {
            governed.told = 0;
            let decision = governed.governor.decide(&governed.plan, rates.epochs, coming, &mut rates.ledger);
            if decision.changed {
                let from = rates.epochs.start(coming).on_clock(unix, now);
                let schedule = rates.schedule(decision.class, governed.offset, from, rng);
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
            CellCommand::Rate => self.on_rate(number, frame, out),
            CellCommand::Loss => self.on_loss(number, frame, now, out),
            _ => self.on_rekey(number, command, frame, now, rng, out),
        }
    }

    /// A client says which class it goes over to.
    fn on_rate(&mut self, number: u32, mut frame: Frame, out: &mut Outbox) {
        let Some(body) = body_mut(&mut frame).and_then(|body| body.first_chunk()) else { return };
        let RateChoice { epoch, class } = RateChoice::decode(body);
        let Some(link) = self.links.get_mut(&number) else { return };
        let Governed { plan, governor, .. } = &mut link.governed;
        // It is told three times, the last of them well before the boundary.
        if link.who != Who::Client || !governor.on_chosen(plan, epoch, ClassNumber(class)) {
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
        let whom = match link.who {
            Who::Peer(at) => {
                let Peer { name, .. } = &self.peers[at];
                log::warn!("link to {name} loses too many cells; it stays down for {pause} s");
                self.dials[at].again = until;
                Whom::Peer(at)
            }
            Who::Client => {
                log::warn!("a client's link loses too many cells; it stays down for {pause} s");
                Whom::Source(link.address)
            }
        };
        self.rates.stop(whom, until);
        self.close(number, out);
    }
}

#[cfg(test)]
mod tests;
