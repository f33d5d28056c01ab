//! Two clients who chat all the time: with each other in half of the stretches, each with the service in the others. Who
//! watches both knows that both are active, and wants to know whether they talk with each other, and whose messages come
//! out where.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rand_chacha::ChaCha8Rng;
use relay_tests::interrupt::Interrupt;
use relay_tests::{Host, Lab, Recorder};
use relay_user::observe::attacks::clock::clock;
use relay_user::observe::attacks::intersection::{Activity, Campaign, Sought, intersection, rounds};
use relay_user::observe::attacks::matching::{Pair, matching};
use relay_user::observe::attacks::pairing::{Devices, pairing};
use relay_user::observe::finding::Finding;
use relay_user::observe::stats::shuffle;
use relay_user::observe::trace::Window;
use relay_user::worker::COPYING_GRID;

use super::network::{Network, SHARED_RATE};
use super::record::{SILENT_IN, Wires, missing_cells, nanos, now, wires};
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
/// Windows in which a flow is looked for among others, and how far apart they begin. In a shorter one too few messages
/// pass to tell two flows apart where nothing hides them; they overlap, so that there are as many.
const FLOW_WINDOW: Duration = Duration::from_millis(160);
const FLOW_STEP: Duration = Duration::from_millis(80);
/// Rounds in which users are active or not, in nanoseconds: a burst's length.
const ROUND: u64 = 20_000_000;

/// What was seen.
#[derive(Debug)]
pub(super) struct Duo {
    wires: Wires,
    /// What is looked at, stretch by stretch.
    talks: Vec<Talk>,
    /// Why none of it may be judged, if so.
    pub(super) invalid: Option<String>,
}

/// A part of a stretch, in nanoseconds of the run.
#[derive(Clone, Copy, Debug)]
struct Talk {
    from: u64,
    to: u64,
    /// Number of the stretch.
    block: u32,
    /// Whether they talk with each other.
    together: bool,
}

impl Talk {
    /// Windows of this width, of which one begins every `step`.
    fn windows(self, width: Duration, step: Duration) -> impl Iterator<Item = Self> {
        let begin = (0..).map(move |number| self.from + number * nanos(step));
        let windows = begin.map(move |from| Self { from, to: from + nanos(width), ..self });
        windows.take_while(move |window| window.to <= self.to)
    }
}

/// Lets both chat for `blocks` stretches; `shaped` where cells are due whatever they say.
///
/// # Errors
/// Where a program or a recorder cannot be started, a node ends, or the user interrupts.
pub(super) fn record(
    lab: &Lab,
    network: &mut Network<'_>,
    servers: &Servers,
    (blocks, shaped): (u32, bool),
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
    let mut talks = Vec::new();
    for (block, together) in (0..).zip(order) {
        servers.let_talk(together);
        let from = now().saturating_sub(began) + nanos(GUARD);
        due += BLOCK;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let to = now().saturating_sub(began);
        talks.push(Talk { from, to, block, together });
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
    let wires = wires(&recording, began);
    let shaped = if shaped { talks.last().map(|talk| talk.to) } else { None };
    let silent = || {
        let both = CLIENTS.into_iter().flat_map(|client| [(client, Host::Entry), (Host::Entry, client)]);
        missing_cells(&wires, both.map(|wire| (wire, SHARED_RATE)), shaped?)
    };
    let invalid = if listening {
        complaint(&talks, &times, lost, failures).or_else(silent)
    } else {
        Some("a recorder ended before the run did".to_owned())
    };
    Ok(Duo { wires, talks, invalid })
}

/// Why what was recorded may not be judged: a chat that did not happen says nothing of who talks with whom.
fn complaint(talks: &[Talk], times: &[Vec<u64>; 2], lost: u64, failures: u32) -> Option<String> {
    if lost > 0 {
        return Some(format!("the capture lost {lost} packets"));
    }
    if failures > 0 {
        return Some(format!("a program that makes the payload ended by itself {failures} times"));
    }
    CLIENTS.iter().zip(times).find_map(|(client, times)| {
        let is_silent = |talk: &&Talk| !times.iter().any(|at| (talk.from..talk.to).contains(at));
        let silent = talks.iter().filter(is_silent).count();
        (silent * SILENT_IN > talks.len())
            .then(|| format!("{} was silent in {silent} of {} stretches", client.name(), talks.len()))
    })
}

impl Duo {
    /// Attack 7: what one sends beside what the other gets.
    pub(super) fn pairing(&self, rng: &mut ChaCha8Rng) -> Vec<Finding> {
        let mut seen = Vec::new();
        for Talk { from, to, block, together } in self.windows(WINDOW, WINDOW) {
            for [one, other] in [CLIENTS, [CLIENTS[1], CLIENTS[0]]] {
                if let (Some(sent), Some(got)) = (self.sent(one, from, to), self.got(other, from, to)) {
                    seen.push(Devices { one: sent, other: got, talking: together, block });
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
        for (moment, window) in (0..).zip(self.windows(FLOW_WINDOW, FLOW_STEP)) {
            let Talk { from, to, block, together } = window;
            for (one, other) in CLIENTS.into_iter().zip([CLIENTS[1], CLIENTS[0]]) {
                let receiver = if together { other } else { one };
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
    pub(super) fn intersection(&self, activity: Activity, rng: &mut ChaCha8Rng) -> Option<Finding> {
        let trace = |from, to| self.wires.get(&(from, to)).cloned();
        let senders = [trace(CLIENTS[0], Host::Entry)?, trace(CLIENTS[1], Host::Entry)?];
        let receivers = [trace(Host::Entry, CLIENTS[0])?, trace(Host::Entry, CLIENTS[1])?];
        let campaigns = self.talks.iter().map(|talk| {
            let sought = [0, 1].map(|sender| {
                let partner = if talk.together { 1 - sender } else { sender };
                Sought { sender, partner, candidates: vec![0, 1] }
            });
            let rounds = rounds(&senders, &receivers, (talk.from, talk.to), ROUND, activity);
            Campaign { rounds, sought: sought.into() }
        });
        Some(intersection(&campaigns.collect::<Vec<_>>(), rng))
    }

    fn windows(&self, width: Duration, step: Duration) -> impl Iterator<Item = Talk> {
        self.talks.iter().flat_map(move |talk| talk.windows(width, step))
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
    fn windows_lie_within_their_stretch() {
        let talk = Talk { from: 1_000_000, to: 801_999_999, block: 3, together: true };
        let windows: Vec<Talk> = talk.windows(FLOW_WINDOW, FLOW_STEP).collect();
        let within = |window: &Talk| window.from >= talk.from && window.to <= talk.to && window.block == 3;
        assert!(windows.len() == 9 && windows.iter().all(within), "{windows:?}");
        let short = Talk { to: talk.from + 1000, ..talk };
        assert_eq!(short.windows(FLOW_WINDOW, FLOW_STEP).count(), 0);
    }

    #[test]
    fn a_chat_that_did_not_happen_is_told() {
        let talk = |block: u32| {
            let from = u64::from(block) * 100;
            Talk { from, to: from + 90, block, together: false }
        };
        let talks: Vec<Talk> = (0..40).map(talk).collect();
        let times = |count: u64| -> Vec<u64> { (0..count).map(|number| number * 100 + 50).collect() };
        assert_eq!(complaint(&talks, &[times(40), times(38)], 0, 0), None);
        assert!(complaint(&talks, &[times(40), times(37)], 0, 0).is_some_and(|why| why.contains("3 of 40")));
        assert!(complaint(&talks, &[times(40), times(40)], 2, 0).is_some());
        assert!(complaint(&talks, &[times(40), times(40)], 0, 1).is_some());
    }
}
