//! Slots: what is sealed for them ahead of time, and what leaves at them.

use super::circuit::{Circuit, Direction, Role};
use super::departure::{Content, Departure, Outlet, Plain};
use super::extra::MAX_MACHINES;
use super::link::ControlCell;
use super::time::Nanos;
use super::wheel;
use super::{DropReason, Due, Edge, Engine, Event, Witness, body_mut, put_header, relay_header, take_cell};
use crate::xsk::{Frame, FramePool};
use relay_common::wire::{
    BODY_LEN, CircuitHeader, Command, DATA_LEN, FLAG_CIRCUIT_COVER, HopCommand, LayerFields, LossTotals,
    RX_COUNT_LEN,
};
use std::collections::VecDeque;

/// Cells that leave in one turn, at most.
const EMIT_BATCH: usize = 32;

impl<W: Witness> Engine<W> {
    /// When [`Engine::stage`] or [`Engine::emit`] next has something to do.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let due = self.due.front().map(|due| due.deadline);
        let staging = self.wheel.next_deadline();
        due.into_iter().chain(staging).min()
    }

    /// When the next sealed cell leaves.
    pub fn next_slot(&self) -> Option<Nanos> {
        self.due.front().map(|due| due.deadline)
    }

    /// Hands every cell whose slot has come to `out`, which gives it back where it cannot take it. Returns how many
    /// were handed over.
    pub fn emit(&mut self, now: Nanos, out: impl FnMut(u32, Frame) -> Result<(), Frame>) -> usize {
        self.emit_to(now, &mut Plain(out))
    }

    /// As [`Engine::emit`], for who must know what leaves, and what missed its slot.
    pub fn emit_to(&mut self, now: Nanos, outlet: &mut impl Outlet) -> usize {
        let mut sent = 0;
        while sent < EMIT_BATCH
            && let Some(due) = self.due.pop_front_if(|due| due.deadline <= now)
        {
            self.extras -= usize::from(due.extra);
            let departure = Departure { link: due.link, deadline: due.deadline, content: due.content };
            if now > due.latest {
                outlet.missed(departure);
                self.witness.missed(due.link, due.deadline);
                self.miss(due);
                continue;
            }
            match outlet.send(departure, due.frame) {
                Ok(()) => self.counters.sent += 1,
                Err(_) => self.counters.drop(DropReason::PortRefused),
            }
            self.witness.left(departure.link, departure.deadline);
            sent += 1;
        }
        sent
    }

    /// Counts a missed slot. Its cell is sealed already, so that its counter is spent on it: it goes at a later slot.
    #[cold]
    fn miss(&mut self, due: Due) {
        self.counters.missed_slots += 1;
        let Some(Some(link)) = self.links.get_mut(due.link as usize) else { return };
        let room = link.held.len() < link.max_held;
        if !room || self.cells.push(&mut link.held, due.frame).is_err() {
            self.counters.drop(DropReason::QueueFull);
        }
    }

    /// Chooses and seals the cells of the slots that come due within the lead, `most` of them at most. Returns how many.
    pub fn stage(&mut self, now: Nanos, most: usize, pool: &mut FramePool, edge: &mut impl Edge) -> usize {
        let mut staged = 0;
        while staged < most
            && let Some(number) = self.wheel.pop(now)
        {
            staged += self.stage_link(number, most - staged, now, pool, edge);
        }
        staged
    }

    /// Seals cells for a link's slots within the lead, at most `most` of them, and files the slot after them. Slots that
    /// nobody can meet any more are counted and left empty. Returns how many slots it went through.
    fn stage_link(
        &mut self,
        number: u32,
        most: usize,
        now: Nanos,
        pool: &mut FramePool,
        edge: &mut impl Edge,
    ) -> usize {
        // With the tick, so that what has come up is not filed under the same tick again.
        let horizon = now + self.limits.lead + wheel::TICK;
        let Some(Some(link)) = self.links.get_mut(number as usize) else { return 1 };
        let sender = link.sender;
        if now.since(link.last_received) > link.silence && !link.reported_silent {
            link.reported_silent = raise_silent(&mut self.events, number);
        }
        let earliest = Nanos(now.0.saturating_sub(link.tolerance.0));
        self.counters.missed_slots += link.skip_to(earliest);
        let mut staged = 0;
        while let Some(Some(link)) = self.links.get_mut(number as usize) {
            let deadline = link.schedule.deadline();
            // A slot beyond the wheel's reach comes up early, and so does one behind slots that were skipped.
            if deadline > horizon || staged == most {
                self.wheel.insert(number, Nanos(deadline.0.saturating_sub(self.limits.lead.0)), now);
                break;
            }
            let latest = deadline + link.tolerance;
            link.advance();
            staged += 1;
            self.witness.choosing(number, deadline);
            if let Some((frame, content)) = self.sealed_cell(number, sender, now, pool, edge) {
                if let Some(Some(link)) = self.links.get_mut(number as usize)
                    && let Some(extra) = &mut link.extra
                {
                    extra.on_slot(content, now);
                }
                self.put_due(Due { deadline, latest, link: number, content, extra: false, frame });
            }
        }
        self.stage_extra(number, sender, now, pool);
        staged.max(1)
    }

    /// Seals the cells that a link's machines want within the lead, [`MAX_MACHINES`] of all links at most, so that they take
    /// no room from slots. Looked for with each of the link's slots, so that one may come a gap later than its machine says.
    /// They are cover always: a circuit has the rate that was set aside for it, and no more.
    fn stage_extra(&mut self, number: u32, sender: Option<u32>, now: Nanos, pool: &mut FramePool) {
        while self.extras < MAX_MACHINES {
            let Some(Some(link)) = self.links.get_mut(number as usize) else { return };
            let tolerance = link.tolerance;
            let Some(extra) = &mut link.extra else { return };
            let Some(deadline) = extra.next_cell(now + self.limits.lead, now) else { return };
            let Some(frame) = self.sealed_cover(number, sender, now, pool) else { return };
            let (latest, content) = (deadline + tolerance, Content::Cover);
            self.extras += 1;
            self.put_due(Due { deadline, latest, link: number, content, extra: true, frame });
        }
    }

    fn sealed_cover(
        &mut self,
        number: u32,
        sender: Option<u32>,
        now: Nanos,
        pool: &mut FramePool,
    ) -> Option<Frame> {
        let session = self.sessions.get(sender?).filter(|session| !session.is_expired(now));
        session?;
        let mut frame = take_cell(pool, &mut self.counters)?;
        self.seal(number, sender?, &mut frame)?;
        Some(frame)
    }

    #[inline]
    fn seal(&mut self, number: u32, sender: u32, frame: &mut Frame) -> Option<()> {
        self.links.get_mut(number as usize)?.as_mut()?.sealed += 1;
        self.sessions.get_mut(sender)?.seal(frame.cell_mut()?);
        Some(())
    }

    /// Slots of one link may come close together but never out of order; across links the order is the wheel's, exact
    /// to a tick.
    #[inline]
    fn put_due(&mut self, due: Due) {
        if self.due.back().is_none_or(|last| last.deadline <= due.deadline) {
            return self.due.push_back(due);
        }
        let behind = self.due.iter().rev().take_while(|other| other.deadline > due.deadline).count();
        self.due.insert(self.due.len() - behind, due);
    }

    pub(super) fn file(&mut self, number: u32, deadline: Nanos, now: Nanos) {
        self.wheel.insert(number, Nanos(deadline.0.saturating_sub(self.limits.lead.0)), now);
    }

    fn sealed_cell(
        &mut self,
        number: u32,
        sender: Option<u32>,
        now: Nanos,
        pool: &mut FramePool,
        edge: &mut impl Edge,
    ) -> Option<(Frame, Content)> {
        let link = self.links.get_mut(number as usize)?.as_mut()?;
        if let Some(held) = self.cells.pop(&mut link.held) {
            return Some((held, Content::Forgotten));
        }
        // A slot without a session's keys stays empty, and is counted.
        let usable = |place: &u32| self.sessions.get(*place).is_some_and(|session| !session.is_expired(now));
        let Some(sender) = sender.filter(usable) else {
            self.counters.drop(DropReason::Expired);
            return None;
        };
        let (mut frame, content) = match self.next_cell(number, now, pool, edge) {
            Some(chosen) => chosen,
            None => (take_cell(pool, &mut self.counters)?, Content::Cover),
        };
        self.seal(number, sender, &mut frame)?;
        Some((frame, content))
    }

    /// The payload for one slot: control, then the circuits in turn, then cells of circuits that begin here.
    fn next_cell(
        &mut self,
        number: u32,
        now: Nanos,
        pool: &mut FramePool,
        edge: &mut impl Edge,
    ) -> Option<(Frame, Content)> {
        let link = self.links.get_mut(number as usize)?.as_mut()?;
        if !link.control.is_empty() {
            return self.control_cell(number, pool).map(|frame| (frame, Content::Payload));
        }
        // Whoever has nothing leaves the turn, so this ends.
        while let Some(turn) = link.ready.first() {
            let (circuit, direction) = Self::side_of(turn);
            let Some(Some(entry)) = self.circuits.get_mut(circuit as usize) else {
                self.turns.remove(&mut link.ready, turn);
                continue;
            };
            let queue = &mut entry.queues[direction as usize];
            if let Some(frame) = self.cells.pop(queue) {
                self.waiting -= 1;
                self.witness.chosen(circuit, direction, queue.len());
                self.turns.end_turn(&mut link.ready, !queue.is_empty());
                return Some((frame, Content::Payload));
            }
            self.turns.remove(&mut link.ready, turn);
            let Role::Carried(carried) = &mut entry.role else { continue };
            let Some(back) = entry.back.filter(|_| direction == Direction::Back) else { continue };
            if !carried.wants_slot(edge.has_data(circuit)) {
                continue;
            }
            let mut frame = take_cell(pool, &mut self.counters)?;
            carried.pay();
            let content = Content::of_own(edge.has_data(circuit));
            let body = body_mut(&mut frame)?;
            let offset = fill_data(body, carried.received, circuit, now, edge);
            let seq = carried.own_backward(HopCommand::Data, offset, body);
            put_header(&mut frame, relay_header(back.circ_id, seq));
            if carried.wants_slot(edge.has_data(circuit)) {
                self.turns.push_back(&mut link.ready, turn);
            }
            return Some((frame, content));
        }
        link.own_slots = link.own_slots.wrapping_add(1);
        let slot = link.own_slots;
        // First those whose slot it is: what they get must not depend on what others have.
        for shared in [true, false] {
            let count = self.links.get(number as usize)?.as_ref()?.origins.len();
            for _ in 0..count {
                let link = self.links.get_mut(number as usize)?.as_mut()?;
                let turn = self.turns.pop_front(&mut link.origins)?;
                self.turns.push_back(&mut link.origins, turn);
                let circuit = Self::side_of(turn).0;
                if self.may_have(circuit, slot, shared)
                    && let Some(chosen) = self.origin_cell(circuit, now, pool, edge)
                {
                    return Some(chosen);
                }
            }
        }
        None
    }

    /// Whether a circuit that begins here may have this slot, as one with a share of its own or without.
    fn may_have(&self, circuit: u32, slot: u32, shared: bool) -> bool {
        match self.circuits.get(circuit as usize).and_then(Option::as_deref) {
            Some(Circuit { role: Role::Origin(origin), .. }) if origin.one_in > 1 => {
                shared && slot.is_multiple_of(origin.one_in)
            }
            _ => !shared,
        }
    }

    /// The oldest control cell of a link.
    fn control_cell(&mut self, number: u32, pool: &mut FramePool) -> Option<Frame> {
        let link = self.links.get_mut(number as usize)?.as_mut()?;
        match self.control.pop(&mut link.control)? {
            ControlCell::Ready(frame) => {
                self.waiting -= 1;
                Some(frame)
            }
            ControlCell::Destroy { circ_id, reason } => {
                let mut frame = take_cell(pool, &mut self.counters)?;
                body_mut(&mut frame)?[0] = reason as u8;
                let command = Command::Destroy as u8;
                put_header(&mut frame, CircuitHeader { circ_id, command, key_epoch: 0, hop_seq: 0 });
                Some(frame)
            }
            ControlCell::Loss => {
                let totals = LossTotals { expected: link.expected, received: link.arrived };
                let mut frame = take_cell(pool, &mut self.counters)?;
                body_mut(&mut frame)?[..LossTotals::LEN].copy_from_slice(&totals.encode());
                let command = Command::Loss as u8;
                put_header(&mut frame, CircuitHeader { circ_id: 0, command, key_epoch: 0, hop_seq: 0 });
                Some(frame)
            }
        }
    }

    fn origin_cell(
        &mut self,
        number: u32,
        now: Nanos,
        pool: &mut FramePool,
        edge: &mut impl Edge,
    ) -> Option<(Frame, Content)> {
        let circuit = self.circuits.get_mut(number as usize)?.as_mut()?;
        let (Role::Origin(origin), Some(ahead)) = (&mut circuit.role, circuit.ahead) else { return None };
        let content = Content::of_own(edge.has_data(number));
        if !origin.open || !(origin.cover || content == Content::Payload) {
            return None;
        }
        let mut frame = take_cell(pool, &mut self.counters)?;
        let body = body_mut(&mut frame)?;
        let length = fill_data(body, origin.received, number, now, edge);
        let flags = if origin.cover { FLAG_CIRCUIT_COVER } else { 0 };
        let seq = origin.seal(LayerFields { command: HopCommand::Data as u8, flags, length }, body);
        put_header(&mut frame, relay_header(ahead.circ_id, seq));
        Some((frame, content))
    }
}

fn fill_data(
    body: &mut [u8; BODY_LEN],
    received: u32,
    circuit: u32,
    now: Nanos,
    edge: &mut impl Edge,
) -> u16 {
    let offset = match body.first_chunk_mut::<DATA_LEN>() {
        Some(data) => edge.fill(circuit, data, now),
        None => 0,
    };
    body[DATA_LEN..DATA_LEN + RX_COUNT_LEN].copy_from_slice(&received.to_be_bytes());
    offset
}

/// Tells the control plane that a link is silent; the queue has room for one such event per link.
fn raise_silent(events: &mut VecDeque<Event>, link: u32) -> bool {
    let room = events.len() < events.capacity();
    if room {
        events.push_back(Event::LinkSilent { link });
    }
    room
}
