//! The network of hosts that the three-hop runs use.

use std::fs::{self, File, TryLockError};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::processes::ProcessRecord;
use crate::wiring::{self, Plug};

/// The interface of every host on the observed wire, and the name of its bridge.
pub const WIRE: &str = "wire0";
/// The interface beyond the exit, and the name of its bridge.
pub const OUTSIDE: &str = "out0";
/// The exit's address beyond the exit.
pub const EXIT_OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Where the lab of `cargo xtask run` keeps keys, configurations, sockets and logs.
pub const LAB_DIR: &str = "/run/evenwire-lab";

/// Time a process gets after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(3);

/// Time a former owner gets to let go of the lab.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// A host of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// Where the client runs.
    Client,
    /// The first relay.
    Entry,
    /// The second relay.
    Middle,
    /// The last relay.
    Exit,
    /// An ordinary host beyond the exit.
    Service,
    /// The bridges; the observer's place.
    Wire,
    /// Where a second client runs, in labs that were given one.
    Second,
}

impl Host {
    /// The hosts of every lab.
    pub const ALL: [Self; 6] =
        [Self::Client, Self::Entry, Self::Middle, Self::Exit, Self::Service, Self::Wire];
    /// The hosts whose frames the observer sees.
    pub const ON_WIRE: [Self; 4] = [Self::Client, Self::Entry, Self::Middle, Self::Exit];

    /// The last part of the host's namespace name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Entry => "entry",
            Self::Middle => "middle",
            Self::Exit => "exit",
            Self::Service => "service",
            Self::Wire => "wire",
            Self::Second => "second",
        }
    }

    /// The host's address: on the wire, or beyond the exit for the service. The wire itself has none.
    pub const fn address(self) -> Option<Ipv4Addr> {
        match self {
            Self::Client => Some(Ipv4Addr::new(192, 0, 2, 10)),
            Self::Entry => Some(Ipv4Addr::new(192, 0, 2, 1)),
            Self::Middle => Some(Ipv4Addr::new(192, 0, 2, 2)),
            Self::Exit => Some(Ipv4Addr::new(192, 0, 2, 3)),
            Self::Service => Some(Ipv4Addr::new(198, 51, 100, 80)),
            Self::Wire => None,
            Self::Second => Some(Ipv4Addr::new(192, 0, 2, 11)),
        }
    }

    /// The host on the wire that has this address.
    pub fn by_address(address: Ipv4Addr) -> Option<Self> {
        Self::ON_WIRE.into_iter().chain([Self::Second]).find(|host| host.address() == Some(address))
    }
}

/// A set of namespaces joined by bridges. Dropping it ends what it started and removes everything it made.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    dir: PathBuf,
    netns: Vec<Netns>,
    wire_ports: Vec<u32>,
    processes: ProcessRecord,
    queues: u32,
    lock: File,
}

impl Lab {
    /// Builds the lab of `cargo xtask run`: namespaces `relay-client` to `relay-wire`, files in [`LAB_DIR`].
    ///
    /// # Errors
    /// As [`Lab::build`].
    pub fn three_hops() -> Result<Self> {
        Self::build("relay", Path::new(LAB_DIR))
    }

    /// Builds the same network with namespaces `PREFIX-client` and so on, and its files in `dir` (mode 0700). What an
    /// earlier lab of the same prefix and directory left behind is removed first.
    ///
    /// # Errors
    /// Without root, while another process holds this lab, or when the kernel refuses a step; nothing is left behind.
    pub fn build(prefix: &str, dir: &Path) -> Result<Self> {
        Self::build_wide(prefix, dir, 1)
    }

    /// As [`Lab::build`], with so many receive queues on each host's wire. An AF_XDP socket only ever sees the one queue
    /// it is bound to.
    ///
    /// # Errors
    /// As [`Lab::build`].
    pub fn build_wide(prefix: &str, dir: &Path, queues: u32) -> Result<Self> {
        let lock = lock(&lock_path(dir))?;
        let processes = ProcessRecord::at(dir.join("pids"));
        remove_leftovers(prefix, dir, &processes)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let mut lab = Self {
            prefix: prefix.to_owned(),
            dir: dir.to_owned(),
            netns: Vec::with_capacity(Host::ALL.len()),
            wire_ports: Vec::with_capacity(Host::ON_WIRE.len()),
            processes,
            queues,
            lock,
        };
        lab.connect().context("the lab cannot be built")?;
        Ok(lab)
    }

    fn connect(&mut self) -> Result<()> {
        for host in Host::ALL {
            self.settle(host)?;
        }
        for name in [WIRE, OUTSIDE] {
            wiring::bridge(self.netns(Host::Wire), name)?;
        }
        for host in Host::ON_WIRE {
            self.join_wire(host)?;
        }
        self.cable(Host::Exit, OUTSIDE, "o-exit", EXIT_OUTSIDE)?;
        let service = Host::Service.address().context("the service has an address")?;
        self.cable(Host::Service, OUTSIDE, "o-service", service)?;
        Ok(())
    }

    /// Adds [`Host::Second`], which no lab has of itself.
    ///
    /// # Errors
    /// Where it is there already, or the kernel refuses a step.
    pub fn add_second_client(&mut self) -> Result<()> {
        self.settle(Host::Second)?;
        self.join_wire(Host::Second)
    }

    fn settle(&mut self, host: Host) -> Result<()> {
        let netns = Netns::create(&netns_name(&self.prefix, host))?;
        if host == Host::Wire {
            wiring::without_ipv6(&netns)?;
        } else {
            wiring::quiet_ipv6(&netns)?;
        }
        wiring::loopback_up(&netns)?;
        self.netns.push(netns);
        Ok(())
    }

    fn join_wire(&mut self, host: Host) -> Result<()> {
        let address = host.address().context("a host on the wire has an address")?;
        let port = self.cable(host, WIRE, &wire_port(host), address)?;
        self.wire_ports.push(port);
        Ok(())
    }

    fn cable(&self, host: Host, bridge: &str, port: &str, address: Ipv4Addr) -> Result<u32> {
        let plug =
            Plug { host: self.netns(host), interface: bridge, address, prefix: 24, queues: self.queues };
        wiring::cable(self.netns(Host::Wire), bridge, port, plug)
            .with_context(|| format!("joining {} to {bridge}", host.name()))
    }

    /// The namespace of a host.
    ///
    /// # Panics
    /// Where it is that of a second client, and the lab was given none.
    pub fn netns(&self, host: Host) -> &Netns {
        // `connect` pushes them in the order of `Host::ALL`, which is that of the enum; a second client comes last.
        &self.netns[host as usize]
    }

    /// The directory for keys, configurations, sockets and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Indices, in the wire's namespace, of the bridge ports of [`Host::ON_WIRE`], in that order, and then of a second
    /// client's.
    pub fn wire_ports(&self) -> &[u32] {
        &self.wire_ports
    }

    /// Starts a program on a host and records it, so that it is ended even if this process is killed.
    ///
    /// # Errors
    /// When it cannot be started or recorded; then it isn't running.
    pub fn spawn(&self, host: Host, command: &mut Command) -> Result<Child> {
        let mut child = self.netns(host).spawn(command)?;
        if let Err(error) = self.processes.add(child.id()) {
            child.kill().ok();
            child.wait().ok();
            return Err(error);
        }
        Ok(child)
    }

    /// Bytes received and sent by an interface of a host since it was made.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn interface_bytes(&self, host: Host, interface: &str) -> Result<InterfaceBytes> {
        use futures::TryStreamExt as _;
        use netlink_packet_route::link::LinkAttribute;
        let name = interface.to_owned();
        self.netns(host).netlink(|handle| async move {
            let link = handle.link().get().match_name(name.clone()).execute().try_next().await;
            let link = link.ok().flatten().with_context(|| format!("there is no interface {name}"))?;
            link.attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::Stats64(stats) => {
                        Some(InterfaceBytes { received: stats.rx_bytes, sent: stats.tx_bytes })
                    }
                    _ => None,
                })
                .with_context(|| format!("interface {name} has no counters"))
        })
    }
}

/// Traffic of an interface, in bytes of IP packets for a TUN interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InterfaceBytes {
    /// Handed to the kernel by whoever feeds the interface.
    pub received: u64,
    /// Handed out by the kernel.
    pub sent: u64,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.netns.clear();
        if let Err(error) = remove_leftovers(&self.prefix, &self.dir, &self.processes) {
            eprintln!("the lab could not be removed entirely: {error:#}");
        }
        fs::remove_file(lock_path(&self.dir)).ok();
        self.lock.unlock().ok();
    }
}

/// The name, in the wire's namespace, of the bridge port of a host on the wire.
pub fn wire_port(host: Host) -> String {
    format!("w-{}", host.name())
}

fn netns_name(prefix: &str, host: Host) -> String {
    format!("{prefix}-{}", host.name())
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
}

/// Takes the lock that a killed owner loses by itself.
fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}; the lab needs root", path.display()))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // The kernel needs a moment to take a killed owner apart, and only then is its lock free.
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                bail!("another lab is up and holds {}: end it first", path.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
    // The former owner removes the file while it still holds the lock, so the one just locked may have no name left.
    let current = fs::metadata(path).map(|metadata| metadata.ino()).ok();
    if current != Some(file.metadata()?.ino()) {
        bail!("another lab was just being removed: start again");
    }
    Ok(file)
}

fn remove_leftovers(prefix: &str, dir: &Path, processes: &ProcessRecord) -> Result<()> {
    // Each step is tried even if an earlier one fails: what can go, goes.
    let mut outcome = processes.end_all(PATIENCE).map(drop);
    for host in Host::ALL.into_iter().chain([Host::Second]) {
        outcome = outcome.and(Netns::delete(&netns_name(prefix, host)));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            outcome.and(Err(error).with_context(|| format!("cannot remove {}", dir.display())))
        }
        _ => outcome,
    }
}
