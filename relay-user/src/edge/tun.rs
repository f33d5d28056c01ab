//! The TUN device of an edge. It is not persistent: the kernel removes it, its addresses and its routes when the
//! process ends, however that happens.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::drops::{EdgeDrop, EdgeDrops};
use super::offload::coalesce::Coalescer;
use super::offload::split::Splitter;
use super::offload::{HEADER_LEN, MAX_SUPER};
use super::packing::MAX_PACKET;
use super::porter::{Porter, is_transient};

/// Bytes of a device name, at most (`IFNAMSIZ` less its final zero).
pub const MAX_NAME_LEN: usize = 15;

/// How often and how long [`Tun::create`] waits for an address: two seconds in all, a hundred times what it takes.
const ADDRESS_ATTEMPTS: u32 = 400;
const ADDRESS_PAUSE: Duration = Duration::from_millis(5);

/// What went wrong with a TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name cannot be a device's.
    #[error("TUN name {0:?} is not usable: give 1 to 15 letters, digits, '-', '_' or '.'")]
    Name(String),
    /// A device has that name already.
    #[error(
        "TUN {0}: a network device of this name exists; remove it (ip link del {0}) or configure another name"
    )]
    Taken(String),
    /// The kernel or the container has no TUN.
    #[error(
        "TUN {0}: /dev/net/tun is missing; load the tun module (modprobe tun) or give it to the container"
    )]
    NoDriver(String),
    /// The process may not make devices.
    #[error("TUN {0}: not permitted; run as root or with CAP_NET_ADMIN")]
    NotPermitted(String),
    /// The device could not be made or set up.
    #[error("TUN {name}: {step} failed; see whether IPv4 and IPv6 are enabled on this host")]
    Setup {
        /// The device.
        name: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether the kernel and the edge exchange segments of a flow in pieces of up to 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Where the kernel can.
    Auto,
    /// One packet per read and write.
    Off,
}

/// What passed through a TUN queue since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunCounters {
    /// Reads that gave something.
    pub reads: u64,
    /// Reads among them that gave several segments of one flow in one piece.
    pub super_reads: u64,
    /// Packets that the reads came to.
    pub packets_read: u64,
    /// Writes that the kernel took, or a porter.
    pub writes: u64,
    /// Writes among them of several packets in one piece.
    pub super_writes: u64,
    /// Packets in those writes.
    pub packets_written: u64,
}

/// One queue of a TUN device that is up. Reads and writes never wait for anybody, and allocate nothing.
pub struct Tun {
    queue: Queue,
    name: String,
    index: u32,
    splitter: Splitter,
    /// Room for a virtio header and the packet about to be written.
    staged: Box<[u8; HEADER_LEN + MAX_PACKET]>,
    staged_len: usize,
    /// Where offload is on.
    coalescer: Option<Coalescer>,
}

struct Queue {
    way: Way,
    counters: TunCounters,
}

/// Who makes the system calls.
enum Way {
    /// Whoever calls, there and then.
    Direct(SyncDevice),
    /// A thread of its own.
    Porter(Porter),
}

impl Tun {
    /// Makes the device `name` with the given addresses and prefix lengths, of `mtu` bytes, brings it up, and returns
    /// when programs can use the addresses, which may take some milliseconds.
    ///
    /// # Errors
    /// [`TunError`]; nothing is left behind.
    pub fn create(
        name: &str,
        addresses: &[(IpAddr, u8)],
        mtu: u16,
        offload: Offload,
    ) -> Result<Self, TunError> {
        Self::create_queues(name, addresses, mtu, 1, offload).map(|(only, _)| only)
    }

    /// Like [`Tun::create`], with `queues` queues, at least one: the first and the others. The kernel spreads flows over
    /// them; answers come to the queue that a flow was last written to. The device goes with its last queue.
    ///
    /// # Errors
    /// [`TunError`]; nothing is left behind.
    pub fn create_queues(
        name: &str,
        addresses: &[(IpAddr, u8)],
        mtu: u16,
        queues: u32,
        offload: Offload,
    ) -> Result<(Self, Vec<Self>), TunError> {
        if !is_device_name(name) {
            return Err(TunError::Name(name.to_owned()));
        }
        let setup = |step| {
            move |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied => TunError::NotPermitted(name.to_owned()),
                io::ErrorKind::NotFound => TunError::NoDriver(name.to_owned()),
                io::ErrorKind::ResourceBusy => TunError::Taken(name.to_owned()),
                _ => TunError::Setup { name: name.to_owned(), step, source },
            }
        };
        // The kernel would hand out an existing TUN that nobody holds open, with the addresses it already has.
        if index_of(name).map_err(setup("looking the name up"))?.is_some() {
            return Err(TunError::Taken(name.to_owned()));
        }
        let build = |offload| {
            let mut builder =
                DeviceBuilder::new().name(name).mtu(mtu).multi_queue(queues > 1).offload(offload);
            for &(address, prefix) in addresses {
                builder = match address {
                    IpAddr::V4(address) => builder.ipv4(address, prefix, None),
                    IpAddr::V6(address) => builder.ipv6(address, prefix),
                };
            }
            builder.build_sync()
        };
        let first = match offload {
            Offload::Off => build(false),
            Offload::Auto => build(true).or_else(|error| {
                if error.kind() != io::ErrorKind::InvalidInput {
                    return Err(error);
                }
                log::warn!(
                    "TUN {name}: this kernel has no segmentation offload ({error}), so each packet takes a system call"
                );
                build(false)
            }),
        };
        let first = first.map_err(setup("creating it"))?;
        let index = first.if_index().map_err(setup("reading its index"))?;
        first.set_nonblocking(true).map_err(setup("making it nonblocking"))?;
        let mut others = Vec::new();
        for _ in 1..queues {
            let other = first.try_clone().map_err(setup("opening another queue"))?;
            other.set_nonblocking(true).map_err(setup("making it nonblocking"))?;
            others.push(Self::over(other, name, index));
        }
        for &(address, _) in addresses {
            wait_until_usable(address).map_err(setup("waiting for its addresses"))?;
        }
        Ok((Self::over(first, name, index), others))
    }

    fn over(device: SyncDevice, name: &str, index: u32) -> Self {
        let coalescer = device.tcp_gso().then(|| Coalescer::new(device.udp_gso()));
        let longest = longest(coalescer.is_some());
        Self {
            queue: Queue { way: Way::Direct(device), counters: TunCounters::default() },
            name: name.to_owned(),
            index,
            splitter: Splitter::new(longest),
            staged: Box::new([0; HEADER_LEN + MAX_PACKET]),
            staged_len: 0,
            coalescer,
        }
    }

    /// Leaves reading and writing to a thread of its own from now on: what the kernel does with a packet then takes none
    /// of the caller's time. A packet waits for 250 µs at most, and what the kernel refuses is counted with a later
    /// [`Tun::flush`].
    ///
    /// # Errors
    /// Where there is no thread to be had; the queue is closed then.
    pub fn with_porter(self) -> io::Result<Self> {
        let longest = longest(self.has_offload());
        let Queue { way, counters } = self.queue;
        let way = match way {
            Way::Direct(device) => Way::Porter(Porter::start(device, longest)?),
            Way::Porter(porter) => Way::Porter(porter),
        };
        Ok(Self { queue: Queue { way, counters }, ..self })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether segments of a flow come and go in one piece.
    pub fn has_offload(&self) -> bool {
        self.coalescer.is_some()
    }

    /// What passed through this queue.
    pub fn counters(&self) -> &TunCounters {
        &self.queue.counters
    }

    /// Goes to the next packet that programs sent: [`Tun::packet`]. False when none waits. A piece of several segments
    /// gives one packet each time; what a caller leaves stays for its next call.
    ///
    /// # Errors
    /// What the kernel said; the device is then of no more use.
    pub fn read_packet(&mut self) -> io::Result<bool> {
        let Self { queue: Queue { way, counters }, splitter, coalescer, .. } = self;
        if splitter.advance() {
            counters.packets_read += 1;
            return Ok(true);
        }
        let read = match way {
            Way::Direct(device) => match device.recv(splitter.space()) {
                Err(error) if is_transient(&error) => None,
                read => Some(read?),
            },
            Way::Porter(porter) => porter.read(splitter.space())?,
        };
        let Some(length) = read else { return Ok(false) };
        let is_super = coalescer.is_some() && splitter.accept(length);
        if coalescer.is_none() {
            splitter.accept_plain(length);
        }
        counters.reads += 1;
        counters.packets_read += 1;
        counters.super_reads += u64::from(is_super);
        Ok(true)
    }

    /// The packet that [`Tun::read_packet`] went to, its checksums complete; may be changed in place.
    pub fn packet(&mut self) -> &mut [u8] {
        self.splitter.packet()
    }

    /// Copies a packet to where it may be changed before [`Tun::write_staged`]; none when it is longer than
    /// [`MAX_PACKET`].
    pub fn stage(&mut self, packet: &[u8]) -> Option<&mut [u8]> {
        let place = self.staged.get_mut(HEADER_LEN..HEADER_LEN + packet.len())?;
        place.copy_from_slice(packet);
        self.staged_len = packet.len();
        Some(place)
    }

    /// Writes the staged packet. With offload it may wait for others of its flow until [`Tun::flush`]. What the kernel
    /// does not take is counted in `drops`.
    pub fn write_staged(&mut self, drops: &mut EdgeDrops) {
        let Self { queue, staged, staged_len, coalescer, .. } = self;
        let Some(coalescer) = coalescer else {
            return queue.write(&staged[HEADER_LEN..HEADER_LEN + *staged_len], 1, drops);
        };
        let packet = &staged[HEADER_LEN..HEADER_LEN + *staged_len];
        let waits = coalescer.take(packet, &mut |bytes, packets| queue.write(bytes, packets, drops));
        if !waits {
            // The header of an ordinary packet is all zeros, and nothing else is ever written there.
            queue.write(&staged[..HEADER_LEN + *staged_len], 1, drops);
        }
    }

    /// Writes what waits for others of its flow: to be called at the end of each turn.
    pub fn flush(&mut self, drops: &mut EdgeDrops) {
        let Self { queue, coalescer, .. } = self;
        if let Some(coalescer) = coalescer {
            coalescer.flush(&mut |bytes, packets| queue.write(bytes, packets, drops));
        }
        if let Way::Porter(porter) = &queue.way {
            porter.count(drops);
        }
    }
}

impl Queue {
    fn write(&mut self, bytes: &[u8], packets: u64, drops: &mut EdgeDrops) {
        let taken = match &self.way {
            Way::Direct(device) => device.send(bytes).map(|_| ()),
            Way::Porter(porter) if porter.write(bytes, packets) => Ok(()),
            Way::Porter(_) => Err(io::ErrorKind::WouldBlock.into()),
        };
        match taken {
            Ok(()) => {
                self.counters.writes += 1;
                self.counters.super_writes += u64::from(packets > 1);
                self.counters.packets_written += packets;
            }
            Err(error) if is_transient(&error) => drops.add(EdgeDrop::TunFull, packets),
            Err(_) => drops.add(EdgeDrop::TunFailed, packets),
        }
    }
}

/// Bytes that a read gives at most.
fn longest(has_offload: bool) -> usize {
    if has_offload { HEADER_LEN + MAX_SUPER } else { MAX_PACKET }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.queue.way {
            Way::Direct(device) => device.as_fd(),
            Way::Porter(porter) => porter.as_fd(),
        }
    }
}

/// Whether `name` is safe as a device name everywhere: in a kernel request, a path and a rule.
pub(super) fn is_device_name(name: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !matches!(name, "." | ".." | "all" | "default")
}

/// The kernel brings IPv6 addresses into use behind the caller's back. Until then programs would send through the
/// device from another address, which the tunnel must refuse.
fn wait_until_usable(address: IpAddr) -> io::Result<()> {
    let mut outcome = Ok(());
    for _ in 0..ADDRESS_ATTEMPTS {
        outcome = UdpSocket::bind((address, 0)).map(|_| ());
        match &outcome {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => thread::sleep(ADDRESS_PAUSE),
            _ => break,
        }
    }
    outcome
}

/// The interface index of `name`, if there is such a device.
fn index_of(name: &str) -> io::Result<Option<u32>> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match rustix::net::netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_names_are_refused_before_anything_is_made() {
        for name in ["", "sixteen-letters-", "a b", "a/b", "a\"", ".", "..", "all", "zürich"] {
            assert!(
                matches!(Tun::create(name, &[], 1400, Offload::Auto), Err(TunError::Name(_))),
                "{name:?}"
            );
        }
        assert!(is_device_name("ew-exit_0.1"));
    }

    #[test]
    fn an_existing_device_is_not_taken_over() {
        let error = Tun::create("lo", &[], 1400, Offload::Auto).err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("lo") && text.contains("exists")));
    }
}
