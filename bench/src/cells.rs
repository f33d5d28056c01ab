//! The neighbours of a relay under test: keys that are known on both sides, cells for it, and a look at what it sends.
//!
//! A pair is two links of the relay, one towards the entry and one towards the exit, with a circuit across them.

use std::net::SocketAddr;

use relay_common::wire::{
    BODY_OFFSET, CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand, HopCommand,
    LAYER_FIELDS_LEN, LINK_HEADER_LEN, LayerFields, LinkHeader, TAG_LEN, layer_len,
};
use relay_user::crypto::{HopKeys, LinkKeys, Split, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, Session, Side};

/// The relay is in the middle of three.
const DEPTH: usize = 1;
/// Receiver indices at the relay, and at its neighbours, begin here; a link's number is added.
const AT_RELAY: u32 = 0x0eb1_0000;
const AT_NEIGHBOUR: u32 = 0x0eb2_0000;
/// Slots per second towards the entry: the fewest, since what goes there is not what is measured.
const BACK_RATE: u32 = 1;

/// Number of a pair of links, from 0. Pair `n` has the links `2n` and `2n + 1`, and circuit `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(pub u32);

impl Pair {
    /// The circuit's number.
    pub const fn circuit(self) -> u32 {
        self.0
    }

    /// The circuit's side towards the entry.
    pub const fn back(self) -> Side {
        Side { link: 2 * self.0, circ_id: 5 }
    }

    /// The circuit's side towards the exit.
    pub const fn ahead(self) -> Side {
        Side { link: 2 * self.0 + 1, circ_id: 6 }
    }

    /// Both links' numbers.
    pub const fn links(self) -> [u32; 2] {
        [self.back().link, self.ahead().link]
    }

    /// The receiver index that cells of `link` carry on their way to the relay.
    pub const fn index_at_relay(link: u32) -> u32 {
        AT_RELAY + link
    }

    /// The receiver index that cells of `link` carry on their way from the relay.
    pub const fn index_at_neighbour(link: u32) -> u32 {
        AT_NEIGHBOUR + link
    }

    /// The pair whose link towards the exit has cells with `receiver_index`.
    pub const fn ahead_of(receiver_index: u32) -> Option<Self> {
        let link = receiver_index.wrapping_sub(AT_NEIGHBOUR);
        if link < AT_NEIGHBOUR - AT_RELAY && link % 2 == 1 { Some(Self(link / 2)) } else { None }
    }

    /// What sets the relay up for the pair: `rate` slots per second (1 to 200,000) towards the exit, neighbours that
    /// send from `source`. The circuit carries cells once the relay was sent [`Upstream::extend`] and has obeyed
    /// [`Command::Extend`].
    pub fn commands(self, rate: u32, source: SocketAddr, now: Nanos) -> Vec<Command> {
        self.commands_with(Law::Constant, rate, source, now, now)
    }

    /// As [`Self::commands`], with slots towards the exit by `law` from `start` on.
    pub fn commands_with(
        self,
        law: Law,
        rate: u32,
        source: SocketAddr,
        start: Nanos,
        now: Nanos,
    ) -> Vec<Command> {
        let mut commands = Vec::new();
        for (link, law, rate, initiator) in
            [(self.back().link, Law::Constant, BACK_RATE, false), (self.ahead().link, law, rate, true)]
        {
            let mut seed = [7; 32];
            seed[..4].copy_from_slice(&link.to_be_bytes());
            let schedule = Box::new(Schedule::without_offset(law, rate, start, seed));
            commands.push(Command::AddLink { link, schedule });
            let keys = link_keys(link, initiator);
            let (here, there) = (Self::index_at_relay(link), Self::index_at_neighbour(link));
            let session = Box::new(Session::new(link, here, there, keys, source, now));
            commands.push(Command::InstallSession { session, send_now: initiator });
        }
        let keys = Box::new(hop_keys(self));
        commands.push(Command::AddCarried {
            circuit: self.circuit(),
            back: self.back(),
            depth: DEPTH,
            keys,
            seq: 1,
        });
        commands
    }
}

/// The neighbour towards the entry: seals cells for the relay.
pub struct Upstream {
    pair: Pair,
    link: LinkKeys,
    hop: HopKeys,
    counter: u64,
    hop_seq: u64,
}

impl Upstream {
    /// One that has sent nothing.
    pub fn new(pair: Pair) -> Self {
        Self { pair, link: link_keys(pair.back().link, true), hop: hop_keys(pair), counter: 0, hop_seq: 0 }
    }

    /// Makes `cell` ask the relay to extend the circuit.
    pub fn extend(&mut self, cell: &mut [u8; CELL_LEN]) {
        self.layered(HopCommand::Extend, cell);
    }

    /// Makes `cell` one for the relay to forward. Returns the number that it has behind the relay.
    pub fn forward(&mut self, cell: &mut [u8; CELL_LEN]) -> u64 {
        self.layered(HopCommand::Forward, cell);
        self.hop_seq.wrapping_add(self.hop.forward_offset)
    }

    /// Makes `cell` cover of the link.
    pub fn cover(&mut self, cell: &mut [u8; CELL_LEN]) {
        cell.fill(0);
        self.number(cell);
        let header =
            CircuitHeader { circ_id: 0, command: CellCommand::Cover as u8, key_epoch: 0, hop_seq: 0 };
        cell[LINK_HEADER_LEN..LINK_HEADER_LEN + CIRCUIT_HEADER_LEN].copy_from_slice(&header.encode());
        self.link.send.seal_cell(cell);
    }

    fn number(&mut self, cell: &mut [u8; CELL_LEN]) {
        let receiver_index = Pair::index_at_relay(self.pair.back().link);
        let header = LinkHeader { receiver_index, counter: self.counter };
        self.counter += 1;
        cell[..LINK_HEADER_LEN].copy_from_slice(&header.encode());
    }

    fn layered(&mut self, command: HopCommand, cell: &mut [u8; CELL_LEN]) {
        self.hop_seq += 1;
        self.number(cell);
        let circ_id = self.pair.back().circ_id;
        let command_byte = CellCommand::Relay as u8;
        let header = CircuitHeader { circ_id, command: command_byte, key_epoch: 0, hop_seq: self.hop_seq };
        cell[LINK_HEADER_LEN..LINK_HEADER_LEN + CIRCUIT_HEADER_LEN].copy_from_slice(&header.encode());
        let layer = &mut cell[BODY_OFFSET..BODY_OFFSET + layer_len(DEPTH)];
        let fields = LayerFields { command: command as u8, flags: 0, length: 0 };
        let at = layer.len() - TAG_LEN - LAYER_FIELDS_LEN;
        layer[at..at + LAYER_FIELDS_LEN].copy_from_slice(&fields.encode());
        self.hop.forward.seal_layer(self.hop_seq, layer);
        self.link.send.seal_cell(cell);
    }
}

/// What a cell from the relay turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Cover.
    Cover,
    /// A cell of the circuit, with its number.
    Payload(u64),
    /// Authentic, and neither: a CREATE.
    Other,
    /// Not of this pair's link towards the exit.
    Foreign,
    /// Of the link, but refused by its AEAD.
    Unauthentic,
}

/// The neighbour towards the exit: opens the link layer of what the relay sends.
pub struct Downstream {
    pair: Pair,
    link: LinkKeys,
}

impl Downstream {
    /// One that opens the cells of `pair`.
    pub fn new(pair: Pair) -> Self {
        Self { pair, link: link_keys(pair.ahead().link, false) }
    }

    /// Opens `cell` in place. Returns the link counter too, which rises by one per cell that the relay sealed.
    pub fn open(&self, cell: &mut [u8; CELL_LEN]) -> (Opened, u64) {
        let header = cell.first_chunk().and_then(LinkHeader::decode);
        let index = Pair::index_at_neighbour(self.pair.ahead().link);
        let Some(header) = header.filter(|header| header.receiver_index == index) else {
            return (Opened::Foreign, 0);
        };
        if self.link.receive.open_cell(cell).is_err() {
            return (Opened::Unauthentic, header.counter);
        }
        let circuit = cell[LINK_HEADER_LEN..].first_chunk().and_then(CircuitHeader::decode);
        let opened = match circuit.map(|circuit| (circuit, CellCommand::from_byte(circuit.command))) {
            Some((circuit, Some(CellCommand::Cover))) if circuit.circ_id == 0 => Opened::Cover,
            Some((circuit, Some(CellCommand::Relay))) if circuit.circ_id == self.pair.ahead().circ_id => {
                Opened::Payload(circuit.hop_seq)
            }
            _ => Opened::Other,
        };
        (opened, header.counter)
    }
}

fn link_keys(link: u32, initiator: bool) -> LinkKeys {
    LinkKeys::derive(&split(1, link), Suite::Aes256Gcm, initiator)
}

fn hop_keys(pair: Pair) -> HopKeys {
    HopKeys::derive(&split(2, pair.0), Suite::Aes256Gcm)
}

fn split(kind: u8, number: u32) -> Split {
    let mut secret = [kind; 32];
    secret[..4].copy_from_slice(&number.to_be_bytes());
    Split { initiator_to_responder: secret, responder_to_initiator: secret.map(|byte| !byte) }
}
