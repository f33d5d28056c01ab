//! A middle relay with as many circuits as asked, and the cells that its clients would send it.

use relay_common::wire::{
    BODY_OFFSET, CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand, HopCommand,
    LAYER_FIELDS_LEN, LINK_HEADER_LEN, LayerFields, LinkHeader, TAG_LEN, layer_len,
};
use relay_user::crypto::{HopKeys, LinkKeys, Split, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, Engine, Event, Limits, NoEdge, Session, Side, blank_cell};
use relay_user::port::Peer;
use relay_user::xsk::{Arena, Frame, FramePool};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;

/// Slots per second of every link, each way.
pub(super) const RATE: u32 = 1000;
pub(super) const PERIOD: Nanos = Nanos(Nanos::SECOND.0 / RATE as u64);
/// Lateness up to which the engine still fills a slot of this rate: four slots, but at most 2 ms.
pub(super) const MADE_UP: Nanos = Nanos(2 * Nanos::MILLISECOND.0);
/// Links of a relay without circuits: enough for a p99.9 within half a second, few enough to be no load.
pub(super) const IDLE_LINKS: u32 = 16;
/// Circuits, at most.
pub(super) const MAX_CIRCUITS: u32 = 1000;
/// The place of the relay on its circuits.
const DEPTH: usize = 1;
/// Frames that a thread keeps to itself.
pub(super) const POOL: usize = 256;

/// What arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cells {
    /// Cells of circuits, to be forwarded.
    Payload,
    /// As many cells of the links' own cover.
    Cover,
}

/// A relay ready to be given to a worker, and what surrounds it.
pub(super) struct Relay {
    pub(super) engine: Engine,
    pub(super) clients: Clients,
    pub(super) peers: Vec<Peer>,
    /// The slots of every link once more.
    pub(super) slots: Vec<Schedule>,
}

impl Relay {
    /// A relay with `circuits` circuits over two links each, or with [`IDLE_LINKS`] links and no circuits; its slots
    /// begin within a period of `start`, which lies ahead of `now` by more than the engine's lead.
    pub(super) fn new(
        arena: &'static Arena,
        circuits: u32,
        start: Nanos,
        now: Nanos,
    ) -> anyhow::Result<Self> {
        let links = if circuits == 0 { IDLE_LINKS } else { 2 * circuits };
        let limits = Limits { links, circuits: circuits.max(1), ..Limits::default() };
        let mut engine = Engine::new(limits);
        let (mut peers, mut slots) = (Vec::new(), Vec::new());
        for link in 0..links {
            let schedule = || Schedule::without_offset(Law::Constant, RATE, start, seed(link));
            slots.push(schedule());
            let local = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 7443));
            peers.push(Peer { local, remote: address(link), macs: None, vlan: None });
            engine.apply(Command::AddLink { link, schedule: Box::new(schedule()) }, &mut NoEdge, now);
            let keys = LinkKeys::derive(&split(0, link), Suite::Aes256Gcm, true);
            let session = Box::new(Session::new(link, link, link, keys, address(link), now));
            engine.apply(Command::InstallSession { session, send_now: true }, &mut NoEdge, now);
        }
        let clients = Clients { each: (0..circuits).map(Client::new).collect() };
        let mut relay = Self { engine, clients, peers, slots };
        let mut pool = FramePool::new(arena, POOL);
        for circuit in 0..circuits {
            relay.build(circuit, &mut pool, now)?;
        }
        Ok(relay)
    }

    fn build(&mut self, circuit: u32, pool: &mut FramePool, now: Nanos) -> anyhow::Result<()> {
        let keys = Box::new(HopKeys::derive(&split(1, circuit), Suite::Aes256Gcm));
        let add = Command::AddCarried { circuit, back: back(circuit), depth: DEPTH, keys, seq: 1 };
        self.engine.apply(add, &mut NoEdge, now);
        let mut frame = pool.take().context("no frame for a circuit's first cell")?;
        self.clients.layered(circuit, HopCommand::Extend, &mut frame);
        self.engine.receive(frame, self.clients.source(circuit), &mut NoEdge, now);
        while let Some(event) = self.engine.pop_event() {
            if let Event::Extend { circuit: extending, frame, .. } = event {
                anyhow::ensure!(extending == circuit, "circuit {extending} answered for {circuit}");
                let ahead = Side { link: 2 * circuit + 1, circ_id: 6 };
                self.engine.apply(Command::Extend { circuit, ahead, frame }, &mut NoEdge, now);
                return Ok(());
            }
        }
        anyhow::bail!("circuit {circuit} did not ask to be extended")
    }
}

/// The clients of all circuits.
pub(super) struct Clients {
    each: Vec<Client>,
}

struct Client {
    link: LinkKeys,
    hop: HopKeys,
    counter: u64,
    hop_seq: u64,
}

impl Client {
    fn new(circuit: u32) -> Self {
        Self {
            link: LinkKeys::derive(&split(0, back(circuit).link), Suite::Aes256Gcm, false),
            hop: HopKeys::derive(&split(1, circuit), Suite::Aes256Gcm),
            counter: 0,
            hop_seq: 0,
        }
    }
}

impl Clients {
    pub(super) const fn count(&self) -> usize {
        self.each.len()
    }

    /// Where a circuit's cells come from.
    pub(super) fn source(&self, circuit: u32) -> SocketAddr {
        address(back(circuit).link)
    }

    /// Puts the next cell of a circuit, or of cover on its link, into `frame`.
    pub(super) fn next(&mut self, circuit: u32, cells: Cells, frame: &mut Frame) {
        match cells {
            Cells::Payload => self.layered(circuit, HopCommand::Forward, frame),
            Cells::Cover => {
                let header =
                    CircuitHeader { circ_id: 0, command: CellCommand::Cover as u8, key_epoch: 0, hop_seq: 0 };
                self.seal(circuit, header, frame, |_, _| ());
            }
        }
    }

    fn layered(&mut self, circuit: u32, command: HopCommand, frame: &mut Frame) {
        let Some(client) = self.each.get_mut(circuit as usize) else { return };
        client.hop_seq += 1;
        let hop_seq = client.hop_seq;
        let header = CircuitHeader {
            circ_id: back(circuit).circ_id,
            command: CellCommand::Relay as u8,
            key_epoch: 0,
            hop_seq,
        };
        self.seal(circuit, header, frame, |client, cell| {
            let layer = &mut cell[BODY_OFFSET..BODY_OFFSET + layer_len(DEPTH)];
            let fields = LayerFields { command: command as u8, flags: 0, length: 0 };
            let at = layer.len() - TAG_LEN - LAYER_FIELDS_LEN;
            layer[at..at + LAYER_FIELDS_LEN].copy_from_slice(&fields.encode());
            client.hop.forward.seal_layer(hop_seq, layer);
        });
    }

    fn seal(
        &mut self,
        circuit: u32,
        header: CircuitHeader,
        frame: &mut Frame,
        body: impl FnOnce(&Client, &mut [u8; CELL_LEN]),
    ) {
        let Some(client) = self.each.get_mut(circuit as usize) else { return };
        let Some(cell) = blank_cell(frame) else { return };
        let link = LinkHeader { receiver_index: back(circuit).link, counter: client.counter };
        client.counter += 1;
        cell[..LINK_HEADER_LEN].copy_from_slice(&link.encode());
        cell[LINK_HEADER_LEN..LINK_HEADER_LEN + CIRCUIT_HEADER_LEN].copy_from_slice(&header.encode());
        body(client, cell);
        client.link.send.seal_cell(cell);
    }
}

/// Where a circuit's cells come in: every other link.
const fn back(circuit: u32) -> Side {
    Side { link: 2 * circuit, circ_id: 5 }
}

fn address(link: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + link), 7443))
}

fn seed(link: u32) -> [u8; 32] {
    split(2, link).initiator_to_responder
}

fn split(purpose: u8, number: u32) -> Split {
    let mut bytes = [purpose; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    Split { initiator_to_responder: bytes, responder_to_initiator: bytes.map(|byte| !byte) }
}

#[cfg(test)]
mod tests {
    use super::super::compare::match_slots;
    use super::*;
    use relay_user::engine::DropReason;

    /// The relay in virtual time: what its clients send goes on, and what leaves matches the slots beside it.
    #[test]
    fn cells_go_on_and_leave_at_the_slots_that_are_known_beside() {
        const CIRCUITS: u32 = 3;
        const STEP: Nanos = Nanos(10_000);
        let arena = Arena::anonymous(512).unwrap();
        let mut pool = FramePool::new(arena, POOL);
        let start = Nanos(2 * Nanos::SECOND.0);
        let mut relay = Relay::new(arena, CIRCUITS, start, Nanos::SECOND).unwrap();
        let mut sent = vec![Vec::new(); relay.slots.len()];
        let mut now = start;
        let mut fed = u64::from(CIRCUITS);
        while now < start + Nanos(20 * PERIOD.0) {
            if now.0.is_multiple_of(PERIOD.0) {
                for circuit in 0..CIRCUITS {
                    let cells = if fed.is_multiple_of(2) { Cells::Payload } else { Cells::Cover };
                    let mut frame = pool.take().unwrap();
                    relay.clients.next(circuit, cells, &mut frame);
                    relay.engine.receive(frame, relay.clients.source(circuit), &mut NoEdge, now);
                    fed += 1;
                }
            }
            relay.engine.stage(now, 32, &mut pool, &mut NoEdge);
            relay.engine.emit(now, |link, _| {
                sent[link as usize].push(now);
                Ok(())
            });
            now = now + STEP;
        }
        let counters = relay.engine.counters();
        assert_eq!((counters.received, counters.missed_slots), (fed, 0));
        assert!(DropReason::ALL.iter().all(|&reason| counters.dropped(reason) == 0));
        for (slots, sent) in relay.slots.into_iter().zip(sent) {
            assert!(sent.len() >= 19, "{}", sent.len());
            let matched = match_slots(slots, sent.into_iter(), start);
            assert_eq!((matched.empty, matched.astray), (0, 0));
            assert!(matched.lateness.iter().all(|late| u64::from(*late) < STEP.0), "{matched:?}");
        }
    }
}
