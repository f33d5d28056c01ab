//! Two clients who chat all the time: with each other in half of the stretches, each with the service in the others. Who
//! watches both knows that both are active, and wants to know whether they talk with each other, and whose messages come
//! out where.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rand_chacha::ChaCha8Rng;
use relay_tests::interrupt::Interrupt;
use relay_tests::{Host, Lab, Recorder};
use relay_user::observe::attacks::clock::clock;
use relay_user::observe::attacks::intersection::{Campaign, Sought, intersection, rounds};
use relay_user::observe::attacks::matching::{Pair, matching};
use relay_user::observe::attacks::pairing::{Devices, pairing};
use relay_user::observe::finding::Finding;
use relay_user::observe::stats::shuffle;
use relay_user::observe::trace::Window;
use relay_user::worker::COPYING_GRID;

use super::network::Network;
use super::record::{SILENT_IN, Wires, nanos, now, wires};
use super::scenario::{Programs, Scenario};
use super::seed;
use super::servers::Servers;

/// Both clients.
pub(super) const CLIENTS: [Host; 2] = [Host::Client, Host::Second];

/// Length of a stretch.
pub(super) const BLOCK: Duration = Duration::from_millis(900);
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
    seed: u64,
    interrupt: &Interrupt,
) -> Result<Duo> {
    let mut programs = Vec::new();
    for client in CLIENTS {
        programs.push(Programs::start(lab, client, &[Scenario::Chat], seed::of(seed, &[client.name()]))?);
    }
    let recorder = Recorder::on_wire(lab.netns(Host::Wire), lab.wire_ports())?;
    let inside =
        CLIENTS.map(|client| Recorder::at_interface(lab.netns(client), network.interface_of(client)));
    let [one, other] = inside;
    let inside = [one?, other?];
    for one in &mut programs {
        one.begin(Scenario::Chat)?;
    }
    let mut order: Vec<bool> = (0..blocks).map(|number| number % 2 == 0).collect();
    shuffle(&mut order, &mut seed::rng(seed, &["order"]));
    let began = now();
    let mut due = Instant::now();
    let (mut windows, mut stretches) = (Vec::new(), Vec::new());
    for (number, together) in (0..).zip(order) {
        servers.let_talk(together);
        let start = now().saturating_sub(began);
        let mut from = now().saturating_sub(began) + nanos(GUARD);
        due += BLOCK;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let end = now().saturating_sub(began);
        while from + nanos(WINDOW) <= end {
            windows.push((from, from + nanos(WINDOW), number, together));
            from += nanos(WINDOW);
        }
        stretches.push((start, end));
        if interrupt.is_set() {
            bail!("interrupted");
        }
    }
    for one in &mut programs {
        one.end()?;
    }
    std::thread::sleep(Duration::from_millis(30));
    let listening = recorder.is_listening() && inside.iter().all(Recorder::is_listening);
    let (recording, inside) = (recorder.take(), inside.map(|inside| inside.take()));
    network.check()?;
    let lost = recording.lost + inside.iter().map(|inside| inside.lost).sum::<u64>();
    let failures = programs.iter().map(|one| one.failures).sum();
    let times = inside.map(|inside| inside.seen.iter().map(|seen| seen.at.saturating_sub(began)).collect());
    let invalid = if listening {
        complaint(&stretches, &times, lost, failures)
    } else {
        Some("a recorder ended before the run did".to_owned())
    };
    Ok(Duo { wires: wires(&recording, began), windows, invalid })
}

/// Why what was recorded may not be judged: a chat that did not happen says nothing of who talks with whom.
fn complaint(stretches: &[(u64, u64)], times: &[Vec<u64>; 2], lost: u64, failures: u32) -> Option<String> {
    if lost > 0 {
        return Some(format!("the capture lost {lost} packets"));
    }
    if failures > 0 {
        return Some(format!("a program that makes the payload ended by itself {failures} times"));
    }
    CLIENTS.iter().zip(times).find_map(|(client, times)| {
        let spoke = |&&(from, to): &&(u64, u64)| times.iter().any(|at| (from..to).contains(at));
        let silent = stretches.len() - stretches.iter().filter(spoke).count();
        (silent * SILENT_IN > stretches.len())
            .then(|| format!("{} was silent in {silent} of {} stretches", client.name(), stretches.len()))
    })
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

    /// Attack 7 by the clock: both clients have this machine's, as one device has in two sessions.
    pub(super) fn clocks(&self) -> Option<Finding> {
        let [one, other] = CLIENTS.map(|client| self.sent(client, 0, u64::MAX));
        Some(clock([one?, other?], COPYING_GRID.0))
    }

    /// Attack 4: which of both gets what one of both sends?
    pub(super) fn matching(&self, rng: &mut ChaCha8Rng) -> Vec<Finding> {
        let mut pairs = Vec::new();
        for (moment, &(from, to, block, talking)) in (0..).zip(&self.windows) {
            for (one, other) in CLIENTS.into_iter().zip([CLIENTS[1], CLIENTS[0]]) {
                let receiver = if talking { other } else { one };
                if let (Some(ingress), Some(egress)) =
                    (self.sent(one, from, to), self.got(receiver, from, to))
                {
                    pairs.push(Pair { ingress, egress, moment, block });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_that_did_not_happen_is_told() {
        let stretches: Vec<(u64, u64)> = (0..40).map(|number| (number * 100, number * 100 + 90)).collect();
        let times = |count: u64| -> Vec<u64> { (0..count).map(|number| number * 100 + 50).collect() };
        assert_eq!(complaint(&stretches, &[times(40), times(38)], 0, 0), None);
        assert!(
            complaint(&stretches, &[times(40), times(37)], 0, 0).is_some_and(|why| why.contains("3 of 40"))
        );
        assert!(complaint(&stretches, &[times(40), times(40)], 2, 0).is_some());
        assert!(complaint(&stretches, &[times(40), times(40)], 0, 1).is_some());
    }
}
