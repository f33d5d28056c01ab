//! The tables that relays and clients share.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::prefix::Prefix;
use super::source::{ConfigError, Source, hex_bytes};

/// Bytes of an interface's name, at most (`IFNAMSIZ` less the terminating zero).
const MAX_INTERFACE_LEN: usize = 15;
/// Bytes of a Unix socket's path, at most (`sun_path` less the terminating zero).
const MAX_SOCKET_PATH_LEN: usize = 107;
/// Processors that a CPU set of the C library can name.
const MAX_CPUS: usize = 1024;
/// Entries of a ring: from one batch of the worker to the largest ring whose four copies leave the arena below
/// [`MAX_FRAMES`].
const RING_RANGE: std::ops::RangeInclusive<u32> = 64..=32_768;
/// Frames of 2048 bytes at most: 2 GiB.
const MAX_FRAMES: u32 = 1 << 20;

/// Workers of a relay, at most.
const MAX_WORKERS: u16 = super::network::MAX_LANES;

/// How datagrams get in and out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// The interface to attach to; there in every mode but [`DatapathMode::Udp`].
    pub interface: Option<String>,
    /// Where the XDP program runs.
    pub mode: DatapathMode,
    /// How the AF_XDP socket shares memory with the driver.
    pub bind: BindMode,
    /// Frames of 2048 bytes in the arena: at least as many as four rings have entries, at most 2^20.
    pub frames: u32,
    /// Entries of each AF_XDP ring, a power of two from 64 to 32768.
    pub ring: u32,
    /// What pages the frames are in.
    pub huge_pages: HugePages,
    /// Where a client's UDP socket is bound; a relay binds the address of the network document.
    pub listen: Option<SocketAddr>,
}

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatapathMode {
    /// In the driver if it can, else in the kernel's generic hook.
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's generic hook.
    Generic,
    /// Nowhere: an ordinary UDP socket.
    Udp,
}

/// How the AF_XDP socket shares memory with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindMode {
    /// Zero-copy if the driver can, else copy.
    Auto,
    /// The kernel copies each frame.
    Copy,
    /// The device reads and writes the arena.
    ZeroCopy,
}

/// What pages the frames are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// Huge ones of 2 MiB if enough are free, else what the kernel makes by itself; with UDP sockets, ordinary ones.
    Auto,
    /// Ordinary ones.
    Off,
    /// Huge ones or the start fails.
    Require,
}

/// Whether workers run the driver's receive loop themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusyPoll {
    /// Those that never sleep, on sockets in zero-copy.
    Auto,
    /// None.
    Off,
}

/// The thread that moves the cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Threads that move cells, 1 to 64; worker i reads receive queue i of the interface.
    pub count: u16,
    /// The processors that they are pinned to, 0 to 1023 each; empty, or one for each worker.
    pub cpus: Vec<usize>,
    /// How they wait.
    pub poll: PollMode,
    /// Whether it runs the driver's receive loop.
    pub busy_poll: BusyPoll,
}

/// How the worker waits for its next slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PollMode {
    /// Sleeps while the next slot is far away.
    Adaptive,
    /// Never sleeps.
    Busy,
}

/// Where the program answers its operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Path of a Unix socket, at most 107 bytes.
    pub socket: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDatapath {
    interface: Option<Spanned<String>>,
    pub(super) mode: Option<DatapathMode>,
    bind: Option<BindMode>,
    frames: Option<Spanned<i64>>,
    ring: Option<Spanned<i64>>,
    huge_pages: Option<HugePages>,
    pub(super) listen: Option<Spanned<SocketAddr>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWorker {
    count: Option<Spanned<i64>>,
    cpus: Option<Spanned<Vec<i64>>>,
    poll: Option<PollMode>,
    busy_poll: Option<BusyPoll>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawControl {
    socket: Spanned<PathBuf>,
}

impl RawDatapath {
    /// `workers` is how many threads share the frames, each with rings of its own.
    pub(super) fn check(
        &self,
        source: &Source,
        default: DatapathMode,
        workers: u16,
    ) -> Result<Datapath, ConfigError> {
        let mode = self.mode.unwrap_or(default);
        let name =
            self.interface.as_ref().map(|name| interface(source, name, "datapath.interface")).transpose()?;
        if name.is_none() && mode != DatapathMode::Udp {
            let remedy = "name the interface to attach to, or write mode = \"udp\"";
            return Err(source.refuse_key("datapath", "has no interface", remedy));
        }
        let ring = match &self.ring {
            None => 4096,
            Some(given) => u32::try_from(*given.get_ref())
                .ok()
                .filter(|ring| ring.is_power_of_two() && RING_RANGE.contains(ring))
                .ok_or_else(|| {
                    let what = "is not a power of two from 64 to 32768";
                    source.refuse(given, "datapath.ring", what, "write 4096 unless measured otherwise")
                })?,
        };
        let least = ring * 4 * u32::from(workers);
        let enough = least..=MAX_FRAMES;
        let frames = match &self.frames {
            None if enough.contains(&least) => least,
            None => {
                let what = format!(
                    "makes {workers} workers need {least} frames, and there are {MAX_FRAMES} at most"
                );
                return Err(source.refuse_key("datapath", what, "use smaller rings or fewer workers"));
            }
            Some(given) => {
                let frames = u32::try_from(*given.get_ref()).ok().filter(|frames| enough.contains(frames));
                frames.ok_or_else(|| {
                    let what = format!("is not from four rings for each worker ({least}) to {MAX_FRAMES}");
                    source.refuse(given, "datapath.frames", what, "change frames, ring or worker.count")
                })?
            }
        };
        let bind = self.bind.unwrap_or(BindMode::Auto);
        let listen = self.listen.as_ref().map(|address| *address.get_ref());
        let huge_pages = self.huge_pages.unwrap_or(HugePages::Auto);
        Ok(Datapath { interface: name, mode, bind, frames, ring, huge_pages, listen })
    }

    pub(super) fn unset() -> Self {
        Self {
            interface: None,
            mode: None,
            bind: None,
            frames: None,
            ring: None,
            huge_pages: None,
            listen: None,
        }
    }
}

pub(super) fn worker(source: &Source, raw: Option<&RawWorker>) -> Result<Worker, ConfigError> {
    let Some(raw) = raw else {
        return Ok(Worker {
            count: 1,
            cpus: Vec::new(),
            poll: PollMode::Adaptive,
            busy_poll: BusyPoll::Auto,
        });
    };
    let count = raw.count.as_ref().map_or(Ok(1), |given| {
        let count = u16::try_from(*given.get_ref()).ok().filter(|count| (1..=MAX_WORKERS).contains(count));
        count.ok_or_else(|| {
            let remedy = format!("write a number from 1 to {MAX_WORKERS}, or leave it out");
            source.refuse(given, "worker.count", "is not a number of workers", remedy)
        })
    })?;
    let cpus = raw.cpus.as_ref().map_or(Ok(Vec::new()), |given| {
        let refuse = |what: &str, remedy: String| Err(source.refuse(given, "worker.cpus", what, remedy));
        let cpus: Vec<usize> = given
            .get_ref()
            .iter()
            .filter_map(|cpu| usize::try_from(*cpu).ok().filter(|cpu| *cpu < MAX_CPUS))
            .collect();
        if cpus.len() != given.get_ref().len() {
            return refuse("names no processor", format!("write numbers from 0 to {}", MAX_CPUS - 1));
        }
        if cpus.len() != usize::from(count) {
            let remedy = format!("name {count}, as many as worker.count, or leave it out");
            return refuse("does not name one processor for each worker", remedy);
        }
        if (1..cpus.len()).any(|at| cpus[..at].contains(&cpus[at])) {
            return refuse("names a processor twice", "give each worker its own".to_owned());
        }
        Ok(cpus)
    })?;
    Ok(Worker {
        count,
        cpus,
        poll: raw.poll.unwrap_or(PollMode::Adaptive),
        busy_poll: raw.busy_poll.unwrap_or(BusyPoll::Auto),
    })
}

pub(super) fn control(source: &Source, raw: &RawControl) -> Result<Control, ConfigError> {
    let socket = source.beside(raw.socket.get_ref());
    if socket.as_os_str().len() > MAX_SOCKET_PATH_LEN {
        let what = format!("is longer than the {MAX_SOCKET_PATH_LEN} bytes of a socket's path");
        return Err(source.refuse(&raw.socket, "control.socket", what, "use a shorter path"));
    }
    Ok(Control { socket })
}

pub(super) fn interface(source: &Source, name: &Spanned<String>, key: &str) -> Result<String, ConfigError> {
    let text = name.get_ref();
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    if text.is_empty()
        || text.len() > MAX_INTERFACE_LEN
        || text.starts_with('.')
        || !text.bytes().all(is_plain)
    {
        let remedy = format!("write 1 to {MAX_INTERFACE_LEN} letters, digits and `-`");
        return Err(source.refuse(name, key, "is not an interface's name", remedy));
    }
    Ok(text.clone())
}

pub(super) fn prefix(source: &Source, text: &Spanned<String>, key: &str) -> Result<Prefix, ConfigError> {
    text.get_ref().parse().map_err(|error: super::prefix::InvalidPrefix| {
        source.refuse(text, key, error.to_string(), "write the range's first address and its length")
    })
}

pub(super) fn operator(source: &Source, text: &Spanned<String>) -> Result<[u8; 32], ConfigError> {
    hex_bytes(text.get_ref()).ok_or_else(|| {
        let remedy = "write the 64 hex digits that `relay keygen --operator` printed";
        source.refuse(text, "operator", "is not an Ed25519 public key", remedy)
    })
}
