//! Driving the kernel's packet generator: text written to files below `/proc/net/pktgen`, of which each network
//! namespace has its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use relay_common::wire::{CELL_LEN, DatagramType};

use super::link::{ADDRESSES, UDP_PORT};
use super::wiring::{FLOOR, LINK, LINK_QUEUE, MACS, OTHER_QUEUE, Wiring, text};

/// The calling thread's own; `/proc/net` would be the main thread's.
const DIRECTORY: &str = "/proc/thread-self/net/pktgen";
/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 42;
/// The shortest Ethernet frame, without its checksum.
const SHORTEST: usize = 60;
/// Packets after which a flood ends if nothing stops it: seconds of it at any rate that one processor reaches.
const MOST: u64 = 100_000_000;
/// How long a flood runs before the link is looked at.
const SETTLE: Duration = Duration::from_millis(200);
/// The generator's thread does what it is told some time later, at worst when its processor gets around to it.
const OBEY: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The shortest frames that reach our port: as many as the generator makes.
    Junk,
    /// Port, length and type of a cell; each with another receiver index, none of a session.
    Cells,
}

/// Where a flood goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// At the relay's interface, in another queue than the link's.
    Relay,
    /// At the interface whose program drops everything, in the same queue as at the relay's.
    Floor,
    /// At the relay's interface, in the link's own queue.
    LinkQueue,
}

impl Aim {
    /// The interface.
    const fn device(self) -> &'static str {
        match self {
            Self::Relay | Self::LinkQueue => LINK,
            Self::Floor => FLOOR,
        }
    }

    const fn queue(self) -> u32 {
        match self {
            Self::Relay | Self::Floor => OTHER_QUEUE,
            Self::LinkQueue => LINK_QUEUE,
        }
    }
}

/// Whether this kernel has the generator, loading it where it is a module.
pub(super) fn is_there() -> bool {
    let there = || Path::new("/proc/net/pktgen/pgctrl").exists();
    if !there() {
        // Without modprobe, or without the module, the file says so.
        let _ = Command::new("modprobe")
            .args(["-q", "pktgen"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    there()
}

/// The generator of the sender's namespace, on one processor.
pub(super) struct Flood<'a> {
    wiring: &'a Wiring,
    thread: String,
}

/// What a flood came to.
pub(super) struct Flooded {
    /// Packets that the interface took, in all.
    pub(super) sent: u64,
    /// Packets per second while the link was looked at.
    pub(super) per_second: f64,
}

impl<'a> Flood<'a> {
    pub(super) fn new(wiring: &'a Wiring, processor: usize) -> Result<Self> {
        for device in [LINK, FLOOR] {
            wiring.rewrite(device, u32::from(DatagramType::Cell as u8) << 24)?;
        }
        Ok(Self { wiring, thread: format!("kpktgend_{processor}") })
    }

    /// Runs `work` while the flood runs.
    pub(super) fn during<T>(
        &self,
        kind: Kind,
        aim: Aim,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Flooded)> {
        let device = aim.device();
        self.wiring.sender_side(|| self.set_up(kind, aim))?;
        std::thread::scope(|scope| {
            // The write that starts the generator returns when it has stopped.
            let running = scope.spawn(|| self.wiring.sender_side(|| write("pgctrl", "start")));
            let worked = (|| -> Result<_> {
                until("start", || Ok(self.sent(device)? > 0))?;
                std::thread::sleep(SETTLE);
                let (first, started) = (self.sent(device)?, Instant::now());
                let result = work()?;
                let per_second = (self.sent(device)? - first) as f64 / started.elapsed().as_secs_f64();
                Ok((result, per_second))
            })();
            self.wiring.sender_side(|| write("pgctrl", "stop"))?;
            running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let (result, per_second) = worked?;
            until("stop", || Ok(self.devices()?.is_some_and(|devices| devices.running.is_empty())))?;
            let sent = self.sent(device)?;
            ensure!(per_second > 0.0, "pktgen sent nothing to {device}; see {DIRECTORY}/{device}");
            Ok((result, Flooded { sent, per_second }))
        })
    }

    fn set_up(&self, kind: Kind, aim: Aim) -> Result<()> {
        let device = aim.device();
        write(&self.thread, "rem_device_all")?;
        // A device added before the thread came to it would be removed as well.
        let gone = |devices: Devices| devices.running.is_empty() && devices.stopped.is_empty();
        until("let its devices go", || Ok(self.devices()?.is_some_and(gone)))?;
        write(&self.thread, &format!("add_device {device}"))?;
        let [source, destination] = ADDRESSES;
        let (size, mode, queue) = match kind {
            Kind::Junk => (SHORTEST, "start_xmit", aim.queue()),
            // The network stack takes pktgen's choice for the queue that the packet was received on, counted from 1.
            Kind::Cells => (HEADERS + CELL_LEN, "queue_xmit", aim.queue() + 1),
        };
        let settings = [
            format!("count {MOST}"),
            "delay 0".to_owned(),
            // veth does not take one packet twice.
            "clone_skb 0".to_owned(),
            format!("pkt_size {size}"),
            format!("xmit_mode {mode}"),
            format!("queue_map_min {queue}"),
            format!("queue_map_max {queue}"),
            format!("dst_mac {}", text(MACS[1])),
            format!("src_min {source}"),
            format!("src_max {source}"),
            format!("dst {destination}"),
            format!("udp_src_min {UDP_PORT}"),
            format!("udp_src_max {UDP_PORT}"),
            format!("udp_dst_min {UDP_PORT}"),
            format!("udp_dst_max {UDP_PORT}"),
        ];
        settings.iter().try_for_each(|setting| write(device, setting))
    }

    fn devices(&self) -> Result<Option<Devices>> {
        let path = format!("{DIRECTORY}/{}", self.thread);
        let state = self
            .wiring
            .sender_side(|| std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}")))?;
        Ok(devices(&state))
    }

    fn sent(&self, device: &str) -> Result<u64> {
        let path = format!("{DIRECTORY}/{device}");
        let state = self
            .wiring
            .sender_side(|| std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}")))?;
        packets_so_far(&state)
            .with_context(|| format!("{path} does not say how many packets were sent: {state}"))
    }
}

/// Names of a thread's interfaces.
#[derive(Debug, PartialEq, Eq)]
struct Devices {
    running: String,
    stopped: String,
}

/// The interfaces in a thread's file: `Running: ewb0 \nStopped: ewb1 \nResult: OK`.
fn devices(state: &str) -> Option<Devices> {
    let (running, rest) = state.split_once("Running:")?.1.split_once("Stopped:")?;
    let stopped = rest.split("Result:").next()?;
    Some(Devices { running: running.trim().to_owned(), stopped: stopped.trim().to_owned() })
}

fn until(what: &str, mut reached: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !reached()? {
        ensure!(started.elapsed() < OBEY, "pktgen did not {what} within {} s", OBEY.as_secs());
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// The count in a line `     pkts-sofar: 17  errors: 0`.
fn packets_so_far(state: &str) -> Option<u64> {
    state.split_once("pkts-sofar:")?.1.split_whitespace().next()?.parse().ok()
}

fn write(file: &str, line: &str) -> Result<()> {
    // The kernel takes the last byte for the line's end, whatever it is.
    std::fs::write(format!("{DIRECTORY}/{file}"), format!("{line}\n"))
        .with_context(|| format!("pktgen does not take {line:?} for {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_names_are_read_from_where_the_kernel_writes_them() {
        let state = "Params: count 0  min_pkt_size: 60\nCurrent:\n     pkts-sofar: 1234  errors: 5\n     started: 9us\n";
        assert_eq!(packets_so_far(state), Some(1234));
        assert_eq!(packets_so_far("Result: Idle"), None);
        let names =
            |running: &str, stopped: &str| Devices { running: running.into(), stopped: stopped.into() };
        assert_eq!(devices("Running: \nStopped: ewb0 ewb1 \nResult: NA\n"), Some(names("", "ewb0 ewb1")));
        assert_eq!(
            devices("Running: ewb0 \n\nStopped: \nResult: OK: max_before_softirq=10\n"),
            Some(names("ewb0", ""))
        );
    }
}
