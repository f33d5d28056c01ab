//! A link as the worker holds it: its sessions, its slots, and what waits for them.

use super::extra::Extra;
use super::list::List;
use super::queue::Queue;
use super::replay::LinkWindow;
use super::schedule::Schedule;
use super::time::Nanos;
use super::wheel;
use crate::crypto::LinkKeys;
use crate::xsk::Frame;
use relay_common::wire::{DestroyReason, LinkHeader};
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
        }
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
}

/// One link: who may send, when, and what.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) schedule: Schedule,
    /// Place of the session that seals.
    pub(super) sender: Option<u32>,
    /// First place in the chain of the link's sessions.
    pub(super) sessions: Option<u32>,
    pub(super) last_received: Nanos,
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
    /// Circuit sides that use the link.
    pub(super) sides: List,
    /// Cells beyond the schedule.
    pub(super) extra: Option<Box<Extra>>,
}

impl Link {
    pub(super) fn new(schedule: Schedule, lead: Nanos, now: Nanos) -> Self {
        Self {
            max_held: sealed_ahead(&schedule, lead),
            tolerance: tolerance(schedule.period()),
            schedule,
            sender: None,
            sessions: None,
            last_received: now,
            reported_silent: false,
            control: Queue::new(),
            held: Queue::new(),
            ready: List::new(),
            origins: List::new(),
            sides: List::new(),
            extra: None,
        }
    }
}

/// Cells of one link that may be sealed and not yet sent: those of the slots from the latest that is still made up for
/// to the end of the lead, and one beside them. A wheel tick brings some early.
fn sealed_ahead(schedule: &Schedule, lead: Nanos) -> usize {
    let span = tolerance(schedule.period()) + lead + wheel::TICK;
    usize::try_from(schedule.most_within(span)).unwrap_or(usize::MAX).saturating_add(1)
}

/// How late a cell may still go. A property of the class alone, so that it tells nothing of payload.
fn tolerance(period: Nanos) -> Nanos {
    let made_up = Nanos(period.0 * MAX_CATCH_UP).min(MAX_TOLERANCE);
    made_up.max(Nanos(period.0 / 2)).max(MIN_TOLERANCE)
}
