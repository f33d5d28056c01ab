//! A neighbour that holds a link's keys and breaks the protocol: its own circuits die, and nobody else's.

use crate::net::{EXIT, Egress, MIDDLE, MS, Net};
use crate::node::split;
use proptest::prelude::*;
use relay_common::wire::{
    BODY_LEN, BODY_OFFSET, CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand,
    DestroyReason, HopCommand, LAYER_FIELDS_LEN, LINK_HEADER_LEN, LayerFields, LinkHeader, TAG_LEN,
};
use relay_user::crypto::{HopKeys, LinkKeys, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, DropReason, Limits, Session};
use std::net::SocketAddr;

const SEED: u64 = 51;
/// The rogue's link at the middle relay.
const LINK: u32 = 2;
const INDEX: u32 = 0x0bad_0001;
/// Name and key number of its circuit.
const NAME: u32 = 0x77;
const KEY: u64 = 600;

struct Rogue {
    net: Net,
    keys: LinkKeys,
    hop: HopKeys,
    source: SocketAddr,
    counter: u64,
}

impl Rogue {
    fn new() -> Self {
        let mut net = Net::with_circuit(SEED, Law::Jittered, true);
        let now = Nanos(net.now);
        let source = SocketAddr::from(([192, 0, 2, 66], 7443));
        let schedule = Box::new(Schedule::new(Law::Jittered, 1000, now, [9; 32]));
        net.command(MIDDLE, Command::AddLink { link: LINK, schedule });
        let keys = |initiator| LinkKeys::derive(&split(SEED, 999), Suite::Aes256Gcm, initiator);
        let session = Box::new(Session::new(LINK, INDEX, 1, keys(false), source, now));
        net.command(MIDDLE, Command::InstallSession { session, send_now: true });
        let hop = HopKeys::derive(&split(SEED ^ 0xc1c, 3 * KEY), Suite::Aes256Gcm);
        Self { net, keys: keys(true), hop, source, counter: 0 }
    }

    fn throw(&mut self, header: [u8; CIRCUIT_HEADER_LEN], body: &[u8; BODY_LEN]) {
        let mut cell = [0; CELL_LEN];
        let link = LinkHeader { receiver_index: INDEX, counter: self.counter };
        self.counter += 1;
        cell[..LINK_HEADER_LEN].copy_from_slice(&link.encode());
        cell[LINK_HEADER_LEN..BODY_OFFSET].copy_from_slice(&header);
        cell[BODY_OFFSET..BODY_OFFSET + BODY_LEN].copy_from_slice(body);
        self.keys.send.seal_cell(&mut cell);
        self.net.throw(MIDDLE, self.source, &cell);
    }

    fn cell(&mut self, circ_id: u32, command: u8, hop_seq: u64, body: &[u8; BODY_LEN]) {
        self.throw(CircuitHeader { circ_id, command, key_epoch: 0, hop_seq }.encode(), body);
    }

    fn create(&mut self) {
        let mut body = [0; BODY_LEN];
        body[..8].copy_from_slice(&KEY.to_be_bytes());
        self.cell(NAME, CellCommand::Create as u8, 1, &body);
        assert_eq!(self.net.circuits()[MIDDLE], 2);
    }

    fn layered(&mut self, command: u8, hop_seq: u64, inner: &[u8]) {
        let mut body = [0; BODY_LEN];
        body[..inner.len()].copy_from_slice(inner);
        let at = BODY_LEN - TAG_LEN - LAYER_FIELDS_LEN;
        let fields = LayerFields { command, flags: 0, length: 0 };
        body[at..at + LAYER_FIELDS_LEN].copy_from_slice(&fields.encode());
        self.hop.forward.seal_layer(hop_seq, &mut body);
        self.cell(NAME, CellCommand::Relay as u8, hop_seq, &body);
    }

    fn extend(&mut self, hop_seq: u64) {
        let mut inner = [0; 10];
        inner[..8].copy_from_slice(&KEY.to_be_bytes());
        inner[8] = 1;
        inner[9] = u8::try_from(EXIT).unwrap();
        self.layered(HopCommand::Extend as u8, hop_seq, &inner);
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.net.dropped(MIDDLE, reason)
    }

    /// Lets two hundred milliseconds pass since the start; every link looks as if the rogue had said nothing.
    fn ends_unseen(mut self) {
        let egress = |mut net: Net, until: u64| -> Egress {
            net.run(until - net.now);
            assert_eq!([net.circuits()[0], net.circuits()[1]], [1, 1], "the client's circuit lives");
            net.egress
        };
        let quiet = Self::new();
        let until = quiet.net.now + 200 * MS;
        self.net.run(1);
        assert!(egress(quiet.net, until) == egress(self.net, until));
    }
}

#[test]
fn broken_headers_and_unknown_names_are_counted() {
    let mut rogue = Rogue::new();
    let mut header = CircuitHeader { circ_id: 0, command: 0, key_epoch: 0, hop_seq: 0 }.encode();
    header[6] = 1;
    rogue.throw(header, &[0; BODY_LEN]);
    assert_eq!(rogue.dropped(DropReason::BadCircuitHeader), 1);
    for command in [5, 15, CellCommand::Relay as u8, CellCommand::Create as u8, 255] {
        rogue.cell(0, command, 0, &[0; BODY_LEN]);
    }
    assert_eq!(rogue.dropped(DropReason::UnknownCommand), 5);
    rogue.cell(NAME, CellCommand::Relay as u8, 5, &[0; BODY_LEN]);
    assert_eq!(rogue.dropped(DropReason::UnknownCircuit), 1);
    rogue.ends_unseen();
}

#[test]
fn layers_that_are_forged_or_repeated_die_at_the_hop() {
    let mut rogue = Rogue::new();
    rogue.create();
    rogue.cell(NAME, CellCommand::Relay as u8, 9, &[0x5a; BODY_LEN]);
    assert_eq!(rogue.dropped(DropReason::HopUnauthentic), 1);
    rogue.extend(10);
    rogue.extend(10);
    assert_eq!(rogue.dropped(DropReason::HopReplayed), 1);
    assert_eq!(rogue.net.circuits()[MIDDLE], 2, "neither closes the circuit");
    rogue.ends_unseen();
}

#[test]
fn an_unknown_command_closes_the_circuit_and_no_other() {
    for outer in [true, false] {
        let mut rogue = Rogue::new();
        rogue.create();
        if outer {
            rogue.cell(NAME, 200, 0, &[0; BODY_LEN]);
        } else {
            rogue.layered(200, 2, &[]);
        }
        assert_eq!(rogue.net.circuits()[MIDDLE], 1);
        assert_eq!(rogue.net.nodes[MIDDLE].closed.last().unwrap().1, DestroyReason::Protocol);
        rogue.create();
        rogue.ends_unseen();
    }
}

#[test]
fn data_does_not_end_where_no_exit_is() {
    let mut rogue = Rogue::new();
    rogue.create();
    rogue.layered(HopCommand::Data as u8, 2, &[4, 0, 20]);
    assert_eq!(rogue.net.circuits()[MIDDLE], 1);
    assert!(rogue.net.nodes[MIDDLE].edge.open_circuits().is_empty());
    rogue.ends_unseen();
}

#[test]
fn an_answer_that_nobody_asked_for_is_never_sealed() {
    let mut rogue = Rogue::new();
    rogue.create();
    rogue.extend(2);
    rogue.net.run(100 * MS);
    let waiting = rogue.net.nodes[MIDDLE].engine.waiting_cells();
    for count in 1..3 {
        // As after a second CREATED from a relay that wants two cells under one number.
        let frame = rogue.net.nodes[MIDDLE].body(&[]);
        let (circuit, command) = (1, HopCommand::Extended);
        rogue.net.command(MIDDLE, Command::Answer { circuit, command, length: 0, frame });
        assert_eq!(rogue.dropped(DropReason::UnknownCommand), count);
    }
    assert_eq!(rogue.net.nodes[MIDDLE].engine.waiting_cells(), waiting);
    rogue.ends_unseen();
}

#[test]
fn a_circuit_is_extended_once() {
    let mut rogue = Rogue::new();
    rogue.create();
    rogue.extend(2);
    rogue.net.run(100 * MS);
    assert_eq!(rogue.net.circuits()[MIDDLE..], [2, 2], "extended to the exit");
    rogue.extend(3);
    assert_eq!(rogue.net.circuits()[MIDDLE], 1, "a second time would repeat numbers");
    rogue.net.run(50 * MS);
    assert_eq!(rogue.net.circuits()[EXIT], 1, "the exit was told");
    rogue.ends_unseen();
}

#[test]
fn circuits_that_nobody_grants_leave_every_slot_filled() {
    let mut rogue = Rogue::new();
    rogue.net.nodes[MIDDLE].deaf = true;
    // More than the arena has frames.
    for name in 0..3000 {
        rogue.cell(1000 + name, CellCommand::Create as u8, 1, &[0; BODY_LEN]);
    }
    let refused = rogue.dropped(DropReason::EventsFull);
    assert_eq!(refused, 3000 - Limits::default().events as u64);
    rogue.ends_unseen();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_it_says_nobody_sees(
        cells in prop::collection::vec((0u32..3, any::<u8>(), 0u8..6, 0u64..4, any::<bool>()), 1..200),
    ) {
        let mut rogue = Rogue::new();
        for (name, command, hop_command, seq, layered) in cells {
            let command = if command < 200 { command % 24 } else { command };
            if rogue.net.circuits()[MIDDLE] == 1 && seq == 0 {
                rogue.create();
            }
            if layered {
                rogue.layered(hop_command, seq, &[]);
            } else {
                let mut body = [0; BODY_LEN];
                body[..8].copy_from_slice(&KEY.to_be_bytes());
                rogue.cell([0, NAME, NAME + 1][name as usize], command, seq, &body);
            }
        }
        rogue.ends_unseen();
    }
}
