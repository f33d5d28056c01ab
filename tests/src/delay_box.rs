//! A box in one host's cable, in which frames wait and get lost as its owner says. The kernels of many machines have no
//! netem, and what they have delays only by a rate.
//!
//! ```text
//!  wire0 of the host ------ w-HOST   [thread]   d-HOST ------ b-HOST ------ bridge
//!                              ^                                 ^
//!              where recorders on the lab's ports are,    [`DelayBox::behind`]:
//!              frames as the host sent them               as the box let them go
//! ```
//!
//! Frames are taken and sent by packet sockets, one copy each. No interface is promiscuous: a veth end passes everything
//! up, and the namespace of the wire has no address that could answer.

mod line;

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::LinkAddr;
use nix::sys::time::TimeSpec;

use self::line::{Line, nanos};
use crate::lab::{Host, Lab, WIRE, wire_port};
use crate::tap::{BATCH, Caught, Tap, since_epoch};
use crate::wiring;

/// Bytes captured of a frame: more than may pass, so that what is too long shows.
const CAPTURED: u32 = 2048;
/// How long the thread sleeps at most, to see whether it should end.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Batches that are taken in a row before what is due leaves.
const BATCHES: usize = 8;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the host into the wire.
    Out,
    /// From the wire to the host.
    Home,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It leaves so much later than it came, or with the frame before it, where that is later.
    After(Duration),
    /// It does not leave.
    Lost,
}

/// What became of the frames of one way so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passage {
    /// Left.
    pub passed: u64,
    /// Lost, as the owner said.
    pub lost: u64,
    /// Lost, since 4096 others waited.
    pub full: u64,
    /// Lost, since they were longer than an Ethernet frame.
    pub long: u64,
    /// Lost, since the kernel refused them when they were due.
    pub refused: u64,
    /// Lost, since the kernel could not queue them for the box.
    pub overrun: u64,
}

impl Passage {
    /// Frames lost that nobody wanted lost.
    pub const fn unwanted(self) -> u64 {
        self.full + self.long + self.refused + self.overrun
    }
}

/// A running box. Dropping it puts the cable back as it was; frames that wait then are lost.
#[derive(Debug)]
pub struct DelayBox<'a> {
    lab: &'a Lab,
    /// The host's port of the bridge, and the two ends of the pair in its place.
    port: u32,
    ends: [u32; 2],
    counts: Arc<Mutex<[Passage; 2]>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<'a> DelayBox<'a> {
    /// Puts a box into the cable of a host on the wire. `fate` decides about each frame by when it came (nanoseconds
    /// since 1970, the kernel's time) and which way it goes.
    ///
    /// # Errors
    /// For a host that is not on the wire or has a box, without root, or where the kernel refuses a step; then nothing
    /// is left of the box.
    pub fn insert(
        lab: &'a Lab,
        host: Host,
        fate: impl Fn(u64, Way) -> Fate + Send + 'static,
    ) -> Result<Self> {
        let place = Host::ON_WIRE.into_iter().chain([Host::Second]).position(|one| one == host);
        let port = place.and_then(|place| lab.wire_ports().get(place).copied());
        let port = port.with_context(|| format!("{} is not on the wire", host.name()))?;
        let wire = lab.netns(Host::Wire);
        let [near, far] = ["d", "b"].map(|mark| format!("{mark}-{}", host.name()));
        let ends = wiring::patch(wire, [&near, &far])?;
        let mut inserted =
            Self { lab, port, ends, counts: Arc::default(), stop: Arc::default(), thread: None };
        // What comes from the bridge with half a checksum would be passed on with it.
        wiring::whole_checksums(wire, &far)?;
        let sides = wire.run(|| {
            Ok([
                Side { tap: Tap::on_ports(&[port], CAPTURED)?, to: address(&near)? },
                Side { tap: Tap::on_ports(&[ends[0]], CAPTURED)?, to: address(&wire_port(host))? },
            ])
        });
        inserted.start(sides.context("the box cannot listen")?, fate)?;
        wiring::set_bridge(wire, port, None)?;
        wiring::set_bridge(wire, ends[1], Some(WIRE))?;
        Ok(inserted)
    }

    fn start(&mut self, sides: [Side; 2], fate: impl Fn(u64, Way) -> Fate + Send + 'static) -> Result<()> {
        let (counts, stop) = (Arc::clone(&self.counts), Arc::clone(&self.stop));
        let work = move || {
            if let Err(error) = forward(&sides, fate, &counts, &stop) {
                eprintln!("the box can pass no more frames: {error}");
            }
        };
        self.thread = Some(std::thread::Builder::new().name("delay-box".to_owned()).spawn(work)?);
        Ok(())
    }

    /// The port of the bridge, in the wire's namespace, by which frames of the host enter it behind the box.
    pub const fn behind(&self) -> u32 {
        self.ends[1]
    }

    /// What became of the frames so far, by way: out, home.
    pub fn counts(&self) -> [Passage; 2] {
        *locked(&self.counts)
    }

    /// Whether frames still pass.
    pub fn is_passing(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Puts the cable back as it was, and says what became of the frames.
    ///
    /// # Errors
    /// Where the kernel refuses a step, or the box had ended before.
    pub fn remove(mut self) -> Result<[Passage; 2]> {
        let passed = self.is_passing();
        self.end()?;
        ensure!(passed, "the box ended before it was removed");
        Ok(self.counts())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        let wire = self.lab.netns(Host::Wire);
        // Each step is tried even if the other fails: what can go, goes.
        let removed = wiring::remove(wire, self.ends[0]);
        self.ends = [0; 2];
        removed.and(wiring::set_bridge(wire, self.port, Some(WIRE)))
    }
}

impl Drop for DelayBox<'_> {
    fn drop(&mut self) {
        if self.ends != [0; 2]
            && let Err(error) = self.end()
        {
            eprintln!("the box could not be removed entirely: {error:#}");
        }
    }
}

/// Where frames of one way come from, and by which interface they go on.
struct Side {
    tap: Tap,
    to: LinkAddr,
}

/// The address by which a packet socket names an interface of the calling thread's namespace.
fn address(interface: &str) -> Result<LinkAddr> {
    let mut all = getifaddrs().context("cannot list interfaces")?;
    let address = all.find_map(|one| {
        let found = (one.interface_name == interface).then_some(one.address).flatten()?;
        found.as_link_addr().copied()
    });
    address.with_context(|| format!("there is no interface {interface}"))
}

fn forward(
    sides: &[Side; 2],
    fate: impl Fn(u64, Way) -> Fate,
    shared: &Mutex<[Passage; 2]>,
    stop: &AtomicBool,
) -> Result<(), Errno> {
    let mut buffers = sides[0].tap.buffers();
    let mut lines = [Line::new(), Line::new()];
    let mut counts = [Passage::default(); 2];
    while !stop.load(Ordering::Relaxed) {
        wait(sides, lines.iter().filter_map(Line::due).min())?;
        for (((side, line), count), way) in
            sides.iter().zip(&mut lines).zip(&mut counts).zip([Way::Out, Way::Home])
        {
            let mut take = |caught: Caught<'_>| match caught {
                Caught::Frame(at, frame) => {
                    let at = nanos(at);
                    line.take(at, fate(at, way), frame, count);
                }
                Caught::Lost(lost) => count.overrun = lost,
            };
            for _ in 0..BATCHES {
                match side.tap.receive(&mut buffers, &mut take) {
                    Ok(BATCH) => {}
                    Ok(_) | Err(Errno::EINTR) => break,
                    Err(error) => return Err(error),
                }
            }
            line.release(nanos(since_epoch()), |frame| match side.tap.send(frame, &side.to) {
                Ok(()) => count.passed += 1,
                Err(_) => count.refused += 1,
            });
        }
        *locked(shared) = counts;
    }
    Ok(())
}

/// Sleeps until a frame comes or is due.
fn wait(sides: &[Side; 2], due: Option<u64>) -> Result<(), Errno> {
    let left = due.map_or(LOOK_AGAIN, |due| {
        Duration::from_nanos(due.saturating_sub(nanos(since_epoch()))).min(LOOK_AGAIN)
    });
    let mut sockets = [0, 1].map(|side: usize| PollFd::new(sides[side].tap.as_fd(), PollFlags::POLLIN));
    match ppoll(&mut sockets, Some(TimeSpec::from_duration(left)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}

fn locked(counts: &Mutex<[Passage; 2]>) -> MutexGuard<'_, [Passage; 2]> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
