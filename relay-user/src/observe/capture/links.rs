//! Links in a capture: which datagrams are cells and handshakes, by direction.

use std::collections::{BTreeMap, HashMap};

use relay_common::wire::{CELL_LEN, DatagramType, LINK_HEADER_LEN, LinkHeader, RETRY_LEN};

use super::frame::{Datagram, Endpoint, Other, Seen};
use super::sessions::{Arrival, Sessions};
use crate::observe::trace::{Sight, Trace};

/// Bytes of a cell behind its clear header: all look random.
const HIDDEN: usize = CELL_LEN - LINK_HEADER_LEN;
/// Different lengths told apart in a direction; one with more is no link's.
const LENGTHS: usize = 64;
/// Handshake datagrams whose times are kept in each direction.
const HANDSHAKES: usize = 8192;

/// How much is kept of a capture. What goes beyond is counted, and said.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Directions of links that are told apart.
    pub directions: usize,
    /// Cells of one direction whose times are kept, 16 bytes each.
    pub cells: usize,
    /// The same of all together.
    pub all_cells: usize,
    /// Directions whose bytes are tallied, 1.4 MB each.
    pub tallied: usize,
}

impl Default for Limits {
    /// About 300 MB in all.
    fn default() -> Self {
        Self { directions: 64, cells: 1 << 22, all_cells: 1 << 24, tallied: 16 }
    }
}

/// How often each value stood at each place of a cell behind its header.
#[derive(Clone, Debug, Default)]
pub struct Bytes {
    counts: Vec<u32>,
    cells: u32,
}

impl Bytes {
    /// Cells tallied.
    pub const fn cells(&self) -> u32 {
        self.cells
    }

    /// For each place, how often each of the 256 values stood there; empty where no cell was tallied.
    pub fn places(&self) -> impl Iterator<Item = &[u32]> {
        self.counts.chunks_exact(256)
    }

    fn take(&mut self, hidden: &[u8]) {
        if hidden.len() != HIDDEN || self.cells == u32::MAX {
            return;
        }
        self.counts.resize(HIDDEN * 256, 0);
        for (place, value) in self.counts.chunks_exact_mut(256).zip(hidden) {
            place[usize::from(*value)] += 1;
        }
        self.cells += 1;
    }
}

/// One direction of a link.
#[derive(Debug)]
pub struct Direction {
    /// UDP ports, of the sender and of the receiver.
    pub ports: (u16, u16),
    /// Cells, and whatever else went between the same ports, in order of time; without handshakes and repetitions.
    pub trace: Trace,
    /// Different cells seen, kept in `trace` or not.
    pub cells: u64,
    /// When the first and the last cell was seen, in nanoseconds since 1970.
    pub span: (u64, u64),
    /// Lengths of datagrams that are no handshakes, and how many had each.
    pub lengths: BTreeMap<u16, u64>,
    /// Handshake datagrams and when they were seen.
    pub handshakes: Vec<(u64, DatagramType)>,
    /// Datagrams between the same ports that are neither cells nor handshakes.
    pub strange: u64,
    /// Counters.
    pub sessions: Sessions,
    /// Cells that were seen again.
    pub repeated: u64,
    /// Cells that were overtaken.
    pub late: u64,
    /// Cells whose times were not kept.
    pub unkept: u64,
    /// Cells of which the capture holds only a part.
    pub cut: u64,
    /// Values of their bytes.
    pub bytes: Bytes,
    flow: (Endpoint, Endpoint),
    sights: Vec<Sight>,
    seen_first: u64,
}

impl Direction {
    fn new(flow: (Endpoint, Endpoint), at: u64) -> Self {
        Self {
            ports: (flow.0.port(), flow.1.port()),
            trace: Trace::default(),
            cells: 0,
            span: (u64::MAX, 0),
            lengths: BTreeMap::new(),
            handshakes: Vec::new(),
            strange: 0,
            sessions: Sessions::default(),
            repeated: 0,
            late: 0,
            unkept: 0,
            cut: 0,
            bytes: Bytes::default(),
            flow,
            sights: Vec::new(),
            seen_first: at,
        }
    }

    /// Seconds between the first and the last cell.
    pub fn seconds(&self) -> f64 {
        self.span.1.saturating_sub(self.span.0) as f64 / 1e9
    }

    fn began(&self) -> bool {
        self.handshakes.iter().any(|(_, kind)| *kind == DatagramType::HsInit)
    }
}

/// An adjacency of two nodes, with the one or two directions that were captured.
#[derive(Debug)]
pub struct Link {
    /// A, B, ... in the order in which they were first seen.
    pub name: String,
    /// First the one in which the link was begun, as far as can be told.
    pub directions: Vec<Direction>,
}

/// What the capture held in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets.
    pub packets: u64,
    /// Datagrams that belong to links.
    pub of_links: u64,
    /// Other datagrams.
    pub udp: u64,
    /// Datagrams of a cell's length of which too few bytes were captured to tell what they are.
    pub headless: u64,
    /// Cells and handshakes of more directions than are told apart.
    pub unlisted: u64,
    /// What else there was.
    pub others: BTreeMap<Other, u64>,
    /// When the first and the last packet was seen, in nanoseconds since 1970.
    pub span: (u64, u64),
}

/// A whole capture.
#[derive(Debug)]
pub struct Capture {
    /// Links with at least one cell or handshake.
    pub links: Vec<Link>,
    /// Everything, counted.
    pub totals: Totals,
}

/// Collects links from packets, in order.
#[derive(Debug)]
pub struct Links {
    limits: Limits,
    flows: HashMap<(Endpoint, Endpoint), Direction>,
    totals: Totals,
    kept: usize,
    tallied: usize,
}

impl Links {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        let totals = Totals { span: (u64::MAX, 0), ..Totals::default() };
        Self { limits, flows: HashMap::new(), totals, kept: 0, tallied: 0 }
    }

    /// Takes in a packet that was seen at `at`, in nanoseconds since 1970.
    pub fn take(&mut self, at: u64, seen: &Seen<'_>) {
        let totals = &mut self.totals;
        totals.packets += 1;
        totals.span = (totals.span.0.min(at), totals.span.1.max(at));
        let datagram = match seen {
            Seen::Udp(datagram) => datagram,
            Seen::Other(other) => {
                *totals.others.entry(*other).or_default() += 1;
                return;
            }
        };
        let flow = (datagram.from, datagram.to);
        if !self.flows.contains_key(&flow) && !self.admit(flow, at, datagram) {
            return;
        }
        let Some(direction) = self.flows.get_mut(&flow) else { return };
        self.totals.of_links += 1;
        let tally = direction.bytes.cells > 0 || self.tallied < self.limits.tallied;
        let (before, untallied) = (direction.sights.len(), direction.bytes.cells == 0);
        let room = self.kept < self.limits.all_cells && before < self.limits.cells;
        direction.take(at, datagram, room, tally);
        self.kept += direction.sights.len() - before;
        self.tallied += usize::from(untallied && direction.bytes.cells > 0);
    }

    /// The links, named.
    pub fn finish(self) -> Capture {
        let mut directions: Vec<Direction> = self.flows.into_values().collect();
        directions.sort_by_key(|direction| (direction.seen_first, direction.flow));
        let mut links: Vec<Link> = Vec::new();
        for mut direction in directions {
            direction.trace = Trace::new(std::mem::take(&mut direction.sights));
            let back = (direction.flow.1, direction.flow.0);
            match links.iter_mut().find(|link| link.directions.iter().any(|other| other.flow == back)) {
                Some(link) => {
                    let other = link.directions.first();
                    let first = other.is_some_and(|other| {
                        (direction.began(), direction.ports.0) > (other.began(), other.ports.0)
                    });
                    link.directions.insert(usize::from(!first), direction);
                }
                None => links.push(Link { name: name(links.len()), directions: vec![direction] }),
            }
        }
        Capture { links, totals: self.totals }
    }

    /// Whether a flow that is not known yet becomes one of a link's.
    fn admit(&mut self, flow: (Endpoint, Endpoint), at: u64, datagram: &Datagram<'_>) -> bool {
        let length = usize::from(datagram.length);
        if length == CELL_LEN && datagram.payload.len() < LINK_HEADER_LEN {
            self.totals.headless += 1;
            return false;
        }
        // 64 bytes that look like a RETRY are one only where a handshake went the other way.
        let answers = self.flows.contains_key(&(flow.1, flow.0));
        match Kind::of(datagram) {
            Kind::Cell(header) if Sessions::is_counter(header.counter) => {}
            Kind::Handshake(kind) if kind != DatagramType::Retry || answers => {}
            _ => {
                self.totals.udp += 1;
                return false;
            }
        }
        if self.flows.len() >= self.limits.directions {
            self.totals.unlisted += 1;
            return false;
        }
        self.flows.insert(flow, Direction::new(flow, at));
        true
    }
}

impl Direction {
    fn take(&mut self, at: u64, datagram: &Datagram<'_>, room: bool, tally: bool) {
        match Kind::of(datagram) {
            Kind::Handshake(kind) => {
                if self.handshakes.len() < HANDSHAKES {
                    self.handshakes.push((at, kind));
                }
                return;
            }
            Kind::Cell(header) => match self.sessions.take(at, header.receiver_index, header.counter) {
                Arrival::Repeated => {
                    self.repeated += 1;
                    return;
                }
                Arrival::Impossible => self.strange += 1,
                arrival => {
                    self.late += u64::from(arrival == Arrival::Late);
                    self.cells += 1;
                    self.span = (self.span.0.min(at), self.span.1.max(at));
                    match datagram.payload.get(LINK_HEADER_LEN..CELL_LEN) {
                        Some(hidden) if tally => self.bytes.take(hidden),
                        Some(_) => {}
                        None => self.cut += 1,
                    }
                }
            },
            Kind::Strange => self.strange += 1,
        }
        if self.lengths.contains_key(&datagram.length) || self.lengths.len() < LENGTHS {
            *self.lengths.entry(datagram.length).or_default() += 1;
        }
        if room {
            self.sights.push(Sight { at, length: datagram.length });
        } else {
            self.unkept += 1;
        }
    }
}

enum Kind {
    Cell(LinkHeader),
    Handshake(DatagramType),
    Strange,
}

impl Kind {
    fn of(datagram: &Datagram<'_>) -> Self {
        let Some(header) = datagram.payload.first_chunk::<LINK_HEADER_LEN>() else { return Self::Strange };
        let length = usize::from(datagram.length);
        match (DatagramType::from_byte(header[0]), header) {
            (Some(DatagramType::Cell), _) if length == CELL_LEN => {
                LinkHeader::decode(header).map_or(Self::Strange, Self::Cell)
            }
            (Some(kind @ DatagramType::HsInit), [_, 1 | 2, 0, 0, ..]) if length == CELL_LEN => {
                Self::Handshake(kind)
            }
            (Some(kind @ DatagramType::HsResp), [_, 0, 0, 0, _, _, _, _, _, _, _, _, 0, 0, 0, 0])
                if length == CELL_LEN =>
            {
                Self::Handshake(kind)
            }
            (Some(kind @ DatagramType::Retry), [_, 0, 0, 0, 0, 0, 0, 0, ..]) if length == RETRY_LEN => {
                Self::Handshake(kind)
            }
            _ => Self::Strange,
        }
    }
}

/// A, B, ..., Z, AA, AB, ...
fn name(number: usize) -> String {
    let mut name = String::new();
    let mut rest = number + 1;
    while rest > 0 {
        rest -= 1;
        let letter = u8::try_from(rest % 26).unwrap_or(0);
        name.insert(0, char::from(b'A' + letter));
        rest /= 26;
    }
    name
}
