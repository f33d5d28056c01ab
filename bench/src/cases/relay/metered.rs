//! A port that knows how busy its worker is: it counts the turns in which nothing came and nothing left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use relay_user::port::{Peer, Port, PortCounters, PortMode, Received, TransmitError};
use relay_user::xsk::{Frame, FramePool};

use crate::rig::thread_time;

/// Longest time that a worker may take to answer: many times what a machine takes it away for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A worker's totals at one of its turns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    /// CPU time of its thread.
    pub(super) cpu: Duration,
    /// Turns.
    pub(super) turns: u64,
    /// Turns in which the port neither received nor sent.
    pub(super) idle: u64,
    /// The port's totals.
    pub(super) port: PortCounters,
}

/// Asks a worker for samples.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Number of the sample that is wanted.
    wanted: AtomicU64,
    /// Number of the sample last taken: whoever waits looks here, and leaves the lock to the worker.
    answered: AtomicU64,
    /// The sample last taken.
    taken: Mutex<Sample>,
}

impl Meter {
    /// The worker's totals now.
    ///
    /// # Errors
    /// Where the worker does not turn any more.
    pub(super) fn sample(&self) -> Result<Sample> {
        let number = self.0.wanted.fetch_add(1, Ordering::Relaxed) + 1;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.0.answered.load(Ordering::Acquire) >= number
                && let Ok(taken) = self.0.taken.lock()
            {
                return Ok(*taken);
            }
            std::hint::spin_loop();
        }
        bail!("the worker did not turn for {PATIENCE:?}")
    }

    /// `port`, metered.
    pub(super) fn around<P: Port>(&self, port: P) -> Metered<P> {
        Metered { port, shared: Arc::clone(&self.0), answered: 0, sent: false, turns: 0, idle: 0 }
    }
}

/// A port whose worker's turns are counted. A worker receives once per turn.
pub(super) struct Metered<P> {
    port: P,
    shared: Arc<Shared>,
    answered: u64,
    sent: bool,
    turns: u64,
    idle: u64,
}

impl<P: Port> Metered<P> {
    #[cold]
    fn answer(&mut self, wanted: u64) {
        let Ok(mut taken) = self.shared.taken.try_lock() else { return };
        let sample =
            Sample { cpu: thread_time(), turns: self.turns, idle: self.idle, port: self.port.counters() };
        *taken = sample;
        self.answered = wanted;
        self.shared.answered.store(wanted, Ordering::Release);
    }
}

impl<P: Port> Port for Metered<P> {
    fn receive(&mut self, pool: &mut FramePool, out: &mut Vec<Received>, max: usize) -> usize {
        let count = self.port.receive(pool, out, max);
        self.turns += 1;
        let sent = std::mem::take(&mut self.sent);
        self.idle += u64::from(count == 0 && !sent);
        let wanted = self.shared.wanted.load(Ordering::Relaxed);
        if wanted != self.answered {
            self.answer(wanted);
        }
        count
    }

    fn set_peer(&mut self, slot: u32, peer: Option<Peer>) {
        self.port.set_peer(slot, peer);
    }

    fn transmit(&mut self, slot: u32, frame: Frame) -> Result<(), TransmitError> {
        self.sent = true;
        self.port.transmit(slot, frame)
    }

    fn make_ready(&mut self) -> bool {
        self.port.make_ready()
    }

    fn flush(&mut self, pool: &mut FramePool) -> bool {
        self.port.flush(pool)
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }

    fn mode(&self) -> PortMode {
        self.port.mode()
    }
}
