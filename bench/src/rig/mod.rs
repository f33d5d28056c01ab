//! Two namespaces joined by a veth pair: load is made in one, the work under test is done in the other.
//!
//! ```text
//!   ewb-gen                                     ewb-relay
//!   Loader (AF_XDP) == ewb0, N queues ==== ewb0, N queues == socket or port under test
//!   192.0.2.1                                   192.0.2.2
//! ```
//!
//! A veth in copy mode works within the sender's system call: its `sendto` makes the socket buffer, runs the peer's XDP
//! program and copies the packet into the peer's frame. So the CPU time of a thread holds the whole crossing of what it
//! sends, and nothing but ring work of what it receives.

mod cores;
mod headers;
mod loader;
mod wire;

pub use cores::{Cores, pin, thread_time};
pub use headers::Route;
pub use loader::{Loader, LoaderCounts};
pub use wire::{Wire, Work};

use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use relay_common::abi::SessionEntry;
use relay_tests::privilege::is_root;
use relay_tests::veth::{InterfacePackets, VethEnd, interface_packets, veth};
use relay_tests::{Netns, NetnsGuard};
use relay_user::engine::Engine;
use relay_user::port::Peer;
use relay_user::steering::{AttachMode, Steering};
use relay_user::worker::{NodeEdge, Seat};
use relay_user::xsk::{Arena, BindRequest, SocketConfig};

/// The UDP port of the relay under test and of the loader.
pub const UDP_PORT: u16 = 7443;
/// Entries of each AF_XDP ring: more packets than come while a noisy machine takes the processor away for some ms.
pub const RING: u32 = 4096;

const INTERFACE: &str = "ewb0";
const LOCK: &str = "/run/evenwire-bench.lock";
/// Time that a former owner, just killed, gets to let go of the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// Frames on each side of the wire: rings, what a trial prepares, and what it keeps to look at afterwards.
const FRAMES: u32 = 1 << 17;

/// A worker under test: without an edge, on a core of its own. Its grid is drawn alike in every run.
pub fn seat<P>(engine: Engine, port: P, cpu: usize) -> Seat<P> {
    let rng = ChaCha20Rng::seed_from_u64(1);
    Seat { engine, port, edge: NodeEdge::None, cpu: Some(cpu), rng }
}

/// The ends of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where the load comes from and goes to.
    Loader,
    /// Where the work under test is done.
    Relay,
}

impl End {
    const ALL: [Self; 2] = [Self::Loader, Self::Relay];

    const fn netns(self) -> &'static str {
        match self {
            Self::Loader => "ewb-gen",
            Self::Relay => "ewb-relay",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Loader => Self::Relay,
            Self::Relay => Self::Loader,
        }
    }

    /// The end's MAC address: unicast, locally administered.
    pub const fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 0xeb, self as u8 + 1]
    }

    /// The end's address and UDP port.
    pub const fn address(self) -> SocketAddrV4 {
        // Documentation's range, RFC 5737.
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, self as u8 + 1), UDP_PORT)
    }

    /// Where cells of this end go, as a port wants to know it.
    pub fn peer(self) -> Peer {
        Peer {
            local: SocketAddr::V4(self.address()),
            remote: SocketAddr::V4(self.other().address()),
            macs: Some((self.mac(), self.other().mac())),
            vlan: None,
        }
    }

    /// What steering at this end must know to let cells with `receiver_index` through from the other end.
    pub fn session(self, receiver_index: u32, queue: u32) -> SessionEntry {
        let source = self.other().address();
        SessionEntry::new(receiver_index, source.ip().to_ipv6_mapped().octets(), source.port(), queue)
    }

    /// The end's frame memory. Never freed, so it is made once in a process.
    ///
    /// # Errors
    /// Where the machine has no memory for it.
    pub fn arena(self) -> Result<&'static Arena> {
        static ARENAS: [OnceLock<&'static Arena>; 2] = [OnceLock::new(), OnceLock::new()];
        let place = &ARENAS[self as usize];
        if place.get().is_none() {
            let arena = Arena::anonymous(FRAMES).context("no memory for the rig's frames")?;
            // Only one thread builds rigs; were there two, the loser's arena would be lost and nothing else.
            let _ = place.set(arena);
        }
        place.get().copied().context("just set")
    }
}

/// The namespaces and the wire. Dropping it removes them.
#[derive(Debug)]
pub struct Rig {
    netns: [Netns; 2],
    _lock: Lock,
}

impl Rig {
    /// What keeps this process from building a rig, and what to do about it. `None` where nothing does.
    pub fn missing() -> Option<&'static str> {
        if !is_root() {
            return Some("needs root, for network namespaces and XDP: run it as root");
        }
        if Cores::available().count() < 2 {
            return Some(
                "needs two cores, one for the load and one for the work under test: give the process another one",
            );
        }
        None
    }

    /// Makes both namespaces, joined by a veth pair with `queues` queues. What a killed run left behind is removed first.
    ///
    /// # Errors
    /// As [`Rig::missing`], while another process holds the rig, or when the kernel refuses a step.
    pub fn build(queues: u32) -> Result<Self> {
        if let Some(missing) = Self::missing() {
            bail!(missing);
        }
        let lock = Lock::take()?;
        for end in End::ALL {
            Netns::delete(end.netns())?;
        }
        // From here on a failure removes what was made, since `lock` goes with it and knows the names.
        let netns = [Netns::create(End::Loader.netns())?, Netns::create(End::Relay.netns())?];
        let [near, far] = End::ALL.map(|end| VethEnd {
            netns: &netns[end as usize],
            interface: INTERFACE,
            mac: end.mac(),
            address: *end.address().ip(),
        });
        veth(near, far, queues)?;
        Ok(Self { netns, _lock: lock })
    }

    /// Moves the calling thread to the namespace of `end` until the guard is dropped.
    ///
    /// # Errors
    /// When `setns` is refused.
    pub fn enter(&self, end: End) -> Result<NetnsGuard> {
        self.netns[end as usize].enter()
    }

    /// Attaches the project's XDP program at `end`, in the driver.
    ///
    /// # Errors
    /// As [`Steering::attach`].
    pub fn steering(&self, end: End) -> Result<Steering> {
        let _inside = self.enter(end)?;
        Ok(Steering::attach(INTERFACE, AttachMode::Native, UDP_PORT)?)
    }

    /// Datagrams that the UDP sockets of `end` did not take since the rig was built, mostly for want of buffer space.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn udp_refused(&self, end: End) -> Result<u64> {
        // proc_net(5): two lines of `Udp:`, names and values.
        const SNMP: &str = "/proc/thread-self/net/snmp";
        let _inside = self.enter(end)?;
        let text = std::fs::read_to_string(SNMP).with_context(|| format!("cannot read {SNMP}"))?;
        let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut fields = names.split_whitespace().zip(values.split_whitespace());
        let value = fields.find(|(name, _)| *name == "InErrors").and_then(|(_, value)| value.parse().ok());
        value.with_context(|| format!("{SNMP} has no UDP InErrors"))
    }

    /// How to open a socket on `queue` of either end.
    pub fn socket_config(queue: u32) -> SocketConfig {
        SocketConfig { interface: INTERFACE.to_owned(), queue, ring: RING, bind: BindRequest::Auto }
    }

    /// What the interface of `end` counted.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn packets(&self, end: End) -> Result<InterfacePackets> {
        interface_packets(&self.netns[end as usize], INTERFACE)
    }
}

/// Held while the namespaces may exist; the kernel frees it when the process dies.
#[derive(Debug)]
struct Lock(File);

impl Lock {
    fn take() -> Result<Self> {
        let open = File::options().create(true).truncate(false).write(true).open(LOCK);
        let file = open.with_context(|| format!("cannot open {LOCK}"))?;
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    bail!("another benchmark has the rig and holds {LOCK}: let it end first")
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {LOCK}"));
                }
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        for end in End::ALL {
            if let Err(error) = Netns::delete(end.netns()) {
                eprintln!("the rig could not be removed entirely: {error:#}");
            }
        }
        // The file stays: whoever waits for it would otherwise lock one that has no name any more.
        let _ = self.0.unlock();
    }
}
