//! A flood over a veth pair, dropped by the relay's program and by a bare `XDP_DROP`, in turn.
//!
//! ```text
//! BPF_PROG_TEST_RUN, live frames, XDP_TX -> ewx-near === ewx-far: the program under test, attached natively
//! ```
//!
//! Frames cross without a socket buffer. veth's receiver runs where the frames are sent, after each batch, so both
//! share a processor: what is measured is the frame's whole way, as cheap as this kernel has it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use relay_common::abi::Counter;
use relay_common::classify::DropReason;
use relay_tests::Netns;
use rtnetlink::{LinkUnspec, LinkVeth};
use rustix::net::{AddressFamily, SocketType, netdevice};

use super::frames::Kind;
use super::programs::{DROP, FLOOD, FLOOD_INDICES, Floor, PASS, Relay};
use super::{TARGET, median};
use crate::session::Session;

const NEAR: &str = "ewx-near";
const FAR: &str = "ewx-far";
/// Rounds; each has every flood once under either program.
const ROUNDS: usize = 41;
/// Frames of one flood.
const FRAMES: u32 = 120_000;
/// Frames that are sent before the receiver runs. A veth ring takes 256.
const BATCH: u32 = 64;
/// How long frames that the receiver has not seen yet are waited for.
const LATE: Duration = Duration::from_millis(200);

/// What the flood is made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flood {
    /// For our port, half of a wrong length, half of no known type.
    Junk,
    /// Cells with random receiver indices.
    UnknownIndices,
}

impl Flood {
    /// Every flood.
    pub(super) const ALL: [Self; 2] = [Self::Junk, Self::UnknownIndices];

    const fn name(self) -> &'static str {
        match self {
            Self::Junk => "junk",
            Self::UnknownIndices => "unknown indices",
        }
    }

    /// The figure with the target.
    pub(super) fn figure(self) -> String {
        format!("XDP flood of {}, dropped per second / by a program that only returns XDP_DROP", self.name())
    }

    const fn parts(self) -> &'static [(Kind, &'static str)] {
        match self {
            Self::Junk => &[(Kind::WrongLength, FLOOD), (Kind::UnknownType, FLOOD)],
            Self::UnknownIndices => &[(Kind::UnknownIndex, FLOOD_INDICES)],
        }
    }
}

/// What became of one flood.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    seconds: f64,
    sent: u64,
    /// Frames that the attached program saw.
    seen: u64,
    /// Frames that found the receiver's ring full, or were lost behind it.
    lost: u64,
    /// Frames that the relay's program counted as dropped; those seen, where another is attached.
    dropped: u64,
}

impl Outcome {
    fn adds_up(self) -> bool {
        self.sent == self.seen + self.lost && self.seen == self.dropped
    }

    fn rate(self) -> f64 {
        self.dropped as f64 / self.seconds
    }
}

/// Measures both floods.
pub(super) fn run(session: &mut Session, relay: &mut Relay, floor: &mut Floor) -> Result<()> {
    let rig = Rig::new()?;
    let _inside = rig.netns.enter()?;
    let (near, far) = (index(NEAR)?, index(FAR)?);
    // Frames can only be sent as if they had come in on an interface that runs a program.
    let _near = floor.attach(PASS, near)?;
    let rounds = if session.quick { ROUNDS / 8 } else { ROUNDS };
    let mut outcomes = [const { [const { Vec::new() }; 2] }; Flood::ALL.len()];
    for round in 0..rounds {
        session.progress(&format!("flood, round {} of {rounds}", round + 1));
        // Each program goes first in every other round.
        for ours in [round % 2 == 0, round % 2 != 0] {
            let attached = if ours { relay.attach(far)? } else { floor.attach(DROP, far)? };
            for (flood, outcomes) in Flood::ALL.into_iter().zip(&mut outcomes) {
                outcomes[usize::from(ours)].push(measure(flood, relay, floor, near, ours)?);
            }
            drop(attached);
        }
    }
    for (flood, [bare, ours]) in Flood::ALL.into_iter().zip(outcomes) {
        report(session, flood, &ours, &bare);
    }
    Ok(())
}

fn report(session: &mut Session, flood: Flood, ours: &[Outcome], bare: &[Outcome]) {
    if let Some(wrong) = ours.iter().chain(bare).find(|outcome| !outcome.adds_up()) {
        let Outcome { sent, seen, lost, dropped, .. } = wrong;
        let reason =
            format!("{sent} sent, {seen} seen by the program, {dropped} dropped, {lost} lost before it");
        session.invalid(flood.figure(), Some(TARGET), reason);
        return;
    }
    let rates = |outcomes: &[Outcome]| outcomes.iter().map(|o| o.rate() / 1e6).collect::<Vec<f64>>();
    let (mut ours, mut bare) = (rates(ours), rates(bare));
    // Round by round, since the machine's speed drifts.
    let mut ratios: Vec<f64> = ours.iter().zip(&bare).map(|(ours, bare)| ours / bare).collect();
    session.measured(format!("flood of {}, dropped", flood.name()), median(&mut ours), "Mpps", None);
    session.measured(format!("flood of {}, bare XDP_DROP", flood.name()), median(&mut bare), "Mpps", None);
    session.measured(flood.figure(), median(&mut ratios), "ratio", Some(TARGET));
}

fn measure(flood: Flood, relay: &Relay, floor: &Floor, near: u32, ours: bool) -> Result<Outcome> {
    let mut sum = Outcome::default();
    let parts = flood.parts();
    for (kind, sender) in parts {
        let frame = kind.frame();
        let frames = FRAMES / u32::try_from(parts.len())?;
        let (before, drops) = (Traffic::read()?, relay_drops(relay)?);
        let spent = floor.send(sender, &frame, near, frames, BATCH)?;
        let sent = Instant::now();
        let mut traffic = Traffic::read()?.since(before);
        // The last batch may have been put off; it is no part that tells.
        while traffic.seen + traffic.lost < u64::from(frames) && sent.elapsed() < LATE {
            traffic = Traffic::read()?.since(before);
        }
        sum.seconds += spent.as_secs_f64();
        sum.sent += u64::from(frames);
        sum.seen += traffic.seen;
        sum.lost += traffic.lost;
        sum.dropped += if ours { relay_drops(relay)? - drops } else { traffic.seen };
    }
    Ok(sum)
}

fn relay_drops(relay: &Relay) -> Result<u64> {
    DropReason::ALL.into_iter().map(|reason| relay.counted(Counter::Dropped(reason))).sum()
}

/// The far interface's counters.
#[derive(Clone, Copy)]
struct Traffic {
    seen: u64,
    lost: u64,
}

impl Traffic {
    fn read() -> Result<Self> {
        // proc_net_dev: received bytes, packets, errors, drops.
        let path = "/proc/thread-self/net/dev";
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix(FAR)?.strip_prefix(':'));
        let mut fields = line.with_context(|| format!("{path} lacks {FAR}"))?.split_whitespace();
        let mut field = |skipped: usize| -> Result<u64> {
            let text = fields.nth(skipped).with_context(|| format!("{path} lacks a field of {FAR}"))?;
            text.parse().with_context(|| format!("{path}: {text:?} is no number"))
        };
        Ok(Self { seen: field(1)?, lost: field(1)? })
    }

    const fn since(self, before: Self) -> Self {
        Self { seen: self.seen - before.seen, lost: self.lost - before.lost }
    }
}

/// A namespace with both ends of a veth pair, removed when this is dropped.
struct Rig {
    netns: Netns,
}

impl Rig {
    fn new() -> Result<Self> {
        let rig = Self { netns: Netns::create(&format!("ewx-{}", std::process::id()))? };
        // Nothing but the flood shall be on the wire. A kernel without IPv6 has no such key and needs none.
        rig.netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1").ok();
        rig.netns.netlink(|handle| async move {
            let pair = LinkVeth::new(NEAR, FAR).up().build();
            handle.link().add(pair).execute().await.context("making a veth pair")?;
            let up = LinkUnspec::new_with_name(FAR).up().build();
            handle.link().change(up).execute().await.with_context(|| format!("setting {FAR} up"))
        })?;
        Ok(rig)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Err(error) = Netns::delete(self.netns.name()) {
            eprintln!("{error:#}");
        }
    }
}

fn index(interface: &str) -> Result<u32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    netdevice::name_to_index(&socket, interface).with_context(|| format!("looking up {interface}"))
}
