//! The userspace half of the XDP program: loads it, attaches it to an interface, tells it sessions and sockets and
//! reads its counters.
//!
//! Detach (or drop) the [`Steering`] before closing the AF_XDP sockets; a socket that goes first leaves cells to be
//! dropped for want of one.

use std::{io, os::fd::AsFd, os::fd::AsRawFd};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray, XskMap},
    programs::{ProgramError, Xdp, xdp::XdpLink, xdp::XdpMode as Flags},
};
use aya_log::EbpfLogger;
use log::Log;
use relay_common::abi::{
    Counter, GLOBAL_LOG, GLOBAL_PORT, GLOBAL_PORTS, MAP_COUNTERS, MAP_SESSIONS, MAP_SOCKETS, MAP_TAGS,
    PROGRAM, SESSION_ENTRY_LEN, SOCKET_SLOTS, SessionEntry, TAGS_PER_ROW, session_slot, session_tag,
    tag_place, tag_row,
};
use relay_common::classify::Ports;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketType, netdevice},
    thread::CapabilitySet,
};
use thiserror::Error;

use crate::xsk::XskSocket;

/// The XDP program as an ELF object, built by `cargo xtask ebpf build`.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../relay-ebpf/relay.bpf.o"));

/// How the operator wants the program attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, or else in the kernel's generic path.
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the kernel's generic path.
    Generic,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's generic path: it works everywhere and costs a socket buffer for each frame.
    Generic,
}

impl XdpMode {
    /// The mode's name in status output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn flags(self) -> Flags {
        match self {
            Self::Native => Flags::Driver,
            Self::Generic => Flags::Skb,
        }
    }
}

/// Why steering could not be set up or changed.
#[derive(Debug, Error)]
pub enum SteeringError {
    /// There is no such interface in this network namespace.
    #[error("interface {interface:?} does not exist in this network namespace; see `ip link`")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// The process lacks capabilities.
    #[error(
        "attaching XDP to {interface} needs {missing}, which this process does not have; run it as root or \
         give it the capability"
    )]
    MissingCapability {
        /// The interface.
        interface: String,
        /// The capabilities' names, separated by commas.
        missing: String,
    },
    /// The kernel refused although the capabilities seem to be there, as it does in a user namespace.
    #[error(
        "the kernel does not permit loading XDP for {interface}: {source}; CAP_BPF, CAP_PERFMON \
         and CAP_NET_ADMIN must be held in the initial user namespace"
    )]
    NotPermitted {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else's program is attached; it is left alone.
    #[error(
        "an XDP program is already attached to {interface} and is left alone; find its owner with \
         `ip -d link show dev {interface}` or `bpftool net`"
    )]
    AlreadyAttached {
        /// The interface.
        interface: String,
    },
    /// The driver or kernel does not attach the program in this mode.
    #[error("{interface} does not take an XDP program in {} mode: {source}", mode.name())]
    Attach {
        /// The interface.
        interface: String,
        /// The mode that was tried.
        mode: XdpMode,
        /// What the kernel said.
        source: ProgramError,
    },
    /// The kernel does not accept the object.
    #[error("the kernel does not accept the XDP program: {0}")]
    Load(#[from] EbpfError),
    /// The verifier does not accept the program.
    #[error("the kernel's verifier does not accept the XDP program: {0}")]
    Verify(#[source] ProgramError),
    /// The embedded object lacks a map or the program.
    #[error("the XDP object has no {name:?}; rebuild it with `cargo xtask ebpf build`")]
    Object {
        /// What it lacks.
        name: &'static str,
    },
    /// A map could not be read or changed.
    #[error("XDP map {map}: {source}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// The queue has no place in the sockets map.
    #[error("receive queue {queue} is beyond the {SOCKET_SLOTS} queues that can be steered to")]
    Queue {
        /// The queue.
        queue: u32,
    },
    /// The log records of the program cannot be read.
    #[error("the XDP program's log: {0}")]
    Log(#[from] aya_log::Error),
}

/// The program's counters, summed over all CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringCounters(Vec<u64>);

impl SteeringCounters {
    /// One counter, in frames since the program was loaded.
    pub fn get(&self, counter: Counter) -> u64 {
        usize::try_from(counter.index()).ok().and_then(|index| self.0.get(index)).copied().unwrap_or(0)
    }

    /// Every counter by its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::all().map(|counter| (counter.name(), self.get(counter)))
    }
}

/// An attached XDP program. It is detached when this is dropped.
pub struct Steering {
    // Fields are dropped in order: the interface is let go of first.
    link: XdpLink,
    mode: XdpMode,
    maps: Maps,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    _ebpf: Ebpf,
}

struct Maps {
    sessions: Array<MapData, [u8; SESSION_ENTRY_LEN]>,
    tags: Array<MapData, [u8; TAGS_PER_ROW]>,
    sockets: XskMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
}

impl Steering {
    /// Loads the program for UDP `port` and attaches it to `interface` of the calling thread's network namespace.
    ///
    /// # Errors
    /// Any [`SteeringError`] but [`SteeringError::Queue`]; nothing stays attached then.
    pub fn attach(interface: &str, mode: AttachMode, port: u16) -> Result<Self, SteeringError> {
        Self::attach_with_log(interface, mode, port.into(), false)
    }

    /// As [`Steering::attach`], for several ports; with `log`, each dropped frame makes a record at debug level, to be fetched with
    /// [`Steering::flush_log`]. Records name reasons, never addresses.
    ///
    /// # Errors
    /// As for [`Steering::attach`].
    pub fn attach_with_log(
        interface: &str,
        mode: AttachMode,
        ports: Ports,
        log: bool,
    ) -> Result<Self, SteeringError> {
        let index = interface_index(interface)?;
        let missing = missing_capabilities(effective_capabilities());
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(SteeringError::MissingCapability { interface: interface.to_owned(), missing });
        }
        let mut ebpf = EbpfLoader::new()
            .override_global(GLOBAL_PORT, &ports.first, true)
            .override_global(GLOBAL_PORTS, &ports.count, true)
            .override_global(GLOBAL_LOG, &u8::from(log), true)
            .load(OBJECT)
            .map_err(|error| permission(interface, &error).unwrap_or(SteeringError::Load(error)))?;
        let maps = Maps {
            sessions: take_map(&mut ebpf, MAP_SESSIONS)?,
            tags: take_map(&mut ebpf, MAP_TAGS)?,
            sockets: take_map(&mut ebpf, MAP_SOCKETS)?,
            counters: take_map(&mut ebpf, MAP_COUNTERS)?,
        };
        let logger = if log { Some(EbpfLogger::init(&mut ebpf)?) } else { None };
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(SteeringError::Object { name: PROGRAM })?;
        program
            .load()
            .map_err(|error| permission(interface, &error).unwrap_or(SteeringError::Verify(error)))?;
        let (link, mode) = attach(program, interface, index, mode)?;
        log::info!("XDP attached to {interface} in {} mode", mode.name());
        Ok(Self { link, mode, maps, logger, _ebpf: ebpf })
    }

    /// How the program is attached.
    pub const fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Hands the cells that arrive on receive queue `queue` to the AF_XDP socket `socket`. Cells only reach
    /// a socket bound to this interface and queue. The kernel forgets it by itself when it is closed.
    ///
    /// # Errors
    /// [`SteeringError::Queue`], or [`SteeringError::Map`] where `socket` is no AF_XDP socket.
    pub fn bind_socket(&mut self, queue: u32, socket: impl AsFd) -> Result<(), SteeringError> {
        if queue >= SOCKET_SLOTS {
            return Err(SteeringError::Queue { queue });
        }
        self.maps
            .sockets
            .set(queue, socket.as_fd().as_raw_fd(), 0)
            .map_err(|source| SteeringError::Map { map: MAP_SOCKETS, source })
    }

    /// As [`Steering::bind_socket`], for a socket that is used without a port around it.
    ///
    /// # Errors
    /// As [`Steering::bind_socket`].
    pub fn bind_rings(&mut self, queue: u32, socket: &XskSocket) -> Result<(), SteeringError> {
        self.bind_socket(queue, socket.fd())
    }

    /// Lets the cells of a session through, from the entry's source only. It takes the place of whatever session
    /// has the same [`session_slot`]; whoever chooses receiver indices keeps slots apart.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn set_session(&mut self, entry: &SessionEntry) -> Result<(), SteeringError> {
        let slot = session_slot(entry.receiver_index);
        self.write_session(slot, entry)?;
        self.write_tag(slot, session_tag(entry.receiver_index))
    }

    /// Stops letting the cells of the session with `receiver_index` through. No effect where its slot has since
    /// gone to another session.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn clear_session(&mut self, receiver_index: u32) -> Result<(), SteeringError> {
        let slot = session_slot(receiver_index);
        let bytes = self
            .maps
            .sessions
            .get(&slot, 0)
            .map_err(|source| SteeringError::Map { map: MAP_SESSIONS, source })?;
        if bytes[16..20] != receiver_index.to_ne_bytes() {
            return Ok(());
        }
        self.write_tag(slot, 0)?;
        self.write_session(slot, &SessionEntry::default())
    }

    /// Changes one tag. The kernel copies the whole row, without a lock, over bytes that stay the same.
    fn write_tag(&mut self, slot: u32, tag: u8) -> Result<(), SteeringError> {
        let (tags, row) = (&mut self.maps.tags, tag_row(slot));
        let failed = |source| SteeringError::Map { map: MAP_TAGS, source };
        let mut row_tags = tags.get(&row, 0).map_err(failed)?;
        row_tags[tag_place(slot)] = tag;
        tags.set(row, row_tags, 0).map_err(failed)
    }

    fn write_session(&mut self, slot: u32, entry: &SessionEntry) -> Result<(), SteeringError> {
        self.maps
            .sessions
            .set(slot, entry.to_bytes(), 0)
            .map_err(|source| SteeringError::Map { map: MAP_SESSIONS, source })
    }

    /// The counters as they stand.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn counters(&self) -> Result<SteeringCounters, SteeringError> {
        let sum = |counter: Counter| {
            let cpus = self.maps.counters.get(&counter.index(), 0);
            cpus.map(|cpus| cpus.iter().fold(0u64, |sum, cpu| sum.wrapping_add(*cpu)))
                .map_err(|source| SteeringError::Map { map: MAP_COUNTERS, source })
        };
        Counter::all().map(sum).collect::<Result<_, _>>().map(SteeringCounters)
    }

    /// Passes the program's log records so far to the `log` crate. Without a log, does nothing.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Detaches the program. Frames take the kernel's path from here on.
    pub fn detach(self) {
        drop(self.link);
    }
}

/// Attaches without ever replacing a program: the kernel refuses a second link on an interface.
fn attach(
    program: &mut Xdp,
    interface: &str,
    index: u32,
    wanted: AttachMode,
) -> Result<(XdpLink, XdpMode), SteeringError> {
    let mut try_mode = |mode: XdpMode| {
        program
            .attach_to_if_index(index, mode.flags())
            .and_then(|id| program.take_link(id))
            .map(|link| (link, mode))
            .map_err(|error| attach_error(interface, mode, error))
    };
    match wanted {
        AttachMode::Native => try_mode(XdpMode::Native),
        AttachMode::Generic => try_mode(XdpMode::Generic),
        AttachMode::Auto => match try_mode(XdpMode::Native) {
            Err(SteeringError::Attach { source, .. }) => {
                log::warn!("{interface} has no native XDP ({source}); attaching in generic mode");
                try_mode(XdpMode::Generic)
            }
            result => result,
        },
    }
}

fn attach_error(interface: &str, mode: XdpMode, source: ProgramError) -> SteeringError {
    let interface = interface.to_owned();
    match errno(&source) {
        // net/core/dev.c, dev_xdp_attach: EBUSY where the mode is taken, EEXIST where the other mode is.
        Some(Errno::BUSY | Errno::EXIST) => SteeringError::AlreadyAttached { interface },
        Some(Errno::NODEV) => SteeringError::NoInterface { interface },
        Some(error @ (Errno::PERM | Errno::ACCESS)) => {
            SteeringError::NotPermitted { interface, source: error.into() }
        }
        _ => SteeringError::Attach { interface, mode, source },
    }
}

/// The error for a refusal that is about permission and about nothing else.
fn permission(interface: &str, error: &(dyn std::error::Error + 'static)) -> Option<SteeringError> {
    let error = errno(error).filter(|error| *error == Errno::PERM)?;
    Some(SteeringError::NotPermitted { interface: interface.to_owned(), source: error.into() })
}

/// The system call's error at the bottom of `error`.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.filter_map(|error| error.downcast_ref::<io::Error>()).find_map(Errno::from_io_error)
}

fn take_map<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, SteeringError> {
    let map = ebpf.take_map(name).ok_or(SteeringError::Object { name })?;
    map.try_into().map_err(|source| SteeringError::Map { map: name, source })
}

fn interface_index(interface: &str) -> Result<u32, SteeringError> {
    let missing = |_| SteeringError::NoInterface { interface: interface.to_owned() };
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(missing)?;
    netdevice::name_to_index(&socket, interface).map_err(missing)
}

/// What this process may do now.
pub(crate) fn effective_capabilities() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// What `held` lacks of what loading and attaching the XDP program takes (capabilities(7)). CAP_PERFMON is there for
/// the verifier: without it, no program may move over a header whose length the packet states.
pub(crate) fn missing_capabilities(held: CapabilitySet) -> Vec<&'static str> {
    if held.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN) {
        return Vec::new();
    }
    let needed = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    ];
    needed.into_iter().filter(|(capability, _)| !held.contains(*capability)).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        let all = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"];
        assert_eq!(missing_capabilities(CapabilitySet::empty()), all);
        assert_eq!(missing_capabilities(CapabilitySet::NET_ADMIN), all[..2]);
        assert_eq!(missing_capabilities(CapabilitySet::NET_ADMIN | CapabilitySet::BPF), all[1..2]);
        let own = CapabilitySet::BPF | CapabilitySet::PERFMON;
        assert!(missing_capabilities(own | CapabilitySet::NET_ADMIN).is_empty());
        assert!(missing_capabilities(CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN).is_empty());
    }

    #[test]
    fn a_missing_interface_is_named() {
        for name in ["ewt-none", "", "a-name-that-is-far-too-long", "nul\0name"] {
            let error = Steering::attach(name, AttachMode::Auto, 7443).err().expect("there is none");
            assert!(
                matches!(&error, SteeringError::NoInterface { interface } if interface == name),
                "{error}"
            );
        }
    }

    #[test]
    fn the_kernels_refusals_are_told_apart() {
        let refuse = |errno: Errno| {
            let source = aya::sys::SyscallError { call: "bpf_link_create", io_error: errno.into() };
            attach_error("wire0", XdpMode::Native, ProgramError::SyscallError(source))
        };
        assert!(matches!(refuse(Errno::BUSY), SteeringError::AlreadyAttached { .. }));
        assert!(matches!(refuse(Errno::EXIST), SteeringError::AlreadyAttached { .. }));
        assert!(matches!(refuse(Errno::PERM), SteeringError::NotPermitted { .. }));
        assert!(matches!(refuse(Errno::OPNOTSUPP), SteeringError::Attach { .. }));
        assert!(refuse(Errno::BUSY).to_string().contains("wire0"));
    }
}
