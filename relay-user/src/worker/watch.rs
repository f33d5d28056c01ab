//! What the worker's test of itself is told: how late one cell of each batch leaves.
//!
//! The clock is read once more for each batch and not for each cell: which cell is drawn before the batch begins, from the
//! length of the batch before. So an idle worker times every cell, and a loaded one what it can afford.

use super::Clock;
use crate::engine::time::Nanos;
use crate::engine::{Content, Departure, Outlet};
use crate::observe::live::{AuditState, Pace, SelfAudit};
use crate::port::Port;
use crate::xsk::Frame;

/// The audit of a worker's emissions, and which cell of the batch is timed.
#[derive(Debug)]
pub(super) struct Watch {
    audit: SelfAudit,
    clock: Clock,
    /// Cells of the batch so far, and before it of the one before.
    seen: u32,
    /// The place in the batch of the cell that is timed.
    chosen: u32,
    /// A xorshift's state: a choice that goes with no period of any schedule is all that is asked of it.
    state: u32,
}

impl Watch {
    /// A watch over links numbered below `links`.
    pub(super) fn new(links: u32, clock: Clock, pace: Pace) -> Self {
        Self { audit: SelfAudit::new(links, pace), clock, seen: 1, chosen: 0, state: 0x9e37_79b9 }
    }

    /// A batch begins.
    pub(super) fn begin(&mut self) {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.chosen = self.state % self.seen.max(1);
        self.seen = 0;
    }

    /// Looks whether an epoch has ended.
    pub(super) fn look(&mut self, now: Nanos) {
        self.audit.look(now.0);
    }

    /// What may be told.
    pub(super) const fn state(&self) -> AuditState {
        self.audit.state()
    }

    /// A cell was handed to the port.
    #[inline]
    fn sent(&mut self, departure: Departure) {
        if self.seen == self.chosen {
            let late = self.clock.now().since(departure.deadline);
            self.note(departure, late.0);
        }
        self.seen += 1;
    }

    fn note(&mut self, Departure { link, content, .. }: Departure, lateness: u64) {
        match content {
            Content::Payload => self.audit.note(link, true, lateness),
            Content::Cover => self.audit.note(link, false, lateness),
            Content::Forgotten => {}
        }
    }
}

/// A port under watch.
pub(super) struct Watched<'a, P> {
    pub(super) port: &'a mut P,
    pub(super) watch: &'a mut Watch,
}

impl<P: Port> Outlet for Watched<'_, P> {
    #[inline]
    fn send(&mut self, departure: Departure, frame: Frame) -> Result<(), Frame> {
        self.port.announce(departure.deadline);
        let outcome = self.port.transmit(departure.link, frame).map_err(|refused| refused.frame);
        self.watch.sent(departure);
        outcome
    }

    fn missed(&mut self, departure: Departure) {
        self.watch.note(departure, u64::MAX);
    }
}
