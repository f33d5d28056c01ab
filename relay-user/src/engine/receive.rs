//! What happens to a cell between the port and an out-link's queue.

use super::circuit::{Direction, LayerError, QUEUE_CELLS, Role, Side, data_of};
use super::link::{ControlCell, Link, SESSION_CELLS};
use super::time::Nanos;
use super::{DropReason, Edge, Engine, Event, Witness, body_mut, put_header, relay_header};
use crate::xsk::Frame;
use relay_common::wire::{
    BODY_OFFSET, CIRCUIT_HEADER_LEN, CircuitHeader, Command, DestroyReason, FLAG_CIRCUIT_COVER, HopCommand,
    LINK_HEADER_LEN, LayerFields, LinkHeader, LossTotals, layer_len,
};
use std::net::SocketAddr;

impl<W: Witness> Engine<W> {
    /// Takes one datagram that the port received from `source`. Consumes the frame.
    pub fn receive(&mut self, mut frame: Frame, source: SocketAddr, edge: &mut impl Edge, now: Nanos) {
        match self.open(&mut frame, source, now) {
            Ok((link, header)) => self.dispatch(link, header, frame, edge, now),
            Err(reason) => self.counters.drop(reason),
        }
    }

    /// Begins to load what [`Self::receive`] will need of this cell's session. Called for a whole batch first, so that
    /// the waits for memory overlap.
    pub fn prefetch(&self, frame: &Frame) {
        let header = frame.data().first_chunk::<LINK_HEADER_LEN>().and_then(LinkHeader::decode);
        if let Some(place) = header.and_then(|header| self.sessions.find(header.receiver_index)) {
            self.sessions.prefetch(place);
        }
    }

    /// Opens the link layer; the frame then holds the cell's plaintext.
    fn open(
        &mut self,
        frame: &mut Frame,
        source: SocketAddr,
        now: Nanos,
    ) -> Result<(u32, CircuitHeader), DropReason> {
        let cell = frame.cell_mut().ok_or(DropReason::BadHeader)?;
        let header = cell.first_chunk::<LINK_HEADER_LEN>().ok_or(DropReason::BadHeader)?;
        let header = LinkHeader::decode(header).ok_or(DropReason::BadHeader)?;
        let place = self.sessions.find(header.receiver_index).ok_or(DropReason::UnknownSession)?;
        let session = self.sessions.get_mut(place).ok_or(DropReason::UnknownSession)?;
        if session.source != source {
            return Err(DropReason::WrongSource);
        }
        if session.is_expired(now) {
            return Err(DropReason::Expired);
        }
        session.keys.receive.open_cell(cell).map_err(|_| DropReason::Unauthentic)?;
        // A peer that seals beyond the keys' count is refused as one that seals beyond their time.
        if header.counter >= SESSION_CELLS {
            return Err(DropReason::Expired);
        }
        if !session.window.accept(header.counter) {
            return Err(DropReason::Replayed);
        }
        let (number, born) = (session.link, session.born);
        let beyond = session.expect(header.counter);
        self.counters.received += 1;
        let circuit_header = cell[LINK_HEADER_LEN..]
            .first_chunk::<CIRCUIT_HEADER_LEN>()
            .and_then(CircuitHeader::decode)
            .ok_or(DropReason::BadCircuitHeader)?;
        self.note_arrival(number, place, born, beyond, now);
        Ok((number, circuit_header))
    }

    /// The link lives, and its counter moved on by `beyond`; a cell under newer keys than those in use confirms them.
    #[inline]
    fn note_arrival(&mut self, number: u32, place: u32, born: Nanos, beyond: u64, now: Nanos) {
        let Some(Some(link)) = self.links.get_mut(number as usize) else { return };
        link.last_received = now;
        link.reported_silent = false;
        if let Some(extra) = &mut link.extra {
            extra.on_arrival(now);
        }
        link.expected = link.expected.saturating_add(beyond);
        link.arrived += 1;
        if link.sender == Some(place) {
            return;
        }
        let newer =
            link.sender.and_then(|sender| self.sessions.get(sender)).is_none_or(|old| old.born < born);
        if newer {
            self.send_with(number, place, now);
            let receive_index = self.sessions.get(place).map_or(0, |session| session.receive_index);
            // It comes once: lost, the control plane would take the link for one that never came up.
            self.raise_own(Event::SessionConfirmed { link: number, receive_index });
        }
    }

    fn dispatch(
        &mut self,
        link: u32,
        header: CircuitHeader,
        mut frame: Frame,
        edge: &mut impl Edge,
        now: Nanos,
    ) {
        let side = Side { link, circ_id: header.circ_id };
        let command = Command::from_byte(header.command);
        if header.circ_id == 0 {
            match command {
                Some(Command::Cover) => {
                    // The work that a layered cell costs, so that the time taken does not tell cover from payload.
                    if let Some(body) = body_mut(&mut frame) {
                        let _ = self.dummy.forward.open_layer(header.hop_seq, &mut body[..layer_len(0)]);
                    }
                }
                Some(Command::Loss) if !self.may_report(link, &mut frame) => {
                    self.counters.drop(DropReason::FalseReport);
                }
                Some(command) if command.is_link() => {
                    self.raise(Event::LinkControl { link, command, frame });
                }
                _ => self.counters.drop(DropReason::UnknownCommand),
            }
            return;
        }
        match (command, self.names.get(&side).map(|&turn| Self::side_of(turn))) {
            (Some(Command::Relay), Some((circuit, from))) => {
                self.relay(circuit, from, header, frame, edge, now);
            }
            (Some(Command::Create), None) => {
                self.raise(Event::Create { back: side, seq: header.hop_seq, frame });
            }
            (Some(Command::Created), None | Some((_, Direction::Ahead))) => {
                self.raise(Event::Created { ahead: side, frame });
            }
            (Some(Command::Destroy), known) => {
                let reason = DestroyReason::from_byte(frame.data().get(BODY_OFFSET).copied().unwrap_or(0));
                match known {
                    Some((circuit, from)) => self.close_circuit(circuit, reason, Some(from), edge, now),
                    None => {
                        self.raise(Event::CreateRefused { ahead: side, reason });
                    }
                }
            }
            (_, Some((circuit, _))) => {
                self.counters.drop(DropReason::UnknownCommand);
                self.close_circuit(circuit, DestroyReason::Protocol, None, edge, now);
            }
            (Some(Command::Relay), None) => {
                self.counters.drop(DropReason::UnknownCircuit);
                self.repeat_destroy(side);
            }
            (Some(_), None) => self.counters.drop(DropReason::UnknownCircuit),
            (None, None) => self.counters.drop(DropReason::UnknownCommand),
        }
    }

    fn may_report(&self, number: u32, frame: &mut Frame) -> bool {
        let totals = body_mut(frame).and_then(|body| body.first_chunk()).map(LossTotals::decode);
        let link = self.links.get(number as usize).and_then(Option::as_ref);
        link.zip(totals).is_some_and(|(link, totals)| link.can_have_lost(totals))
    }

    /// The peer still sends on a circuit that is gone: our DESTROY was lost. One at a time, and only where nothing else
    /// waits, so that it takes no slot from anything.
    fn repeat_destroy(&mut self, side: Side) {
        let idle = |link: &Link| link.control.is_empty();
        if self.links.get(side.link as usize).and_then(Option::as_ref).is_some_and(idle) {
            let reason = DestroyReason::Finished;
            self.queue_control(side.link, ControlCell::Destroy { circ_id: side.circ_id, reason });
        }
    }

    fn relay(
        &mut self,
        number: u32,
        from: Direction,
        header: CircuitHeader,
        mut frame: Frame,
        edge: &mut impl Edge,
        now: Nanos,
    ) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        self.witness.arrived(number, from, &frame);
        let Some(body) = body_mut(&mut frame) else { return };
        let result = match (&mut circuit.role, from) {
            (Role::Carried(carried), Direction::Back) => {
                carried.open_forward(header.hop_seq, body).and_then(|fields| {
                    match (HopCommand::from_byte(fields.command), circuit.ahead) {
                        (Some(HopCommand::Forward), Some(ahead)) => {
                            let seq = carried.pass_forward(header.hop_seq, body);
                            Ok(Step::Queue(Direction::Ahead, ahead, seq))
                        }
                        (Some(HopCommand::Extend), None) if carried.ask() => Ok(Step::Extend(fields.length)),
                        (Some(HopCommand::Data), None) if self.limits.exit && carried.may_end() => {
                            Ok(Step::Deliver(fields))
                        }
                        _ => Err(LayerError::Protocol),
                    }
                })
            }
            (Role::Carried(carried), Direction::Ahead) => match circuit.back {
                Some(back) => carried
                    .pass_backward(header.hop_seq, body)
                    .map(|seq| Step::Queue(Direction::Back, back, seq)),
                None => Err(LayerError::Protocol),
            },
            (Role::Origin(origin), _) => origin.open(header.hop_seq, body).and_then(|(depth, fields)| {
                match HopCommand::from_byte(fields.command) {
                    Some(HopCommand::Data) if origin.open => Ok(Step::Deliver(fields)),
                    Some(command @ (HopCommand::Extended | HopCommand::Refused)) if !origin.open => {
                        Ok(Step::Extended(depth, command, fields.length))
                    }
                    _ => Err(LayerError::Protocol),
                }
            }),
        };
        match result {
            Ok(Step::Queue(direction, side, seq)) => {
                put_header(&mut frame, relay_header(side.circ_id, seq));
                let queue = &mut circuit.queues[direction as usize];
                let room = self.waiting < self.limits.waiting && queue.len() < QUEUE_CELLS;
                let taken = room && self.cells.push(queue, frame).is_ok();
                self.witness.queued(number, direction, queue.len(), taken);
                if taken {
                    self.waiting += 1;
                    if let Some(Some(link)) = self.links.get_mut(side.link as usize) {
                        self.turns.push_back(&mut link.ready, Self::turn(number, direction));
                    }
                } else {
                    self.counters.drop(DropReason::QueueFull);
                }
            }
            Ok(Step::Deliver(fields)) => self.deliver(number, header.hop_seq, fields, frame, edge, now),
            Ok(Step::Extend(length)) => {
                if !self.raise(Event::Extend { circuit: number, length, frame }) {
                    self.close_circuit(number, DestroyReason::NoCapacity, None, edge, now);
                }
            }
            Ok(Step::Extended(depth, command, length)) => {
                self.raise(Event::Extended { circuit: number, depth, command, length, frame });
            }
            Err(LayerError::Replayed) => self.counters.drop(DropReason::HopReplayed),
            Err(LayerError::Unauthentic) => self.counters.drop(DropReason::HopUnauthentic),
            Err(LayerError::Protocol) => {
                self.counters.drop(DropReason::UnknownCommand);
                self.close_circuit(number, DestroyReason::Protocol, None, edge, now);
            }
        }
    }

    fn deliver(
        &mut self,
        number: u32,
        seq: u64,
        fields: LayerFields,
        mut frame: Frame,
        edge: &mut impl Edge,
        now: Nanos,
    ) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        if let Role::Carried(carried) = &mut circuit.role {
            if !std::mem::replace(&mut carried.ends_here, true) {
                edge.opened(number, now);
            }
            if fields.flags & FLAG_CIRCUIT_COVER != 0 {
                carried.owe(self.limits.spare);
            }
            self.enter_turn(number, Direction::Back);
        }
        if let Some(data) = body_mut(&mut frame).as_deref().and_then(data_of) {
            edge.deliver(number, seq, data, fields.length, now);
        }
    }
}

/// What a layered cell turned out to ask for.
enum Step {
    Queue(Direction, Side, u64),
    Deliver(LayerFields),
    Extend(u16),
    Extended(usize, HopCommand, u16),
}
