//! The sans-IO data plane: links, circuits, slots and cover. No clock, no system calls, no allocation after start:
//! time comes in as [`Nanos`], cells come in as [`Frame`]s and leave through a function that the caller passes.

mod apply;
mod circuit;
mod counters;
mod departure;
pub mod extra;
mod link;
mod list;
mod message;
mod queue;
mod receive;
pub mod replay;
pub mod schedule;
mod send;
mod sessions;
pub mod time;
pub mod wheel;
mod witness;

pub use circuit::{Direction, QUEUE_CELLS, Side};
pub use counters::{Counters, DropReason};
pub use departure::{Content, Departure, Outlet};
pub use link::{CONTROL_CELLS, SESSION_CELLS, SESSION_LIFE, Session};
pub use message::{Command, Event, Home};
pub use witness::{Unwatched, Witness};

use crate::crypto::{HopKeys, Split, Suite};
use crate::xsk::{Frame, FramePool};
use circuit::{Circuit, Role};
use link::{ControlCell, Link};
use list::Places;
use queue::Store;
use relay_common::wire::{
    BODY_LEN, BODY_OFFSET, CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand, DATA_LEN,
    LINK_HEADER_LEN,
};
use sessions::Sessions;
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
    /// A circuit that ends here carries data from now on: at the client when its last hop is there, at the exit just
    /// before the first `deliver`.
    fn opened(&mut self, circuit: u32, now: Nanos);
    /// A circuit that was opened is gone.
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
    /// Events that peers cause and that may wait for the control plane. Those of the engine itself (a circuit closed,
    /// a link silent, a session confirmed) have room of their own, one per circuit and three per link.
    pub events: usize,
    /// Cells that may wait in the queues of all circuits and links together. To be kept well below the arena's frames:
    /// where queues take them all, slots find none for cover.
    pub waiting: usize,
    /// How long before its slot a cell is chosen and sealed.
    pub lead: Nanos,
    /// A link is silent when nothing authenticated came for so long.
    pub silence: Nanos,
    /// Circuits may end here.
    pub exit: bool,
    /// Where they do, one in so many cells of circuit cover gets no answer: an exit that answered all of them would fill
    /// every slot of a client's link, or one more than it has where the link is the slower. See [`schedule::Law::spare`].
    pub spare: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: 256,
            circuits: 4096,
            events: 256,
            waiting: 8192,
            lead: Nanos(200_000),
            silence: Nanos(2 * Nanos::SECOND.0),
            exit: false,
            spare: schedule::Law::Jittered.spare(),
        }
    }
}

/// A sealed cell that waits for its slot.
#[derive(Debug)]
struct Due {
    deadline: Nanos,
    /// When it is too late for the cell to go.
    latest: Nanos,
    link: u32,
    content: Content,
    /// Beyond the link's schedule.
    extra: bool,
    frame: Frame,
}

/// Control cells that may wait in all: [`CONTROL_CELLS`] for each link up to this many, and a DESTROY for every circuit,
/// as when a link that all of them use goes down.
const CONTROL_STORE: usize = 1 << 14;

/// The data plane of one worker, and who looks on: nobody, where nothing else is said.
#[derive(Debug)]
pub struct Engine<W = Unwatched> {
    limits: Limits,
    links: Vec<Option<Link>>,
    sessions: Sessions,
    circuits: Vec<Option<Box<Circuit>>>,
    circuit_count: usize,
    /// By the circuit's name on a link: the circuit side's number.
    names: HashMap<Side, u32, foldhash::fast::RandomState>,
    /// Circuit sides in their links' turns.
    turns: Places,
    /// Circuit sides by link.
    sides: Places,
    /// Cells in the queues of circuits, and cells that links hold.
    cells: Store<Frame>,
    control: Store<ControlCell>,
    wheel: Wheel,
    due: VecDeque<Due>,
    /// Those in `due` that are beyond their links' schedules.
    extras: usize,
    /// Cells that all links together may have in `due`.
    sealed_bound: usize,
    /// Cells in the queues of circuits and links.
    waiting: usize,
    events: VecDeque<Event>,
    counters: Counters,
    /// Opens what received cover holds, to no end but the time it takes.
    dummy: HopKeys,
    witness: W,
}

impl Engine {
    /// An engine with nothing on it.
    pub fn new(limits: Limits) -> Self {
        Self::watched(limits, Unwatched)
    }
}

impl<W: Witness> Engine<W> {
    /// An engine with nothing on it, and `witness` looking on.
    pub fn watched(limits: Limits, witness: W) -> Self {
        let links = limits.links as usize;
        let circuits = limits.circuits as usize;
        Self {
            limits,
            links: std::iter::repeat_with(|| None).take(links).collect(),
            sessions: Sessions::new(2 * links),
            circuits: std::iter::repeat_with(|| None).take(circuits).collect(),
            circuit_count: 0,
            names: HashMap::with_capacity_and_hasher(2 * circuits, foldhash::fast::RandomState::default()),
            turns: Places::new(2 * circuits),
            sides: Places::new(2 * circuits),
            cells: Store::new(limits.waiting + 4 * links),
            control: Store::new((CONTROL_CELLS * links).min(CONTROL_STORE) + circuits),
            wheel: Wheel::new(links),
            due: VecDeque::with_capacity(4 * links),
            extras: 0,
            sealed_bound: 0,
            waiting: 0,
            events: VecDeque::with_capacity(limits.events + circuits + 3 * links),
            counters: Counters::default(),
            // No secret: what this key opens is thrown away.
            dummy: HopKeys::derive(
                &Split { initiator_to_responder: [0; 32], responder_to_initiator: [0; 32] },
                Suite::Aes256Gcm,
            ),
            witness,
        }
    }

    /// Its bounds and constants.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Totals since start.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether there is any link.
    pub fn has_links(&self) -> bool {
        self.links.iter().any(Option::is_some)
    }

    /// Circuits known now.
    pub const fn circuit_count(&self) -> usize {
        self.circuit_count
    }

    /// Cells that wait in the queues of all circuits and links; at most [`Limits::waiting`] where peers put them there,
    /// and [`CONTROL_CELLS`] per link of the control plane's.
    pub const fn waiting_cells(&self) -> usize {
        self.waiting
    }

    /// Cells that are sealed and wait for a slot.
    pub fn sealed_cells(&self) -> usize {
        self.due.len() + self.links.iter().flatten().map(|link| link.held.len()).sum::<usize>()
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

    /// Tells the control plane what a peer caused. False, and counted, where too much waits already.
    fn raise(&mut self, event: Event) -> bool {
        self.raise_within(self.limits.events, event)
    }

    /// Tells the control plane what it must know to keep its books.
    fn raise_own(&mut self, event: Event) -> bool {
        self.raise_within(self.events.capacity(), event)
    }

    fn raise_within(&mut self, bound: usize, event: Event) -> bool {
        if self.events.len() >= bound {
            self.counters.drop(DropReason::EventsFull);
            return false;
        }
        self.events.push_back(event);
        true
    }

    /// The number of a circuit side in the tables of turns and sides.
    const fn turn(number: u32, direction: Direction) -> u32 {
        2 * number + direction as u32
    }

    /// The circuit side of such a number.
    const fn side_of(turn: u32) -> (u32, Direction) {
        (turn / 2, if turn.is_multiple_of(2) { Direction::Back } else { Direction::Ahead })
    }

    fn enter_turn(&mut self, number: u32, direction: Direction) {
        let Some(Some(circuit)) = self.circuits.get(number as usize) else { return };
        let Some(side) = circuit.side(direction) else { return };
        if let Some(Some(link)) = self.links.get_mut(side.link as usize) {
            self.turns.push_back(&mut link.ready, Self::turn(number, direction));
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

#[inline]
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
