//! One trial: cells sealed beforehand go in at a constant rate, and every cell that comes out is opened afterwards.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use relay_common::wire::{LINK_HEADER_LEN, LinkHeader};
use relay_user::engine::QUEUE_CELLS;
use relay_user::steering::Steering;
use relay_user::xsk::Frame;

use super::metered::Sample;
use super::subject::{EngineTotals, PAIRS, Subject, pairs};
use crate::cells::{Downstream, Opened, Pair, Upstream};
use crate::rig::{Cores, End, Loader, LoaderCounts, RING, Rig, Route, pin};

/// Cells of a trial, at most: what the rig's frames allow, twice over and with full rings.
const MAX_CELLS: u64 = 32_768;
/// Lateness that the load makes up for; slots further back are skipped, as a relay would skip them.
const CATCH_UP: Duration = Duration::from_micros(200);
/// Longer than workers wait before they publish their totals.
const SETTLE: Duration = Duration::from_millis(25);
/// The engine's lead: how long before its slot a cell is sealed.
const SEALED_AHEAD: Duration = Duration::from_micros(200);
/// Longest time that a trial waits for cells that were counted as sent.
const PATIENCE: Duration = Duration::from_secs(2);
/// Cells taken from a ring at once.
const LOOK: u32 = 64;
/// Cells between two looks into the receive rings while cells are sealed.
const SEAL_BATCH: u64 = 32;
/// Places by which cells of one link change their order, at most: those sealed ahead at the highest rate, twice.
const REORDERED: usize = 128;
/// Share of its core that an undisturbed busy thread has.
const UNDISTURBED: f64 = 0.998;

/// The neighbours of the relay under test, on one queue per worker.
pub(super) struct Load<'a> {
    rig: &'a Rig,
    // Detached before the sockets are closed.
    _steering: Steering,
    loaders: Vec<Loader>,
    neighbours: Vec<Neighbours>,
    route: Route,
}

/// Both neighbours of a pair, and what they are about to send and have received in a trial.
struct Neighbours {
    queue: usize,
    pair: Pair,
    upstream: Upstream,
    downstream: Downstream,
    prepared: VecDeque<Frame>,
    /// Number behind the relay of the trial's first cell.
    first: u64,
    seen: Vec<bool>,
}

/// What came of a trial.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trial {
    /// Cells sent to the relay.
    pub(super) sent: u64,
    /// Of them, those that did not come out of it.
    pub(super) lost: u64,
    /// Slots that the relay missed.
    pub(super) missed: u64,
    /// Cells that were still in the relay or in front of it when the last one had been sent.
    pub(super) backlog: u64,
    /// Cells that may be there at any time: in the queues of circuits, and sealed ahead.
    pub(super) steady: u64,
    /// Share of the nominal rate that the load kept up with, 0 to 1.
    pub(super) offered: f64,
    /// Share of its core that the worker had until its counters were read, 0 to 1.
    pub(super) core: f64,
    /// CPU nanoseconds per cell relayed.
    pub(super) nanos: f64,
    /// Cells sent, cover among them, per system call.
    pub(super) batch: f64,
    /// CPU nanoseconds per cell of cover made and sent, before the trial.
    pub(super) cover_nanos: f64,
}

impl Trial {
    /// Whether the machine left relay and load their cores, so that the trial says something about the relay.
    pub(super) fn is_undisturbed(&self) -> bool {
        self.core >= UNDISTURBED && self.kept_up()
    }

    /// Whether the load offered what it should have.
    pub(super) fn kept_up(&self) -> bool {
        self.offered >= UNDISTURBED
    }

    /// No slot missed, no cell lost, and none put off: what piles up in the rings is lost in a longer trial.
    pub(super) const fn is_clean(&self) -> bool {
        self.lost == 0 && self.missed == 0 && self.backlog <= self.steady
    }
}

/// Two ends that disagree.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Disagreement(pub(super) String);

impl<'a> Load<'a> {
    /// Opens one socket per worker at the loader's end.
    ///
    /// # Errors
    /// Where the kernel refuses program or socket.
    pub(super) fn open(rig: &'a Rig, workers: u32) -> Result<Self> {
        let mut steering = rig.steering(End::Loader)?;
        let mut loaders: Vec<Loader> = Vec::new();
        for queue in 0..workers {
            loaders.push(Loader::open(rig, End::Loader, queue, &mut steering, loaders.first())?);
        }
        let mut neighbours = Vec::new();
        for (queue, pair) in pairs(workers) {
            for link in pair.links() {
                steering.set_session(&End::Loader.session(Pair::index_at_neighbour(link), queue))?;
            }
            neighbours.push(Neighbours {
                queue: queue as usize,
                pair,
                upstream: Upstream::new(pair),
                downstream: Downstream::new(pair),
                prepared: VecDeque::new(),
                first: 0,
                seen: Vec::new(),
            });
        }
        Ok(Self { rig, _steering: steering, loaders, neighbours, route: Route::from(End::Loader) })
    }

    /// Brings all links and circuits of `subject` up, `rate` slots per second for all of them together.
    ///
    /// # Errors
    /// Where a circuit does not come up.
    pub(super) fn connect(&mut self, subject: &Subject, rate: u32) -> Result<()> {
        let each = rate / (PAIRS * subject.workers());
        for neighbours in &self.neighbours {
            let worker = u32::try_from(neighbours.queue)?;
            subject.connect(worker, neighbours.pair, each)?;
        }
        // Commands are obeyed in the turn that they come in, so two samples later they all have been.
        subject.sample()?;
        subject.sample()?;
        for neighbours in &mut self.neighbours {
            let loader = &mut self.loaders[neighbours.queue];
            let mut frame = loader.frame()?;
            neighbours.upstream.extend(frame.cell_mut().context("a fresh frame is placed for a cell")?);
            self.route.prepend(&mut frame);
            ensure!(loader.push(frame).is_ok(), "a full ring before the first cell");
            loader.flush();
        }
        for worker in 0..subject.workers() {
            subject.finish(worker)?;
        }
        Ok(())
    }

    /// Runs one trial at `rate` cells per second, as [`Self::connect`] was called with. `idle` is what a turn without
    /// work costs.
    ///
    /// # Errors
    /// [`Disagreement`] where the ends' counts do not add up; otherwise where a part of the rig fails.
    pub(super) fn trial(
        &mut self,
        subject: &Subject,
        rate: u32,
        duration: Duration,
        idle: f64,
    ) -> Result<Trial> {
        let cpu = Cores::available().loader().context("the rig was built with two cores")?;
        std::thread::scope(|scope| {
            let trial = scope.spawn(|| pin(cpu).and_then(|()| self.run(subject, rate, duration, idle)));
            trial.join().expect("a trial does not panic")
        })
    }

    fn run(&mut self, subject: &Subject, rate: u32, duration: Duration, idle: f64) -> Result<Trial> {
        let cells = slots(duration, rate).min(MAX_CELLS) / self.neighbours.len() as u64;
        self.prepare(cells)?;
        // Nothing but cover leaves the relay meanwhile.
        let quiet = subject.sample()?;
        self.discard_for(SETTLE);
        // Asked before and after the workers are, so that what is divided by it is no longer than it was.
        let begun = Instant::now();
        let before = self.ends(subject)?;
        let cover = Busy::between(&quiet, &before.sample, idle);
        let cover_nanos = cover.nanos / cover.sent as f64;

        let mut held = Vec::with_capacity(usize::try_from(2 * MAX_CELLS)?);
        let skipped = self.send(rate, &mut held)?;
        let end = subject.sample()?;
        for _ in 0..RING / LOOK {
            if self.receive(&mut held) == 0 {
                break;
            }
        }
        let in_window = held.len();
        let sent = cells * self.neighbours.len() as u64;
        let after = self.wait(subject, &before, sent, &mut held)?;
        let had = (after.sample.cpu - before.sample.cpu).as_secs_f64() / f64::from(subject.workers());
        let core = had / begun.elapsed().as_secs_f64();

        let opened = self.open_all(held, in_window);
        let busy = Busy::between(&before.sample, &end, idle);
        let lost = sent - opened.payload;
        let steady = self.neighbours.len() as u64 * QUEUE_CELLS as u64 + slots(SEALED_AHEAD, rate);
        after.check(&before, sent, lost, opened.gaps, steady)?;
        Ok(Trial {
            sent,
            lost,
            backlog: sent - opened.payload_in_window,
            steady,
            missed: after.engine.missed - before.engine.missed,
            offered: sent as f64 / (sent + skipped) as f64,
            core,
            nanos: (busy.nanos - opened.cover_in_window as f64 * cover_nanos)
                / opened.payload_in_window as f64,
            batch: busy.sent as f64 / (end.port.kicks - before.sample.port.kicks) as f64,
            cover_nanos,
        })
    }

    /// Seals `cells` cells of each circuit.
    fn prepare(&mut self, cells: u64) -> Result<()> {
        for neighbours in &mut self.neighbours {
            neighbours.seen.clear();
            neighbours.seen.resize(usize::try_from(cells)?, false);
        }
        for number in 0..cells {
            for neighbours in &mut self.neighbours {
                let loader = &mut self.loaders[neighbours.queue];
                let mut frame = loader.frame()?;
                let cell = frame.cell_mut().context("a fresh frame is placed for a cell")?;
                let behind = neighbours.upstream.forward(cell);
                if number == 0 {
                    neighbours.first = behind;
                }
                self.route.prepend(&mut frame);
                neighbours.prepared.push_back(frame);
            }
            if number % SEAL_BATCH == 0 {
                self.discard();
            }
        }
        Ok(())
    }

    /// Sends what is prepared, evenly, and keeps what comes. Returns how many slots were skipped.
    fn send(&mut self, rate: u32, held: &mut Vec<Frame>) -> Result<u64> {
        let catch_up = slots(CATCH_UP, rate) + 4 * self.neighbours.len() as u64;
        let start = Instant::now();
        let (mut sent, mut skipped) = (0, 0);
        let all: u64 = self.neighbours.iter().map(|neighbours| neighbours.prepared.len() as u64).sum();
        while sent < all {
            let due = slots(start.elapsed(), rate).saturating_sub(skipped);
            skipped += due.saturating_sub(sent + catch_up);
            let due = due.min(sent + catch_up).min(all);
            let circuits = self.neighbours.len() as u64;
            let mut refused = false;
            while sent < due && !refused {
                let neighbours = &mut self.neighbours[usize::try_from(sent % circuits)?];
                let Some(frame) = neighbours.prepared.pop_front() else { break };
                match self.loaders[neighbours.queue].push(frame) {
                    Ok(()) => sent += 1,
                    Err(frame) => {
                        neighbours.prepared.push_front(frame);
                        refused = true;
                    }
                }
            }
            for loader in &mut self.loaders {
                if loader.in_flight() > 0 {
                    loader.flush();
                }
            }
            self.receive(held);
            ensure!(start.elapsed() < Duration::from_secs(10), "the kernel takes no cells to send");
        }
        Ok(skipped)
    }

    /// Keeps what came; returns how many cells.
    fn receive(&mut self, held: &mut Vec<Frame>) -> usize {
        let mut count = 0;
        for loader in &mut self.loaders {
            count += loader.receive(LOOK as usize, |frame| {
                held.push(frame);
                None
            });
            // What was not sent at once, for want of room at the other end.
            if loader.in_flight() > 0 {
                loader.flush();
            }
        }
        count
    }

    fn discard(&mut self) {
        for loader in &mut self.loaders {
            loader.receive(usize::MAX, Some);
        }
    }

    fn discard_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.discard();
        }
    }

    /// Keeps what comes until the relay has told of every cell sent, and those sealed ahead have left it.
    fn wait(&mut self, subject: &Subject, before: &Ends, sent: u64, held: &mut Vec<Frame>) -> Result<Ends> {
        let start = Instant::now();
        let (mut settled, mut complete_before) = (start, 0);
        loop {
            self.receive(held);
            if settled.elapsed() < SETTLE {
                continue;
            }
            settled = Instant::now();
            let after = self.ends(subject)?;
            let told = after.engine.received == after.sample.port.rx;
            let complete = after.arrived(before) >= sent && self.in_flight() == 0;
            // Again for cells that had just been received then, and again for totals that were published before.
            if (told && complete && complete_before >= 2) || start.elapsed() > PATIENCE {
                return Ok(after);
            }
            complete_before = if complete { complete_before + 1 } else { 0 };
        }
    }

    fn in_flight(&self) -> u64 {
        self.loaders.iter().map(Loader::in_flight).sum()
    }

    fn ends(&self, subject: &Subject) -> Result<Ends> {
        let mut load = LoaderCounts::default();
        for loader in &self.loaders {
            let counts = loader.counts();
            load.sent += counts.sent;
            load.lost += counts.lost;
            load.received += counts.received;
            load.dropped += counts.dropped;
        }
        let sample = subject.sample()?;
        let udp_refused = self.rig.udp_refused(End::Relay)?;
        // A device also drops what it has no memory for, which no socket hears of.
        load.dropped = load.dropped.max(self.rig.packets(End::Loader)?.receive_dropped);
        let at_relay = self.rig.packets(End::Relay)?.receive_dropped;
        Ok(Ends { load, engine: subject.published(), sample, udp_refused, at_relay })
    }

    /// Opens every cell that came, the first `in_window` of them while the load ran.
    fn open_all(&mut self, held: Vec<Frame>, in_window: usize) -> AllOpened {
        let mut all = AllOpened::default();
        let mut counters = vec![Counters::default(); self.neighbours.len()];
        for (place, mut frame) in held.into_iter().enumerate() {
            let index = Route::strip(&mut frame)
                .then(|| frame.data().first_chunk::<LINK_HEADER_LEN>().and_then(LinkHeader::decode))
                .flatten()
                .map(|header| header.receiver_index);
            let found = self.neighbours.iter_mut().enumerate().find(|(_, neighbours)| {
                index == Some(Pair::index_at_neighbour(neighbours.pair.ahead().link))
            });
            if let (Some((number, neighbours)), Some(cell)) = (found, frame.cell_mut()) {
                let (opened, counter) = neighbours.downstream.open(cell);
                counters[number].0.push(counter);
                match opened {
                    Opened::Payload(number) => {
                        let place_of = usize::try_from(number.wrapping_sub(neighbours.first)).ok();
                        let seen = place_of.and_then(|place| neighbours.seen.get_mut(place));
                        if seen.is_some_and(|seen| !std::mem::replace(seen, true)) {
                            all.payload += 1;
                            all.payload_in_window += u64::from(place < in_window);
                        }
                    }
                    _ => all.cover_in_window += u64::from(place < in_window),
                }
            }
            self.loaders[0].put(frame);
        }
        all.gaps = counters.iter().map(Counters::gaps).sum();
        all
    }
}

/// Slots of `time` at `rate` per second.
fn slots(time: Duration, rate: u32) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX)
}

#[derive(Debug, Default)]
struct AllOpened {
    payload: u64,
    payload_in_window: u64,
    cover_in_window: u64,
    /// Cells that were sealed, by their counters, and did not come.
    gaps: u64,
}

/// Link counters of the cells of a trial, as they came. A cell of a missed slot comes behind those sealed after it.
#[derive(Clone, Debug, Default)]
struct Counters(Vec<u64>);

impl Counters {
    /// Counters that did not come, those aside that may have come before the first or will come behind the last.
    fn gaps(&self) -> u64 {
        let first = self.0.iter().take(REORDERED).max();
        let last = self.0.iter().max();
        let (Some(&first), Some(&last)) = (first, last) else { return 0 };
        let inside = first..last.saturating_sub(REORDERED as u64);
        let seen = self.0.iter().filter(|counter| inside.contains(counter)).count() as u64;
        (inside.end.saturating_sub(inside.start)).saturating_sub(seen)
    }
}

/// What a worker did between two samples, idle turns taken out.
struct Busy {
    nanos: f64,
    sent: u64,
}

impl Busy {
    fn between(before: &Sample, after: &Sample, idle: f64) -> Self {
        let cpu = (after.cpu - before.cpu).as_secs_f64() * 1e9;
        let idle_turns = (after.idle - before.idle) as f64;
        Self { nanos: cpu - idle_turns * idle, sent: after.port.tx - before.port.tx }
    }
}

/// All counters at both ends.
struct Ends {
    load: LoaderCounts,
    engine: EngineTotals,
    sample: Sample,
    udp_refused: u64,
    /// Dropped on receipt by the relay's interface.
    at_relay: u64,
}

impl Ends {
    /// Cells that were dropped between the load and the relay since `before`.
    fn on_the_way(&self, before: &Self) -> u64 {
        let port = |sample: &Sample| sample.port.rx_dropped + sample.port.rx_ring_full;
        let by_port = port(&self.sample) - port(&before.sample);
        // What a socket drops, its interface counts as well.
        let dropped = by_port.max(self.at_relay - before.at_relay);
        let invalid = self.sample.port.invalid - before.sample.port.invalid;
        self.load.lost - before.load.lost + dropped + invalid + self.udp_refused - before.udp_refused
    }

    /// Cells that arrived at the relay or were dropped on the way to it since `before`.
    fn arrived(&self, before: &Self) -> u64 {
        self.on_the_way(before) + self.sample.port.rx - before.sample.port.rx
    }

    /// Whether `sent` cells, of which `lost` did not come out (a relay may hold `steady` of them), and `gaps` in the counters of what came out, are what
    /// the counters say.
    fn check(&self, before: &Self, sent: u64, lost: u64, gaps: u64, steady: u64) -> Result<(), Disagreement> {
        let on_the_way = self.on_the_way(before);
        let received = self.engine.received - before.engine.received;
        if received + on_the_way != sent {
            return Err(Disagreement(format!(
                "{sent} cells sent to the relay, {on_the_way} dropped on the way, {received} authenticated"
            )));
        }
        let refused = |sample: &Sample| sample.port.tx_lost + sample.port.tx_full;
        let behind =
            refused(&self.sample) - refused(&before.sample) + self.load.dropped - before.load.dropped;
        // Among these are sealed cells of missed slots, where too many of them waited.
        let dropped = self.engine.dropped - before.engine.dropped;
        // A relay that never catches up puts sealed cells off from slot to slot: those are inside still.
        let put_off = if self.engine.missed > before.engine.missed { steady } else { 0 };
        let inside = dropped + put_off;
        if gaps > inside + behind {
            return Err(Disagreement(format!(
                "{gaps} cells that the relay sealed did not come, {inside} were dropped or put off in it and {behind} behind it"
            )));
        }
        if lost > on_the_way + inside + behind {
            return Err(Disagreement(format!(
                "{lost} cells lost, but only {on_the_way} dropped before the relay, {inside} dropped or put off in it, {behind} behind it"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_a_counter_that_never_comes() {
        let mut counters = Counters((100..1100).collect());
        assert_eq!(counters.gaps(), 0);
        // Later than those behind it, but not missing.
        let late = counters.0.remove(500);
        counters.0.insert(540, late);
        assert_eq!(counters.gaps(), 0);
        counters.0.retain(|counter| !(600..607).contains(counter));
        assert_eq!(counters.gaps(), 7);
        // Too near to the end to tell.
        counters.0.retain(|counter| *counter != 1090);
        assert_eq!(counters.gaps(), 7);
        assert_eq!(Counters::default().gaps(), 0);
    }

    #[test]
    fn slots_are_counted_in_whole_ones() {
        assert_eq!(slots(Duration::from_micros(200), 200_000), 40);
        assert_eq!(slots(Duration::from_nanos(4_999), 200_000), 0);
    }
}
