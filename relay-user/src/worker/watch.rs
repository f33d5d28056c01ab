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
    /// The cell that is timed, where the port has it before its moment.
    held: Option<Departure>,
    /// A xorshift's state: a choice that goes with no period of any schedule is all that is asked of it.
    state: u32,
}

impl Watch {
    /// A watch over links numbered below `links`.
    pub(super) fn new(links: u32, clock: Clock, pace: Pace) -> Self {
        Self { audit: SelfAudit::new(links, pace), clock, seen: 1, chosen: 0, held: None, state: 0x9e37_79b9 }
    }

    /// A batch begins.
    pub(super) fn begin(&mut self) {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.chosen = self.state % self.seen.max(1);
        self.seen = 0;
    }

    /// What the port was given ahead leaves now.
    pub(super) fn let_go(&mut self) {
        if let Some(departure) = self.held.take() {
            self.time(departure);
        }
    }

    /// Looks whether an epoch has ended.
    pub(super) fn look(&mut self, now: Nanos) {
        self.audit.look(now.0);
    }

    /// A link of this number begins.
    pub(super) fn begin_link(&mut self, link: u32) {
        self.audit.begin_link(link);
    }

    /// What may be told.
    pub(super) const fn state(&self) -> AuditState {
        self.audit.state()
    }

    /// A cell was handed to the port, to leave at once or when [`Self::let_go`] is called.
    #[inline]
    fn sent(&mut self, departure: Departure, ahead: bool) {
        if self.seen == self.chosen {
            if ahead {
                self.held = Some(departure);
            } else {
                self.time(departure);
            }
        }
        self.seen += 1;
    }

    fn time(&mut self, departure: Departure) {
        let late = self.clock.now().since(departure.deadline);
        self.note(departure, late.0);
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
    /// Cells are handed over before they leave.
    pub(super) ahead: bool,
}

impl<P: Port> Outlet for Watched<'_, P> {
    #[inline]
    fn send(&mut self, departure: Departure, frame: Frame) -> Result<(), Frame> {
        self.port.announce(departure.deadline);
        let outcome = self.port.transmit(departure.link, frame).map_err(|refused| refused.frame);
        self.watch.sent(departure, self.ahead);
        outcome
    }

    fn missed(&mut self, departure: Departure) {
        self.watch.note(departure, u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { cluster: 16, cells: 1, span: 0 };

    /// The places at which a batch of `length` cells is timed, over many batches.
    fn timed(watch: &mut Watch, length: u32) -> Vec<u32> {
        let departure = Departure { link: 0, deadline: Nanos(0), content: Content::Cover };
        let mut counts = vec![0; length as usize];
        for _ in 0..1000 {
            watch.begin();
            counts[watch.chosen as usize] += 1;
            (0..length).for_each(|_| watch.sent(departure, false));
        }
        counts
    }

    #[test]
    fn one_cell_of_each_batch_is_timed_and_each_place_as_often() {
        let mut watch = Watch::new(1, Clock::start(), PACE);
        assert_eq!(timed(&mut watch, 1), [1000], "an idle worker times every cell");
        // The first batch goes by the length of the one before.
        watch.seen = 4;
        let counts = timed(&mut watch, 4);
        assert!(counts.iter().all(|count| (180..320).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_cell_given_ahead_is_timed_when_it_leaves() {
        let clock = Clock::start();
        let mut watch = Watch::new(1, clock, PACE);
        let departure = Departure { link: 0, deadline: clock.now(), content: Content::Cover };
        watch.begin();
        watch.sent(departure, true);
        watch.look(Nanos(1));
        assert_eq!(watch.state().epochs, 0, "not before");
        watch.let_go();
        watch.look(Nanos(2));
        assert_eq!(watch.state().epochs, 1);
        watch.let_go();
        watch.look(Nanos(3));
        assert_eq!(watch.state().epochs, 1, "and once");
    }

    #[test]
    fn cells_that_were_held_count_for_nothing_and_missed_ones_as_late() {
        let mut watch = Watch::new(1, Clock::start(), PACE);
        let note = |watch: &mut Watch, content| {
            watch.note(Departure { link: 0, deadline: Nanos(0), content }, u64::MAX);
            let epochs = watch.state().epochs;
            watch.look(Nanos(1));
            watch.state().epochs - epochs
        };
        assert_eq!(note(&mut watch, Content::Forgotten), 0);
        assert_eq!((note(&mut watch, Content::Payload), note(&mut watch, Content::Cover)), (1, 1));
    }
}
