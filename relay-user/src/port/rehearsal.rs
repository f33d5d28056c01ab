//! Datagrams that leave for nowhere, so that the kernel's way of sending is in the processor's caches when a cell leaves.
//!
//! From its moment to the wire a cell needs a system call, and how long that takes depends on what the processor did
//! before: on payload, then. A worker that waits for a moment walks the way instead of spinning, until the walk is all
//! that the processor did lately.

use relay_common::wire::CELL_LEN;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// A socket of the loopback that is connected to itself: nobody else can send to it, and nothing leaves the host.
#[derive(Debug)]
pub(super) struct Rehearsal {
    socket: UdpSocket,
    datagram: Box<[u8; CELL_LEN]>,
}

impl Rehearsal {
    /// For a socket that sends from `local`: in the same family.
    ///
    /// # Errors
    /// What the system says, such as where the loopback has no address of that family.
    pub(super) fn new(local: IpAddr) -> io::Result<Self> {
        let loopback: IpAddr = match local {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(loopback, 0))?;
        socket.connect(socket.local_addr()?)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, datagram: Box::new([0; CELL_LEN]) })
    }

    /// Sends a datagram in the two steps in which a cell is sent, and takes it back. `false` where the system refused.
    pub(super) fn once(&self) -> bool {
        let sent = send(&self.socket, &*self.datagram, SendFlags::MORE)
            .and_then(|_| send(&self.socket, &[], SendFlags::empty()));
        let mut rest = [0u8; 1];
        let taken = recv(&self.socket, &mut rest, RecvFlags::DONTWAIT);
        sent.is_ok() && taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rehearsed_comes_back_and_leaves_nothing_behind() {
        let rehearsal = Rehearsal::new(Ipv4Addr::UNSPECIFIED.into()).unwrap();
        for _ in 0..1000 {
            assert!(rehearsal.once());
        }
        let mut rest = [0u8; 1];
        assert!(recv(&rehearsal.socket, &mut rest, RecvFlags::DONTWAIT).is_err(), "each was taken back");
    }

    #[test]
    fn nobody_else_can_send_to_it() {
        let rehearsal = Rehearsal::new(Ipv4Addr::UNSPECIFIED.into()).unwrap();
        let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let _ = stranger.send_to(&[7], rehearsal.socket.local_addr().unwrap());
        let mut rest = [0u8; 1];
        assert!(recv(&rehearsal.socket, &mut rest, RecvFlags::DONTWAIT).is_err());
    }
}
