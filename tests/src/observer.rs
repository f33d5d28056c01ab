//! Somebody on the wire: sees every frame that enters a port of the bridge, holds no keys, and counts.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use memchr::memmem::Finder;

use crate::netns::Netns;
use crate::packet::{Sight, look_at};
use crate::tap::{Caught, Tap, since_epoch};

/// Width of a counting bin.
pub const BIN: Duration = Duration::from_millis(100);

/// Bins kept per flow: an hour.
const BINS_KEPT: usize = 36_000;
/// Flows told apart; frames of further ones are counted in [`Snapshot::unlisted`].
const FLOWS_KEPT: usize = 256;
/// Different payload lengths told apart per flow; a flow with more is no constant-size flow anyway.
const LENGTHS_KEPT: usize = 64;
/// Bytes captured when only headers matter.
const HEADERS: u32 = 160;
/// Bytes captured when payload is searched: more than any frame of the lab.
const WHOLE_FRAME: u32 = 2048;

/// Datagrams of one sender to one receiver.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    /// Datagrams in all.
    pub datagrams: u64,
    /// UDP payload lengths in bytes, with how often and when (bin) each was last seen.
    pub lengths: BTreeMap<u16, LengthSeen>,
    bins: VecDeque<u32>,
    first_bin: u64,
}

/// How often a payload length occurred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LengthSeen {
    /// Datagrams of this length.
    pub datagrams: u64,
    /// The bin of the latest one.
    pub last_bin: u64,
}

impl Flow {
    /// Datagrams in the bins from `from` up to, not including, `to`.
    pub fn datagrams_between(&self, from: u64, to: u64) -> u64 {
        (from.max(self.first_bin)..to)
            .map_while(|bin| usize::try_from(bin - self.first_bin).ok().and_then(|at| self.bins.get(at)))
            .map(|&count| u64::from(count))
            .sum()
    }

    /// Payload lengths seen in bin `from` or later.
    pub fn lengths_since(&self, from: u64) -> Vec<u16> {
        self.lengths.iter().filter(|(_, seen)| seen.last_bin >= from).map(|(&length, _)| length).collect()
    }

    fn count(&mut self, bin: u64, length: u16) {
        self.datagrams += 1;
        if self.lengths.contains_key(&length) || self.lengths.len() < LENGTHS_KEPT {
            let seen = self.lengths.entry(length).or_default();
            seen.datagrams += 1;
            seen.last_bin = seen.last_bin.max(bin);
        }
        if self.bins.is_empty() {
            self.first_bin = bin;
        }
        let Ok(mut at) = usize::try_from(bin.saturating_sub(self.first_bin)) else { return };
        if at >= BINS_KEPT {
            let surplus = at + 1 - BINS_KEPT;
            self.bins.drain(..surplus.min(self.bins.len()));
            self.first_bin += surplus as u64;
            at = BINS_KEPT - 1;
        }
        if at >= self.bins.len() {
            self.bins.resize(at + 1, 0);
        }
        self.bins[at] += 1;
    }
}

/// What the observer has seen so far.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// UDP datagrams by (sender, receiver).
    pub flows: BTreeMap<(IpAddr, IpAddr), Flow>,
    /// ARP frames.
    pub arp: u64,
    /// ICMPv6 packets, so neighbour discovery among them.
    pub icmpv6: u64,
    /// Other IP packets.
    pub other: u64,
    /// Frames that are neither IP nor ARP, or broken.
    pub foreign: u64,
    /// Packets with an address of the inside in their outer header.
    pub inner_addresses: u64,
    /// Frames that contain one of the caller's byte strings.
    pub canaries: u64,
    /// Datagrams of flows beyond the first 256.
    pub unlisted: u64,
    /// Frames that the kernel could not queue for the observer: then the counts are too low.
    pub lost: u64,
}

impl Snapshot {
    /// The datagrams from one host to another.
    pub fn flow(&self, source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Option<&Flow> {
        self.flows.get(&(source.into(), destination.into()))
    }

    /// Packets that showed an observer anything of the inside.
    pub fn in_the_clear(&self) -> u64 {
        self.inner_addresses + self.canaries
    }
}

/// A running observer; dropping it ends its thread.
#[derive(Debug)]
pub struct Observer {
    seen: Arc<Mutex<Snapshot>>,
    stop: Arc<AtomicBool>,
    started: Duration,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Watches the bridge ports with these indices in the namespace `wire`, searching every frame for `canaries`
    /// (byte strings that must never be readable there; empty ones are left out).
    ///
    /// # Errors
    /// When the packet socket cannot be opened (needs root) or there are more than 64 ports.
    pub fn start(wire: &Netns, ports: &[u32], canaries: &[Vec<u8>]) -> Result<Self> {
        let canaries: Vec<Finder<'static>> = canaries
            .iter()
            .filter(|bytes| !bytes.is_empty())
            .map(|bytes| Finder::new(bytes).into_owned())
            .collect();
        let captured = if canaries.is_empty() { HEADERS } else { WHOLE_FRAME };
        let tap = wire.run(|| Tap::on_ports(ports, captured)).context("the observer cannot listen")?;
        let started = since_epoch();
        let seen = Arc::new(Mutex::new(Snapshot::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let watch = Watch { tap, canaries, started };
        let thread = std::thread::Builder::new().name("observer".to_owned()).spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || watch.run(&seen, &stop)
        })?;
        Ok(Self { seen, stop, started, thread: Some(thread) })
    }

    /// The bin of the present moment.
    pub fn bin_now(&self) -> u64 {
        bin_of(since_epoch().saturating_sub(self.started))
    }

    /// A copy of what has been seen so far.
    pub fn snapshot(&self) -> Snapshot {
        locked(&self.seen).clone()
    }

    /// Whether the observer still watches.
    pub fn is_watching(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Watch {
    tap: Tap,
    canaries: Vec<Finder<'static>>,
    started: Duration,
}

impl Watch {
    fn run(&self, seen: &Mutex<Snapshot>, stop: &AtomicBool) {
        let watched = self.tap.drain_until(stop, |caught| {
            let mut snapshot = locked(seen);
            match caught {
                Caught::Frame(at, frame) => {
                    self.count(&mut snapshot, frame, bin_of(at.saturating_sub(self.started)));
                }
                Caught::Lost(lost) => snapshot.lost = lost,
            }
        });
        if let Err(error) = watched {
            eprintln!("the observer can no longer listen: {error}");
        }
    }

    fn count(&self, snapshot: &mut Snapshot, frame: &[u8], bin: u64) {
        let sight = look_at(frame);
        if sight.shows_inner_address() {
            snapshot.inner_addresses += 1;
        }
        if self.canaries.iter().any(|canary| canary.find(frame).is_some()) {
            snapshot.canaries += 1;
        }
        match sight {
            Sight::Udp { source, destination, length } => {
                let key = (source, destination);
                if snapshot.flows.contains_key(&key) || snapshot.flows.len() < FLOWS_KEPT {
                    snapshot.flows.entry(key).or_default().count(bin, length);
                } else {
                    snapshot.unlisted += 1;
                }
            }
            Sight::Arp => snapshot.arp += 1,
            Sight::Icmpv6 => snapshot.icmpv6 += 1,
            Sight::Other { .. } => snapshot.other += 1,
            Sight::Foreign => snapshot.foreign += 1,
        }
    }
}

fn bin_of(since_start: Duration) -> u64 {
    u64::try_from(since_start.as_millis() / BIN.as_millis()).unwrap_or(u64::MAX)
}

fn locked(seen: &Mutex<Snapshot>) -> MutexGuard<'_, Snapshot> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_answers_for_any_stretch_of_time() {
        let mut flow = Flow::default();
        for bin in [10, 10, 11, 15] {
            flow.count(bin, 1360);
        }
        flow.count(12, 64);
        assert_eq!(flow.datagrams_between(0, 100), 5);
        assert_eq!(flow.datagrams_between(11, 13), 2);
        assert_eq!(flow.datagrams_between(16, 20), 0);
        assert_eq!(flow.lengths_since(0), [64, 1360]);
        assert_eq!(flow.lengths_since(13), [1360]);
    }

    #[test]
    fn a_flow_keeps_the_latest_hour_only() {
        let mut flow = Flow::default();
        flow.count(0, 1360);
        flow.count(BINS_KEPT as u64 + 5, 1360);
        flow.count(10 * BINS_KEPT as u64, 1360);
        assert_eq!(flow.bins.len(), BINS_KEPT);
        assert_eq!(flow.datagrams_between(0, u64::MAX), 1);
        assert_eq!(flow.datagrams, 3);
    }
}
