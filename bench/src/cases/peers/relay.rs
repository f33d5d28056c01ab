//! Evenwire's relay as a hub: a middle relay, its real worker on a real AF_XDP port, and both its neighbours.
//!
//! The relay has one link in and several out, over which the cells of as many circuits go by turns: a single link has
//! 200,000 slots a second at most. The links out have a few more slots than there are payloads, and send cover in
//! those; what cover costs is charged to the payloads.
//!
//! The worker polls adaptively, since a busy one uses its core up by design. But near its next slot an adaptive worker
//! spins too, for 15 µs and more, so at low rates most of its time is waiting. At high ones, with no time to wait, it is
//! all work; only there does a payload's cost say what forwarding costs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use relay_common::abi::SessionEntry;
use relay_common::wire::{
    BODY_OFFSET, CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand, HopCommand,
    LAYER_FIELDS_LEN, LINK_HEADER_LEN, LayerFields, LinkHeader, TAG_LEN, layer_len,
};
use relay_user::crypto::{HopKeys, LinkKeys, Split, Suite};
use relay_user::engine::schedule::{Law, Schedule};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, DropReason, Engine, Event, Limits, NoEdge, Session, Side, blank_cell};
use relay_user::port::{AfXdpPort, Peer, PortCounters};
use relay_user::steering::{AttachMode, Steering};
use relay_user::worker::{Clock, Poll, ToWorker, Totals, Worker};
use relay_user::xsk::{Arena, BindRequest, FramePool, SocketConfig};

use super::cpu::{HUB_CORE, Threads, watch};
use super::neighbours::Neighbours;
use super::traffic::PAYLOAD;
use super::wires::{CELL_MACS, CELL_WIRE, Wires};
use super::{Hub, Outcome};
use crate::rig::seat;

/// As its figures call it.
pub(super) const NAME: &str = "evenwire";
/// Circuits, each over an own link towards the exit.
pub(super) const LANES: u32 = 4;
/// The link from the entry; those towards the exit are 1 and up. Links' numbers are the receiver indices as well.
pub(super) const BACK: u32 = 0;
/// The place of the relay on the circuits.
const DEPTH: usize = 1;
const UDP_PORT: u16 = 7443;
/// Frames of either end, of 2 KiB each.
const FRAMES: u32 = 16384;
/// Entries of each AF_XDP ring: as a relay has without a word in its file.
const RING: u32 = 4096;
/// Slots for each hundred payloads.
const SLOTS_PER_HUNDRED: u32 = 105;
/// Time that traffic runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);
/// Time for cells under way to arrive, and for the worker to publish its totals, which it does every 20 ms.
const DRAIN: Duration = Duration::from_millis(200);

/// The relay, made anew for each rate: a link's rate is fixed.
pub(super) struct Evenwire<'a> {
    wires: &'a Wires,
    arenas: [&'static Arena; 2],
}

impl<'a> Evenwire<'a> {
    /// A relay on `wires`.
    ///
    /// # Errors
    /// Where the machine has no memory for the frames.
    pub(super) fn new(wires: &'a Wires) -> Result<Self> {
        let arena = || Arena::anonymous(FRAMES).context("32 MiB of frames");
        Ok(Self { wires, arenas: [arena()?, arena()?] })
    }
}

impl Hub for Evenwire<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&mut self, rate: u32, span: Duration) -> Result<Outcome> {
        let [hub_arena, far_arena] = self.arenas;
        let hub_end = || End::open(hub_arena, &[(BACK, far(BACK))]);
        let hub = within(self.wires.hub(), hub_end)?;
        let to_far: Vec<_> = (BACK..=LANES).map(|link| (link, hub_address())).collect();
        let far_end = within(self.wires.a(), || End::open(far_arena, &to_far))?;
        let mut pool = FramePool::new(hub_arena, 256);
        let clock = Clock::start();
        let engine = engine(rate / LANES * SLOTS_PER_HUNDRED / 100, clock.now(), &mut pool)?;
        let (threads, mut worker) = Threads::started_by(|| {
            Ok(Worker::start(seat(engine, hub.port, HUB_CORE), pool, clock, Poll::Adaptive)?)
        })?;
        for link in BACK..=LANES {
            worker.tell(ToWorker::SetPeer { link, peer: Some(peer(hub_address(), far(link), true)) })?;
        }
        let neighbours = Neighbours::start(far_end.port, far_arena, rate)?;
        std::thread::sleep(WARM_UP);
        let (used, forwarded) = watch(&threads, || {
            let before = neighbours.received();
            std::thread::sleep(span);
            neighbours.received() - before
        })?;
        neighbours.stop_sending();
        std::thread::sleep(DRAIN);
        // Cover goes on for as long as there are links, and both ends are to be counted at rest.
        for link in BACK..=LANES {
            worker.tell(ToWorker::Engine(Command::RemoveLink { link }))?;
        }
        std::thread::sleep(DRAIN);
        let relay = worker.totals();
        let (tally, far_counters) = neighbours.finish()?;
        let contradiction =
            tally.contradiction().or_else(|| unaccounted(&relay, &far_counters, tally.lost()));
        drop((hub.steering, far_end.steering));
        worker.stop();
        Ok(Outcome { used, forwarded, tally, contradiction })
    }
}

/// What the counters of both ends do not explain.
fn unaccounted(relay: &Totals, far: &PortCounters, lost: u64) -> Option<String> {
    let ways = [("to", far, &relay.port), ("from", &relay.port, far)];
    let mut dropped = DropReason::ALL.iter().map(|&reason| relay.engine.dropped(reason)).sum::<u64>();
    for (way, sender, receiver) in ways {
        let gone = sender.tx_lost + receiver.rx_ring_full + receiver.rx_dropped + receiver.invalid;
        if sender.tx != receiver.rx + gone {
            let (tx, rx) = (sender.tx, receiver.rx);
            return Some(format!(
                "{tx} cells sent {way} the relay, {rx} received, {gone} counted as dropped"
            ));
        }
        dropped += gone;
    }
    (lost > dropped).then(|| format!("{lost} payloads lost, {dropped} cells counted as dropped"))
}

struct End {
    // Detached before the socket is closed.
    steering: Steering,
    port: AfXdpPort,
}

impl End {
    /// An end of the wire in the current namespace, which takes cells for these sessions.
    fn open(arena: &'static Arena, sessions: &[(u32, SocketAddr)]) -> Result<Self> {
        let mut steering = Steering::attach(CELL_WIRE, AttachMode::Native, UDP_PORT)?;
        let config =
            SocketConfig { interface: CELL_WIRE.into(), queue: 0, ring: RING, bind: BindRequest::Auto };
        let mut port = AfXdpPort::open(arena, &config, UDP_PORT, None)?;
        port.steer(&mut steering)?;
        for &(index, source) in sessions {
            let SocketAddr::V4(v4) = source else { continue };
            let mapped = v4.ip().to_ipv6_mapped().octets();
            steering.set_session(&SessionEntry::new(index, mapped, source.port(), 0))?;
        }
        Ok(Self { steering, port })
    }
}

fn within<T>(netns: &relay_tests::Netns, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _inside = netns.enter()?;
    work()
}

fn hub_address() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 2], UDP_PORT))
}

/// The address of the relay's peer on `link`.
fn far(link: u32) -> SocketAddr {
    let host = if link == BACK { 1 } else { 3 };
    SocketAddr::from(([203, 0, 113, host], UDP_PORT))
}

fn peer(local: SocketAddr, remote: SocketAddr, from_hub: bool) -> Peer {
    let [far, hub] = CELL_MACS;
    Peer { local, remote, macs: Some(if from_hub { (hub, far) } else { (far, hub) }), vlan: None }
}

/// Where the neighbours send cells to.
pub(super) fn towards_hub() -> Peer {
    peer(far(BACK), hub_address(), false)
}

/// A relay whose circuits are ready to carry cells; `rate` is that of each link towards the exit.
fn engine(rate: u32, now: Nanos, pool: &mut FramePool) -> Result<Engine> {
    let limits = Limits { links: 1 + LANES, circuits: LANES, ..Limits::default() };
    let mut engine = Engine::new(limits);
    for link in BACK..=LANES {
        // Towards the entry one slot per second: what is sent there must not count.
        let rate = if link == BACK { 1 } else { rate };
        let seed = [u8::try_from(link)?; 32];
        let schedule = Box::new(Schedule::without_offset(Law::Constant, rate, now, seed));
        engine.apply(Command::AddLink { link, schedule }, &mut NoEdge, now);
        let session = Box::new(Session::new(link, link, link, link_keys(link, true), far(link), now));
        engine.apply(Command::InstallSession { session, send_now: link != BACK }, &mut NoEdge, now);
    }
    let mut entry = Entry::new();
    for lane in 0..LANES {
        let back = Side { link: BACK, circ_id: circ_id(lane) };
        let keys = Box::new(hop_keys(lane));
        let carried = Command::AddCarried { circuit: lane, back, depth: DEPTH, keys, seq: 1 };
        engine.apply(carried, &mut NoEdge, now);
        let mut frame = pool.take().context("no frame for EXTEND")?;
        entry.write(blank_cell(&mut frame).context("no room for EXTEND")?, lane, HopCommand::Extend, &[]);
        engine.receive(frame, far(BACK), &mut NoEdge, now);
        while let Some(event) = engine.pop_event() {
            if let Event::Extend { circuit, frame, .. } = event {
                let ahead = Side { link: 1 + circuit, circ_id: circ_id(circuit) };
                engine.apply(Command::Extend { circuit, ahead, frame }, &mut NoEdge, now);
            }
        }
    }
    let dropped: u64 = DropReason::ALL.iter().map(|&reason| engine.counters().dropped(reason)).sum();
    ensure!(dropped == 0, "the relay took no circuit: {dropped} cells dropped");
    Ok(engine)
}

/// The relay's keys of `link`, or its peer's. Known to everybody: every byte sent is known.
pub(super) fn link_keys(link: u32, relay: bool) -> LinkKeys {
    // The entry begins the handshake of the link from it, the relay those of its own.
    LinkKeys::derive(&split(1, link), Suite::Aes256Gcm, relay == (link != BACK))
}

fn hop_keys(lane: u32) -> HopKeys {
    HopKeys::derive(&split(101, lane), Suite::Aes256Gcm)
}

fn split(base: u8, number: u32) -> Split {
    let fill = base.wrapping_add(number.to_le_bytes()[0]);
    Split { initiator_to_responder: [fill; 32], responder_to_initiator: [!fill; 32] }
}

/// The circuit's name on the links in and out.
pub(super) const fn circ_id(lane: u32) -> u32 {
    5 + lane
}

/// Seals what the entry sends: the client's layer for the relay, and the link's.
pub(super) struct Entry {
    link: LinkKeys,
    hops: Vec<HopKeys>,
    counter: u64,
    hop_seqs: Vec<u64>,
}

impl Entry {
    /// An entry that has sent nothing yet.
    fn new() -> Self {
        let hops: Vec<_> = (0..LANES).map(hop_keys).collect();
        Self { link: link_keys(BACK, false), hop_seqs: vec![0; hops.len()], hops, counter: 0 }
    }

    /// An entry that has extended its circuits.
    pub(super) fn extended() -> Self {
        let mut entry = Self::new();
        for lane in 0..LANES {
            entry.write(&mut [0; CELL_LEN], lane, HopCommand::Extend, &[]);
        }
        entry
    }

    /// Fills `cell` with the next cell of circuit `lane`, whose data begins with `data`.
    pub(super) fn write(&mut self, cell: &mut [u8; CELL_LEN], lane: u32, command: HopCommand, data: &[u8]) {
        let header = LinkHeader { receiver_index: BACK, counter: self.counter };
        self.counter += 1;
        cell[..LINK_HEADER_LEN].copy_from_slice(&header.encode());
        let hop = lane as usize;
        self.hop_seqs[hop] += 1;
        let hop_seq = self.hop_seqs[hop];
        let header = CircuitHeader {
            circ_id: circ_id(lane),
            command: CellCommand::Relay as u8,
            key_epoch: 0,
            hop_seq,
        };
        cell[LINK_HEADER_LEN..LINK_HEADER_LEN + CIRCUIT_HEADER_LEN].copy_from_slice(&header.encode());
        let layer = &mut cell[BODY_OFFSET..BODY_OFFSET + layer_len(DEPTH)];
        layer[..data.len()].copy_from_slice(data);
        let at = layer.len() - TAG_LEN - LAYER_FIELDS_LEN;
        let fields = LayerFields { command: command as u8, flags: 0, length: 0 };
        layer[at..at + LAYER_FIELDS_LEN].copy_from_slice(&fields.encode());
        self.hops[hop].forward.seal_layer(hop_seq, layer);
        self.link.send.seal_cell(cell);
    }
}

const _: () = assert!(PAYLOAD <= relay_common::wire::DATA_LEN, "a payload fits a cell");
