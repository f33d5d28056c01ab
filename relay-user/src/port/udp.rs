//! The port over an ordinary UDP socket, for clients and for hosts without XDP.
//!
//! Each cell is a datagram of its own in both directions: neither segmentation offload nor its counterpart on receipt is
//! used, since a run of cells glued together would leave the host as a burst, and would not fit a frame on arrival.
//!
//! A cell whose moment is known is sent in two steps (udp(7), `UDP_CORK`): the kernel has its bytes and its route before,
//! and what is left for the moment is short. The socket is the worker's alone, so that nobody appends to it meanwhile.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, UdpSocketState};
use relay_common::wire::{CELL_LEN, DatagramType};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send, sendto};

use super::rehearsal::Rehearsal;
use super::{BindMode, Peer, PeerTable, Port, PortCounters, PortMode, Received, Refusal, TransmitError};
use crate::xsk::{Arena, Frame, FramePool};

/// Datagrams that one system call takes in; what the socket library has room for.
const BATCH: usize = quinn_udp::BATCH_SIZE;

/// Datagrams that wait for the socket to take them.
const SEND_QUEUE: usize = 256;

/// Bytes asked for as receive and send buffer: two thousand cells. The system's limit may give less.
const SOCKET_BUFFER: usize = 4 << 20;

/// Bytes of a frame that a datagram is received into: the rest of the chunk, more than any datagram of ours.
const RECEIVE_LEN: u16 = {
    let rest = Arena::CHUNK - Frame::CELL_OFFSET as usize;
    assert!(rest > CELL_LEN && rest <= u16::MAX as usize);
    #[expect(clippy::cast_possible_truncation, reason = "asserted one line above")]
    {
        rest as u16
    }
};

/// A datagram for the control plane or of it, which is not a cell.
#[derive(Clone)]
pub struct ControlDatagram {
    bytes: [u8; CELL_LEN],
    len: usize,
    /// Who it is for, or who the packet says it is from, which is not authenticated.
    pub remote: SocketAddr,
}

impl ControlDatagram {
    /// A copy of `data`, or `None` where it is longer than any datagram is.
    pub fn new(data: &[u8], remote: SocketAddr) -> Option<Self> {
        let mut bytes = [0; CELL_LEN];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(Self { bytes, len: data.len(), remote })
    }

    /// The UDP payload.
    pub fn data(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for ControlDatagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the address nor the bytes: this may end in a log.
        f.debug_struct("ControlDatagram").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The control plane's queues at a port whose socket it shares.
pub struct Handshakes {
    /// What came and is not a cell.
    pub arrived: Sender<ControlDatagram>,
    /// What shall leave; one with each turn of the worker.
    pub leaving: Receiver<ControlDatagram>,
}

/// A port on one UDP socket, which never blocks.
pub struct UdpPort {
    socket: UdpSocket,
    state: UdpSocketState,
    handshakes: Option<Handshakes>,
    /// `None` where the system gave no loopback: sending is as cold then as what went before left it.
    rehearsal: Option<Rehearsal>,
    /// The kernel has the first of the queue and waits for the word.
    corked: bool,
    peers: PeerTable<Peer>,
    queue: VecDeque<(Peer, Frame)>,
    /// Frames of the batch at hand; empty between calls.
    batch: Vec<Frame>,
    counters: PortCounters,
}

impl UdpPort {
    /// Makes a port of `socket`, which must be bound and of which nobody else sends. Datagrams that are not cells go to
    /// `handshakes`, or are dropped without it.
    ///
    /// # Errors
    /// What the system says to the socket's options.
    pub fn new(socket: UdpSocket, handshakes: Option<Handshakes>) -> io::Result<Self> {
        // This sets "don't fragment", makes the socket nonblocking and turns receive offload on.
        let state = UdpSocketState::new((&socket).into())?;
        setsockopt(&socket, sockopt::UdpGroSegment, &false)?;
        // The default buffer holds a hundred cells; a smaller one than asked for is no error.
        let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER);
        let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER);
        let rehearsal = Rehearsal::new(socket.local_addr()?.ip())
            .inspect_err(|error| log::warn!("sending is not rehearsed on the loopback: {error}"))
            .ok();
        Ok(Self {
            socket,
            state,
            handshakes,
            rehearsal,
            corked: false,
            peers: PeerTable::new(),
            queue: VecDeque::with_capacity(SEND_QUEUE),
            batch: Vec::with_capacity(BATCH),
            counters: PortCounters::default(),
        })
    }

    /// The address the socket is bound to.
    ///
    /// # Errors
    /// What getsockname(2) reports.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits until something has arrived, for at most `limit`. `true` when it has.
    ///
    /// # Errors
    /// What poll(2) reports; an interrupting signal counts as nothing having arrived.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Fills the batch's frames by one system call. Returns how many datagrams came and what is known of each.
    fn receive_batch(&mut self) -> (usize, [RecvMeta; BATCH]) {
        let wanted = self.batch.len();
        let mut metas = [RecvMeta::default(); BATCH];
        let mut frames = self.batch.iter_mut();
        let mut buffers: [IoSliceMut<'_>; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(frames.next().map_or(&mut [], Frame::data_mut)));
        self.counters.kicks += 1;
        let outcome = self.state.recv((&self.socket).into(), &mut buffers[..wanted], &mut metas[..wanted]);
        // Nothing there and a passing error look alike from here: the next turn tries again.
        (outcome.unwrap_or(0), metas)
    }

    fn hand_to_control_plane(&mut self, data: &[u8], source: SocketAddr) {
        let known = data.first().and_then(|first| DatagramType::from_byte(*first));
        let fits = known.is_some_and(|kind| kind != DatagramType::Cell && kind.datagram_len() == data.len());
        let datagram = ControlDatagram::new(data, source).filter(|_| fits);
        match (datagram, &self.handshakes) {
            (Some(datagram), Some(handshakes)) => match handshakes.arrived.try_send(datagram) {
                Ok(()) => self.counters.handshakes += 1,
                Err(_) => self.counters.handshakes_dropped += 1,
            },
            _ => self.counters.invalid += 1,
        }
    }

    fn send_for_control_plane(&mut self) {
        let Some(datagram) = self.handshakes.as_ref().and_then(|queues| queues.leaving.try_recv().ok())
        else {
            return;
        };
        self.counters.kicks += 1;
        let sent = sendto(&self.socket, datagram.data(), SendFlags::DONTWAIT, &datagram.remote);
        self.counters.handshakes_unsent += u64::from(sent.is_err());
    }
}

impl Port for UdpPort {
    fn receive(&mut self, pool: &mut FramePool, out: &mut Vec<Received>, max: usize) -> usize {
        self.send_for_control_plane();
        let wanted = max.min(out.capacity() - out.len()).min(BATCH);
        while self.batch.len() < wanted {
            let Some(mut frame) = pool.take() else { break };
            frame.reset(Frame::CELL_OFFSET, RECEIVE_LEN);
            self.batch.push(frame);
        }
        if self.batch.is_empty() {
            return 0;
        }
        let (came, metas) = self.receive_batch();
        let mut batch = std::mem::take(&mut self.batch);
        let mut count = 0;
        for (place, mut frame) in batch.drain(..).enumerate() {
            let meta = &metas[place];
            let len = u16::try_from(meta.len).ok().filter(|len| place < came && *len < RECEIVE_LEN);
            let Some(len) = len else {
                self.counters.invalid += u64::from(place < came);
                pool.put(frame);
                continue;
            };
            frame.reset(Frame::CELL_OFFSET, len);
            let source = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            if frame.cell().is_some_and(|cell| cell[0] == DatagramType::Cell as u8) {
                out.push(Received { frame, source });
                count += 1;
            } else {
                self.hand_to_control_plane(frame.data(), source);
                pool.put(frame);
            }
        }
        // The emptied vector keeps its room for the next batch.
        self.batch = batch;
        self.counters.rx += count as u64;
        count
    }

    fn set_peer(&mut self, slot: u32, peer: Option<Peer>) {
        self.peers.set(slot, peer);
    }

    fn transmit(&mut self, slot: u32, frame: Frame) -> Result<(), TransmitError> {
        let (reason, counter) = match self.peers.get(slot) {
            None => (Refusal::Unresolved, &mut self.counters.tx_unresolved),
            Some(_) if frame.cell().is_none() => (Refusal::Invalid, &mut self.counters.invalid),
            Some(_) if self.queue.len() == SEND_QUEUE => (Refusal::Full, &mut self.counters.tx_full),
            Some(peer) => {
                self.queue.push_back((*peer, frame));
                return Ok(());
            }
        };
        *counter += 1;
        Err(TransmitError { frame, reason })
    }

    fn make_ready(&mut self) -> bool {
        if self.corked {
            return self.rehearsal.as_ref().is_some_and(Rehearsal::once);
        }
        let Some((peer, frame)) = self.queue.front() else { return false };
        self.counters.kicks += 1;
        let flags = SendFlags::MORE | SendFlags::DONTWAIT;
        // What is refused here is refused, and counted, when it is sent for.
        self.corked = sendto(&self.socket, frame.data(), flags, &peer.remote).is_ok();
        self.corked
    }

    fn flush(&mut self, pool: &mut FramePool) -> bool {
        while let Some((peer, frame)) = self.queue.front() {
            self.counters.kicks += 1;
            let sent = if std::mem::take(&mut self.corked) {
                send(&self.socket, &[], SendFlags::DONTWAIT)
            } else {
                sendto(&self.socket, frame.data(), SendFlags::DONTWAIT, &peer.remote)
            };
            match sent {
                Ok(_) => self.counters.tx += 1,
                // The socket's buffer is full; what waits goes with the next flush.
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.counters.tx += 1;
                    self.counters.tx_lost += 1;
                }
            }
            if let Some((_, frame)) = self.queue.pop_front() {
                pool.put(frame);
            }
        }
        !self.queue.is_empty()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn mode(&self) -> PortMode {
        PortMode { xdp: None, bind: BindMode::Udp, socket: None }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    struct End {
        port: UdpPort,
        pool: FramePool,
        out: Vec<Received>,
        control: Receiver<ControlDatagram>,
        leaving: Sender<ControlDatagram>,
    }

    impl End {
        fn new(arena: &'static Arena, control_queue: usize) -> Self {
            Self::at(Ipv4Addr::LOCALHOST.into(), arena, control_queue)
        }

        fn at(address: IpAddr, arena: &'static Arena, control_queue: usize) -> Self {
            let (arrived, control) = crossbeam::channel::bounded(control_queue);
            let (leaving, outbox) = crossbeam::channel::bounded(control_queue);
            let socket = UdpSocket::bind((address, 0)).unwrap();
            let port = UdpPort::new(socket, Some(Handshakes { arrived, leaving: outbox })).unwrap();
            Self { port, pool: FramePool::new(arena, 32), out: Vec::with_capacity(64), control, leaving }
        }

        fn address(&self) -> SocketAddr {
            self.port.local_address().unwrap()
        }

        fn receive_until(&mut self, done: impl Fn(&Self) -> bool) {
            for _ in 0..200 {
                self.port.receive(&mut self.pool, &mut self.out, 64);
                if done(self) {
                    return;
                }
                self.port.wait(Duration::from_millis(10)).unwrap();
            }
        }
    }

    fn send_cells(from: &mut End, to: &End, cells: u8) {
        let peer = Peer { local: from.address(), remote: to.address(), macs: None, vlan: None };
        from.port.set_peer(1, Some(peer));
        for number in 0..cells {
            let mut frame = from.pool.take().unwrap();
            frame.data_mut().fill(number);
            frame.data_mut()[0] = DatagramType::Cell as u8;
            from.port.transmit(1, frame).unwrap();
        }
        from.port.flush(&mut from.pool);
    }

    #[test]
    fn cells_cross_the_loopback_in_order() {
        let arena = Arena::anonymous(256).unwrap();
        let (mut near, mut far) = (End::new(arena, 1), End::new(arena, 1));
        send_cells(&mut near, &far, 50);
        far.receive_until(|end| end.out.len() == 50);
        assert_eq!(far.out.len(), 50);
        for (number, received) in (0u8..).zip(&far.out) {
            assert_eq!(received.source, near.address());
            assert!(received.frame.cell().unwrap()[1..].iter().all(|byte| *byte == number));
        }
        assert_eq!((near.port.counters().tx, far.port.counters().rx), (50, 50));
        assert_eq!(near.port.counters().tx_lost, 0);
        drop((near, far));
        assert_eq!(arena.free_frames(), 256);
    }

    /// From a socket at `near` to one at `far`, which the sender calls `remote`.
    fn made_ready(near: IpAddr, far: IpAddr, remote: IpAddr) {
        let arena = Arena::anonymous(256).unwrap();
        let (mut near, mut far) = (End::at(near, arena, 1), End::at(far, arena, 1));
        let remote = SocketAddr::new(remote, far.address().port());
        near.port.set_peer(1, Some(Peer { local: near.address(), remote, macs: None, vlan: None }));
        assert!(!near.port.make_ready(), "nothing is queued");
        for number in 0..3 {
            let mut frame = near.pool.take().unwrap();
            frame.data_mut().fill(number);
            frame.data_mut()[0] = DatagramType::Cell as u8;
            near.port.transmit(1, frame).unwrap();
        }
        for _ in 0..20 {
            assert!(near.port.make_ready());
        }
        assert!(!far.port.wait(Duration::from_millis(20)).unwrap(), "its moment has not come");
        // What the control plane sends meanwhile waits for the worker's next turn.
        let mut handshake = [7u8; CELL_LEN];
        handshake[0] = DatagramType::HsInit as u8;
        near.leaving.try_send(ControlDatagram::new(&handshake, remote).unwrap()).unwrap();
        assert!(!near.port.flush(&mut near.pool));
        far.receive_until(|end| end.out.len() == 3);
        for (number, received) in (0u8..).zip(&far.out) {
            assert!(received.frame.cell().unwrap()[1..].iter().all(|byte| *byte == number));
        }
        near.port.receive(&mut near.pool, &mut near.out, 1);
        far.receive_until(|end| end.port.counters().handshakes == 1);
        assert_eq!(far.control.try_recv().unwrap().data(), handshake);
        let counters = near.port.counters();
        assert_eq!((counters.tx, counters.tx_lost, counters.handshakes_unsent), (3, 0, 0));
    }

    #[test]
    fn a_cell_that_was_made_ready_leaves_with_the_flush_alone_and_whole() {
        let (four, six): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        made_ready(four, four, four);
        made_ready(six, six, six);
        made_ready(Ipv6Addr::UNSPECIFIED.into(), four, Ipv4Addr::LOCALHOST.to_ipv6_mapped().into());
    }

    #[test]
    fn a_cell_that_cannot_be_made_ready_is_lost_and_counted_once() {
        let arena = Arena::anonymous(64).unwrap();
        let mut near = End::new(arena, 1);
        // A socket of one family has no way to the other.
        let remote = "[::1]:9".parse().unwrap();
        near.port.set_peer(1, Some(Peer { local: near.address(), remote, macs: None, vlan: None }));
        let mut frame = near.pool.take().unwrap();
        frame.data_mut()[0] = DatagramType::Cell as u8;
        near.port.transmit(1, frame).unwrap();
        assert!(!near.port.make_ready());
        assert!(!near.port.flush(&mut near.pool));
        assert_eq!((near.port.counters().tx, near.port.counters().tx_lost), (1, 1));
    }

    #[test]
    fn the_batch_never_outgrows_what_was_asked_for() {
        let arena = Arena::anonymous(128).unwrap();
        let (mut near, mut far) = (End::new(arena, 1), End::new(arena, 1));
        far.out = Vec::with_capacity(3);
        send_cells(&mut near, &far, 10);
        far.receive_until(|end| end.out.len() == 3);
        assert_eq!(far.port.receive(&mut far.pool, &mut far.out, 64), 0);
        assert_eq!((far.out.len(), far.out.capacity()), (3, 3));
        far.out.clear();
        assert_eq!(far.port.receive(&mut far.pool, &mut far.out, 2), 2);
    }

    #[test]
    fn handshakes_go_to_the_control_plane_and_rubbish_nowhere() {
        let arena = Arena::anonymous(64).unwrap();
        let (near, mut far) = (End::new(arena, 1), End::new(arena, 2));
        let socket = near.port.socket.try_clone().unwrap();
        let mut handshake = [7u8; CELL_LEN];
        handshake[0] = DatagramType::HsInit as u8;
        let mut retry = [9u8; 64];
        retry[0] = DatagramType::Retry as u8;
        let mut cell_too_short = [0u8; 64];
        cell_too_short[0] = DatagramType::Cell as u8;
        let datagrams: [&[u8]; 6] = [&handshake, &retry, &retry, &cell_too_short, &[0; CELL_LEN], &[]];
        for datagram in datagrams {
            socket.send_to(datagram, far.address()).unwrap();
        }
        far.receive_until(|end| {
            let counters = end.port.counters();
            counters.handshakes + counters.handshakes_dropped + counters.invalid == 6
        });
        let counters = far.port.counters();
        assert_eq!((counters.handshakes, counters.handshakes_dropped, counters.invalid), (2, 1, 3));
        let first = far.control.try_recv().unwrap();
        assert_eq!((first.data(), first.remote), (&handshake[..], near.address()));
        assert_eq!(far.control.try_recv().unwrap().data(), retry);
        assert!(!format!("{first:?}").contains("127.0.0.1"));
        assert!(far.out.is_empty());
    }

    #[test]
    fn only_cells_to_a_known_peer_are_taken_and_the_queue_ends() {
        let arena = Arena::anonymous(512).unwrap();
        let (mut near, far) = (End::new(arena, 1), End::new(arena, 1));
        let frame = near.pool.take().unwrap();
        let mut frame = near.port.transmit(1, frame).unwrap_err().frame;
        let peer = Peer { local: near.address(), remote: far.address(), macs: None, vlan: None };
        near.port.set_peer(1, Some(peer));
        frame.reset(Frame::CELL_OFFSET, 64);
        assert_eq!(near.port.transmit(1, frame).unwrap_err().reason, Refusal::Invalid);
        for _ in 0..SEND_QUEUE {
            let frame = near.pool.take().unwrap();
            near.port.transmit(1, frame).unwrap();
        }
        let frame = near.pool.take().unwrap();
        assert_eq!(near.port.transmit(1, frame).unwrap_err().reason, Refusal::Full);
    }
}
