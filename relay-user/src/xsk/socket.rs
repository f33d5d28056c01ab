//! An AF_XDP socket on one queue of one interface, with its four rings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_xdp_rx_ring_size, set_xdp_tx_ring_size, set_xdp_umem_completion_ring_size,
    set_xdp_umem_fill_ring_size, set_xdp_umem_reg, xdp_mmap_offsets, xdp_options, xdp_statistics,
};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpDescOptions, XdpOptionsFlags,
    XdpStatistics, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netdevice, recv, send,
};

use super::arena::{Arena, Frame};
use super::lent::Lent;
use super::mapping::MappedRing;
use super::options::{self, BusyPoll};
use super::ring::{Consumer, Producer};

/// The kernel gives a closed socket's queue free in the background; so many tries, so far apart, wait for it.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// [`Arena::CHUNK`] as the kernel takes it.
const CHUNK_SIZE: u32 = 2048;
const _: () = assert!(CHUNK_SIZE as usize == Arena::CHUNK);

/// Packets between the one at hand and the one whose bytes are asked for: a packet's lines take about as long to come as
/// one packet takes to be looked at.
const PREFETCH_AHEAD: u32 = 1;

/// How a socket shall be bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BindRequest {
    /// Zero-copy where the driver has it, else copy.
    #[default]
    Auto,
    /// The kernel copies.
    Copy,
    /// The device works on the frames; refused where the driver cannot.
    ZeroCopy,
}

/// Where and how to open a socket.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Name of the interface.
    pub interface: String,
    /// Queue of the interface, from 0.
    pub queue: u32,
    /// Entries of each of the four rings; a power of two, 64 to 2^16.
    pub ring: u32,
    /// How to bind. A socket that shares another's UMEM is bound as that one is.
    pub bind: BindRequest,
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The ring size is not one.
    #[error("AF_XDP rings have 64 to 65536 entries, a power of two, not {0}")]
    RingSize(u32),
    /// No such interface in this network namespace.
    #[error("no interface {interface} in this network namespace")]
    NoInterface {
        /// The name looked for.
        interface: String,
    },
    /// Somebody else has the queue.
    #[error(
        "queue {queue} of {interface} is taken by another AF_XDP socket; stop its owner or choose another queue"
    )]
    QueueBusy {
        /// Name of the interface.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// The interface has fewer queues.
    #[error("{interface} has no queue {queue}, or its MTU or driver does not fit AF_XDP: {error}")]
    NoQueue {
        /// Name of the interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What the kernel said.
        error: Errno,
    },
    /// The driver has no zero-copy.
    #[error("{interface} cannot do zero-copy on queue {queue}; set bind to \"auto\" or \"copy\"")]
    NoZeroCopy {
        /// Name of the interface.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// Not allowed.
    #[error(
        "not allowed to {step} for AF_XDP on {interface}; CAP_NET_RAW (and before 5.11 a memlock limit) is needed"
    )]
    NotPermitted {
        /// Name of the interface.
        interface: String,
        /// What failed.
        step: &'static str,
    },
    /// Anything else.
    #[error("cannot {step} for AF_XDP on queue {queue} of {interface}: {error}")]
    System {
        /// Name of the interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What failed.
        step: &'static str,
        /// What the kernel said.
        error: Errno,
    },
}

/// What came of waking the kernel to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kick {
    /// System calls made.
    pub calls: u32,
    /// Packets that the kernel took and dropped at once, since the device had no room.
    pub lost: u32,
    /// Packets that the kernel has not taken yet.
    pub left: u32,
}

/// A bound AF_XDP socket. One worker owns it.
pub struct XskSocket {
    // Rings are in front of the socket, since fields drop in order: unmap, then close.
    receive: Consumer<MappedRing<XdpDesc>>,
    transmit: Producer<MappedRing<XdpDesc>>,
    fill: Producer<MappedRing<u64>>,
    completion: Consumer<MappedRing<u64>>,
    socket: Option<OwnedFd>,
    arena: &'static Arena,
    /// Chunks in the fill ring, in the RX ring or on the way between them.
    lent_receive: Lent,
    /// Chunks in the TX ring, in the completion ring or on the way between them.
    lent_transmit: Lent,
    invalid: u64,
    tx_budget: u32,
    zero_copy: bool,
    prefers_busy_poll: bool,
}

impl XskSocket {
    /// Opens a socket over `arena` and fills nothing in yet. With `share`, the new socket uses the UMEM of that one,
    /// which must be of the same arena and of another queue or interface; without, the arena is registered anew.
    ///
    /// Waits up to 200 ms for a queue whose former socket was just closed.
    ///
    /// # Errors
    /// [`SocketError`], naming interface and queue.
    ///
    /// # Panics
    /// Where `share` is of another arena.
    pub fn open(
        arena: &'static Arena,
        config: &SocketConfig,
        share: Option<&Self>,
    ) -> Result<Self, SocketError> {
        let size = config.ring;
        if !size.is_power_of_two() || !(64..=1 << 16).contains(&size) {
            return Err(SocketError::RingSize(size));
        }
        let at = |step| move |error| SocketError::new(config, step, error);
        let socket =
            rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)
                .map_err(at("create a socket"))?;
        // AF_XDP sockets take no interface ioctl, so a socket that does has to ask.
        let interface = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
            .and_then(|asking| netdevice::name_to_index(asking, &config.interface))
            .map_err(|_| SocketError::NoInterface { interface: config.interface.clone() })?;

        if let Some(share) = share {
            assert!(std::ptr::eq(share.arena, arena), "sockets of different arenas cannot share a UMEM");
        } else {
            let umem = XdpUmemReg {
                addr: arena.base() as u64,
                len: u64::from(arena.frames()) * Arena::CHUNK as u64,
                chunk_size: CHUNK_SIZE,
                headroom: 0,
                flags: XdpUmemRegFlags::empty(),
                tx_metadata_len: 0,
            };
            set_xdp_umem_reg(&socket, umem).map_err(at("register frame memory"))?;
        }
        set_xdp_umem_fill_ring_size(&socket, size).map_err(at("make the fill ring"))?;
        set_xdp_umem_completion_ring_size(&socket, size).map_err(at("make the completion ring"))?;
        set_xdp_rx_ring_size(&socket, size).map_err(at("make the RX ring"))?;
        set_xdp_tx_ring_size(&socket, size).map_err(at("make the TX ring"))?;
        let tx_budget = options::raise_tx_budget(&socket, size);
        options::raise_send_buffer(&socket);

        let offsets = xdp_mmap_offsets(&socket).map_err(at("ask for ring offsets"))?;
        let fd = socket.as_fd();
        let receive =
            MappedRing::map(fd, XDP_PGOFF_RX_RING, &offsets.rx, size).map_err(at("map the RX ring"))?;
        let transmit =
            MappedRing::map(fd, XDP_PGOFF_TX_RING, &offsets.tx, size).map_err(at("map the TX ring"))?;
        let fill = MappedRing::map(fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, size)
            .map_err(at("map the fill ring"))?;
        let completion = MappedRing::map(fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, size)
            .map_err(at("map the completion ring"))?;

        bind_patiently(&socket, config, interface, share).map_err(at("bind"))?;
        let zero_copy = xdp_options(&socket)
            .map_err(at("ask for the bind mode"))?
            .contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        Ok(Self {
            receive: Consumer::new(receive),
            transmit: Producer::new(transmit),
            fill: Producer::new(fill),
            completion: Consumer::new(completion),
            socket: Some(socket),
            arena,
            lent_receive: Lent::new(arena.frames()),
            lent_transmit: Lent::new(arena.frames()),
            invalid: 0,
            tx_budget,
            zero_copy,
            prefers_busy_poll: false,
        })
    }

    /// Has the driver's receive loop run by [`Self::poll_device`] instead of by interrupts. For a worker that never
    /// sleeps; only with zero-copy, since in copy mode the loop is not this socket's alone.
    ///
    /// # Errors
    /// `OPNOTSUPP` in copy mode, and what the kernel says: `PERM` without CAP_NET_ADMIN.
    pub fn prefer_busy_poll(&mut self) -> Result<(), Errno> {
        if !self.zero_copy {
            return Err(Errno::OPNOTSUPP);
        }
        options::prefer_busy_poll(self.socket())?;
        self.prefers_busy_poll = true;
        Ok(())
    }

    /// What became of [`Self::prefer_busy_poll`] by now.
    pub fn busy_poll(&self) -> BusyPoll {
        if !self.prefers_busy_poll {
            return BusyPoll::Off;
        }
        options::napi(self.socket()).map_or(BusyPoll::NoNapi, |_| BusyPoll::Active)
    }

    /// Runs the driver's receive loop once, where busy polling was asked for. Returns the system calls made.
    pub fn poll_device(&mut self) -> u32 {
        if !self.prefers_busy_poll {
            return 0;
        }
        // The outcome is of no use: what came is in the RX ring.
        let _ = recv(self.socket(), &mut [0u8; 0], RecvFlags::DONTWAIT);
        1
    }

    fn socket(&self) -> &OwnedFd {
        self.socket.as_ref().expect("present until drop")
    }

    /// The socket, to put it into the XSKMAP and to poll it. It must not be duplicated, which is why it stays inside
    /// this crate: a duplicate would keep the socket open past this value, and the kernel would go on writing into
    /// frames that were given back.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }

    /// What the frames of the socket are in.
    pub fn pages(&self) -> super::Pages {
        self.arena.pages()
    }

    /// Whether the device works on the frames itself.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// The kernel's own counters of this socket. `None` where it refuses to tell.
    pub fn statistics(&self) -> Option<XdpStatistics> {
        xdp_statistics(self.socket()).ok()
    }

    /// Descriptors from the kernel that named no frame of ours; their chunks are lost to the process.
    pub fn invalid_descriptors(&self) -> u64 {
        self.invalid
    }

    /// Frames in the kernel's hands to be received into.
    pub fn frames_to_receive(&self) -> u32 {
        self.lent_receive.count()
    }

    /// The oldest received packet, its data from the Ethernet header on.
    pub fn pop_received(&mut self) -> Option<Frame> {
        while let Some(descriptor) = self.receive.pop() {
            // Its bytes are in another processor's cache, where the kernel wrote them.
            if let Some(next) = self.receive.peek(PREFETCH_AHEAD)
                && let (Some((index, offset)), Ok(len)) = (split(next.addr), u16::try_from(next.len))
            {
                self.arena.prefetch(index, offset, len);
            }
            let Some((index, offset)) = split(descriptor.addr) else {
                self.invalid += 1;
                continue;
            };
            // More than one descriptor per packet needs XDP_USE_SG, which is never asked for.
            let len = u16::try_from(descriptor.len).ok();
            if let (Some(len), true) = (len, self.lent_receive.take_back(index)) {
                // SAFETY: `lent_receive` had the chunk, so it was given up by `into_chunk` in `push_fill` and not taken
                // back since; a descriptor in the RX ring is the kernel's word that it is done.
                if let Some(frame) = unsafe { Frame::from_chunk(self.arena, index, offset, len) } {
                    return Some(frame);
                }
            }
            self.invalid += 1;
        }
        None
    }

    /// Gives the places of what was popped back to the kernel.
    pub fn release_received(&mut self) {
        self.receive.release();
    }

    /// Lends `frame` to be received into, or gives it back when the fill ring is full or the frame is not of the
    /// socket's arena.
    ///
    /// # Errors
    /// The frame.
    pub fn push_fill(&mut self, frame: Frame) -> Result<(), Frame> {
        if !std::ptr::eq(frame.arena(), self.arena) || !self.fill.has_room() {
            return Err(frame);
        }
        let (index, _, _) = frame.into_chunk();
        self.lent_receive.lend(index);
        self.fill.push(address(index, 0));
        Ok(())
    }

    /// Shows the kernel the frames lent so far, and wakes it where it waits for them. Returns the system calls made.
    pub fn publish_fill(&mut self) -> u32 {
        self.fill.publish();
        // Only drivers with zero-copy ever wait for frames.
        if self.zero_copy && self.fill.needs_wakeup() {
            // The outcome is of no use: if the kernel could not be woken, it asks for it again at the next call.
            let _ = recv(self.socket(), &mut [0u8; 0], RecvFlags::DONTWAIT);
            return 1;
        }
        0
    }

    /// Queues `frame`, whose data is a whole packet from the Ethernet header on, or gives it back when the TX ring is
    /// full or the frame is not of the socket's arena. It leaves with the next [`Self::kick`].
    ///
    /// # Errors
    /// The frame.
    pub fn push_transmit(&mut self, frame: Frame) -> Result<(), Frame> {
        if !std::ptr::eq(frame.arena(), self.arena) || !self.transmit.has_room() {
            return Err(frame);
        }
        let (index, offset, len) = frame.into_chunk();
        self.lent_transmit.lend(index);
        self.transmit.push(XdpDesc {
            addr: address(index, offset),
            len: len.into(),
            options: XdpDescOptions::empty(),
        });
        Ok(())
    }

    /// Publishes the queued packets and wakes the kernel until it took all of them, or `max_calls` calls were made, or
    /// it says that it can take no more now; the rest leaves with the next kick.
    pub fn kick(&mut self, max_calls: u32) -> Kick {
        self.transmit.publish();
        let mut kick = Kick::default();
        while kick.calls < max_calls && self.transmit.pending() > 0 {
            // Copy mode sends within the call and on no other occasion. With busy polling nobody else runs the driver's
            // loop, whatever the flag says, and a cell would wait for the next look at what came in.
            if self.zero_copy && !self.prefers_busy_poll && !self.transmit.needs_wakeup() {
                break;
            }
            let before = self.transmit.pending();
            let outcome = send(self.socket(), &[], SendFlags::DONTWAIT);
            kick.calls += 1;
            match outcome {
                Ok(_) => {
                    if self.zero_copy {
                        break;
                    }
                }
                // The peer's ring was full: the packet at hand is completed, but was dropped. Those behind it wait.
                Err(Errno::BUSY) => kick.lost += 1,
                // Either the budget of one call is used up, or the send buffer is. The first made headway.
                Err(Errno::AGAIN) if before.wrapping_sub(self.transmit.pending()) >= self.tx_budget => {}
                // Among them ENETDOWN: packets stay queued, and the link above sees them stay away.
                Err(_) => break,
            }
        }
        kick.left = self.transmit.pending();
        kick
    }

    /// The oldest frame whose packet is gone.
    pub fn pop_completed(&mut self) -> Option<Frame> {
        while let Some(address) = self.completion.pop() {
            if let Some((index, _)) = split(address)
                && self.lent_transmit.take_back(index)
            {
                // SAFETY: `lent_transmit` had the chunk, so it was given up by `into_chunk` in `push_transmit` and not
                // taken back since; an address in the completion ring is the kernel's word that it is done.
                if let Some(frame) = unsafe { Frame::from_chunk(self.arena, index, 0, 0) } {
                    return Some(frame);
                }
            }
            self.invalid += 1;
        }
        None
    }

    /// Gives the places of what was popped back to the kernel.
    pub fn release_completed(&mut self) {
        self.completion.release();
    }
}

impl Drop for XskSocket {
    fn drop(&mut self) {
        while self.pop_completed().is_some() {}
        while self.pop_received().is_some() {}
        drop(self.socket.take());
        // Closing takes the socket off its queue and waits until no receiver is at work on it, so nobody writes into
        // frames that were lent for receiving. Those lent for sending and not completed stay lost: a packet on its way
        // may still refer to them.
        let mut from = 0;
        while let Some(index) = self.lent_receive.next_lent(from) {
            from = index + 1;
            let lent = self.lent_receive.take_back(index);
            debug_assert!(lent);
            // SAFETY: the chunk was lent and not taken back, and the socket is closed; `fd` keeps
            // its number inside the crate, which never duplicates it.
            drop(unsafe { Frame::from_chunk(self.arena, index, 0, 0) });
        }
    }
}

/// Address in the UMEM of byte `offset` of chunk `index`.
fn address(index: u32, offset: u16) -> u64 {
    u64::from(index) * Arena::CHUNK as u64 + u64::from(offset)
}

/// The chunk that `address` is in and the place inside it. `None` for one that no arena has.
fn split(address: u64) -> Option<(u32, u16)> {
    let chunk = Arena::CHUNK as u64;
    Some((u32::try_from(address / chunk).ok()?, u16::try_from(address % chunk).ok()?))
}

/// Binds, and waits a bounded time for a queue that is just being given free.
fn bind_patiently(
    socket: &OwnedFd,
    config: &SocketConfig,
    interface: u32,
    share: Option<&XskSocket>,
) -> Result<(), Errno> {
    let mode = match config.bind {
        BindRequest::Auto => SocketAddrXdpFlags::empty(),
        BindRequest::Copy => SocketAddrXdpFlags::XDP_COPY,
        BindRequest::ZeroCopy => SocketAddrXdpFlags::XDP_ZEROCOPY,
    };
    let mut tries = 1;
    loop {
        let outcome = match share {
            // The kernel refuses every other flag here and takes them from the first socket.
            Some(share) => bind(
                socket,
                &SocketAddrXdpWithSharedUmem {
                    addr: SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, interface, config.queue),
                    shared_umem_fd: share.socket().as_fd(),
                },
            ),
            None => {
                let flags = mode | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
                bind(socket, &SocketAddrXdp::new(flags, interface, config.queue))
            }
        };
        if outcome != Err(Errno::BUSY) || tries == BUSY_TRIES {
            return outcome;
        }
        tries += 1;
        std::thread::sleep(BUSY_PAUSE);
    }
}

impl SocketError {
    fn new(config: &SocketConfig, step: &'static str, error: Errno) -> Self {
        let (interface, queue) = (config.interface.clone(), config.queue);
        match (step, error) {
            ("bind", Errno::BUSY) => Self::QueueBusy { interface, queue },
            ("bind", Errno::OPNOTSUPP) if config.bind == BindRequest::ZeroCopy => {
                Self::NoZeroCopy { interface, queue }
            }
            ("bind", Errno::INVAL) => Self::NoQueue { interface, queue, error },
            (_, Errno::PERM | Errno::NOBUFS) => Self::NotPermitted { interface, step },
            _ => Self::System { interface, queue, step, error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_chunk_and_place() {
        for (index, offset) in [(0, 0), (1, 0), (7, 2047), ((1 << 20) - 1, 256)] {
            assert_eq!(split(address(index, offset)), Some((index, offset)));
        }
        assert_eq!(split(u64::MAX), None);
    }

    #[test]
    fn a_ring_size_the_kernel_would_refuse_is_named() {
        let arena = Arena::anonymous(1).unwrap();
        for ring in [0, 63, 1000, 1 << 17] {
            let config = SocketConfig { interface: "lo".into(), queue: 0, ring, bind: BindRequest::Auto };
            let error = XskSocket::open(arena, &config, None).err().unwrap();
            assert!(error.to_string().contains(&ring.to_string()));
        }
    }
}
