//! The port over AF_XDP: one socket on one queue. Cells go out in the frame they are in, with the headers written in
//! front of them, and the kernel's network stack sees neither direction.

use std::io;
use std::time::Duration;

use relay_common::classify::{Ports, locate};
use relay_common::cursor::SliceCursor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::headers::{HeaderTemplate, socket_address};
use super::{
    BindMode, Peer, PeerTable, Port, PortCounters, PortMode, Received, Refusal, SocketMode, TransmitError,
    XdpMode,
};
use crate::steering::{Steering, SteeringError};
use crate::xsk::{Arena, Frame, FramePool, SocketConfig, SocketError, XskSocket};

/// System calls that one flush may make. Copy mode needs one per 32 packets on kernels before 6.17, and one more per
/// packet that a full peer drops; what is left goes with the next flush.
const MAX_KICKS: u32 = 64;

/// Packets that are not ours which one receive may look at per datagram asked for, so that a flood of them cannot hold
/// the worker.
const LOOKS_PER_DATAGRAM: usize = 2;

/// A port on one queue of one interface.
pub struct AfXdpPort {
    socket: XskSocket,
    queue: u32,
    xdp: Option<XdpMode>,
    ports: Ports,
    /// Frames that shall be with the kernel to be received into.
    fill_level: u32,
    templates: PeerTable<Slot>,
    counters: PortCounters,
}

/// A link slot with a peer; without a template its MAC addresses are not known yet.
struct Slot(Option<Box<HeaderTemplate>>);

impl AfXdpPort {
    /// Opens a port for datagrams to UDP ports `ports` over frames of `arena`. Nothing arrives before
    /// [`Self::steer`]. With `share`, the two ports share one UMEM.
    ///
    /// # Errors
    /// [`SocketError`], naming interface and queue.
    pub fn open(
        arena: &'static Arena,
        config: &SocketConfig,
        ports: impl Into<Ports>,
        share: Option<&Self>,
    ) -> Result<Self, SocketError> {
        let socket = XskSocket::open(arena, config, share.map(|port| &port.socket))?;
        let mut port = Self {
            socket,
            queue: config.queue,
            xdp: None,
            ports: ports.into(),
            // No port may starve the others: at most half of what there is goes into one fill ring.
            fill_level: config.ring.min(arena.frames() / 2).max(1),
            templates: PeerTable::new(),
            counters: PortCounters::default(),
        };
        port.top_up(|| arena.take());
        Ok(port)
    }

    /// Lets `steering` hand the cells of this port's queue to it, and notes how the program is attached.
    ///
    /// # Errors
    /// As [`Steering::bind_socket`].
    pub fn steer(&mut self, steering: &mut Steering) -> Result<(), SteeringError> {
        steering.bind_socket(self.queue, self.socket.fd())?;
        self.xdp = Some(steering.mode());
        Ok(())
    }

    /// Waits until something has arrived, for at most `limit`. `true` when it has.
    ///
    /// # Errors
    /// What poll(2) reports; an interrupting signal counts as nothing having arrived.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
        let socket = self.socket.fd();
        match poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets this port's worker run the driver's receive loop, where the socket is bound in zero-copy. For a worker that
    /// never sleeps. Elsewhere, and where the kernel refuses, everything stays as it was, and the log says so.
    pub fn prefer_busy_poll(&mut self) {
        if self.socket.is_zero_copy()
            && let Err(error) = self.socket.prefer_busy_poll()
        {
            log::warn!("queue {}: interrupts instead of busy polling: {error}", self.queue);
        }
    }

    fn top_up(&mut self, mut take: impl FnMut() -> Option<Frame>) {
        if self.socket.frames_to_receive() >= self.fill_level {
            return;
        }
        while self.socket.frames_to_receive() < self.fill_level {
            let Some(frame) = take() else { break };
            if self.socket.push_fill(frame).is_err() {
                break;
            }
        }
        self.counters.kicks += u64::from(self.socket.publish_fill());
    }
}

impl Port for AfXdpPort {
    fn receive(&mut self, pool: &mut FramePool, out: &mut Vec<Received>, max: usize) -> usize {
        let max = max.min(out.capacity() - out.len());
        let mut count = 0;
        for _ in 0..max.saturating_mul(LOOKS_PER_DATAGRAM) {
            if count == max {
                break;
            }
            let Some(mut frame) = self.socket.pop_received() else { break };
            let found = locate(&mut SliceCursor::new(frame.data()), self.ports).ok();
            let Some(found) = found.filter(|found| found.payload_offset + found.payload_len <= frame.len())
            else {
                self.counters.invalid += 1;
                pool.put(frame);
                continue;
            };
            frame.reset(frame.offset() + found.payload_offset, found.payload_len);
            out.push(Received { frame, source: socket_address(found.source.octets(), found.source_port) });
            count += 1;
        }
        self.socket.release_received();
        if count == 0 {
            self.counters.kicks += u64::from(self.socket.poll_device());
        }
        self.counters.rx += count as u64;
        self.top_up(|| pool.take());
        count
    }

    fn set_peer(&mut self, slot: u32, peer: Option<Peer>) {
        self.templates.set(slot, peer.map(|peer| Slot(HeaderTemplate::new(&peer).map(Box::new))));
    }

    fn transmit(&mut self, slot: u32, mut frame: Frame) -> Result<(), TransmitError> {
        let Some(Slot(Some(template))) = self.templates.get(slot) else {
            self.counters.tx_unresolved += 1;
            return Err(TransmitError { frame, reason: Refusal::Unresolved });
        };
        if !template.prepend(&mut frame) {
            self.counters.invalid += 1;
            return Err(TransmitError { frame, reason: Refusal::Invalid });
        }
        if let Err(mut frame) = self.socket.push_transmit(frame) {
            template.strip(&mut frame);
            self.counters.tx_full += 1;
            return Err(TransmitError { frame, reason: Refusal::Full });
        }
        self.counters.tx += 1;
        Ok(())
    }

    fn flush(&mut self, pool: &mut FramePool) -> bool {
        let kick = self.socket.kick(MAX_KICKS);
        self.counters.kicks += u64::from(kick.calls);
        self.counters.tx_lost += u64::from(kick.lost);
        while let Some(frame) = self.socket.pop_completed() {
            pool.put(frame);
        }
        self.socket.release_completed();
        kick.left > 0
    }

    fn counters(&self) -> PortCounters {
        let mut counters = self.counters;
        counters.invalid += self.socket.invalid_descriptors();
        if let Some(kernel) = self.socket.statistics() {
            counters.invalid += kernel.rx_invalid_descs + kernel.tx_invalid_descs;
            counters.rx_dropped = kernel.rx_dropped;
            counters.rx_ring_full = kernel.rx_ring_full.unwrap_or(0);
            counters.rx_no_frame = kernel.rx_fill_ring_empty_descs.unwrap_or(0);
        }
        counters
    }

    fn mode(&self) -> PortMode {
        let bind = if self.socket.is_zero_copy() { BindMode::ZeroCopy } else { BindMode::Copy };
        let socket = SocketMode {
            queue: self.queue,
            // `bind_patiently` always asks for it, and a socket that shares a UMEM has it from the first.
            need_wakeup: true,
            busy_poll: self.socket.busy_poll(),
            pages: self.socket.pages(),
        };
        PortMode { xdp: self.xdp, bind, socket: Some(socket) }
    }
}
