//! A client's circuit: built in the background, hop by hop, and built again whenever it is lost.

use super::action::Outbox;
use super::circuits::{PathRelay, destroy, start_hop};
use super::links::Links;
use crate::crypto::{HopKeys, Initiator, Suite};
use crate::engine::time::Nanos;
use crate::engine::{Command, Side, body_mut};
use crate::xsk::Frame;
use rand_core::Rng;
use relay_common::wire::{Command as CellCommand, DestroyReason, HopCommand};

/// How long one step of a circuit may take.
const STEP_PATIENCE: Nanos = Nanos(3 * Nanos::SECOND.0);
/// First and longest pause between attempts; doubled each time.
const BACKOFF: (Nanos, Nanos) = (Nanos(250 * Nanos::MILLISECOND.0), Nanos(2 * Nanos::SECOND.0));
/// A circuit that should fill every slot and brings nothing for so long is dead.
const SILENCE: Nanos = Nanos(5 * Nanos::SECOND.0);
/// Shortest life of a circuit; the longest is six times that (protocol: 4 to 24 h).
const MIN_LIFE: Nanos = Nanos(4 * 3600 * Nanos::SECOND.0);

#[derive(Debug)]
enum State {
    /// Nothing until then.
    Waiting(Nanos),
    /// CREATE or EXTEND is out.
    Building { ahead: Side, seq: u64, hop: usize, initiator: Box<Initiator>, until: Nanos },
    /// Carries data; to be replaced then.
    Open { since: Nanos, until: Nanos },
}

/// Keeps one circuit over `path` alive.
#[derive(Debug)]
pub(super) struct Builder {
    path: Vec<PathRelay>,
    suite: Suite,
    cover: bool,
    state: State,
    /// Alternates, so that a closing circuit's number is not used again before the engine reports it gone.
    circuit: u32,
    attempts: u32,
    /// What the log calls it.
    name: &'static str,
    /// Lives as long as somebody else decides.
    decoy: bool,
    /// Something should come at all times, and the circuit is dead where it does not.
    watched: bool,
    /// One slot in so many is its own; 1 where it has what is left.
    share: u32,
}

impl Builder {
    pub(super) fn new(path: Vec<PathRelay>, suite: Suite, cover: bool) -> Self {
        let state = State::Waiting(Nanos(0));
        let (name, decoy) = ("circuit", false);
        Self { path, suite, cover, state, circuit: 0, attempts: 0, name, decoy, watched: cover, share: 1 }
    }

    /// A circuit that carries nothing and lives until it is closed, on one slot in `share`. Its number is the one beside
    /// `first`, or that, by turns. `watched` where the client's own circuit is, which is told from it else.
    pub(super) fn decoy(path: Vec<PathRelay>, suite: Suite, first: u32, share: u32, watched: bool) -> Self {
        let name = "decoy circuit";
        Self { circuit: first, name, decoy: true, watched, share, ..Self::new(path, suite, true) }
    }

    /// One that is open already.
    #[cfg(test)]
    pub(super) fn opened(path: Vec<PathRelay>, suite: Suite) -> Self {
        let state = State::Open { since: Nanos(0), until: Nanos(u64::MAX) };
        Self { state, ..Self::decoy(path, suite, 2, 2, true) }
    }

    /// Attempts that failed since the last that did not.
    pub(super) const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The number of the circuit while it is open.
    pub(super) fn open_circuit(&self) -> Option<u32> {
        self.is_open().then_some(self.circuit)
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Starts, gives up or renews what is due. `last_delivery` is when a cell last came over the circuit.
    pub(super) fn on_tick(
        &mut self,
        now: Nanos,
        last_delivery: Nanos,
        links: &Links,
        rng: &mut impl Rng,
        out: &mut Outbox,
    ) {
        match &self.state {
            State::Waiting(until) if now >= *until => self.start(now, links, rng, out),
            State::Building { until, .. } if now >= *until => {
                log::warn!("no answer from hop {} in time; building the {} anew", self.hop_name(), self.name);
                self.fail(now, out);
            }
            State::Open { since, until } => {
                let silent = self.watched && now.since(last_delivery.max(*since)) > SILENCE;
                if silent || now >= *until {
                    if silent {
                        log::warn!("the {} brings nothing any more; building it anew", self.name);
                    }
                    self.fail(now, out);
                }
            }
            _ => {}
        }
    }

    fn hop_name(&self) -> &str {
        match &self.state {
            State::Building { hop, .. } => self.path.get(*hop).map_or("?", |relay| relay.name.as_str()),
            _ => "?",
        }
    }

    fn start(&mut self, now: Nanos, links: &Links, rng: &mut impl Rng, out: &mut Outbox) {
        let Some(entry) = self.path.first() else { return };
        let Some(link) = links.link_to(&entry.id) else { return };
        let Some((initiator, message)) = start_hop(entry, self.suite) else { return };
        let Some(frame) = out.cell(&[&[0; super::circuits::CREATE_PREFIX], &message]) else { return };
        self.circuit ^= 1;
        // Far from both ends of the range, so that no sum of offsets wraps in a circuit's life.
        let seq = rng.next_u64() >> 2;
        let ahead = Side { link, circ_id: links.new_circ_id(link, rng) };
        out.worker(Command::SendCell {
            link,
            circ_id: ahead.circ_id,
            command: CellCommand::Create,
            hop_seq: seq,
            frame,
        });
        let until = now + STEP_PATIENCE;
        self.state = State::Building { ahead, seq, hop: 0, initiator: Box::new(initiator), until };
    }

    /// Whether the circuit has this number.
    pub(super) const fn is_of(&self, circuit: u32) -> bool {
        self.circuit == circuit
    }

    /// Whether an answer to CREATE that came from there is for this circuit.
    pub(super) fn is_created_by(&self, from: Side) -> bool {
        matches!(&self.state, State::Building { ahead, hop: 0, .. } if *ahead == from)
    }

    /// The entry answered CREATE.
    pub(super) fn on_created(
        &mut self,
        from: Side,
        frame: Frame,
        now: Nanos,
        rng: &mut impl Rng,
        out: &mut Outbox,
    ) {
        if self.is_created_by(from) {
            self.hop_answered(frame, now, rng, out);
        }
    }

    /// A relay on the path answered EXTEND.
    #[expect(clippy::too_many_arguments, reason = "the event's own fields, and what every handler takes")]
    pub(super) fn on_extended(
        &mut self,
        circuit: u32,
        depth: usize,
        command: HopCommand,
        mut frame: Frame,
        now: Nanos,
        rng: &mut impl Rng,
        out: &mut Outbox,
    ) {
        let expected = matches!(&self.state, State::Building { hop, .. } if *hop == depth + 1);
        if circuit != self.circuit || !expected {
            return;
        }
        if command == HopCommand::Extended {
            return self.hop_answered(frame, now, rng, out);
        }
        let reason =
            body_mut(&mut frame).map_or(DestroyReason::Protocol, |body| DestroyReason::from_byte(body[0]));
        log::warn!("hop {} was refused: {reason:?}", self.hop_name());
        self.fail(now, out);
    }

    /// Our circuit is gone, or the entry refused it.
    pub(super) fn on_closed(&mut self, circuit: u32, reason: DestroyReason, now: Nanos) {
        if circuit == self.circuit && !matches!(self.state, State::Waiting(_)) {
            log::warn!("the {} was closed: {reason:?}", self.name);
            self.back_off(now);
        }
    }

    /// The entry refused CREATE.
    pub(super) fn on_create_refused(&mut self, from: Side, reason: DestroyReason, now: Nanos) {
        if matches!(&self.state, State::Building { ahead, .. } if *ahead == from) {
            log::warn!("the entry refused the {}: {reason:?}", self.name);
            self.back_off(now);
        }
    }

    /// Closes the circuit, for a clean stop.
    pub(super) fn close(&mut self, out: &mut Outbox) {
        out.worker(Command::CloseCircuit { circuit: self.circuit, reason: DestroyReason::Finished });
        self.state = State::Waiting(Nanos(u64::MAX));
    }

    fn hop_answered(&mut self, mut frame: Frame, now: Nanos, rng: &mut impl Rng, out: &mut Outbox) {
        let State::Building { ahead, seq, hop, initiator, .. } =
            std::mem::replace(&mut self.state, State::Waiting(now))
        else {
            return;
        };
        let Some(body) = body_mut(&mut frame) else { return };
        let split = match initiator.finish(&body[..crate::crypto::handshake::RESPONSE_LEN]) {
            Ok(split) => split,
            Err(error) => {
                log::warn!("circuit handshake with {}: {error}", self.path[hop].name);
                return self.fail(now, out);
            }
        };
        let keys = Box::new(HopKeys::derive(&split, self.suite));
        let circuit = self.circuit;
        let next = self.path.get(hop + 1);
        if hop == 0 {
            out.worker(Command::AddOrigin { circuit, ahead, keys, seq, cover: self.cover });
            out.worker(Command::SetShare { circuit, one_in: self.share });
        } else {
            out.worker(Command::AddHop { circuit, keys, open: next.is_none() });
        }
        let Some(next) = next else {
            self.attempts = 0;
            log::info!("{} open over {} relays", self.name, self.path.len());
            let life = Nanos(MIN_LIFE.0 + rng.next_u64() % (5 * MIN_LIFE.0));
            let until = if self.decoy { Nanos(u64::MAX) } else { now + life };
            self.state = State::Open { since: now, until };
            return;
        };
        let extension = start_hop(next, self.suite).and_then(|(initiator, message)| {
            let length = u16::try_from(next.id.len() + message.len()).ok()?;
            Some((initiator, length, out.cell(&[&next.id, &message])?))
        });
        let Some((initiator, length, frame)) = extension else { return self.fail(now, out) };
        out.worker(Command::SendExtend { circuit, length, frame });
        let until = now + STEP_PATIENCE;
        self.state = State::Building { ahead, seq, hop: hop + 1, initiator: Box::new(initiator), until };
    }

    fn fail(&mut self, now: Nanos, out: &mut Outbox) {
        if let State::Building { ahead, hop: 0, .. } = &self.state {
            destroy(*ahead, DestroyReason::Finished, out);
        }
        out.worker(Command::CloseCircuit { circuit: self.circuit, reason: DestroyReason::Finished });
        self.back_off(now);
    }

    fn back_off(&mut self, now: Nanos) {
        let pause = BACKOFF.0.0 << self.attempts.min(3);
        self.attempts += 1;
        self.state = State::Waiting(now + Nanos(pause).min(BACKOFF.1));
    }
}
