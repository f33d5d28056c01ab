//! Seals the cells that arrive at the relay, on another core and ahead of time, since the relay takes no cell twice.

use crate::cpu;

use super::port::Arrival;
use super::relay::{Cells, Clients, PERIOD, POOL};
use crossbeam::queue::ArrayQueue;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use relay_user::engine::time::Nanos;
use relay_user::port::Received;
use relay_user::worker::Clock;
use relay_user::xsk::{Arena, FramePool};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long it waits where the queue is full: a small part of what the queue holds.
const WAIT: Duration = Duration::from_micros(200);

/// What was fed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fed {
    pub(super) cells: u64,
    /// Cells that were due before they were ready, while none was.
    pub(super) late: u64,
}

/// The thread that feeds.
pub(super) struct Feeder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Fed>>,
}

impl Feeder {
    /// One cell per circuit and period from `start` until `until`, each circuit at a phase of its own.
    pub(super) fn start(
        arena: &'static Arena,
        on: usize,
        mut clients: Clients,
        cells: Cells,
        queue: Arc<ArrayQueue<Arrival>>,
        clock: Clock,
        (start, until): (Nanos, Nanos),
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("feeder".into()).spawn(move || {
            // Where it may not be pinned, it is only less steady: cells that come late are counted.
            let _ = cpu::pin(on);
            cpu::prefer_like_a_worker();
            let mut pool = FramePool::new(arena, POOL);
            let mut fed = Fed::default();
            let phases = phases(clients.count());
            let mut base = start;
            while base < until && !phases.is_empty() {
                for &(phase, circuit) in &phases {
                    let at = base + phase;
                    let Some(mut frame) = patiently(&stopped, || pool.take()) else { return fed };
                    clients.next(circuit, cells, &mut frame);
                    let source = clients.source(circuit);
                    fed.cells += 1;
                    // A queue that still holds something is not what the relay waits for.
                    fed.late += u64::from(queue.is_empty() && clock.now() > at);
                    let mut waiting = Some(Arrival { at, datagram: Received { frame, source } });
                    let pushed = patiently(&stopped, || match queue.push(waiting.take()?) {
                        Ok(()) => Some(()),
                        Err(refused) => {
                            waiting = Some(refused);
                            None
                        }
                    });
                    if pushed.is_none() {
                        return fed;
                    }
                }
                base = base + PERIOD;
            }
            fed
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> Fed {
        self.end()
    }

    fn end(&mut self) -> Fed {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Tries until it works or the feeder is to stop.
fn patiently<T>(stop: &AtomicBool, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    while !stop.load(Ordering::Relaxed) {
        if let Some(done) = attempt() {
            return Some(done);
        }
        std::thread::sleep(WAIT);
    }
    None
}

/// When within a period each circuit's cell comes, in that order.
fn phases(circuits: usize) -> Vec<(Nanos, u32)> {
    let mut rng = ChaCha8Rng::from_seed([3; 32]);
    let mut phases: Vec<(Nanos, u32)> =
        (0..).take(circuits).map(|circuit| (Nanos(rng.next_u64() % PERIOD.0), circuit)).collect();
    phases.sort_unstable();
    phases
}
