//! Where datagrams enter and leave: one trait, and the ports that implement it.
//!
//! A port moves frames whose data is a UDP payload. It knows nothing of links or cells; a *slot* here is only the
//! number that the engine gave a link, and selects the header template or address that its datagrams go out with.

pub mod afxdp;
mod headers;
pub mod memory;
mod rehearsal;
pub mod udp;

use std::net::SocketAddr;

use crate::engine::time::Nanos;
use crate::xsk::{BusyPoll, Frame, FramePool, Pages};

pub use crate::steering::XdpMode;
pub use afxdp::AfXdpPort;
pub use memory::MemoryPort;
pub use udp::{ControlDatagram, Handshakes, UdpPort};

/// A datagram that came in.
#[derive(Debug)]
pub struct Received {
    /// Its data is the UDP payload.
    pub frame: Frame,
    /// Who the packet says it is from. Not authenticated.
    pub source: SocketAddr,
}

/// Where the datagrams of a link go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Source address and port of what we send.
    pub local: SocketAddr,
    /// Destination address and port.
    pub remote: SocketAddr,
    /// Source and destination MAC address, where known. Only an AF_XDP port needs them, and sends nothing before.
    pub macs: Option<([u8; 6], [u8; 6])>,
    /// VLAN id (1 to 4094) to tag with, if any. Only an AF_XDP port looks at it.
    pub vlan: Option<u16>,
}

/// How packets get from the port's memory to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindMode {
    /// AF_XDP; the kernel copies each packet.
    Copy,
    /// AF_XDP; the device reads and writes the frames itself.
    ZeroCopy,
    /// Ordinary UDP sockets.
    Udp,
    /// Queues in memory, for simulations and benchmarks.
    Memory,
}

impl BindMode {
    /// The word that status and configuration use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::ZeroCopy => "zero-copy",
            Self::Udp => "udp",
            Self::Memory => "memory",
        }
    }
}

/// What a port turned out to be, whatever was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMode {
    /// `None` where no XDP program is involved.
    pub xdp: Option<XdpMode>,
    /// How the port is bound.
    pub bind: BindMode,
    /// What else is true of an AF_XDP socket; `None` of another port.
    pub socket: Option<SocketMode>,
}

/// What an AF_XDP socket turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode {
    /// The receive queue that it is bound to.
    pub queue: u32,
    /// Whether the kernel says when it has to be woken, so that it is not called in vain.
    pub need_wakeup: bool,
    /// Whether the worker runs the driver's receive loop.
    pub busy_poll: BusyPoll,
    /// What the frames are in.
    pub pages: Pages,
}

/// Totals of a port since it was opened, in datagrams unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Handed to the engine.
    pub rx: u64,
    /// Given to the kernel (or the wire in memory) for sending; those of `tx_lost` are among them.
    pub tx: u64,
    /// Given to the kernel and dropped by it at once: the peer's receive ring was full (EBUSY on AF_XDP), or no route.
    pub tx_lost: u64,
    /// Refused because the send queue was full.
    pub tx_full: u64,
    /// Refused because the link's slot had no peer, or the peer no MAC address yet.
    pub tx_unresolved: u64,
    /// Refused or dropped because they could not be a datagram of ours: malformed, or with no room for headers.
    pub invalid: u64,
    /// Dropped by the kernel since the RX ring was full. UDP sockets do not tell.
    pub rx_ring_full: u64,
    /// Times that the kernel had a packet for us and found no empty frame in the fill ring.
    pub rx_no_frame: u64,
    /// Dropped by the kernel for another reason than a full ring: a packet that does not fit a frame, and in copy mode
    /// each of `rx_no_frame` as well.
    pub rx_dropped: u64,
    /// Not a cell, and passed to the control plane.
    pub handshakes: u64,
    /// Not a cell, and dropped since the control plane's queue was full.
    pub handshakes_dropped: u64,
    /// Of the control plane, and not taken by the kernel.
    pub handshakes_unsent: u64,
    /// System calls made to wake the kernel for sending or receiving.
    pub kicks: u64,
}

/// Why a port did not take a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The slot has no peer, or the peer no MAC address yet.
    Unresolved,
    /// The send queue is full.
    Full,
    /// The frame has no room in front of its data for the headers, or is too long for a packet.
    Invalid,
}

/// A port's refusal, with the frame given back.
#[derive(Debug, thiserror::Error)]
#[error("datagram not taken for sending: {reason:?}")]
pub struct TransmitError {
    /// The frame, as it was passed in.
    pub frame: Frame,
    /// Why.
    pub reason: Refusal,
}

/// A way in and out for datagrams. One worker owns a port; no call blocks.
pub trait Port {
    /// Appends up to `max` datagrams to `out`, but never more than `out`'s spare capacity, and returns how many.
    fn receive(&mut self, pool: &mut FramePool, out: &mut Vec<Received>, max: usize) -> usize;

    /// Sets or clears where the datagrams of link slot `slot` go.
    fn set_peer(&mut self, slot: u32, peer: Option<Peer>);

    /// The slot of the cell that is handed over next. For ports that measure how late it is; others need not know.
    #[inline]
    fn announce(&mut self, _slot: Nanos) {}

    /// Queues `frame`, whose data is a UDP payload, for the peer of `slot`.
    ///
    /// # Errors
    /// Gives the frame back where it cannot be queued now.
    fn transmit(&mut self, slot: u32, frame: Frame) -> Result<(), TransmitError>;

    /// Does a piece of what sending needs before its moment: a worker that waits for the moment at which what it queued
    /// shall leave calls it until it returns `false` or the moment is near. A piece takes some 3 µs. [`Self::flush`] follows.
    fn make_ready(&mut self) -> bool {
        false
    }

    /// Sends what was queued, with one system call where one is enough, and puts frames that are done into `pool`.
    /// Returns whether some of it still waits, because the kernel could take no more: it leaves with a later flush.
    fn flush(&mut self, pool: &mut FramePool) -> bool;

    /// Totals so far.
    fn counters(&self) -> PortCounters;

    /// How the port is attached and bound.
    fn mode(&self) -> PortMode;
}

/// Peers by link slot. Grows only when a peer is set, which the control plane does, never a datagram.
#[derive(Debug)]
pub(crate) struct PeerTable<T> {
    entries: Vec<Option<T>>,
}

impl<T> PeerTable<T> {
    /// Link slots that a port has room for; far above what the engine hands out.
    const MAX_SLOTS: usize = 1 << 16;

    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot as usize)?.as_ref()
    }

    /// Slots beyond [`Self::MAX_SLOTS`] stay unresolved.
    pub(crate) fn set(&mut self, slot: u32, entry: Option<T>) {
        let slot = slot as usize;
        if slot >= Self::MAX_SLOTS {
            return;
        }
        if slot >= self.entries.len() && entry.is_some() {
            self.entries.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.entries.get_mut(slot) {
            *place = entry;
        }
    }
}
