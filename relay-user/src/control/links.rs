//! Links: kept up from start, with backoff; handshakes, rekeys, and the rate that circuits have taken of each. No IO and
//! no clock: [`Outbox`] takes what is to be done.

mod handshakes;
mod parked;
mod rates;
mod rekey;
mod stops;

pub(super) use rates::Rates;

use super::action::{Action, Outbox, Refusal};
use crate::config::Maybenot;
use crate::crypto::datagram::Mac1Key;
use crate::crypto::handshake::Initiator;
use crate::crypto::retry::{InitGuard, TokenKeys};
use crate::crypto::{LinkKeys, StaticKey, Suite};
use crate::engine::extra::Extra;
use crate::engine::schedule::{Law, Offsets};
use crate::engine::time::Nanos;
use crate::engine::{Command, Session};
use crate::rates::Plan;
use handshakes::Dial;
use parked::Parked;
use rand_core::{CryptoRng, Rng};
use rates::Governed;
use relay_common::abi::session_slot;
use relay_common::wire::{DestroyReason, RELAY_ID_LEN};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Mean time between rekeys (protocol: 120 s with jitter; the jitter here is a tenth either way).
const REKEY: u64 = 120 * Nanos::SECOND.0;
/// How long an unanswered rekey message waits before the next.
const REKEY_PATIENCE: Nanos = Nanos(2 * Nanos::SECOND.0);
/// How long the keys of before a rekey still open cells.
const OLD_KEYS: Nanos = Nanos(10 * Nanos::SECOND.0);
/// How long a link that we answered may wait for its first cell.
const CONFIRMATION: Nanos = Nanos(5 * Nanos::SECOND.0);
/// HS_INITs remembered against replay.
const GUARD: usize = 1 << 16;

/// A class's rate and law.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) law: Law,
    /// Cells per second.
    pub(super) rate: u32,
}

/// A lane of a trunk to a relay that this node keeps links with.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) id: [u8; RELAY_ID_LEN],
    pub(super) public: [u8; 32],
    /// Its address on this lane.
    pub(super) address: SocketAddr,
    /// Which of the trunk's sessions side by side this is.
    pub(super) lane: u16,
    pub(super) plan: Arc<Plan>,
    /// This side begins the handshake.
    pub(super) initiates: bool,
}

/// What a relay is, towards those who begin handshakes with it.
pub(super) struct Identity {
    pub(super) id: [u8; RELAY_ID_LEN],
    pub(super) key: StaticKey,
    pub(super) port: u16,
    /// How its clients' links come by their classes.
    pub(super) clients: Arc<Plan>,
    mac1: Mac1Key,
    tokens: TokenKeys,
    guard: InitGuard,
}

impl Identity {
    pub(super) fn new(
        id: [u8; RELAY_ID_LEN],
        key: StaticKey,
        port: u16,
        clients: Arc<Plan>,
        now: Nanos,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let mac1 = Mac1Key::new(key.public());
        let tokens = TokenKeys::new(now.0, rng);
        Self { id, key, port, clients, mac1, tokens, guard: InitGuard::new(GUARD) }
    }
}

/// Who is at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Index into the peers.
    Peer(usize),
    Client,
}

#[derive(Debug)]
struct Link {
    who: Who,
    address: SocketAddr,
    governed: Governed,
    initiator: bool,
    /// Receive index of the newest session.
    index: u32,
    confirmed: bool,
    born: Nanos,
    rekey_at: Nanos,
    rekey: Option<(Initiator, u32, Nanos)>,
    old: Vec<(u32, Nanos)>,
    reserved: u32,
}

/// All links of a node.
pub(super) struct Links {
    suite: Suite,
    identity: Option<Identity>,
    peers: Vec<Peer>,
    dials: Vec<Dial>,
    links: HashMap<u32, Link>,
    /// Links by receive index, until a first cell says which worker is to have them.
    parked: HashMap<u32, Parked>,
    /// Free link numbers of each worker: worker i of n has those that are i modulo n.
    free: Vec<Vec<u32>>,
    slots: HashSet<u32>,
    pub(super) rates: Rates,
    offsets: Offsets,
    /// Machines that run on every link, beyond its schedule.
    machines: Option<Maybenot>,
}

impl Links {
    /// `identity` is a relay's; a client has none and begins every handshake itself. `workers` is at least 1.
    pub(super) fn new(
        suite: Suite,
        identity: Option<Identity>,
        peers: Vec<Peer>,
        capacity: u32,
        workers: u16,
        rates: Rates,
    ) -> Self {
        let step = usize::from(workers.max(1));
        let free =
            (0..u32::from(workers.max(1))).map(|worker| (worker..capacity).step_by(step).rev().collect());
        let dials = peers.iter().map(|_| Dial { attempt: None, tries: 0, again: Nanos(0) }).collect();
        Self {
            suite,
            identity,
            peers,
            dials,
            links: HashMap::new(),
            parked: HashMap::new(),
            free: free.collect(),
            slots: HashSet::new(),
            rates,
            offsets: Offsets::default(),
            machines: None,
        }
    }

    /// Runs machines on every link from its begin on.
    pub(super) fn run_machines(&mut self, machines: Maybenot) {
        self.machines = Some(machines);
    }

    /// What bounds what leaves: `schedule` where it depends on that alone, `ledger` where a class may follow demand or loss,
    /// `lost` where machines answer the payload.
    pub(super) fn guarantee(&self) -> &'static str {
        let clients = self.identity.iter().map(|identity| &identity.clients);
        let mut plans = self.peers.iter().map(|peer| &peer.plan).chain(clients);
        match (&self.machines, plans.any(|plan| plan.follows())) {
            (Some(_), _) => "lost",
            (None, true) => "ledger",
            (None, false) => "schedule",
        }
    }

    fn set_extra(
        &self,
        link: u32,
        machines: &Maybenot,
        now: Nanos,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        match Extra::new(machines.machines.clone(), machines.max_padding_fraction, now, seed) {
            Ok(extra) => out.worker(Command::SetExtra { link, extra: Box::new(extra) }),
            Err(error) => log::error!("the link runs without its machines: {error}"),
        }
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Name of each peer, and whether its link is up.
    pub(super) fn states(&self) -> impl Iterator<Item = (&str, bool)> {
        self.peers.iter().enumerate().map(|(at, peer)| (peer.name.as_str(), self.up(at).is_some()))
    }

    /// The running link to relay `id`.
    pub(super) fn link_to(&self, id: &[u8]) -> Option<u32> {
        let at = self.peers.iter().position(|peer| peer.id == id)?;
        self.up(at)
    }

    pub(super) fn is_client(&self, link: u32) -> bool {
        self.links.get(&link).is_some_and(|link| link.who == Who::Client)
    }

    /// Cells per second that a link's circuit may come to need; zero where the link is gone.
    pub(super) fn rate(&self, link: u32) -> u32 {
        let Some(link) = self.links.get(&link) else { return 0 };
        match (&link.who, &self.identity) {
            // On a trunk, a circuit takes what its client's class takes.
            (Who::Peer(_), Some(identity)) => identity.clients.fastest(),
            _ => link.governed.plan.fastest(),
        }
    }

    /// Sets `rate` aside on a lane to relay `id` that the worker of link `beside` has: no cell of a circuit goes from
    /// one worker to another. Of several lanes, the one with most to spare.
    pub(super) fn reserve(&mut self, id: &[u8], rate: u32, beside: u32) -> Result<u32, DestroyReason> {
        let workers = self.workers();
        let lanes = self.links.iter_mut().filter(|(number, link)| {
            let here = **number % workers == beside % workers;
            here && link.confirmed && matches!(link.who, Who::Peer(at) if self.peers[at].id == id)
        });
        let clients = self.identity.as_ref().map(|identity| identity.clients.as_ref());
        let rates = &self.rates;
        let spare = |link: &Link| rates.usable(&link.governed.plan, clients).saturating_sub(link.reserved);
        let (number, link) = lanes.max_by_key(|(_, link)| spare(link)).ok_or(DestroyReason::NoSuchRelay)?;
        if spare(link) < rate {
            return Err(DestroyReason::NoCapacity);
        }
        link.reserved += rate;
        Ok(*number)
    }

    fn workers(&self) -> u32 {
        u32::try_from(self.free.len()).unwrap_or(1).max(1)
    }

    pub(super) fn release(&mut self, link: u32, rate: u32) {
        if let Some(link) = self.links.get_mut(&link) {
            link.reserved = link.reserved.saturating_sub(rate);
        }
    }

    /// A circuit name on `link`. The link's two ends draw from different halves, so they cannot choose the same.
    pub(super) fn new_circ_id(&self, link: u32, rng: &mut impl Rng) -> u32 {
        let half = self.links.get(&link).is_some_and(|link| link.initiator);
        (rng.next_u32() >> 1).max(1) | (u32::from(half) << 31)
    }

    fn up(&self, peer: usize) -> Option<u32> {
        self.links
            .iter()
            .find(|(_, link)| link.who == Who::Peer(peer) && link.confirmed)
            .map(|(&number, _)| number)
    }

    /// Sends and repeats what is due.
    pub(super) fn on_tick(&mut self, now: Nanos, rng: &mut impl CryptoRng, out: &mut Outbox) {
        if let Some(identity) = &mut self.identity {
            identity.tokens.refresh(now.0, rng);
        }
        self.rates.forget_stopped(now);
        self.give_parked_up(Nanos(now.0.saturating_sub(CONFIRMATION.0)), out);
        for peer in 0..self.peers.len() {
            if self.peers[peer].initiates && self.up(peer).is_none() && now >= self.dials[peer].again {
                self.dial(peer, [0; 16], now, rng, out);
            }
        }
        let numbers: Vec<u32> = self.links.keys().copied().collect();
        for number in numbers {
            self.tend(number, now, rng, out);
            self.govern(number, now, rng, out);
        }
    }

    /// Makes a link of a worker, taken modulo their number, with its first session. The one that initiated is sure of the
    /// other; the other waits for a cell.
    fn open(
        &mut self,
        receive_index: u32,
        shaken: &Parked,
        worker: u32,
        initiator: bool,
        rng: &mut impl CryptoRng,
        out: &mut Outbox,
    ) -> bool {
        let Parked { who, lane, source: address, ref plan, send_index, ref split, born: now } = *shaken;
        if initiator {
            self.close_others(who, None, out);
        }
        let worker = (worker % self.workers()) as usize;
        let Some(number) = self.free[worker].pop() else {
            self.slots.remove(&session_slot(receive_index));
            out.refuse(Refusal::Exhausted);
            return false;
        };
        let governor = self.governor_for(who, plan, now);
        let offset = self.offsets.draw(now, rng);
        let schedule = self.rates.schedule(governor.class(), offset, now, rng);
        out.worker(Command::AddLink { link: number, schedule });
        if plan.may_change() {
            for schedule in self.rates.slots_of(plan) {
                out.worker(Command::Expect { link: number, schedule });
            }
        }
        if let Some(machines) = &self.machines {
            self.set_extra(number, machines, now, rng, out);
        }
        out.push(Action::Aim { link: number, lane, remote: address });
        let keys = LinkKeys::derive(split, self.suite, initiator);
        self.install(number, address, receive_index, send_index, keys, initiator, now, out);
        let jitter = rng.next_u64() % (REKEY / 5);
        let link = Link {
            who,
            address,
            governed: Governed::new(Arc::clone(plan), governor, offset, now),
            initiator,
            index: receive_index,
            confirmed: initiator,
            born: now,
            rekey_at: now + Nanos(REKEY - REKEY / 10 + jitter),
            rekey: None,
            old: Vec::new(),
            reserved: 0,
        };
        self.links.insert(number, link);
        true
    }

    #[expect(clippy::too_many_arguments, reason = "a session's own fields")]
    fn install(
        &self,
        link: u32,
        source: SocketAddr,
        receive_index: u32,
        send_index: u32,
        keys: LinkKeys,
        send_now: bool,
        now: Nanos,
        out: &mut Outbox,
    ) {
        let session = Box::new(Session::new(link, receive_index, send_index, keys, source, now));
        out.worker(Command::InstallSession { session, send_now });
        out.push(Action::AdmitSession { receive_index, source, link: Some(link) });
    }

    /// The peer's first cell under a session arrived.
    pub(super) fn on_confirmed(&mut self, number: u32, receive_index: u32, now: Nanos, out: &mut Outbox) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if link.index != receive_index {
            return;
        }
        let first = !std::mem::replace(&mut link.confirmed, true);
        for (_, until) in &mut link.old {
            *until = (*until).min(now + OLD_KEYS);
        }
        let who = link.who;
        if first && let Who::Peer(at) = who {
            log::info!("link to {} is up", self.peers[at].name);
            self.close_others(who, Some(number), out);
        }
    }

    /// Nothing came over a link for too long.
    pub(super) fn on_silent(&mut self, number: u32, now: Nanos, out: &mut Outbox) {
        if let Some(Link { who: Who::Peer(at), .. }) = self.links.get(&number) {
            log::warn!("link to {} is silent; taking it down", self.peers[*at].name);
            self.dials[*at].again = now;
            self.dials[*at].tries = 0;
        }
        self.close(number, out);
    }

    /// Rekeys, forgets old keys, and gives up on what never came up.
    fn tend(&mut self, number: u32, now: Nanos, rng: &mut impl CryptoRng, out: &mut Outbox) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if !link.confirmed && now.since(link.born) > CONFIRMATION {
            return self.close(number, out);
        }
        let mut gone = Vec::new();
        link.old.retain(|&(index, until)| {
            if now >= until {
                gone.push(index);
            }
            now < until
        });
        let waiting = link.rekey.as_ref().is_some_and(|(_, _, until)| now < *until);
        let due = link.initiator && now >= link.rekey_at && !waiting;
        if due && let Some((_, index, _)) = link.rekey.take() {
            gone.push(index);
        }
        let who = link.who;
        for index in gone {
            self.forget_session(index, out);
        }
        if due && let Who::Peer(at) = who {
            self.start_rekey(number, at, now, rng, out);
        }
    }

    /// Takes every link down, for a clean stop.
    pub(super) fn close_all(&mut self, out: &mut Outbox) {
        self.give_parked_up(Nanos(u64::MAX), out);
        let numbers: Vec<u32> = self.links.keys().copied().collect();
        for number in numbers {
            self.close(number, out);
        }
    }

    fn close_others(&mut self, who: Who, keep: Option<u32>, out: &mut Outbox) {
        let others: Vec<u32> = self
            .links
            .iter()
            .filter(|&(&number, link)| link.who == who && who != Who::Client && Some(number) != keep)
            .map(|(&number, _)| number)
            .collect();
        for number in others {
            self.close(number, out);
        }
    }

    fn close(&mut self, number: u32, out: &mut Outbox) {
        let Some(link) = self.links.remove(&number) else { return };
        if let Who::Peer(at) = link.who
            && link.confirmed
        {
            self.rates.keep(at, link.governed.governor);
        }
        out.worker(Command::RemoveLink { link: number });
        out.push(Action::Forget { link: number });
        let pending = link.rekey.map(|(_, index, _)| index);
        for index in link.old.into_iter().map(|(index, _)| index).chain(pending).chain([link.index]) {
            self.forget_session(index, out);
        }
        let worker = (number % self.workers()) as usize;
        self.free[worker].insert(0, number);
    }

    fn forget_session(&mut self, receive_index: u32, out: &mut Outbox) {
        self.slots.remove(&session_slot(receive_index));
        out.worker(Command::RemoveSession { receive_index });
        out.push(Action::DropSession { receive_index });
    }
}

/// A random receive index whose place in the `sessions` map is free. `None` when the map is nearly full.
fn new_index(slots: &mut HashSet<u32>, rng: &mut impl Rng) -> Option<u32> {
    (0..64).map(|_| rng.next_u32()).find(|&index| index != 0 && slots.insert(session_slot(index)))
}
