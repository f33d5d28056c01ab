//! What the control plane's commands do: links and sessions come and go, circuits grow and close.

use super::circuit::{Carried, Circuit, Direction, Origin, Role, Side};
use super::extra::MAX_MACHINES;
use super::link::{CONTROL_CELLS, ControlCell, Link, Session, sealed_ahead, silence};
use super::schedule::Schedule;
use super::time::Nanos;
use super::wheel;
use super::{Command, DropReason, Edge, Engine, Event, Witness, body_mut, put_header, relay_header};
use crate::crypto::HopKeys;
use crate::xsk::Frame;
use relay_common::wire::{CircuitHeader, Command as CellCommand, DestroyReason, HopCommand, LayerFields};

impl<W: Witness> Engine<W> {
    /// Carries out a command of the control plane.
    pub fn apply(&mut self, command: Command, edge: &mut impl Edge, now: Nanos) {
        match command {
            Command::AddLink { link, schedule } => self.add_link(link, *schedule, edge, now),
            Command::SetExtra { link, extra } => {
                if let Some(Some(link)) = self.links.get_mut(link as usize)
                    && link.extra.replace(extra).is_none()
                {
                    link.max_held += MAX_MACHINES;
                    self.sealed_bound += MAX_MACHINES;
                    self.due.reserve(self.sealed_bound.saturating_sub(self.due.len()));
                }
            }
            Command::SetSchedule { link, from, schedule } => self.set_schedule(link, from, schedule, now),
            Command::Expect { link, schedule } => self.expect(link, &schedule),
            Command::ReportLoss { link } => self.queue_control(link, ControlCell::Loss),
            Command::InstallSession { session, send_now } => self.install(session, send_now, now),
            Command::RemoveSession { receive_index } => self.remove_session(receive_index),
            Command::RemoveLink { link } => self.remove_link(link, edge, now),
            Command::SendCell { link, circ_id, command, hop_seq, frame } => {
                let header = CircuitHeader { circ_id, command: command as u8, key_epoch: 0, hop_seq };
                self.send_control(link, header, frame);
            }
            Command::AddCarried { circuit, back, depth, keys, seq } => {
                let role = Role::Carried(Carried::new(depth, *keys, seq));
                self.add_circuit(circuit, Circuit::new(Some(back), None, role));
            }
            Command::Extend { circuit, ahead, frame } => self.extend(circuit, ahead, frame),
            Command::Answer { circuit, command, length, frame } => {
                self.answer(circuit, command, length, frame);
            }
            Command::AddOrigin { circuit, ahead, keys, seq, cover } => {
                let mut origin = Box::new(Origin::new(seq, cover));
                origin.add_hop(*keys);
                self.add_circuit(circuit, Circuit::new(None, Some(ahead), Role::Origin(origin)));
            }
            Command::SendExtend { circuit, length, frame } => self.send_extend(circuit, length, frame),
            Command::AddHop { circuit, keys, open } => self.add_hop(circuit, *keys, open, edge, now),
            Command::SetCover { circuit, cover } => {
                if let Some(origin) = self.origin_mut(circuit) {
                    origin.cover = cover;
                }
            }
            Command::SetShare { circuit, one_in } => {
                if let Some(origin) = self.origin_mut(circuit) {
                    origin.one_in = one_in;
                }
            }
            Command::CloseCircuit { circuit, reason } => {
                self.close_circuit(circuit, reason, None, edge, now);
            }
        }
    }

    fn add_link(&mut self, number: u32, schedule: Schedule, edge: &mut impl Edge, now: Nanos) {
        if number >= self.limits.links {
            return;
        }
        // A link under the same number goes first, with all that hangs on it.
        self.remove_link(number, edge, now);
        let link = Link::new(schedule, &self.limits, now);
        self.sealed_bound += link.max_held;
        self.due.reserve(self.sealed_bound.saturating_sub(self.due.len()));
        if let Some(slot) = self.links.get_mut(number as usize) {
            *slot = Some(link);
        }
    }

    fn origin_mut(&mut self, circuit: u32) -> Option<&mut Origin> {
        match self.circuits.get_mut(circuit as usize)?.as_deref_mut()? {
            Circuit { role: Role::Origin(origin), .. } => Some(origin),
            Circuit { role: Role::Carried(_), .. } => None,
        }
    }

    fn expect(&mut self, number: u32, schedule: &Schedule) {
        let Some(Some(link)) = self.links.get_mut(number as usize) else { return };
        link.silence = link.silence.max(silence(self.limits.silence, schedule));
        // One more, since a link's own rate is a little off its class's.
        let most = link.max_held.max(sealed_ahead(schedule, self.limits.lead) + 1);
        self.sealed_bound += most - link.max_held;
        link.max_held = most;
        self.due.reserve(self.sealed_bound.saturating_sub(self.due.len()));
    }

    /// Where the class was expected, nothing is allocated here, nor at the boundary.
    fn set_schedule(&mut self, number: u32, from: Nanos, mut schedule: Box<Schedule>, now: Nanos) {
        let Some(Some(link)) = self.links.get_mut(number as usize) else { return };
        // What is sealed stays at its slot, so nothing of the new schedule may come before it.
        let from = from.max(now + self.limits.lead + wheel::TICK);
        schedule.skip_to(from);
        let most = link.max_held.max(sealed_ahead(&schedule, self.limits.lead));
        self.sealed_bound += most - link.max_held;
        link.max_held = most;
        link.silence = link.silence.max(silence(self.limits.silence, &schedule));
        link.change_to(schedule, from);
        let turned = link.turn_over();
        let deadline = link.schedule.deadline();
        self.due.reserve(self.sealed_bound.saturating_sub(self.due.len()));
        // A slow class's next slot may lie far behind the first of a fast one.
        if turned && self.wheel.contains(number) {
            self.file(number, deadline, now);
        }
    }

    fn install(&mut self, session: Box<Session>, send_now: bool, now: Nanos) {
        let (number, index) = (session.link, session.receive_index);
        // A session under the same index goes first.
        self.remove_session(index);
        let Some(Some(link)) = self.links.get_mut(number as usize) else { return };
        link.last_received = now;
        link.reported_silent = false;
        let place = self.sessions.insert(session, &mut link.sessions);
        if send_now {
            self.send_with(number, place, now);
        }
    }

    fn remove_session(&mut self, index: u32) {
        let Some(place) = self.sessions.find(index) else { return };
        let link = self.sessions.get(place).map(|session| session.link as usize);
        let Some(Some(link)) = link.and_then(|link| self.links.get_mut(link)) else { return };
        self.sessions.remove(place, &mut link.sessions);
        // The place may go to another session: nothing must be sealed with that in this one's stead.
        link.sender = link.sender.filter(|&sender| sender != place);
    }

    /// Seals a link's cells with the session at `place` from the next slot on; starts the slots where they stood still.
    pub(super) fn send_with(&mut self, number: u32, place: u32, now: Nanos) {
        let Some(Some(link)) = self.links.get_mut(number as usize) else { return };
        link.sender = Some(place);
        if !self.wheel.contains(number) {
            // Slots before the first session were never due: they do not count as missed.
            link.skip_to(now + self.limits.lead);
            let deadline = link.schedule.deadline();
            self.file(number, deadline, now);
        }
    }

    fn remove_link(&mut self, number: u32, edge: &mut impl Edge, now: Nanos) {
        let Some(mut link) = self.links.get_mut(number as usize).and_then(Option::take) else { return };
        self.sealed_bound -= link.max_held;
        self.wheel.remove(number);
        self.due.retain(|due| due.link != number);
        self.extras = self.due.iter().filter(|due| due.extra).count();
        let cleared = self.control.clear(&mut link.control, |cell| matches!(cell, ControlCell::Ready(_)));
        self.waiting -= cleared;
        let held = self.cells.clear(&mut link.held, |_| true);
        self.counters.drop_all(DropReason::Ended, cleared + held);
        while let Some(place) = link.sessions {
            self.sessions.remove(place, &mut link.sessions);
        }
        // Their sides leave these lists with their links gone, so they are emptied here.
        while self.turns.pop_front(&mut link.ready).is_some() {}
        while self.turns.pop_front(&mut link.origins).is_some() {}
        while let Some(side) = self.sides.pop_front(&mut link.sides) {
            let (circuit, direction) = Self::side_of(side);
            self.close_circuit(circuit, DestroyReason::LinkDown, Some(direction), edge, now);
        }
    }

    fn add_circuit(&mut self, number: u32, circuit: Circuit) {
        let sides = [(circuit.back, Direction::Back), (circuit.ahead, Direction::Ahead)];
        let named = sides.iter().any(|(side, _)| side.is_some_and(|side| self.names.contains_key(&side)));
        let Some(slot) = self.circuits.get_mut(number as usize).filter(|slot| slot.is_none() && !named)
        else {
            self.raise_own(Event::CircuitClosed { circuit: number, reason: DestroyReason::NoCapacity });
            return;
        };
        *slot = Some(Box::new(circuit));
        self.circuit_count += 1;
        for (side, direction) in sides {
            if let Some(side) = side {
                self.attach(number, direction, side);
            }
        }
    }

    /// Lets a circuit's side be found by its name and by its link.
    fn attach(&mut self, number: u32, direction: Direction, side: Side) {
        let turn = Self::turn(number, direction);
        self.names.insert(side, turn);
        if let Some(Some(link)) = self.links.get_mut(side.link as usize) {
            self.sides.push_back(&mut link.sides, turn);
        }
    }

    fn extend(&mut self, number: u32, ahead: Side, frame: Frame) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let Role::Carried(carried) = &mut circuit.role else { return };
        if !carried.may_extend() || circuit.ahead.is_some() || self.names.contains_key(&ahead) {
            self.raise(Event::CreateRefused { ahead, reason: DestroyReason::NoCapacity });
            return;
        }
        let hop_seq = carried.extend_seq();
        circuit.ahead = Some(ahead);
        self.attach(number, Direction::Ahead, ahead);
        let command = CellCommand::Create as u8;
        let header = CircuitHeader { circ_id: ahead.circ_id, command, key_epoch: 0, hop_seq };
        self.send_control(ahead.link, header, frame);
    }

    fn answer(&mut self, number: u32, command: HopCommand, length: u16, mut frame: Frame) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let (Role::Carried(carried), Some(back)) = (&mut circuit.role, circuit.back) else { return };
        let extended = command == HopCommand::Extended;
        if !carried.answered(extended) {
            self.counters.drop(DropReason::UnknownCommand);
            return;
        }
        let Some(body) = body_mut(&mut frame) else { return };
        let hop_seq = carried.own_backward(command, length, body);
        if !extended {
            self.detach_ahead(number);
        }
        self.send_control(back.link, relay_header(back.circ_id, hop_seq), frame);
    }

    /// Forgets the side towards the exit, and what waits for it.
    fn detach_ahead(&mut self, number: u32) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let Some(side) = circuit.ahead.take() else { return };
        self.empty(number, Direction::Ahead);
        self.leave(number, Direction::Ahead, side);
    }

    /// Drops what waits for one side of a circuit.
    fn empty(&mut self, number: u32, direction: Direction) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let cleared = self.cells.clear(&mut circuit.queues[direction as usize], |_| true);
        self.waiting -= cleared;
        self.counters.drop_all(DropReason::Ended, cleared);
    }

    /// Undoes [`Self::attach`], and takes the side out of its link's turns.
    fn leave(&mut self, number: u32, direction: Direction, side: Side) {
        self.names.remove(&side);
        let Some(Some(link)) = self.links.get_mut(side.link as usize) else { return };
        let key = Self::turn(number, direction);
        self.sides.remove(&mut link.sides, key);
        let is_origin = matches!(
            self.circuits.get(number as usize),
            Some(Some(circuit)) if matches!(circuit.role, Role::Origin(_))
        );
        self.turns.remove(if is_origin { &mut link.origins } else { &mut link.ready }, key);
    }

    fn send_extend(&mut self, number: u32, length: u16, mut frame: Frame) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let (Role::Origin(origin), Some(ahead)) = (&mut circuit.role, circuit.ahead) else { return };
        let Some(body) = body_mut(&mut frame) else { return };
        let fields = LayerFields { command: HopCommand::Extend as u8, flags: 0, length };
        let hop_seq = origin.seal(fields, body);
        self.send_control(ahead.link, relay_header(ahead.circ_id, hop_seq), frame);
    }

    fn add_hop(&mut self, number: u32, keys: HopKeys, open: bool, edge: &mut impl Edge, now: Nanos) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let (Role::Origin(origin), Some(ahead)) = (&mut circuit.role, circuit.ahead) else { return };
        if !origin.open && origin.add_hop(keys) && open {
            origin.open = true;
            edge.opened(number, now);
            if let Some(Some(link)) = self.links.get_mut(ahead.link as usize) {
                self.turns.push_back(&mut link.origins, Self::turn(number, Direction::Ahead));
            }
        }
    }

    /// Forgets a circuit and tells its neighbours, except on the side that told us or went down.
    pub(super) fn close_circuit(
        &mut self,
        number: u32,
        reason: DestroyReason,
        told_by: Option<Direction>,
        edge: &mut impl Edge,
        now: Nanos,
    ) {
        for direction in [Direction::Back, Direction::Ahead] {
            self.empty(number, direction);
            let Some(Some(circuit)) = self.circuits.get(number as usize) else { return };
            let Some(side) = circuit.side(direction) else { continue };
            self.leave(number, direction, side);
            if told_by != Some(direction) {
                self.queue_control(side.link, ControlCell::Destroy { circ_id: side.circ_id, reason });
            }
        }
        let Some(circuit) = self.circuits.get_mut(number as usize).and_then(Option::take) else { return };
        self.circuit_count -= 1;
        let opened = match &circuit.role {
            Role::Carried(carried) => carried.ends_here,
            Role::Origin(origin) => origin.open,
        };
        if opened {
            edge.closed(number, now);
        }
        self.raise_own(Event::CircuitClosed { circuit: number, reason });
    }

    /// Queues a cell whose body stands in `frame`, ahead of all circuits.
    fn send_control(&mut self, link: u32, header: CircuitHeader, mut frame: Frame) {
        put_header(&mut frame, header);
        self.queue_control(link, ControlCell::Ready(frame));
    }

    pub(super) fn queue_control(&mut self, number: u32, cell: ControlCell) {
        let Some(Some(link)) = self.links.get_mut(number as usize) else {
            self.counters.drop(DropReason::UnknownCircuit);
            return;
        };
        if link.control.len() >= CONTROL_CELLS {
            self.counters.drop(DropReason::ControlFull);
            return;
        }
        let holds_frame = matches!(cell, ControlCell::Ready(_));
        match self.control.push(&mut link.control, cell) {
            Ok(()) => self.waiting += usize::from(holds_frame),
            Err(_) => self.counters.drop(DropReason::ControlFull),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::schedule::Law;
    use crate::engine::{Limits, NoEdge};

    fn slots(rate: u32) -> Box<Schedule> {
        Box::new(Schedule::new(Law::Jittered, rate, Nanos(0), [rate.to_be_bytes()[3]; 32]))
    }

    fn engine() -> Engine {
        Engine::new(Limits { links: 8, circuits: 1, events: 0, waiting: 0, ..Limits::default() })
    }

    /// Room for sealed cells before and behind a change of all links to a class of 20,000 cells per second.
    fn room(expected: bool) -> [usize; 2] {
        let mut engine = engine();
        for link in 0..8 {
            engine.apply(Command::AddLink { link, schedule: slots(300) }, &mut NoEdge, Nanos(0));
            if expected {
                engine.apply(Command::Expect { link, schedule: slots(20_000) }, &mut NoEdge, Nanos(0));
            }
        }
        let before = engine.due.capacity();
        for link in 0..8 {
            let (from, schedule) = (Nanos(1_000_000_000), slots(20_000));
            engine.apply(Command::SetSchedule { link, from, schedule }, &mut NoEdge, Nanos(0));
        }
        [before, engine.due.capacity()]
    }

    #[test]
    fn an_expected_class_needs_no_memory_when_it_comes() {
        let [before, behind] = room(true);
        assert_eq!(before, behind);
        let [before, behind] = room(false);
        assert!(before < behind, "the test sees what is allocated: {before}, {behind}");
    }

    #[test]
    fn a_links_silence_follows_its_slowest_class() {
        let mut engine = engine();
        let second = Nanos::SECOND.0;
        let silence = |engine: &Engine| engine.links[0].as_ref().unwrap().silence.0.div_ceil(second);
        engine.apply(Command::AddLink { link: 0, schedule: slots(1500) }, &mut NoEdge, Nanos(0));
        assert_eq!(silence(&engine), 2);
        engine.apply(Command::Expect { link: 0, schedule: slots(2) }, &mut NoEdge, Nanos(0));
        assert!((4..=5).contains(&silence(&engine)));
        let (from, schedule) = (Nanos(second), slots(1));
        engine.apply(Command::SetSchedule { link: 0, from, schedule }, &mut NoEdge, Nanos(0));
        assert!((8..=9).contains(&silence(&engine)));
    }
}
