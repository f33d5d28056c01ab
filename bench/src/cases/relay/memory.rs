//! Relays in memory, one to a thread: what a second worker adds where nothing is shared.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, DropReason, Engine, Event, Limits, NoEdge};
use relay_user::xsk::{Arena, Frame, FramePool};

use crate::cells::{Pair, Upstream};
use crate::rig::pin;

/// Cells of a batch; half of what a circuit's queue holds.
const BATCH: usize = 32;
/// Batches of a round: about a millisecond, so that most rounds meet no gap of the machine.
const BATCHES: usize = 32;
/// Slots per second: the engine's highest.
const RATE: u32 = 200_000;
const PERIOD: Nanos = Nanos(Nanos::SECOND.0 / RATE as u64);

/// A relay with one circuit, and what sends to it.
pub(super) struct InMemory {
    engine: Engine,
    pool: FramePool,
    upstream: Upstream,
    source: SocketAddr,
    frames: Vec<Frame>,
    now: Nanos,
}

impl InMemory {
    /// A relay that is ready to carry cells.
    ///
    /// # Errors
    /// Where the machine has no memory for 1024 frames, or the circuit does not come up.
    pub(super) fn new() -> Result<Self> {
        let arena = Arena::anonymous(1024).context("no memory for 2 MiB of frames")?;
        let limits = Limits { links: 2, circuits: 1, ..Limits::default() };
        let (pair, now) = (Pair(0), Nanos(Nanos::SECOND.0));
        let mut relay = Self {
            engine: Engine::new(limits),
            pool: FramePool::new(arena, 256),
            upstream: Upstream::new(pair),
            source: SocketAddr::from(([192, 0, 2, 1], 7443)),
            frames: Vec::with_capacity(BATCH),
            now,
        };
        for command in pair.commands(RATE, relay.source, now) {
            relay.engine.apply(command, &mut NoEdge, now);
        }
        let mut frame = relay.pool.take().context("the first frame")?;
        relay.upstream.extend(frame.cell_mut().context("a fresh frame is placed for a cell")?);
        relay.frames.push(frame);
        relay.batch();
        let frame = std::iter::from_fn(|| relay.engine.pop_event()).find_map(|event| match event {
            Event::Extend { frame, .. } => Some(frame),
            _ => None,
        });
        let frame = frame.context("the relay in memory did not see EXTEND")?;
        let extend = Command::Extend { circuit: pair.circuit(), ahead: pair.ahead(), frame };
        relay.engine.apply(extend, &mut NoEdge, relay.now);
        // Slots begin a lead after the session: let them run evenly first.
        for _ in 0..4 {
            relay.batch();
        }
        Ok(relay)
    }

    /// Relays one round of cells. Returns the time it took, without that of making them.
    fn round(&mut self) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for _ in 0..BATCHES {
            for _ in 0..BATCH {
                let mut frame = self.pool.take().context("more frames than a batch")?;
                self.upstream.forward(frame.cell_mut().context("a fresh frame is placed for a cell")?);
                self.frames.push(frame);
            }
            let start = Instant::now();
            self.batch();
            time += start.elapsed();
        }
        Ok(time)
    }

    fn rated(mut self, rates: &mut Vec<f64>) -> Result<Self> {
        let time = self.round()?;
        rates.push((BATCHES * BATCH) as f64 / time.as_secs_f64());
        Ok(self)
    }

    fn batch(&mut self) {
        for frame in self.frames.drain(..) {
            self.engine.receive(frame, self.source, &mut NoEdge, self.now);
        }
        for _ in 0..BATCH {
            self.now = self.now + PERIOD;
            self.engine.stage(self.now, &mut self.pool, &mut NoEdge);
            let pool = &mut self.pool;
            self.engine.emit(self.now, |_, frame| {
                pool.put(frame);
                Ok(())
            });
        }
    }

    /// What was dropped or missed so far, where anything was.
    fn disagreement(&self) -> Option<String> {
        let counters = self.engine.counters();
        let dropped: u64 = DropReason::ALL.iter().map(|reason| counters.dropped(*reason)).sum();
        (dropped + counters.missed_slots > 0)
            .then(|| format!("{dropped} cells dropped, {} slots missed in memory", counters.missed_slots))
    }
}

/// Rates of one worker alone and of two at once, in cells per second, round by round.
pub(super) struct Scaling {
    /// One alone, in turn on each of the two cores.
    pub(super) one: Vec<f64>,
    /// Both, added up.
    pub(super) two: Vec<f64>,
    /// What did not add up.
    pub(super) disagreement: Option<String>,
}

/// Measures `rounds` rounds of one and of two workers by turns, pinned to `cores`.
///
/// # Errors
/// As [`InMemory::new`], and where a thread cannot be pinned.
pub(super) fn scaling(cores: [usize; 2], rounds: usize) -> Result<Scaling> {
    let barrier = Barrier::new(2);
    let work = |number: usize| -> Result<(Vec<f64>, Vec<f64>, Option<String>)> {
        // A worker that fails goes on waiting with the other, which would otherwise wait for ever.
        let mut relay = pin(cores[number]).and_then(|()| InMemory::new());
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            barrier.wait();
            if round % 2 == number {
                relay = relay.and_then(|relay| relay.rated(&mut alone));
            }
            barrier.wait();
            relay = relay.and_then(|relay| relay.rated(&mut together));
        }
        Ok((alone, together, relay?.disagreement()))
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(|| work(0)), scope.spawn(|| work(1))];
        let [first, second] = threads.map(|thread| thread.join().expect("a worker does not panic"));
        let ((mut one, first, wrong), (more, second, wrong_too)) = (first?, second?);
        one.extend(more);
        let two = first.iter().zip(&second).map(|(first, second)| first + second).collect();
        Ok(Scaling { one, two, disagreement: wrong.or(wrong_too) })
    })
}
