//! A packet socket that hands out frames with the kernel's times and says how many it lost.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns, RxqOvfl};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, MultiHeaders, recvmmsg, sendto, setsockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// Frames per system call.
pub(crate) const BATCH: usize = 64;
/// Receive buffer in bytes: about a second of the lab's busiest wire.
const RECEIVE_BUFFER: usize = 64 << 20;
/// How often the socket is emptied. Frames carry the kernel's time, so this coarsens nothing.
const TURN: Duration = Duration::from_millis(5);

/// `ETH_P_ALL` of linux/if_ether.h.
const EVERY_PROTOCOL: u16 = 3;

/// What came out of a [`Tap`].
#[derive(Debug)]
pub(crate) enum Caught<'a> {
    /// A frame's beginning, and when the kernel saw it, since 1970.
    Frame(Duration, &'a [u8]),
    /// Frames that the kernel could not queue, in all.
    Lost(u64),
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Tap {
    socket: Socket,
    captured: usize,
}

impl Tap {
    /// Frames, Ethernet header included, that *enter* one of these interfaces of the calling thread's namespace.
    pub(crate) fn on_ports(ports: &[u32], captured: u32) -> Result<Self> {
        Self::open(Type::RAW, &entering(ports, captured)?, captured)
    }

    /// IP packets that pass an interface of the calling thread's namespace, either way.
    pub(crate) fn on_interface(interface: u32, captured: u32) -> Result<Self> {
        Self::open(Type::DGRAM, &passing(interface, captured), captured)
    }

    fn open(kind: Type, program: &[SockFilter], captured: u32) -> Result<Self> {
        let protocol = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
        let socket =
            Socket::new(Domain::PACKET, kind, Some(protocol)).context("cannot open a packet socket")?;
        socket.attach_filter(program).context("cannot attach a filter")?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("cannot enlarge the receive buffer")?;
        setsockopt(&socket, ReceiveTimestampns, &true).context("cannot ask for times of arrival")?;
        setsockopt(&socket, RxqOvfl, &1).context("cannot ask for the number of lost frames")?;
        // Frames of the moment before the filter was there.
        let mut scrap = [0; 1];
        while nix::sys::socket::recv(socket.as_raw_fd(), &mut scrap, MsgFlags::MSG_DONTWAIT).is_ok() {}
        Ok(Self { socket, captured: captured as usize })
    }

    /// Hands everything that comes to `take` until `stop` is set; what has come by then still is.
    pub(crate) fn drain_until(
        &self,
        stop: &AtomicBool,
        mut take: impl FnMut(Caught<'_>),
    ) -> Result<(), Errno> {
        let mut buffers = self.buffers();
        loop {
            let last = stop.load(Ordering::Relaxed);
            match self.receive(&mut buffers, &mut take) {
                Ok(BATCH) => {}
                Ok(_) | Err(Errno::EINTR) if last => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => std::thread::sleep(TURN),
                Err(error) => return Err(error),
            }
        }
    }

    /// Room for what [`Self::receive`] takes at a time.
    pub(crate) fn buffers(&self) -> Vec<Vec<u8>> {
        vec![vec![0; self.captured]; BATCH]
    }

    /// Hands what has come to `take`, up to [`BATCH`] frames, and says how many there were; does not wait.
    pub(crate) fn receive(
        &self,
        buffers: &mut [Vec<u8>],
        take: &mut impl FnMut(Caught<'_>),
    ) -> Result<usize, Errno> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        // Made afresh each time: the kernel shortens each header's control length to what it used, and the next call
        // would offer only that.
        let mut headers = MultiHeaders::<()>::preallocate(BATCH, Some(nix::cmsg_space!(TimeSpec, u32)));
        let received = match recvmmsg(
            self.socket.as_raw_fd(),
            &mut headers,
            slices.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        ) {
            Err(Errno::EAGAIN) => return Ok(0),
            other => other?,
        };
        let mut count = 0;
        for message in received {
            count += 1;
            let mut at = None;
            for control in message.cmsgs()? {
                match control {
                    ControlMessageOwned::ScmTimestampns(time) => at = Some(Duration::from(time)),
                    ControlMessageOwned::RxqOvfl(lost) => take(Caught::Lost(u64::from(lost))),
                    _ => {}
                }
            }
            let at = at.unwrap_or_else(since_epoch);
            for frame in message.iovs() {
                take(Caught::Frame(at, frame));
            }
        }
        Ok(count)
    }

    /// Sends a frame, Ethernet header included, by the interface that `to` names; does not wait.
    pub(crate) fn send(&self, frame: &[u8], to: &LinkAddr) -> Result<(), Errno> {
        sendto(self.socket.as_raw_fd(), frame, to, MsgFlags::MSG_DONTWAIT).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

// linux/filter.h (SKF_AD_OFF, SKF_AD_PKTTYPE, SKF_AD_IFINDEX), linux/bpf_common.h and linux/if_packet.h.
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ANCILLARY: u32 = 0xffff_f000;
const PACKET_TYPE: u32 = ANCILLARY + 4;
const INTERFACE: u32 = ANCILLARY + 8;
const PACKET_OUTGOING: u32 = 4;

/// A classic BPF program: frames that *enter* one of `ports`, cut to `captured` bytes. Without the direction, a bridged
/// frame would be seen twice, entering one port and leaving by another.
fn entering(ports: &[u32], captured: u32) -> Result<Vec<SockFilter>> {
    let count = match u8::try_from(ports.len()) {
        Ok(count) if count <= 64 => count,
        _ => bail!("the observer watches up to 64 ports, not {}", ports.len()),
    };
    let mut program = vec![
        SockFilter::new(LOAD_WORD, 0, 0, PACKET_TYPE),
        SockFilter::new(JUMP_IF_EQUAL, count + 1, 0, PACKET_OUTGOING),
        SockFilter::new(LOAD_WORD, 0, 0, INTERFACE),
    ];
    program.extend((1..=count).zip(ports).map(|(nth, &port)| {
        let to_accept = count - nth + 1;
        SockFilter::new(JUMP_IF_EQUAL, to_accept, 0, port)
    }));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program.push(SockFilter::new(RETURN, 0, 0, captured));
    Ok(program)
}

/// What passes `interface`, cut to `captured` bytes.
fn passing(interface: u32, captured: u32) -> [SockFilter; 4] {
    [
        SockFilter::new(LOAD_WORD, 0, 0, INTERFACE),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, interface),
        SockFilter::new(RETURN, 0, 0, captured),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// The clock that the kernel stamps frames with.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
