//! A link as the worker holds it: its sessions, its slots, and what waits for them.

use super::extra::Extra;
use super::list::List;
use super::queue::Queue;
use super::replay::LinkWindow;
use super::schedule::Schedule;
use super::time::Nanos;
use super::{Limits, wheel};
use crate::crypto::LinkKeys;
use crate::xsk::Frame;
use relay_common::wire::{DestroyReason, LinkHeader, LossTotals};
use std::net::SocketAddr;

/// Cells that may be sealed under one key (protocol: hard stop at 2^28).
pub const SESSION_CELLS: u64 = 1 << 28;
/// Life of a session's keys (protocol: hard stop at 180 s).
pub const SESSION_LIFE: Nanos = Nanos(180 * Nanos::SECOND.0);
/// Control cells (handshakes of circuits, rekeys, closings) that may wait on one link.
pub const CONTROL_CELLS: usize = 64;
/// Least lateness at which a slot is left empty: below it, a timer's own error would decide.
const MIN_TOLERANCE: Nanos = Nanos(200_000);
/// Most lateness that is made up for, however slow the class.
const MAX_TOLERANCE: Nanos = Nanos(2_000_000);
/// Slots of a link without a cell that make it silent, at least: fewer could be lost by chance.
const SILENT_SLOTS: u64 = 8;
/// Mean gaps that a link makes up for after a stall, at most; bounds the burst that an observer sees. By a law of uneven
/// gaps they hold more or fewer slots, whatever was to be sent.
const MAX_CATCH_UP: u64 = 4;

/// The keys and numbers of one session of a link, made by the control plane.
#[derive(Debug)]
pub struct Session {
    /// Link number.
    pub link: u32,
    /// Names this session in arriving cells.
    pub receive_index: u32,
    /// Names this session in the peer's eyes.
    pub send_index: u32,
    /// Keys of both directions.
    pub keys: LinkKeys,
    /// Where the peer sends from.
    pub source: SocketAddr,
    /// When the handshake ended.
    pub born: Nanos,
    /// Cells sealed so far; the next cell's counter.
    pub send_counter: u64,
    /// Counters received.
    pub window: LinkWindow,
    /// The counter behind the highest that was received.
    pub(super) next_expected: u64,
}

impl Session {
    /// A session that nothing has used yet.
    pub fn new(
        link: u32,
        receive_index: u32,
        send_index: u32,
        keys: LinkKeys,
        source: SocketAddr,
        born: Nanos,
    ) -> Self {
        Self {
            link,
            receive_index,
            send_index,
            keys,
            source,
            born,
            send_counter: 0,
            window: LinkWindow::starting_at(0),
            next_expected: 0,
        }
    }

    /// Takes an authentic counter; returns how many cells it shows to have been sent beyond those known of.
    #[inline]
    pub(super) fn expect(&mut self, counter: u64) -> u64 {
        let beyond = counter.saturating_add(1).saturating_sub(self.next_expected);
        self.next_expected = self.next_expected.saturating_add(beyond);
        beyond
    }

    /// Whether the keys are past their time or count.
    pub fn is_expired(&self, now: Nanos) -> bool {
        self.send_counter >= SESSION_CELLS || now.since(self.born) >= SESSION_LIFE
    }

    /// Seals the cell whose circuit header and body stand ready in `cell`.
    pub fn seal(&mut self, cell: &mut [u8; relay_common::wire::CELL_LEN]) {
        let header = LinkHeader { receiver_index: self.send_index, counter: self.send_counter };
        self.send_counter += 1;
        cell[..relay_common::wire::LINK_HEADER_LEN].copy_from_slice(&header.encode());
        self.keys.send.seal_cell(cell);
    }
}

/// A cell that goes ahead of all circuits.
#[derive(Debug)]
pub(super) enum ControlCell {
    /// Circuit header and body stand in the frame.
    Ready(Frame),
    /// Made when its slot comes: needs no frame while it waits.
    Destroy { circ_id: u32, reason: DestroyReason },
    /// Says what came of the peer's cells; the numbers are those of its slot.
    Loss,
}

/// One link: who may send, when, and what.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) schedule: Schedule,
    /// The slots to go over to, and from when on.
    pub(super) coming: Option<(Nanos, Box<Schedule>)>,
    /// The slots of before, until others come: at a boundary, no memory is given back either.
    retired: Option<Box<Schedule>>,
    /// The peer's cells under all sessions: as many as their counters tell, and those that came.
    pub(super) expected: u64,
    pub(super) arrived: u64,
    /// Place of the session that seals.
    pub(super) sender: Option<u32>,
    /// First place in the chain of the link's sessions.
    pub(super) sessions: Option<u32>,
    pub(super) last_received: Nanos,
    /// How long nothing may come.
    pub(super) silence: Nanos,
    /// Cells sealed under all sessions.
    pub(super) sealed: u64,
    /// How late a cell of this link may still go.
    pub(super) tolerance: Nanos,
    /// Told the control plane that the peer is silent.
    pub(super) reported_silent: bool,
    pub(super) control: Queue,
    /// Sealed cells of missed slots, which later slots send.
    pub(super) held: Queue,
    /// Sealed cells that may be held.
    pub(super) max_held: usize,
    /// Circuit sides with cells to send, each at most once, in turn.
    pub(super) ready: List,
    /// Circuits that begin here and fill every slot left over, in turn.
    pub(super) origins: List,
    /// Slots so far that circuits which begin here could have, modulo 2^32.
    pub(super) own_slots: u32,
    /// Circuit sides that use the link.
    pub(super) sides: List,
    /// Cells beyond the schedule.
    pub(super) extra: Option<Box<Extra>>,
}

impl Link {
    pub(super) fn new(schedule: Schedule, limits: &Limits, now: Nanos) -> Self {
        Self {
            max_held: sealed_ahead(&schedule, limits.lead),
            silence: silence(limits.silence, &schedule),
            sealed: 0,
            retired: None,
            tolerance: tolerance(schedule.period()),
            schedule,
            coming: None,
            expected: 0,
            arrived: 0,
            sender: None,
            sessions: None,
            last_received: now,
            reported_silent: false,
            control: Queue::new(),
            held: Queue::new(),
            ready: List::new(),
            origins: List::new(),
            own_slots: 0,
            sides: List::new(),
            extra: None,
        }
    }

    /// Goes on to the first slot due at `earliest` or later, over to the coming schedule where that slot is one of its.
    /// Returns how many slots that skips, of those that were to be.
    pub(super) fn skip_to(&mut self, earliest: Nanos) -> u64 {
        let skipped = match &self.coming {
            Some((from, _)) => self.schedule.skip_to(earliest.min(*from)),
            None => self.schedule.skip_to(earliest),
        };
        if self.turn_over() { skipped + self.schedule.skip_to(earliest) } else { skipped }
    }

    /// Lets other slots come from `from` on.
    pub(super) fn change_to(&mut self, schedule: Box<Schedule>, from: Nanos) {
        self.retired = None;
        self.coming = Some((from, schedule));
    }

    /// Whether what a peer says of this link's cells can be: it cannot have missed more than there were.
    pub(super) const fn can_have_lost(&self, totals: LossTotals) -> bool {
        totals.expected <= self.sealed && totals.received <= totals.expected
    }

    /// Goes on to the next slot.
    pub(super) fn advance(&mut self) {
        self.schedule.advance();
        self.turn_over();
    }

    /// Begins the coming schedule where no old slot is left before it; true where it did.
    pub(super) fn turn_over(&mut self) -> bool {
        let deadline = self.schedule.deadline();
        let Some((_, mut schedule)) = self.coming.take_if(|(from, _)| deadline >= *from) else {
            return false;
        };
        self.tolerance = tolerance(schedule.period());
        std::mem::swap(&mut self.schedule, &mut *schedule);
        self.retired = Some(schedule);
        true
    }
}

/// Cells of one link that may be sealed and not yet sent: those of the slots from the latest that is still made up for
/// to the end of the lead, and one beside them. A wheel tick brings some early.
pub(super) fn sealed_ahead(schedule: &Schedule, lead: Nanos) -> usize {
    let span = tolerance(schedule.period()) + lead + wheel::TICK;
    usize::try_from(schedule.most_within(span)).unwrap_or(usize::MAX).saturating_add(1)
}

/// After how long a link is silent whose peer may have slots like these: some slots, where they are few.
pub(super) fn silence(least: Nanos, schedule: &Schedule) -> Nanos {
    least.max(Nanos(schedule.period().0.saturating_mul(SILENT_SLOTS)))
}

/// How late a cell may still go. A property of the class alone, so that it tells nothing of payload.
fn tolerance(period: Nanos) -> Nanos {
    let made_up = Nanos(period.0 * MAX_CATCH_UP).min(MAX_TOLERANCE);
    made_up.max(Nanos(period.0 / 2)).max(MIN_TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::schedule::Law;
    use proptest::prelude::*;

    fn law(jittered: bool) -> Law {
        if jittered { Law::Jittered } else { Law::Constant }
    }

    #[test]
    fn counters_tell_what_was_sent() {
        let split = crate::crypto::Split { initiator_to_responder: [1; 32], responder_to_initiator: [2; 32] };
        let keys = LinkKeys::derive(&split, crate::crypto::Suite::Aes256Gcm, true);
        let mut session = Session::new(0, 1, 2, keys, SocketAddr::from(([192, 0, 2, 1], 1)), Nanos(0));
        let beyond: Vec<u64> = [0, 1, 4, 3, 5].into_iter().map(|counter| session.expect(counter)).collect();
        assert_eq!(beyond, [1, 1, 3, 0, 1], "six in all, of which five came");
    }

    #[test]
    fn a_peer_cannot_have_missed_what_was_not_sealed() {
        let schedule = Schedule::new(Law::Constant, 1000, Nanos(0), [1; 32]);
        let mut link = Link::new(schedule, &Limits::default(), Nanos(0));
        link.sealed = 100;
        for (expected, received, can_be) in
            [(100, 0, true), (100, 100, true), (101, 0, false), (50, 51, false), (u64::MAX, 0, false)]
        {
            assert_eq!(
                link.can_have_lost(LossTotals { expected, received }),
                can_be,
                "{expected} {received}"
            );
        }
    }

    proptest! {
        /// Slots before the boundary are the old law's and those behind it the new one's, with neither a burst nor a
        /// gap at the boundary, however late a worker comes.
        #[test]
        fn a_change_of_schedule_is_clean(
            old in 1u32..5000, new in 1u32..5000, was_jittered: bool, is_jittered: bool,
            after in 0u64..3_000_000_000, seed: [u8; 32], stalls in prop::collection::vec(0u64..40_000_000, 0..3),
        ) {
            let start = Nanos(1_000_000_000);
            let from = start + Nanos(after);
            let plain = |law, rate, start| Schedule::new(law, rate, start, seed);
            let mut link = Link::new(plain(law(was_jittered), old, start), &Limits::default(), start);
            link.coming = Some((from, Box::new(plain(law(is_jittered), new, from))));
            link.turn_over();
            let (mut before, mut behind) = (plain(law(was_jittered), old, start), plain(law(is_jittered), new, from));
            let mut last = start;
            for step in 0..400_u64 {
                if let Some(&stall) = stalls.get(usize::try_from(step / 100).unwrap()).filter(|_| step % 100 == 99) {
                    let earliest = link.schedule.deadline() + Nanos(stall);
                    link.skip_to(earliest);
                    prop_assert!(link.schedule.deadline() >= earliest);
                }
                let at = link.schedule.deadline();
                let expected = if link.coming.is_some() { &mut before } else { &mut behind };
                while expected.deadline() < at {
                    expected.advance();
                }
                prop_assert_eq!(at < from, link.coming.is_some(), "the law changes at the boundary");
                if stalls.is_empty() {
                    prop_assert_eq!(expected.deadline(), at, "not a slot of its law");
                    let periods = 2 * (before.period().0 + behind.period().0);
                    prop_assert!(at.since(last).0 <= periods, "a gap of {} at {}", at.since(last).0, step);
                }
                last = at;
                link.advance();
            }
        }
    }
}
