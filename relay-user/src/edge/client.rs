//! The client's edge: its TUN device and what may pass through it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::drops::{EdgeDrop, EdgeDrops};
use super::ip::{CLIENT_V4, CLIENT_V6, INNER_MTU, Inner, is_client};
use super::packing::{BlockKind, Packer};
use super::rewrite::clamp_mss;
use super::tun::{Offload, Tun, TunError};

/// The edge where packets of the client's own programs enter the tunnel and answers leave it.
pub struct ClientEdge {
    tun: Tun,
    drops: EdgeDrops,
    payload: [u64; 2],
}

impl ClientEdge {
    /// Makes the TUN device `name` with the constant client addresses. Routes are set apart
    /// ([`super::routes::GuardedRoutes`]).
    ///
    /// # Errors
    /// See [`Tun::create`].
    pub fn open(name: &str, offload: Offload) -> Result<Self, TunError> {
        let addresses = [(CLIENT_V4.into(), 32), (CLIENT_V6.into(), 128)];
        let tun = Tun::create(name, &addresses, INNER_MTU, offload)?;
        Ok(Self { tun, drops: EdgeDrops::default(), payload: [0; 2] })
    }

    /// See [`Tun::with_porter`].
    ///
    /// # Errors
    /// As there.
    pub fn with_porter(self) -> io::Result<Self> {
        Ok(Self { tun: self.tun.with_porter()?, ..self })
    }

    /// Moves up to `max` packets that wait in the TUN into `packer` at `now` (monotonic nanoseconds). Returns how many
    /// were read, dropped ones included.
    pub fn pump(&mut self, packer: &mut Packer, now: u64, max: usize) -> usize {
        for done in 0..max {
            match self.tun.read_packet() {
                Ok(true) => {}
                Ok(false) => return done,
                Err(_) => {
                    self.drops.count(EdgeDrop::TunFailed);
                    return done;
                }
            }
            let packet = self.tun.packet();
            self.payload[0] += packet.len() as u64;
            let pushed = outgoing(packet)
                .and_then(|kind| packer.push(kind, packet, now).map_err(|_| EdgeDrop::QueueFull));
            if let Err(reason) = pushed {
                self.drops.count(reason);
            }
        }
        max
    }

    /// Hands a packet that came through the tunnel to the client's programs, at the latest with the next
    /// [`ClientEdge::flush`]. Control blocks are not packets and are refused as of no IP version.
    pub fn deliver(&mut self, kind: BlockKind, packet: &[u8]) {
        self.payload[1] += packet.len() as u64;
        let Some(copy) = self.tun.stage(packet) else {
            return self.drops.count(EdgeDrop::TooLong);
        };
        match incoming(kind, copy) {
            Ok(()) => self.tun.write_staged(&mut self.drops),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// Writes what [`ClientEdge::deliver`] kept back for others of its flow: the end of a turn.
    pub fn flush(&mut self) {
        self.tun.flush(&mut self.drops);
    }

    /// Packets dropped, by reason.
    pub fn drops(&self) -> &EdgeDrops {
        &self.drops
    }

    /// Bytes of packets that came from the client's programs and that were for them, dropped ones included.
    pub fn payload(&self) -> [u64; 2] {
        self.payload
    }

    /// The TUN device.
    pub fn tun(&self) -> &Tun {
        &self.tun
    }
}

impl AsFd for ClientEdge {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

/// Checks and clamps a packet from the client's programs.
fn outgoing(packet: &mut [u8]) -> Result<BlockKind, EdgeDrop> {
    if packet.len() > usize::from(INNER_MTU) {
        return Err(EdgeDrop::TooLong);
    }
    let inner = Inner::parse(packet)?;
    if !is_client(inner.source) {
        return Err(EdgeDrop::Source);
    }
    clamp_mss(packet, &inner);
    Ok(inner.kind())
}

/// Checks and clamps a packet from the exit.
fn incoming(kind: BlockKind, packet: &mut [u8]) -> Result<(), EdgeDrop> {
    if packet.len() > usize::from(INNER_MTU) {
        return Err(EdgeDrop::TooLong);
    }
    let inner = Inner::parse(packet)?;
    if inner.kind() != kind {
        return Err(EdgeDrop::Version);
    }
    if !is_client(inner.destination) {
        return Err(EdgeDrop::Destination);
    }
    clamp_mss(packet, &inner);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::edge::ip::UDP;
    use crate::edge::rewrite::tests::packet;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 80));

    #[test]
    fn only_the_clients_own_packets_pass() {
        let own = IpAddr::from(CLIENT_V4);
        assert_eq!(outgoing(&mut packet(own, PEER, UDP, &[0; 20])), Ok(BlockKind::Ipv4));
        assert_eq!(outgoing(&mut packet(PEER, own, UDP, &[0; 20])), Err(EdgeDrop::Source));
        assert_eq!(outgoing(&mut packet(own, PEER, UDP, &[0; 1381])), Err(EdgeDrop::TooLong));
        assert_eq!(incoming(BlockKind::Ipv4, &mut packet(PEER, own, UDP, &[0; 20])), Ok(()));
        assert_eq!(incoming(BlockKind::Ipv6, &mut packet(PEER, own, UDP, &[0; 20])), Err(EdgeDrop::Version));
        assert_eq!(
            incoming(BlockKind::Ipv4, &mut packet(own, PEER, UDP, &[0; 20])),
            Err(EdgeDrop::Destination)
        );
    }
}
