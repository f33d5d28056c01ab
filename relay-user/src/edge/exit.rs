//! The exit's edge: circuits on one side, a TUN device behind NAT on the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rand_core::Rng;

use super::drops::{EdgeDrop, EdgeDrops};
use super::handover::{self, Handover};
use super::ip::{CLIENT_V4, CLIENT_V6, INNER_MTU, Inner, check_destination, is_client};
use super::nat::{Nat, NatError};
use super::packing::BlockKind;
use super::pool::{Lease, Pool, PoolNetworks, PoolShare};
use super::rewrite::{Side, clamp_mss, rewrite};
use super::tun::{Offload, Tun, TunError};

/// Why an exit's edge could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The NAT.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Workers without an address.
    #[error("pool4 has {leases} addresses to give and there are {workers} workers; configure a larger pool4")]
    Pool {
        /// Addresses to give.
        leases: u32,
        /// Workers.
        workers: u32,
    },
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
    /// A translator with `share` of the pool, for circuits whose handles are below `max_circuits`.
    pub fn new(networks: PoolNetworks, share: PoolShare, max_circuits: usize) -> Self {
        Self { pool: Pool::new(networks, share), leases: vec![None; max_circuits].into_boxed_slice() }
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

    /// The worker that gives out the address to which `packet` goes.
    fn owner(&self, packet: &[u8]) -> Option<u32> {
        self.pool.owner(Inner::parse(packet).ok()?.destination)
    }
}

/// What crossed from one worker to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandoverCounters {
    /// Packets from this worker's queue that another took.
    pub given: u64,
    /// Packets from other workers' queues that came to this one.
    pub taken: u64,
}

/// Where the packet of [`ExitEdge::read`] lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Tun,
    OtherWorker,
}

/// The edge where clients' packets leave for the world, and answers come back: one worker's part of it.
pub struct ExitEdge {
    // The rules go before the device does: fields are dropped in this order. All workers' edges hold the same rules.
    nat: Arc<Nat>,
    tun: Tun,
    translator: Translator,
    handover: Handover,
    /// Where the next read looks first.
    first: Origin,
    crossed: HandoverCounters,
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
        offload: Offload,
    ) -> Result<Self, ExitError> {
        Self::open_parts(tun, outside, networks, max_circuits, 1, offload).map(|(only, _)| only)
    }

    /// Like [`ExitEdge::open`] for `workers` workers, taken as at least one: an edge for each, with a queue of the device
    /// and a share of the pool of its own. Each worker's circuits have handles below `max_circuits`. Rules and device go
    /// with the last of the edges.
    ///
    /// # Errors
    /// [`ExitError`]; nothing is left behind.
    pub fn open_many(
        tun: &str,
        outside: &str,
        networks: PoolNetworks,
        max_circuits: usize,
        workers: u32,
        offload: Offload,
    ) -> Result<Vec<Self>, ExitError> {
        let (first, mut edges) = Self::open_parts(tun, outside, networks, max_circuits, workers, offload)?;
        edges.insert(0, first);
        Ok(edges)
    }

    fn open_parts(
        tun: &str,
        outside: &str,
        networks: PoolNetworks,
        max_circuits: usize,
        workers: u32,
        offload: Offload,
    ) -> Result<(Self, Vec<Self>), ExitError> {
        if workers > networks.leases() {
            return Err(ExitError::Pool { leases: networks.leases(), workers });
        }
        let addresses = networks.exit_addresses();
        let (first, others) = Tun::create_queues(tun, &addresses, INNER_MTU, workers, offload)?;
        let nat = Arc::new(Nat::install(tun, outside, &networks)?);
        let inboxes = handover::inboxes(workers);
        let part = |worker: u32, tun: Tun| Self {
            nat: Arc::clone(&nat),
            tun,
            translator: Translator::new(networks, PoolShare::new(worker, workers), max_circuits),
            handover: Handover::new(Arc::clone(&inboxes), worker),
            first: Origin::Tun,
            crossed: HandoverCounters::default(),
            drops: EdgeDrops::default(),
        };
        Ok((part(0, first), (1..).zip(others).map(|(worker, queue)| part(worker, queue)).collect()))
    }

    /// See [`Tun::with_porter`].
    ///
    /// # Errors
    /// As there.
    pub fn with_porter(self) -> io::Result<Self> {
        Ok(Self { tun: self.tun.with_porter()?, ..self })
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

    /// Sends a packet that came over `circuit` out, at the latest with the next [`ExitEdge::flush`], or counts why not.
    pub fn deliver(&mut self, circuit: u32, kind: BlockKind, packet: &[u8]) {
        let Some(copy) = self.tun.stage(packet) else {
            return self.drops.count(EdgeDrop::TooLong);
        };
        match self.translator.outward(circuit, kind, copy) {
            Ok(()) => self.tun.write_staged(&mut self.drops),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// Writes what [`ExitEdge::deliver`] kept back for others of its flow: the end of a turn.
    pub fn flush(&mut self) {
        self.tun.flush(&mut self.drops);
    }

    /// The next packet for a circuit, if one waits: whose, of what kind, and its bytes. Packets for nobody are counted
    /// and passed over, those for another worker's circuits handed over to it. Each packet looked at, passed over or not,
    /// is taken off `budget`; there is none when that is used up.
    pub fn read(&mut self, budget: &mut usize) -> Option<(u32, BlockKind, &[u8])> {
        while *budget > 0 {
            *budget -= 1;
            let origin = self.next_packet()?;
            let packet = match origin {
                Origin::Tun => self.tun.packet(),
                Origin::OtherWorker => self.handover.packet(),
            };
            match self.translator.inward(packet) {
                Ok((circuit, kind)) => return Some((circuit, kind, self.packet(origin))),
                Err(EdgeDrop::UnknownAddress) if origin == Origin::Tun => self.hand_over(),
                Err(reason) => self.drops.count(reason),
            }
        }
        None
    }

    /// Goes to the next packet. The worker's queue and the other workers take turns, so that neither starves.
    fn next_packet(&mut self) -> Option<Origin> {
        let second = if self.first == Origin::Tun { Origin::OtherWorker } else { Origin::Tun };
        for (origin, next) in [(self.first, second), (second, self.first)] {
            let found = match origin {
                Origin::Tun => self.tun.read_packet().unwrap_or_else(|_| {
                    self.drops.count(EdgeDrop::TunFailed);
                    false
                }),
                Origin::OtherWorker => self.handover.take(),
            };
            if found {
                self.crossed.taken += u64::from(origin == Origin::OtherWorker);
                self.first = next;
                return Some(origin);
            }
        }
        None
    }

    fn packet(&mut self, origin: Origin) -> &[u8] {
        match origin {
            Origin::Tun => self.tun.packet(),
            Origin::OtherWorker => self.handover.packet(),
        }
    }

    /// Gives the packet that the TUN gave to the worker whose address it goes to. It is as it came: nothing of a packet
    /// to an unknown address has been changed.
    fn hand_over(&mut self) {
        let packet = self.tun.packet();
        match self.translator.owner(packet) {
            Some(owner) if owner != self.handover.own() => {
                if self.handover.pass(owner, packet) {
                    self.crossed.given += 1;
                } else {
                    self.drops.count(EdgeDrop::HandoverFull);
                }
            }
            _ => self.drops.count(EdgeDrop::UnknownAddress),
        }
    }

    /// Counts a packet from [`ExitEdge::read`] that the circuit's queue did not take.
    pub fn refused(&mut self) {
        self.drops.count(EdgeDrop::QueueFull);
    }

    /// Packets dropped, by reason.
    pub fn drops(&self) -> &EdgeDrops {
        &self.drops
    }

    /// Packets that crossed between this worker and others.
    pub fn crossed(&self) -> &HandoverCounters {
        &self.crossed
    }

    /// The TUN device's queue.
    pub fn tun(&self) -> &Tun {
        &self.tun
    }

    /// Takes NAT and device back: the clean stop. While another worker's edge is open they stay.
    ///
    /// # Errors
    /// See [`Nat::remove`].
    pub fn close(self) -> Result<(), NatError> {
        Arc::into_inner(self.nat).map_or(Ok(()), Nat::remove)
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
        let mut translator = Translator::new(networks(24), PoolShare::WHOLE, 4);
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
