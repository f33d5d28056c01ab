//! Somebody on the wire who writes down when every packet came, for those who compute with it afterwards.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::chance::{STEP, mixed};
use crate::netns::Netns;
use crate::packet::{Sight, UDP_PAYLOAD_IPV4, UDP_PORTS_IPV4, look_at};
use crate::tap::{Caught, Tap};
use crate::wiring::index_of;

/// Of so many datagrams, one is kept whole.
const WHOLE_EVERY: usize = 29;
/// Datagrams kept whole, at most, drawn from all of a recording: 11 MiB of them.
const WHOLE_KEPT: usize = 8192;
/// Bytes captured on a wire: more than any frame of the lab.
const FRAME: u32 = 2048;
/// Bytes captured at an interface: a header, and nothing where a wire's frame has ports and payload.
const HEADER: u32 = 20;
/// Packets kept at most, the others are counted as lost: 100 minutes of the lab's wire, 2 GiB.
pub const PACKETS_KEPT: usize = 64 << 20;
/// Packets that there is room for from the start, so that nothing is moved while something is measured.
const ROOM: usize = 1 << 20;

/// One packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// When the kernel saw it, in nanoseconds since 1970.
    pub at: u64,
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
    /// On a wire, bytes of UDP payload; at an interface, bytes of the IP packet.
    pub length: u16,
    /// On a wire, the UDP ports of sender and receiver; at an interface, zeros.
    pub ports: [u16; 2],
    /// On a wire, the first byte of the payload, or zero where there is none.
    pub first: u8,
    /// On a wire, bytes 8 to 15 of the payload as a number: what a cell's counter is. Zero where there are none.
    pub counter: u64,
}

/// A datagram's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
    /// All its bytes.
    pub bytes: Vec<u8>,
}

/// What was written down since the last time that it was taken.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// The packets, in the order in which they came.
    pub seen: Vec<Seen>,
    /// Some of them, on a wire.
    pub whole: Vec<Datagram>,
    /// Packets missing: the kernel could not queue them, or there was no room.
    pub lost: u64,
}

/// What is read of a frame: sender, receiver and bytes; `None` where it is not noted.
type Read = fn(&[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u16)>;

#[derive(Debug, Default)]
struct Notes {
    recording: Recording,
    /// Datagrams that might have been kept whole.
    candidates: u64,
    /// State of the draw among them.
    draw: u64,
    lost_in_all: u64,
    lost_before: u64,
}

/// A running recorder; dropping it ends its thread.
#[derive(Debug)]
pub struct Recorder {
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Writes down the UDP datagrams over IPv4 that enter the bridge ports with these indices in the namespace `wire`.
    ///
    /// # Errors
    /// When the packet socket cannot be opened (needs root) or there are more than 64 ports.
    pub fn on_wire(wire: &Netns, ports: &[u32]) -> Result<Self> {
        let tap = wire.run(|| Tap::on_ports(ports, FRAME));
        Self::start(tap.context("the recorder cannot listen")?, datagram)
    }

    /// Writes down the IPv4 packets that pass `interface` in `netns`, either way.
    ///
    /// # Errors
    /// When there is no such interface, or the packet socket cannot be opened (needs root).
    pub fn at_interface(netns: &Netns, interface: &str) -> Result<Self> {
        let index = netns.netlink(|handle| async move { index_of(&handle, interface).await })?;
        let tap = netns.run(|| Tap::on_interface(index, HEADER));
        Self::start(tap.with_context(|| format!("the recorder cannot listen at {interface}"))?, packet)
    }

    fn start(tap: Tap, read: Read) -> Result<Self> {
        let notes = Arc::new(Mutex::new(Notes { recording: fresh(), ..Notes::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn({
            let (notes, stop) = (Arc::clone(&notes), Arc::clone(&stop));
            move || {
                let ended = tap.drain_until(&stop, |caught| match caught {
                    Caught::Frame(at, frame) => {
                        if let Some(packet) = read(frame) {
                            locked(&notes).write(at, packet, frame);
                        }
                    }
                    Caught::Lost(lost) => locked(&notes).lost_in_all = lost,
                });
                if let Err(error) = ended {
                    eprintln!("the recorder can no longer listen: {error}");
                }
            }
        })?;
        Ok(Self { notes, stop, thread: Some(thread) })
    }

    /// What was written down since the last call.
    pub fn take(&self) -> Recording {
        let mut notes = locked(&self.notes);
        let mut taken = std::mem::replace(&mut notes.recording, fresh());
        taken.lost += notes.lost_in_all - notes.lost_before;
        notes.lost_before = notes.lost_in_all;
        notes.candidates = 0;
        taken
    }

    /// Whether the recorder still listens.
    pub fn is_listening(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Notes {
    fn write(
        &mut self,
        at: Duration,
        (source, destination, length): (Ipv4Addr, Ipv4Addr, u16),
        frame: &[u8],
    ) {
        let recording = &mut self.recording;
        if recording.seen.len() >= PACKETS_KEPT {
            recording.lost += 1;
            return;
        }
        if recording.seen.len().is_multiple_of(WHOLE_EVERY)
            && let Some(bytes) = frame.get(UDP_PAYLOAD_IPV4..)
        {
            self.candidates += 1;
            if recording.whole.len() < WHOLE_KEPT {
                recording.whole.push(Datagram { source, destination, bytes: bytes.to_vec() });
            } else if let Some(place) = drawn(&mut self.draw, self.candidates)
                && let Some(kept) = recording.whole.get_mut(place)
            {
                // In the room of the one that it takes the place of.
                (kept.source, kept.destination) = (source, destination);
                kept.bytes.clear();
                kept.bytes.extend_from_slice(bytes);
            }
        }
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let [ports, first] =
            [UDP_PORTS_IPV4, UDP_PAYLOAD_IPV4].map(|place| frame.get(place..).unwrap_or_default());
        let ports = match *ports {
            [a, b, c, d, ..] => [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])],
            _ => [0; 2],
        };
        let counter = first
            .get(8..)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let first = first.first().copied().unwrap_or(0);
        recording.seen.push(Seen { at, source, destination, length, ports, first, counter });
    }
}

/// Whose place the newest of `candidates` takes, if any: each is kept as likely as any other (Vitter's algorithm R).
fn drawn(state: &mut u64, candidates: u64) -> Option<usize> {
    *state = state.wrapping_add(STEP);
    usize::try_from(mixed(*state) % candidates.max(1)).ok().filter(|place| *place < WHOLE_KEPT)
}

fn fresh() -> Recording {
    Recording { seen: Vec::with_capacity(ROOM), whole: Vec::with_capacity(WHOLE_KEPT), lost: 0 }
}

fn datagram(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u16)> {
    match look_at(frame) {
        Sight::Udp { source: IpAddr::V4(source), destination: IpAddr::V4(destination), length } => {
            Some((source, destination, length))
        }
        _ => None,
    }
}

/// Reads the header of an IPv4 packet.
fn packet(bytes: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u16)> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let [version, _, long, short, .., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let addresses = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
    (version >> 4 == 4).then_some((addresses.0, addresses.1, u16::from_be_bytes([long, short])))
}

fn locked(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_kept_from_all_of_a_recording() {
        let mut notes = Notes::default();
        let count = u32::try_from(WHOLE_EVERY * WHOLE_KEPT * 4).unwrap();
        let ends = (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 4);
        let mut frame = [0; UDP_PAYLOAD_IPV4 + 4];
        for number in 0..count {
            frame[UDP_PAYLOAD_IPV4..].copy_from_slice(&number.to_be_bytes());
            notes.write(Duration::from_millis(number.into()), ends, &frame);
        }
        let mut quarters = [0; 4];
        for datagram in &notes.recording.whole {
            let number = u32::from_be_bytes(datagram.bytes[..].try_into().unwrap());
            quarters[usize::try_from(u64::from(number) * 4 / u64::from(count)).unwrap()] += 1;
        }
        assert_eq!(quarters.iter().sum::<usize>(), WHOLE_KEPT);
        assert!(quarters.iter().all(|kept| (1800..2300).contains(kept)), "{quarters:?}");
    }

    #[test]
    fn an_ipv4_packet_is_read_and_others_are_not() {
        let mut bytes = [0; 20];
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&1400_u16.to_be_bytes());
        bytes[12..16].copy_from_slice(&[100, 64, 0, 2]);
        bytes[16..20].copy_from_slice(&[198, 51, 100, 80]);
        let read = packet(&bytes);
        assert_eq!(read, Some((Ipv4Addr::new(100, 64, 0, 2), Ipv4Addr::new(198, 51, 100, 80), 1400)));
        assert_eq!(packet(&bytes[..19]), None);
        bytes[0] = 0x60;
        assert_eq!(packet(&bytes), None);
    }
}
