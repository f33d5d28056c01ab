//! The sans-IO data plane: links, circuits, slots and cover. No clock, no system calls, no allocation after start:
//! time comes in as [`Nanos`], cells come in as [`Frame`]s and leave through a function that the caller passes.

mod circuit;
mod counters;
mod link;
mod message;
mod receive;
pub mod replay;
pub mod schedule;
mod send;
pub mod time;
pub mod wheel;

pub use circuit::{Direction, QUEUE_CELLS, Side};
pub use counters::{Counters, DropReason};
pub use link::{CONTROL_CELLS, SESSION_CELLS, SESSION_LIFE, Session};
pub use message::{Command, Event};

use crate::xsk::{Frame, FramePool};
use circuit::{Carried, Circuit, Origin, Role};
use link::{ControlCell, Link};
use relay_common::wire::{
    BODY_LEN, BODY_OFFSET, CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand, DATA_LEN,
    DestroyReason, HopCommand, LINK_HEADER_LEN, LayerFields,
};
use std::collections::{HashMap, VecDeque};
use time::Nanos;
use wheel::Wheel;

/// Where IP packets enter and leave circuits. Circuit numbers are those of the commands.
pub trait Edge {
    /// Takes the data of one cell that ended here. `seq` rises by one per cell sent; cells may be lost or reordered.
    fn deliver(&mut self, circuit: u32, seq: u64, data: &[u8; DATA_LEN], block_offset: u16, now: Nanos);
    /// Fills one cell for `circuit`, with padding where nothing waits; returns the block offset.
    fn fill(&mut self, circuit: u32, data: &mut [u8; DATA_LEN], now: Nanos) -> u16;
    /// Whether `circuit` has packets that wait.
    fn has_data(&self, circuit: u32) -> bool;
    /// A circuit that ends here carries data from now on.
    fn opened(&mut self, circuit: u32, now: Nanos);
    /// A circuit is gone.
    fn closed(&mut self, circuit: u32, now: Nanos);
}

/// An edge for relays that end no circuits: takes nothing, has nothing.
#[derive(Debug, Default)]
pub struct NoEdge;

impl Edge for NoEdge {
    fn deliver(&mut self, _: u32, _: u64, _: &[u8; DATA_LEN], _: u16, _: Nanos) {}
    fn fill(&mut self, _: u32, data: &mut [u8; DATA_LEN], _: Nanos) -> u16 {
        data.fill(0);
        0
    }
    fn has_data(&self, _: u32) -> bool {
        false
    }
    fn opened(&mut self, _: u32, _: Nanos) {}
    fn closed(&mut self, _: u32, _: Nanos) {}
}

/// Bounds and constants of an engine, fixed at start.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Links, at most.
    pub links: u32,
    /// Circuits, at most.
    pub circuits: u32,
    /// Events that may wait for the control plane.
    pub events: usize,
    /// How long before its slot a cell is chosen and sealed.
    pub lead: Nanos,
    /// A link is silent when nothing authenticated came for so long.
    pub silence: Nanos,
    /// Circuits may end here.
    pub exit: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: 256,
            circuits: 4096,
            events: 256,
            lead: Nanos(200_000),
            silence: Nanos(2 * Nanos::SECOND.0),
            exit: false,
        }
    }
}

/// A sealed cell that waits for its slot.
#[derive(Debug)]
struct Due {
    deadline: Nanos,
    link: u32,
    frame: Frame,
}

/// The data plane of one worker.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    links: Vec<Option<Link>>,
    sessions: HashMap<u32, Box<Session>>,
    circuits: Vec<Option<Box<Circuit>>>,
    names: HashMap<Side, (u32, Direction)>,
    wheel: Wheel,
    filed: Vec<bool>,
    due: VecDeque<Due>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Engine {
    /// An engine with nothing on it.
    pub fn new(limits: Limits) -> Self {
        let links = limits.links as usize;
        let circuits = limits.circuits as usize;
        Self {
            limits,
            links: std::iter::repeat_with(|| None).take(links).collect(),
            sessions: HashMap::with_capacity(4 * links),
            circuits: std::iter::repeat_with(|| None).take(circuits).collect(),
            names: HashMap::with_capacity(2 * circuits),
            wheel: Wheel::new(links),
            filed: vec![false; links],
            due: VecDeque::with_capacity(4 * links),
            events: VecDeque::with_capacity(limits.events),
            counters: Counters::default(),
        }
    }

    /// Totals since start.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Circuits known now.
    pub fn circuit_count(&self) -> usize {
        self.circuits.iter().flatten().count()
    }

    /// The oldest event not yet taken.
    pub fn pop_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Puts an event back that the control plane had no room for.
    pub fn unpop_event(&mut self, event: Event) {
        self.events.push_front(event);
    }

    /// Tells that the edge has packets for a circuit that ends here.
    pub fn notify_data(&mut self, circuit: u32) {
        if let Some(Some(entry)) = self.circuits.get(circuit as usize)
            && matches!(entry.role, Role::Carried(_))
        {
            self.enter_turn(circuit, Direction::Back);
        }
    }

    /// Carries out a command of the control plane.
    pub fn apply(&mut self, command: Command, edge: &mut impl Edge, now: Nanos) {
        match command {
            Command::AddLink { link, schedule } => {
                if let Some(slot) = self.links.get_mut(link as usize) {
                    *slot = Some(Link::new(*schedule, now, self.limits.circuits.min(4096) as usize));
                }
            }
            Command::InstallSession { session, send_now } => self.install(session, send_now, now),
            Command::RemoveSession { receive_index } => {
                self.sessions.remove(&receive_index);
            }
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
                let mut origin = Origin::new(seq, cover);
                origin.add_hop(*keys);
                self.add_circuit(circuit, Circuit::new(None, Some(ahead), Role::Origin(origin)));
            }
            Command::SendExtend { circuit, length, frame } => self.send_extend(circuit, length, frame),
            Command::AddHop { circuit, keys, open } => self.add_hop(circuit, *keys, open, edge, now),
            Command::CloseCircuit { circuit, reason } => {
                self.close_circuit(circuit, reason, None, edge, now);
            }
        }
    }

    fn install(&mut self, session: Box<Session>, send_now: bool, now: Nanos) {
        let (number, index) = (session.link, session.receive_index);
        let Some(Some(link)) = self.links.get_mut(number as usize) else { return };
        self.sessions.insert(index, session);
        link.last_received = now;
        link.reported_silent = false;
        if send_now {
            self.send_with(number, index, now);
        }
    }

    /// Seals a link's cells with session `index` from the next slot on; starts the slots where they stood still.
    fn send_with(&mut self, number: u32, index: u32, now: Nanos) {
        let Some(Some(link)) = self.links.get_mut(number as usize) else { return };
        link.sender = Some(index);
        if !std::mem::replace(&mut self.filed[number as usize], true) {
            while link.schedule.deadline() < now + self.limits.lead {
                link.schedule.advance();
            }
            let at = Nanos(link.schedule.deadline().0.saturating_sub(self.limits.lead.0));
            self.wheel.insert(number, at);
        }
    }

    fn remove_link(&mut self, number: u32, edge: &mut impl Edge, now: Nanos) {
        let Some(slot) = self.links.get_mut(number as usize) else { return };
        // The wheel may still hold the number; it is dropped there when it comes up.
        *slot = None;
        self.sessions.retain(|_, session| session.link != number);
        for circuit in 0..self.limits.circuits {
            let Some(Some(entry)) = self.circuits.get(circuit as usize) else { continue };
            let on_link = |side: Option<Side>| side.is_some_and(|side| side.link == number);
            if on_link(entry.back) || on_link(entry.ahead) {
                self.close_circuit(circuit, DestroyReason::LinkDown, None, edge, now);
            }
        }
    }

    fn add_circuit(&mut self, number: u32, circuit: Circuit) {
        let Some(slot) = self.circuits.get_mut(number as usize).filter(|slot| slot.is_none()) else {
            self.raise(Event::CircuitClosed { circuit: number, reason: DestroyReason::NoCapacity });
            return;
        };
        for (side, direction) in [(circuit.back, Direction::Back), (circuit.ahead, Direction::Ahead)] {
            if let Some(side) = side {
                self.names.insert(side, (number, direction));
            }
        }
        *slot = Some(Box::new(circuit));
    }

    fn extend(&mut self, number: u32, ahead: Side, frame: Frame) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let Role::Carried(carried) = &mut circuit.role else { return };
        let hop_seq = carried.extend_seq();
        if let Some(old) = circuit.ahead.replace(ahead) {
            self.names.remove(&old);
        }
        self.names.insert(ahead, (number, Direction::Ahead));
        let header = CircuitHeader {
            circ_id: ahead.circ_id,
            command: CellCommand::Create as u8,
            key_epoch: 0,
            hop_seq,
        };
        self.send_control(ahead.link, header, frame);
    }

    fn answer(&mut self, number: u32, command: HopCommand, length: u16, mut frame: Frame) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let (Role::Carried(carried), Some(back)) = (&mut circuit.role, circuit.back) else { return };
        if command == HopCommand::Refused
            && let Some(ahead) = circuit.ahead.take()
        {
            self.names.remove(&ahead);
        }
        let Some(body) = body_mut(&mut frame) else { return };
        let hop_seq = carried.own_backward(command, length, body);
        let header = relay_header(back.circ_id, hop_seq);
        self.send_control(back.link, header, frame);
    }

    fn send_extend(&mut self, number: u32, length: u16, mut frame: Frame) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let (Role::Origin(origin), Some(ahead)) = (&mut circuit.role, circuit.ahead) else { return };
        let Some(body) = body_mut(&mut frame) else { return };
        let fields = LayerFields { command: HopCommand::Extend as u8, flags: 0, length };
        let hop_seq = origin.seal(fields, body);
        self.send_control(ahead.link, relay_header(ahead.circ_id, hop_seq), frame);
    }

    fn add_hop(
        &mut self,
        number: u32,
        keys: crate::crypto::HopKeys,
        open: bool,
        edge: &mut impl Edge,
        now: Nanos,
    ) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let (Role::Origin(origin), Some(ahead)) = (&mut circuit.role, circuit.ahead) else { return };
        if origin.add_hop(keys) && open && !std::mem::replace(&mut origin.open, true) {
            edge.opened(number, now);
            if let Some(Some(link)) = self.links.get_mut(ahead.link as usize) {
                link.origins.push_back(number);
            }
        }
    }

    /// Forgets a circuit and tells its neighbours, except the side that told us.
    fn close_circuit(
        &mut self,
        number: u32,
        reason: DestroyReason,
        told_by: Option<Direction>,
        edge: &mut impl Edge,
        now: Nanos,
    ) {
        let Some(circuit) = self.circuits.get_mut(number as usize).and_then(Option::take) else { return };
        for direction in [Direction::Back, Direction::Ahead] {
            let Some(side) = circuit.side(direction) else { continue };
            self.names.remove(&side);
            if let Some(Some(link)) = self.links.get_mut(side.link as usize) {
                link.ready.retain(|&key| key / 2 != number);
                link.origins.retain(|&origin| origin != number);
            }
            if told_by != Some(direction) {
                self.queue_control(side.link, ControlCell::Destroy { circ_id: side.circ_id, reason });
            }
        }
        edge.closed(number, now);
        self.raise(Event::CircuitClosed { circuit: number, reason });
    }

    /// Queues a cell whose body stands in `frame`, ahead of all circuits.
    fn send_control(&mut self, link: u32, header: CircuitHeader, mut frame: Frame) {
        put_header(&mut frame, header);
        self.queue_control(link, ControlCell::Ready(frame));
    }

    fn queue_control(&mut self, number: u32, cell: ControlCell) {
        let Some(Some(link)) = self.links.get_mut(number as usize) else {
            self.counters.drop(DropReason::UnknownCircuit);
            return;
        };
        if link.control.len() >= CONTROL_CELLS {
            self.counters.drop(DropReason::ControlFull);
            return;
        }
        link.control.push_back(cell);
    }

    fn raise(&mut self, event: Event) {
        if self.events.len() >= self.limits.events {
            self.counters.drop(DropReason::EventsFull);
            return;
        }
        self.events.push_back(event);
    }

    fn enter_turn(&mut self, number: u32, direction: Direction) {
        let Some(Some(circuit)) = self.circuits.get_mut(number as usize) else { return };
        let Some(side) = circuit.side(direction) else { return };
        if let Some(Some(link)) = self.links.get_mut(side.link as usize)
            && circuit.enter_turn(direction)
        {
            link.ready.push_back(2 * number + direction as u32);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "1360")]
const CELL_LEN_U16: u16 = CELL_LEN as u16;

/// The body of the cell in `frame`; `None` where the frame is not of a cell's size.
pub fn body_mut(frame: &mut Frame) -> Option<&mut [u8; BODY_LEN]> {
    frame.cell_mut()?[BODY_OFFSET..].first_chunk_mut()
}

/// Makes a frame ready for a cell with an empty body.
pub fn blank_cell(frame: &mut Frame) -> Option<&mut [u8; CELL_LEN]> {
    frame.reset(Frame::CELL_OFFSET, CELL_LEN_U16);
    let cell = frame.cell_mut()?;
    cell.fill(0);
    Some(cell)
}

fn relay_header(circ_id: u32, hop_seq: u64) -> CircuitHeader {
    CircuitHeader { circ_id, command: CellCommand::Relay as u8, key_epoch: 0, hop_seq }
}

fn put_header(frame: &mut Frame, header: CircuitHeader) {
    if let Some(cell) = frame.cell_mut() {
        cell[LINK_HEADER_LEN..LINK_HEADER_LEN + CIRCUIT_HEADER_LEN].copy_from_slice(&header.encode());
    }
}

/// Takes a frame out of the pool, ready for a cell.
fn take_cell(pool: &mut FramePool, counters: &mut Counters) -> Option<Frame> {
    let Some(mut frame) = pool.take() else {
        counters.drop(DropReason::NoFrame);
        return None;
    };
    blank_cell(&mut frame)?;
    Some(frame)
}
