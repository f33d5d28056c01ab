//! The exit's pool: one inner address of each family for every circuit that ends there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rand_core::Rng;

/// Nanoseconds for which an address stays unused after its circuit closed: 300 s, more than the 120 s that the kernel
/// keeps the NAT state of a silent UDP stream (`nf_conntrack_udp_timeout_stream`), so that nobody gets another's answers.
pub const QUARANTINE: u64 = 300_000_000_000;
/// Addresses in use at most, whatever the pool's size.
pub const MAX_LEASES: u32 = 65_536;

/// The first host numbers are the network, the exit's own TUN, and the client's constant address.
const FIRST_HOST: u32 = 3;
/// The exit's TUN is host one of both networks.
const EXIT_HOST: u32 = 1;

/// Why a pool cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The IPv4 network is not between /8 and /29.
    #[error("pool4 has a prefix of {0} bits; use 8 to 29, for instance 100.96.0.0/16")]
    PrefixV4(u8),
    /// The IPv6 network is not between /32 and /96.
    #[error("pool6 has a prefix of {0} bits; use 32 to 96, for instance fd6e:7765::/64")]
    PrefixV6(u8),
    /// Bits behind the prefix are set.
    #[error("pool network {0}/{1} has bits set behind its prefix; clear them")]
    HostBits(IpAddr, u8),
    /// The network holds the client's constant IPv4 address.
    #[error(
        "pool4 holds 100.64.0.2, the constant address of every client; use another, for instance 100.96.0.0/16"
    )]
    HoldsClient,
}

/// The pool's two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolNetworks {
    v4: Ipv4Addr,
    v4_prefix: u8,
    v6: Ipv6Addr,
    v6_prefix: u8,
}

impl PoolNetworks {
    /// Networks and their prefix lengths.
    ///
    /// # Errors
    /// [`PoolError`], for networks too small, too large or not clean.
    pub fn new((v4, v4_prefix): (Ipv4Addr, u8), (v6, v6_prefix): (Ipv6Addr, u8)) -> Result<Self, PoolError> {
        if !(8..=29).contains(&v4_prefix) {
            return Err(PoolError::PrefixV4(v4_prefix));
        }
        if !(32..=96).contains(&v6_prefix) {
            return Err(PoolError::PrefixV6(v6_prefix));
        }
        let networks = Self { v4, v4_prefix, v6, v6_prefix };
        if u32::from(v4) & !networks.mask_v4() != 0 {
            return Err(PoolError::HostBits(v4.into(), v4_prefix));
        }
        if u128::from(v6) & !networks.mask_v6() != 0 {
            return Err(PoolError::HostBits(v6.into(), v6_prefix));
        }
        if networks.contains(super::ip::CLIENT_V4.into()) {
            return Err(PoolError::HoldsClient);
        }
        Ok(networks)
    }

    /// Whether `address` belongs to the pool.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => u32::from(address) & self.mask_v4() == u32::from(self.v4),
            IpAddr::V6(address) => u128::from(address) & self.mask_v6() == u128::from(self.v6),
        }
    }

    /// The exit's own addresses, with the prefix lengths that make the kernel route the pool to its TUN.
    pub fn exit_addresses(&self) -> [(IpAddr, u8); 2] {
        [(self.v4_host(EXIT_HOST), self.v4_prefix), (self.v6_host(EXIT_HOST), self.v6_prefix)]
    }

    /// The networks as nftables writes them: IPv4, then IPv6.
    pub fn to_text(&self) -> [String; 2] {
        [format!("{}/{}", self.v4, self.v4_prefix), format!("{}/{}", self.v6, self.v6_prefix)]
    }

    /// How many addresses there are to give out.
    pub fn leases(&self) -> u32 {
        // The last host number is IPv4's broadcast address.
        (!self.mask_v4() - FIRST_HOST).min(MAX_LEASES)
    }

    fn mask_v4(&self) -> u32 {
        u32::MAX << (32 - self.v4_prefix)
    }

    fn mask_v6(&self) -> u128 {
        u128::MAX << (128 - self.v6_prefix)
    }

    fn v4_host(&self, host: u32) -> IpAddr {
        Ipv4Addr::from(u32::from(self.v4) | host).into()
    }

    fn v6_host(&self, host: u32) -> IpAddr {
        Ipv6Addr::from(u128::from(self.v6) | u128::from(host)).into()
    }

    fn host(&self, address: IpAddr) -> Option<u32> {
        if !self.contains(address) {
            return None;
        }
        match address {
            IpAddr::V4(address) => Some(u32::from(address) & !self.mask_v4()),
            IpAddr::V6(address) => u32::try_from(u128::from(address) & !self.mask_v6()).ok(),
        }
    }
}

/// Which part of the pool's addresses a worker gives out: every so-many-th, so that an address names its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShare {
    worker: u32,
    workers: u32,
}

impl PoolShare {
    /// All of it.
    pub const WHOLE: Self = Self { worker: 0, workers: 1 };

    /// The share of `worker`, counted from zero, of `workers`, which is taken as at least one.
    pub fn new(worker: u32, workers: u32) -> Self {
        let workers = workers.max(1);
        Self { worker: worker.min(workers - 1), workers }
    }
}

/// The addresses of one circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    host: u32,
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Free { from: u64 },
    Leased { circuit: u32 },
}

/// Who has which address. Memory is fixed at construction.
#[derive(Debug)]
pub struct Pool {
    networks: PoolNetworks,
    share: PoolShare,
    entries: Box<[Entry]>,
}

impl Pool {
    /// An empty pool: `share` of as many addresses as the IPv4 network has to give, at most [`MAX_LEASES`] in all.
    pub fn new(networks: PoolNetworks, share: PoolShare) -> Self {
        let PoolShare { worker, workers } = share;
        let hosts = (worker..networks.leases()).step_by(workers as usize).count();
        Self { networks, share, entries: vec![Entry::Free { from: 0 }; hosts].into_boxed_slice() }
    }

    /// The pool's networks.
    pub fn networks(&self) -> &PoolNetworks {
        &self.networks
    }

    /// Gives `circuit` a random address that is out of quarantine at `now` (monotonic nanoseconds), or none when all are
    /// taken.
    pub fn lease(&mut self, circuit: u32, now: u64, rng: &mut dyn Rng) -> Option<Lease> {
        let count = self.entries.len();
        let start = usize::try_from(rng.next_u64().checked_rem(count as u64)?).ok()?;
        let at = (0..count)
            .map(|step| (start + step) % count)
            .find(|&at| matches!(self.entries[at], Entry::Free { from } if from <= now))?;
        self.entries[at] = Entry::Leased { circuit };
        Some(Lease { host: u32::try_from(at).ok()? * self.share.workers + self.share.worker + FIRST_HOST })
    }

    /// Takes the address back at `now`; it stays unused for [`QUARANTINE`].
    pub fn release(&mut self, lease: Lease, now: u64) {
        let at = (lease.host - FIRST_HOST) / self.share.workers;
        if let Some(entry) = self.entries.get_mut(at as usize) {
            *entry = Entry::Free { from: now.saturating_add(QUARANTINE) };
        }
    }

    /// The lease's address, of the family of `like`.
    pub fn address(&self, lease: Lease, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.networks.v4_host(lease.host),
            IpAddr::V6(_) => self.networks.v6_host(lease.host),
        }
    }

    /// The worker that gives `address` out; none for one that nobody does.
    pub fn owner(&self, address: IpAddr) -> Option<u32> {
        self.place(address).map(|place| place % self.share.workers)
    }

    /// The circuit that has `address`; none for an address of another worker's.
    pub fn circuit(&self, address: IpAddr) -> Option<u32> {
        let place = self.place(address)?;
        if place % self.share.workers != self.share.worker {
            return None;
        }
        match self.entries.get((place / self.share.workers) as usize)? {
            Entry::Leased { circuit } => Some(*circuit),
            Entry::Free { .. } => None,
        }
    }

    /// The address's number among those that are given out.
    fn place(&self, address: IpAddr) -> Option<u32> {
        let place = self.networks.host(address)?.checked_sub(FIRST_HOST)?;
        (place < self.networks.leases()).then_some(place)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    pub(crate) fn networks(prefix: u8) -> PoolNetworks {
        PoolNetworks::new((Ipv4Addr::new(100, 96, 0, 0), prefix), ("fd6e:7765::".parse().unwrap(), 64))
            .unwrap()
    }

    #[test]
    fn unfit_networks_are_refused() {
        let v4 = |text: &str, prefix| {
            PoolNetworks::new((text.parse().unwrap(), prefix), (Ipv6Addr::LOCALHOST, 64))
        };
        assert_eq!(v4("100.96.0.0", 30), Err(PoolError::PrefixV4(30)));
        assert_eq!(v4("100.96.0.0", 16), Err(PoolError::HostBits(Ipv6Addr::LOCALHOST.into(), 64)));
        assert_eq!(v4("100.96.0.1", 16), Err(PoolError::HostBits("100.96.0.1".parse().unwrap(), 16)));
        let six = "fd6e:7765::".parse().unwrap();
        let clean = |text: &str, prefix, six_prefix| {
            PoolNetworks::new((text.parse().unwrap(), prefix), (six, six_prefix))
        };
        assert_eq!(clean("100.64.0.0", 10, 64), Err(PoolError::HoldsClient));
        assert_eq!(clean("100.96.0.0", 16, 112), Err(PoolError::PrefixV6(112)));
    }

    #[test]
    fn the_default_pool_holds_no_special_address() {
        let mut pool = Pool::new(networks(29), PoolShare::WHOLE);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut got: Vec<_> =
            std::iter::from_fn(|| pool.lease(0, 0, &mut rng).map(|lease| lease.host)).collect();
        got.sort_unstable();
        assert_eq!(got, [3, 4, 5, 6]);
    }

    #[test]
    fn workers_share_the_pool_and_an_address_names_its_worker() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for workers in [1, 2, 3, 7] {
            let mut pools: Vec<_> =
                (0..workers).map(|worker| Pool::new(networks(29), PoolShare::new(worker, workers))).collect();
            let mut got = Vec::new();
            for at in 0..pools.len() {
                while let Some(lease) = pools[at].lease(9, 0, &mut rng) {
                    got.push(lease.host);
                    for like in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                        let address = pools[at].address(lease, like);
                        let circuits: Vec<_> = pools.iter().map(|pool| pool.circuit(address)).collect();
                        assert_eq!(circuits.iter().flatten().count(), 1);
                        assert_eq!(circuits[at], Some(9));
                        assert!(pools.iter().all(|pool| pool.owner(address) == u32::try_from(at).ok()));
                    }
                }
            }
            got.sort_unstable();
            // More workers than addresses: some have none, and say so.
            assert_eq!(got, [3, 4, 5, 6], "{workers} workers");
            for outside in ["100.96.0.2", "100.96.0.7", "100.96.1.3", "fd6e:7765::2", "fd6e:7765::1:0:0:3"] {
                assert_eq!(pools[0].owner(outside.parse().unwrap()), None, "{outside}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_address_is_shared_or_reused_early(
            seed in any::<u64>(),
            steps in prop::collection::vec((any::<bool>(), 0..8u32, 0..QUARANTINE), 1..80),
        ) {
            let mut pool = Pool::new(networks(28), PoolShare::WHOLE);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut held: Vec<(u32, Lease)> = Vec::new();
            let mut freed: Vec<(u32, u64)> = Vec::new();
            let mut now = 0;
            for (open, circuit, pause) in steps {
                now += pause / 16;
                if open {
                    let Some(lease) = pool.lease(circuit, now, &mut rng) else { continue };
                    prop_assert!(held.iter().all(|(_, other)| *other != lease));
                    prop_assert!(freed.iter().all(|(host, at)| *host != lease.host || now - at >= QUARANTINE));
                    held.push((circuit, lease));
                } else if let Some((_, lease)) = held.pop() {
                    pool.release(lease, now);
                    freed.push((lease.host, now));
                    prop_assert_eq!(pool.circuit(pool.address(lease, Ipv4Addr::LOCALHOST.into())), None);
                }
                for (circuit, lease) in &held {
                    for like in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                        prop_assert_eq!(pool.circuit(pool.address(*lease, like)), Some(*circuit));
                    }
                }
            }
        }
    }
}
