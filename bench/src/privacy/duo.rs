//! Two clients who chat all the time: with each other in half of the stretches, each with the service in the others. Who
//! watches both knows that both are active, and wants to know whether they talk with each other, and whose messages come
//! out where.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rand_chacha::ChaCha8Rng;
use relay_tests::interrupt::Interrupt;
use relay_tests::{Host, Lab, Recorder};
use relay_user::observe::attacks::intersection::{Campaign, Sought, intersection, rounds};
use relay_user::observe::attacks::matching::{Pair, matching};
use relay_user::observe::attacks::pairing::{Devices, pairing};
use relay_user::observe::finding::Finding;
use relay_user::observe::stats::shuffle;
use relay_user::observe::trace::Window;

use super::network::Network;
use super::record::{Wires, nanos, now, wires};
use super::scenario::{Programs, Scenario};
use super::servers::Servers;

/// Both clients.
pub(super) const CLIENTS: [Host; 2] = [Host::Client, Host::Second];

/// Length of a stretch.
const BLOCK: Duration = Duration::from_millis(900);
/// Its beginning that is looked at by nobody: messages of the stretch before are on their way.
const GUARD: Duration = Duration::from_millis(100);
/// Length of a window: several bursts of messages.
const WINDOW: Duration = Duration::from_millis(80);
/// Rounds in which users are active or not, in nanoseconds: a burst's length.
const ROUND: u64 = 20_000_000;

/// What was seen.
#[derive(Debug)]
pub(super) struct Duo {
    wires: Wires,
    /// Windows, as `(from, to, stretch, whether they talk with each other)`.
    windows: Vec<(u64, u64, u32, bool)>,
    /// Why none of it may be judged, if so.
    pub(super) invalid: Option<String>,
}

/// Lets both chat for `blocks` stretches.
///
/// # Errors
/// Where a program or a recorder cannot be started, a node ends, or the user interrupts.
pub(super) fn record(
    lab: &Lab,
    network: &mut Network<'_>,
    servers: &Servers,
    blocks: u32,
    rng: &mut ChaCha8Rng,
    interrupt: &Interrupt,
) -> Result<Duo> {
    let mut programs = Vec::new();
    for client in CLIENTS {
        programs.push(Programs::start(lab, client, &[Scenario::Chat])?);
    }
    let recorder = Recorder::on_wire(lab.netns(Host::Wire), lab.wire_ports())?;
    for one in &mut programs {
        one.begin(Scenario::Chat)?;
    }
    let mut order: Vec<bool> = (0..blocks).map(|number| number % 2 == 0).collect();
    shuffle(&mut order, rng);
    let began = now();
    let mut due = Instant::now();
    let mut windows = Vec::new();
    for (number, together) in (0..).zip(order) {
        servers.let_talk(together);
        let mut from = now().saturating_sub(began) + nanos(GUARD);
        due += BLOCK;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let end = now().saturating_sub(began);
        while from + nanos(WINDOW) <= end {
            windows.push((from, from + nanos(WINDOW), number, together));
            from += nanos(WINDOW);
        }
        if interrupt.is_set() {
            bail!("interrupted");
        }
    }
    std::thread::sleep(Duration::from_millis(30));
    let recording = recorder.take();
    network.check()?;
    let invalid = (recording.lost > 0).then(|| format!("the capture lost {} packets", recording.lost));
    Ok(Duo { wires: wires(&recording, began), windows, invalid })
}

impl Duo {
    /// Attack 7: what one sends beside what the other gets.
    pub(super) fn pairing(&self, rng: &mut ChaCha8Rng) -> Vec<Finding> {
        let mut seen = Vec::new();
        for &(from, to, block, talking) in &self.windows {
            for [one, other] in [CLIENTS, [CLIENTS[1], CLIENTS[0]]] {
                if let (Some(sent), Some(got)) = (self.sent(one, from, to), self.got(other, from, to)) {
                    seen.push(Devices { one: sent, other: got, talking, block });
                }
            }
        }
        pairing(&seen, rng)
    }

    /// Attack 4: which of both gets what one of both sends?
    pub(super) fn matching(&self, rng: &mut ChaCha8Rng) -> Vec<Finding> {
        let mut pairs = Vec::new();
        for (moment, &(from, to, _, talking)) in (0..).zip(&self.windows) {
            for (one, other) in CLIENTS.into_iter().zip([CLIENTS[1], CLIENTS[0]]) {
                let receiver = if talking { other } else { one };
                if let (Some(ingress), Some(egress)) =
                    (self.sent(one, from, to), self.got(receiver, from, to))
                {
                    pairs.push(Pair { ingress, egress, block: moment });
                }
            }
        }
        matching(&pairs, rng)
    }

    /// Attack 12: to whom of both does go what one of both sends, when all of a stretch is taken together?
    pub(super) fn intersection(&self, rng: &mut ChaCha8Rng) -> Option<Finding> {
        let trace = |from, to| self.wires.get(&(from, to)).cloned();
        let senders = [trace(CLIENTS[0], Host::Entry)?, trace(CLIENTS[1], Host::Entry)?];
        let receivers = [trace(Host::Entry, CLIENTS[0])?, trace(Host::Entry, CLIENTS[1])?];
        let campaigns = self.windows.chunk_by(|a, b| a.2 == b.2).filter_map(|stretch| {
            let (first, last) = (stretch.first()?, stretch.last()?);
            let together = first.3;
            let sought = [0, 1].map(|sender| {
                let partner = if together { 1 - sender } else { sender };
                Sought { sender, partner, candidates: vec![0, 1] }
            });
            let rounds = rounds(&senders, &receivers, first.0, last.1, ROUND);
            Some(Campaign { rounds, sought: sought.into() })
        });
        Some(intersection(&campaigns.collect::<Vec<_>>(), rng))
    }

    fn sent(&self, client: Host, from: u64, to: u64) -> Option<Window<'_>> {
        Some(self.wires.get(&(client, Host::Entry))?.window(from, to))
    }

    fn got(&self, client: Host, from: u64, to: u64) -> Option<Window<'_>> {
        Some(self.wires.get(&(Host::Entry, client))?.window(from, to))
    }
}
