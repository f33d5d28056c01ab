//! The TUN device of an edge. It is not persistent: the kernel removes it, its addresses and its routes when the
//! process ends, however that happens.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tun_rs::{DeviceBuilder, SyncDevice};

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

/// A TUN device that is up. Reads and writes never block.
pub struct Tun {
    device: SyncDevice,
    name: String,
    index: u32,
}

impl Tun {
    /// Makes the device `name` with the given addresses and prefix lengths, of `mtu` bytes, brings it up, and returns
    /// when programs can use the addresses, which may take some milliseconds.
    ///
    /// # Errors
    /// [`TunError`]; nothing is left behind.
    pub fn create(name: &str, addresses: &[(IpAddr, u8)], mtu: u16) -> Result<Self, TunError> {
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
        let mut builder = DeviceBuilder::new().name(name).mtu(mtu);
        for &(address, prefix) in addresses {
            builder = match address {
                IpAddr::V4(address) => builder.ipv4(address, prefix, None),
                IpAddr::V6(address) => builder.ipv6(address, prefix),
            };
        }
        let device = builder.build_sync().map_err(setup("creating it"))?;
        device.set_nonblocking(true).map_err(setup("making it nonblocking"))?;
        let index = device.if_index().map_err(setup("reading its index"))?;
        for &(address, _) in addresses {
            wait_until_usable(address).map_err(setup("waiting for its addresses"))?;
        }
        Ok(Self { device, name: name.to_owned(), index })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Reads one packet into `buffer`, which should be longer than the MTU; none when none waits.
    ///
    /// # Errors
    /// What the kernel said; the device is then of no more use.
    pub fn read_packet(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.device.recv(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if is_transient(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes one packet. False when the device takes none now.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write_packet(&mut self, packet: &[u8]) -> io::Result<bool> {
        match self.device.send(packet) {
            Ok(_) => Ok(true),
            Err(error) if is_transient(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Whether `name` is safe as a device name everywhere: in a kernel request, a path and a rule.
pub(super) fn is_device_name(name: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !matches!(name, "." | ".." | "all" | "default")
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
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
            assert!(matches!(Tun::create(name, &[], 1400), Err(TunError::Name(_))), "{name:?}");
        }
        assert!(is_device_name("ew-exit_0.1"));
    }

    #[test]
    fn an_existing_device_is_not_taken_over() {
        let error = Tun::create("lo", &[], 1400).err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("lo") && text.contains("exists")));
    }
}
