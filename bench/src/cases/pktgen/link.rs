//! The established link: numbered cells at a constant rate from one real port to another.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use relay_common::abi::SessionEntry;
use relay_common::wire::{LINK_HEADER_LEN, LinkHeader};
use relay_user::port::{AfXdpPort, Peer, Port as _, PortCounters, Received};
use relay_user::steering::{AttachMode, Steering};
use relay_user::xsk::{Arena, BindRequest, FramePool, SocketConfig};

use super::wiring::{LINK, LINK_QUEUE, MACS, Wiring};

/// Where the link's datagrams go, and come from.
pub(super) const UDP_PORT: u16 = 7443;
/// The sender's address and the relay's.
pub(super) const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

/// Far above any number that pktgen counts to here, which is where the flood's cells have theirs.
const INDEX: u32 = 0xffff_0001;
/// Entries of each ring: cells of a quarter of a second or more, so that a receiver that is kept waiting loses none.
const RING: u32 = 2048;
const FRAMES: u32 = 8192;
/// Cells that one turn sends at most: one system call's worth.
const BURST: u64 = 32;
/// Bytes of a frame pool's own store.
const POOL: usize = 256;
/// How long the last cells may take, counted from the last one that arrived.
const DRAIN: Duration = Duration::from_millis(300);
/// The longest sleep between two turns.
const TURN: Duration = Duration::from_millis(1);
const SLOT: u32 = 0;

/// Both ends of the link.
pub(super) struct Link {
    // Detached before the sockets are closed.
    steering: Steering,
    near: AfXdpPort,
    far: AfXdpPort,
    pool: FramePool,
    out: Vec<Received>,
    next: u64,
}

/// What became of one phase's cells.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Taken by the sending port.
    pub(super) sent: u64,
    /// Arrived, each number counted once.
    pub(super) received: u64,
    /// Arrived a second time, or with a number that this phase did not send.
    strange: u64,
    /// Dropped at the wire's entrance, which was full.
    pub(super) at_wire: u64,
    /// Dropped for want of a receive ring entry or of a frame.
    at_socket: u64,
}

impl Tally {
    /// Cells that were sent and did not arrive.
    pub(super) const fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// What does not add up, if anything.
    pub(super) fn contradiction(&self) -> Option<String> {
        let Self { sent, received, strange, at_wire, at_socket } = self;
        (*strange > 0 || sent != &(received + at_wire + at_socket)).then(|| {
            format!(
                "{sent} cells sent, {received} received, {at_wire} dropped at the wire, {at_socket} at the socket, \
                 {strange} that nobody sent"
            )
        })
    }

    /// Whether the sender sent what it should have, within a hundredth.
    pub(super) fn kept_up(&self, rate: u32, duration: Duration) -> bool {
        self.sent as f64 >= f64::from(rate) * duration.as_secs_f64() * 0.99
    }
}

impl Link {
    pub(super) fn open(wiring: &Wiring) -> Result<Self> {
        let arena = Arena::anonymous(FRAMES).context("memory for frames")?;
        let config =
            SocketConfig { interface: LINK.into(), queue: LINK_QUEUE, ring: RING, bind: BindRequest::Copy };
        let mut near = wiring.as_sender(|| Ok(AfXdpPort::open(arena, &config, UDP_PORT, None)?))?;
        let [local, remote] = ADDRESSES.map(|address| SocketAddr::from((address, UDP_PORT)));
        near.set_peer(SLOT, Some(Peer { local, remote, macs: Some((MACS[0], MACS[1])), vlan: None }));
        let (steering, far) = wiring.relay_side(|| {
            let mut steering = Steering::attach(LINK, AttachMode::Native, UDP_PORT)?;
            let mut far = AfXdpPort::open(arena, &config, UDP_PORT, None)?;
            far.steer(&mut steering)?;
            let source = ADDRESSES[0].to_ipv6_mapped().octets();
            steering.set_session(&SessionEntry::new(INDEX, source, UDP_PORT, LINK_QUEUE))?;
            Ok((steering, far))
        })?;
        Ok(Self {
            steering,
            near,
            far,
            pool: FramePool::new(arena, POOL),
            out: Vec::with_capacity(64),
            next: 0,
        })
    }

    pub(super) const fn steering(&self) -> &Steering {
        &self.steering
    }

    /// Sends `rate` cells per second for `duration`, and counts those that arrive until none does any more.
    pub(super) fn run(&mut self, rate: u32, duration: Duration) -> Result<Tally> {
        let (near, far) = (self.near.counters(), self.far.counters());
        let first = self.next;
        let mut seen = vec![false; usize::try_from(slots(rate, duration))?];
        let mut tally = Tally::default();
        let start = Instant::now();
        let mut last = start;
        loop {
            let now = Instant::now();
            let due = slots(rate, now.duration_since(start).min(duration));
            let sent = self.send(due.saturating_sub(tally.sent).min(BURST))?;
            tally.sent += sent;
            let arrived = self.receive(first, &mut seen, &mut tally);
            if sent > 0 || arrived {
                last = now;
            }
            if now.duration_since(start) >= duration && tally.sent >= due {
                let done = tally.received == tally.sent;
                if done || now.duration_since(last) > DRAIN {
                    break;
                }
            }
            if sent < BURST && !arrived {
                let next = Duration::from_secs_f64((tally.sent + 1) as f64 / f64::from(rate));
                self.far.wait(next.saturating_sub(start.elapsed()).min(TURN))?;
            }
        }
        let lost = |before: PortCounters, after: PortCounters| {
            after.rx_ring_full + after.rx_dropped - before.rx_ring_full - before.rx_dropped
        };
        tally.at_wire = self.near.counters().tx_lost - near.tx_lost;
        tally.at_socket = lost(far, self.far.counters());
        Ok(tally)
    }

    fn send(&mut self, count: u64) -> Result<u64> {
        for _ in 0..count {
            let mut frame = self.pool.take().context("out of frames")?;
            let cell = frame.cell_mut().context("a fresh frame is placed for a cell")?;
            let header = LinkHeader { receiver_index: INDEX, counter: self.next };
            cell[..LINK_HEADER_LEN].copy_from_slice(&header.encode());
            self.near.transmit(SLOT, frame).context("the sending port")?;
            self.next += 1;
        }
        // Also without cells: what an earlier turn left is sent on, and frames come back.
        self.near.flush(&mut self.pool);
        Ok(count)
    }

    fn receive(&mut self, first: u64, seen: &mut [bool], tally: &mut Tally) -> bool {
        self.far.receive(&mut self.pool, &mut self.out, 64);
        let arrived = !self.out.is_empty();
        for received in self.out.drain(..) {
            let number = received
                .frame
                .cell()
                .and_then(|cell| LinkHeader::decode(cell.first_chunk()?))
                .filter(|header| header.receiver_index == INDEX)
                .and_then(|header| usize::try_from(header.counter.checked_sub(first)?).ok());
            match number.and_then(|number| seen.get_mut(number)) {
                Some(seen) if !*seen => {
                    *seen = true;
                    tally.received += 1;
                }
                _ => tally.strange += 1,
            }
            self.pool.put(received.frame);
        }
        arrived
    }
}

/// Slots of a link of `rate` cells per second that have passed after `elapsed`.
fn slots(rate: u32, elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).saturating_mul(u64::from(rate)) / 1_000_000
}
