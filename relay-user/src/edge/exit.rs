//! The exit's edge: circuits on one side, a TUN device behind NAT on the other.

use std::os::fd::{AsFd, BorrowedFd};

use rand_core::Rng;

use super::drops::{EdgeDrop, EdgeDrops};
use super::ip::{CLIENT_V4, CLIENT_V6, INNER_MTU, Inner, check_destination, is_client};
use super::nat::{Nat, NatError};
use super::packing::{BlockKind, MAX_PACKET};
use super::pool::{Lease, Pool, PoolNetworks};
use super::rewrite::{Side, clamp_mss, rewrite};
use super::tun::{Tun, TunError};

/// Packets that one [`ExitEdge::read`] passes over, at most, before it gives the turn back.
const READ_ATTEMPTS: usize = 32;

/// Why an exit's edge could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The NAT.
    #[error(transparent)]
    Nat(#[from] NatError),
}

/// Why a circuit got no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The handle is beyond the number of circuits that the edge was made for.
    #[error("the circuit's handle is beyond the edge's circuits")]
    Handle,
    /// The circuit has one already.
    #[error("the circuit has an address already")]
    Open,
    /// Every address is in use or in quarantine.
    #[error("no pool address is free; configure a larger pool4")]
    Exhausted,
}

/// Which circuit has which address, and the packets' way between them; no device.
#[derive(Debug)]
pub struct Translator {
    pool: Pool,
    leases: Box<[Option<Lease>]>,
}

impl Translator {
    /// A translator for circuits whose handles are below `max_circuits`.
    pub fn new(networks: PoolNetworks, max_circuits: usize) -> Self {
        Self { pool: Pool::new(networks), leases: vec![None; max_circuits].into_boxed_slice() }
    }

    /// Gives `circuit` an address at `now` (monotonic nanoseconds).
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn open(&mut self, circuit: u32, now: u64, rng: &mut dyn Rng) -> Result<(), LeaseError> {
        let place = self.leases.get_mut(circuit as usize).ok_or(LeaseError::Handle)?;
        if place.is_some() {
            return Err(LeaseError::Open);
        }
        *place = Some(self.pool.lease(circuit, now, rng).ok_or(LeaseError::Exhausted)?);
        Ok(())
    }

    /// Takes the circuit's address back at `now`. A circuit without one is left alone.
    pub fn close(&mut self, circuit: u32, now: u64) {
        if let Some(lease) = self.leases.get_mut(circuit as usize).and_then(Option::take) {
            self.pool.release(lease, now);
        }
    }

    /// Turns a packet of the client at the end of `circuit` into one that may go out.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn outward(&self, circuit: u32, kind: BlockKind, packet: &mut [u8]) -> Result<(), EdgeDrop> {
        let lease = self.leases.get(circuit as usize).copied().flatten().ok_or(EdgeDrop::UnknownCircuit)?;
        if packet.len() > usize::from(INNER_MTU) {
            return Err(EdgeDrop::TooLong);
        }
        let inner = Inner::parse(packet)?;
        if inner.kind() != kind {
            return Err(EdgeDrop::Version);
        }
        if !is_client(inner.source) {
            return Err(EdgeDrop::Source);
        }
        check_destination(inner.destination)?;
        if self.pool.networks().contains(inner.destination) {
            return Err(EdgeDrop::DestinationPool);
        }
        clamp_mss(packet, &inner);
        rewrite(packet, &inner, Side::Source, self.pool.address(lease, inner.source))
    }

    /// Turns a packet to a pool address into one for the client; says whose circuit it belongs to.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn inward(&self, packet: &mut [u8]) -> Result<(u32, BlockKind), EdgeDrop> {
        if packet.len() > usize::from(INNER_MTU) {
            return Err(EdgeDrop::TooLong);
        }
        let inner = Inner::parse(packet)?;
        let circuit = self.pool.circuit(inner.destination).ok_or(EdgeDrop::UnknownAddress)?;
        clamp_mss(packet, &inner);
        let client = match inner.kind() {
            BlockKind::Ipv6 => CLIENT_V6.into(),
            BlockKind::Ipv4 | BlockKind::Control => CLIENT_V4.into(),
        };
        rewrite(packet, &inner, Side::Destination, client)?;
        Ok((circuit, inner.kind()))
    }
}

/// The edge where clients' packets leave for the world, and answers come back.
pub struct ExitEdge {
    // The rules go before the device does: fields are dropped in this order.
    nat: Nat,
    tun: Tun,
    translator: Translator,
    buffer: Box<[u8; MAX_PACKET]>,
    drops: EdgeDrops,
}

impl ExitEdge {
    /// Makes the TUN device `tun` with the pool behind it and NAT to the interface `outside`, for circuits whose handles
    /// are below `max_circuits`.
    ///
    /// # Errors
    /// [`ExitError`]; nothing is left behind.
    pub fn open(
        tun: &str,
        outside: &str,
        networks: PoolNetworks,
        max_circuits: usize,
    ) -> Result<Self, ExitError> {
        let tun = Tun::create(tun, &networks.exit_addresses(), INNER_MTU)?;
        let nat = Nat::install(tun.name(), outside, &networks)?;
        Ok(Self {
            nat,
            tun,
            translator: Translator::new(networks, max_circuits),
            buffer: Box::new([0; MAX_PACKET]),
            drops: EdgeDrops::default(),
        })
    }

    /// See [`Translator::open`].
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn open_circuit(&mut self, circuit: u32, now: u64, rng: &mut dyn Rng) -> Result<(), LeaseError> {
        self.translator.open(circuit, now, rng)
    }

    /// See [`Translator::close`].
    pub fn close_circuit(&mut self, circuit: u32, now: u64) {
        self.translator.close(circuit, now);
    }

    /// Sends a packet that came over `circuit` out, or counts why not.
    pub fn deliver(&mut self, circuit: u32, kind: BlockKind, packet: &[u8]) {
        let Some(copy) = self.buffer.get_mut(..packet.len()) else {
            return self.drops.count(EdgeDrop::TooLong);
        };
        copy.copy_from_slice(packet);
        let result =
            self.translator.outward(circuit, kind, copy).and_then(|()| match self.tun.write_packet(copy) {
                Ok(true) => Ok(()),
                Ok(false) => Err(EdgeDrop::TunFull),
                Err(_) => Err(EdgeDrop::TunFailed),
            });
        if let Err(reason) = result {
            self.drops.count(reason);
        }
    }

    /// The next packet for a circuit, if one waits: whose, of what kind, and its bytes. Packets for nobody are counted
    /// and passed over.
    pub fn read(&mut self) -> Option<(u32, BlockKind, &[u8])> {
        for _ in 0..READ_ATTEMPTS {
            let length = match self.tun.read_packet(self.buffer.as_mut_slice()) {
                Ok(length) => length?,
                Err(_) => {
                    self.drops.count(EdgeDrop::TunFailed);
                    return None;
                }
            };
            match self.translator.inward(&mut self.buffer[..length]) {
                Ok((circuit, kind)) => return Some((circuit, kind, &self.buffer[..length])),
                Err(reason) => self.drops.count(reason),
            }
        }
        None
    }

    /// Counts a packet from [`ExitEdge::read`] that the circuit's queue did not take.
    pub fn refused(&mut self) {
        self.drops.count(EdgeDrop::QueueFull);
    }

    /// Packets dropped, by reason.
    pub fn drops(&self) -> &EdgeDrops {
        &self.drops
    }

    /// The TUN device.
    pub fn tun(&self) -> &Tun {
        &self.tun
    }

    /// Takes NAT and device back: the clean stop.
    ///
    /// # Errors
    /// See [`Nat::remove`].
    pub fn close(self) -> Result<(), NatError> {
        self.nat.remove()
    }
}

impl AsFd for ExitEdge {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::edge::ip::UDP;
    use crate::edge::pool::tests::networks;
    use crate::edge::rewrite::tests::packet;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 80));
    const CLIENT: IpAddr = IpAddr::V4(CLIENT_V4);

    fn translator() -> Translator {
        let mut translator = Translator::new(networks(24), 4);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        translator.open(1, 0, &mut rng).unwrap();
        translator.open(2, 0, &mut rng).unwrap();
        assert_eq!(translator.open(1, 0, &mut rng), Err(LeaseError::Open));
        assert_eq!(translator.open(4, 0, &mut rng), Err(LeaseError::Handle));
        translator
    }

    #[test]
    fn answers_find_their_circuit() {
        let mut translator = translator();
        let peer6: IpAddr = "2001:db8::1".parse().unwrap();
        for (kind, client, peer) in
            [(BlockKind::Ipv4, CLIENT, PEER), (BlockKind::Ipv6, CLIENT_V6.into(), peer6)]
        {
            let mut sources = Vec::new();
            for circuit in [1, 2] {
                let mut sent = packet(client, peer, UDP, &[9; 40]);
                translator.outward(circuit, kind, &mut sent).unwrap();
                let source = Inner::parse(&sent).unwrap().source;
                let mut answer = packet(peer, source, UDP, &[8; 40]);
                assert_eq!(translator.inward(&mut answer), Ok((circuit, kind)));
                assert_eq!(answer, packet(peer, client, UDP, &[8; 40]));
                sources.push(source);
            }
            assert_ne!(sources[0], sources[1]);
            translator.close(1, 5);
            assert_eq!(
                translator.inward(&mut packet(peer, sources[0], UDP, &[8; 40])),
                Err(EdgeDrop::UnknownAddress)
            );
            translator.open(1, 5, &mut ChaCha8Rng::seed_from_u64(4)).unwrap();
        }
    }

    #[test]
    fn what_may_not_leave_is_refused_with_its_reason() {
        let translator = translator();
        let try_send = |circuit, from, to| {
            translator.outward(circuit, BlockKind::Ipv4, &mut packet(from, to, UDP, &[9; 40]))
        };
        let pool = IpAddr::from([100, 96, 0, 77]);
        assert_eq!(try_send(1, CLIENT, PEER), Ok(()));
        assert_eq!(try_send(3, CLIENT, PEER), Err(EdgeDrop::UnknownCircuit));
        assert_eq!(try_send(9, CLIENT, PEER), Err(EdgeDrop::UnknownCircuit));
        assert_eq!(try_send(1, PEER, PEER), Err(EdgeDrop::Source));
        assert_eq!(try_send(1, pool, PEER), Err(EdgeDrop::Source));
        assert_eq!(try_send(1, CLIENT, pool), Err(EdgeDrop::DestinationPool));
        assert_eq!(try_send(1, CLIENT, Ipv4Addr::LOCALHOST.into()), Err(EdgeDrop::DestinationLoopback));
        let six = packet(CLIENT_V6.into(), Ipv6Addr::LOCALHOST.into(), UDP, &[9; 40]);
        assert_eq!(translator.outward(1, BlockKind::Ipv4, &mut six.clone()), Err(EdgeDrop::Version));
        assert_eq!(
            translator.outward(1, BlockKind::Ipv6, &mut six.clone()),
            Err(EdgeDrop::DestinationLoopback)
        );
    }
}
