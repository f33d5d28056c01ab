//! The rig with a raw socket at each end: what packets cost before anybody looks into them.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use relay_common::wire::{LINK_HEADER_LEN, LinkHeader};
use relay_user::steering::Steering;
use relay_user::xsk::Frame;

use super::{Cores, End, Loader, Rig, Route, pin, thread_time};

/// Packets of a batch, as many as a worker takes in a turn.
const BATCH: usize = 32;
/// Packets of a phase: half of what a ring holds.
const PHASE: u64 = 2048;
/// Packets that may be on their way while packets are forwarded, so that none is dropped for want of room.
const WINDOW: u64 = 1024;
/// Receiver index of every packet.
const INDEX: u32 = 0x0eb0_0001;
/// Looks into an empty ring after which no more is expected and a batch goes as it is.
const QUIET: u32 = 50_000;
/// Longest time that a phase waits for packets that were counted as sent.
const PATIENCE: Duration = Duration::from_secs(2);

/// A piece of work: how many packets in which time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Packets.
    pub packets: u64,
    /// CPU time of the thread that did it, without what it waited.
    pub cpu: Duration,
    /// Time from its first to its last packet.
    pub wall: Duration,
}

impl Work {
    /// CPU nanoseconds per packet.
    pub fn nanos(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.packets as f64
    }

    /// Packets per second.
    pub fn rate(&self) -> f64 {
        self.packets as f64 / self.wall.as_secs_f64()
    }
}

/// A raw AF_XDP socket at each end, on one queue.
pub struct Wire {
    // Detached before the sockets are closed.
    _steering: [Steering; 2],
    load: Loader,
    work: Loader,
    cores: [usize; 2],
}

impl Wire {
    /// Opens both ends on queue 0.
    ///
    /// # Errors
    /// Where the kernel refuses program or socket.
    pub fn open(rig: &Rig) -> Result<Self> {
        let cores = Cores::available();
        let cores =
            [cores.loader(), cores.worker(0)].map(|cpu| cpu.context("the rig was built with two cores"));
        let [near, far] = cores;
        let mut steering = [rig.steering(End::Loader)?, rig.steering(End::Relay)?];
        for (end, steering) in [End::Loader, End::Relay].into_iter().zip(&mut steering) {
            steering.set_session(&end.session(INDEX, 0))?;
        }
        let load = Loader::open(rig, End::Loader, 0, &mut steering[0], None)?;
        let work = Loader::open(rig, End::Relay, 0, &mut steering[1], None)?;
        Ok(Self { _steering: steering, load, work, cores: [near?, far?] })
    }

    /// Packets go to the relay's end, which drops them: the cost of a receive ring, since the sender pays the crossing.
    ///
    /// # Errors
    /// Where a thread cannot be pinned, or packets stay away.
    pub fn rxdrop(&mut self) -> Result<Work> {
        let cores = self.cores;
        let (load, work) = (&mut self.load, &mut self.work);
        phases(cores, || send(load, End::Loader, PHASE).map(drop), || drain(work, PHASE))
    }

    /// The relay's end sends: the cost of a crossing.
    ///
    /// # Errors
    /// Where a thread cannot be pinned, or packets stay away.
    pub fn txonly(&mut self) -> Result<Work> {
        let cores = self.cores;
        let (load, work) = (&mut self.load, &mut self.work);
        let result = phases(cores, || Ok(()), || send(work, End::Relay, PHASE))?;
        phases(cores, || Ok(()), || drain(load, PHASE))?;
        Ok(result)
    }

    /// The relay's end sends what comes back to where it came from, in whole batches, for `duration`.
    ///
    /// # Errors
    /// Where a thread cannot be pinned.
    pub fn l2fwd(&mut self, duration: Duration) -> Result<Work> {
        let [near, far] = self.cores;
        let (load, work) = (&mut self.load, &mut self.work);
        let (sending, forwarding) = (AtomicBool::new(true), AtomicBool::new(true));
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| {
                let outcome = pin(near).and_then(|()| keep_sending(load, &sending));
                forwarding.store(false, Ordering::Relaxed);
                outcome
            });
            let worker = scope.spawn(|| pin(far).map(|()| forward(work, &forwarding)));
            std::thread::sleep(duration);
            sending.store(false, Ordering::Relaxed);
            let loaded = loader.join().expect("the loader does not panic");
            let worked = worker.join().expect("the forwarder does not panic")?;
            loaded.map(|()| worked)
        })
    }

    /// What does not add up between the two ends, where something does not. To be asked while nothing is on its way.
    pub fn disagreement(&self) -> Option<String> {
        let (load, work) = (self.load.counts(), self.work.counts());
        for (name, from, to) in [("to the relay", load, work), ("from the relay", work, load)] {
            if from.sent != to.received + to.dropped + from.lost {
                return Some(format!("packets {name} do not add up: {from:?} here, {to:?} there"));
            }
        }
        None
    }

    /// Packets dropped and lost at either end so far.
    pub fn dropped(&self) -> u64 {
        let (load, work) = (self.load.counts(), self.work.counts());
        load.dropped + load.lost + work.dropped + work.lost
    }
}

/// One thread's part in front of the other's: the second begins when the first has ended.
fn phases(
    [near, far]: [usize; 2],
    first: impl FnOnce() -> Result<()> + Send,
    second: impl FnOnce() -> Result<Work> + Send,
) -> Result<Work> {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let outcome = pin(near).and_then(|()| first());
            barrier.wait();
            outcome
        });
        let second = scope.spawn(|| {
            let pinned = pin(far);
            barrier.wait();
            pinned.and_then(|()| second())
        });
        first.join().expect("a phase does not panic")?;
        second.join().expect("a phase does not panic")
    })
}

fn prepared(loader: &mut Loader, route: &Route) -> Result<Frame> {
    let mut frame = loader.frame()?;
    let header = LinkHeader { receiver_index: INDEX, counter: 0 }.encode();
    frame.data_mut()[..LINK_HEADER_LEN].copy_from_slice(&header);
    route.prepend(&mut frame);
    Ok(frame)
}

fn send(loader: &mut Loader, from: End, packets: u64) -> Result<Work> {
    let route = Route::from(from);
    let (cpu, start) = (thread_time(), Instant::now());
    let mut sent = 0;
    while sent < packets {
        for _ in 0..BATCH {
            let frame = prepared(loader, &route)?;
            if let Err(frame) = loader.push(frame) {
                loader.put(frame);
                break;
            }
            sent += 1;
        }
        loader.flush();
        ensure!(start.elapsed() < Duration::from_secs(5), "the kernel takes no packets to send");
    }
    settle(loader)?;
    Ok(Work { packets: sent, cpu: thread_time() - cpu, wall: start.elapsed() })
}

/// Waits until the kernel has taken everything that was queued.
fn settle(loader: &mut Loader) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while loader.in_flight() > 0 {
        ensure!(Instant::now() < until, "{} packets were not sent", loader.in_flight());
        loader.flush();
    }
    Ok(())
}

fn drain(loader: &mut Loader, packets: u64) -> Result<Work> {
    let (cpu, start) = (thread_time(), Instant::now());
    let mut received = 0;
    while received < packets {
        received += loader.receive(BATCH, Some) as u64;
        ensure!(start.elapsed() < PATIENCE, "{received} of {packets} packets arrived");
    }
    Ok(Work { packets: received, cpu: thread_time() - cpu, wall: start.elapsed() })
}

/// Sends as fast as packets come back, and at the end waits for those on their way.
fn keep_sending(loader: &mut Loader, sending: &AtomicBool) -> Result<()> {
    let route = Route::from(End::Loader);
    let mut away = 0;
    let mut last = Instant::now();
    loop {
        let on = sending.load(Ordering::Relaxed);
        if !on && away == 0 {
            return settle(loader);
        }
        if on && away < WINDOW {
            for _ in 0..BATCH {
                let frame = prepared(loader, &route)?;
                if let Err(frame) = loader.push(frame) {
                    loader.put(frame);
                    break;
                }
                away += 1;
            }
        }
        loader.flush();
        let came = loader.receive(2 * BATCH, Some) as u64;
        away = away.saturating_sub(came);
        if came > 0 {
            last = Instant::now();
        }
        ensure!(last.elapsed() < PATIENCE, "{away} packets did not come back");
    }
}

/// Turns whole batches around until told to stop and nothing is left.
fn forward(worker: &mut Loader, forwarding: &AtomicBool) -> Work {
    let mut batch: Vec<Frame> = Vec::with_capacity(BATCH);
    let mut work = Work::default();
    let (begun, start) = (thread_time(), Instant::now());
    let (mut idle, mut idle_since, mut empty_looks) = (Duration::ZERO, None, 0);
    let mut end = start;
    loop {
        let on = forwarding.load(Ordering::Relaxed);
        let came = worker.receive(BATCH - batch.len(), |frame| {
            batch.push(frame);
            None
        });
        if batch.len() < BATCH {
            if !on && batch.is_empty() {
                break;
            }
            // Whole batches are the cheapest, and this shall be the floor; looking for more is no part of it.
            idle_since.get_or_insert_with(thread_time);
            empty_looks = if came > 0 { 0 } else { empty_looks + 1 };
            if empty_looks < QUIET || batch.is_empty() {
                continue;
            }
        }
        empty_looks = 0;
        if let Some(since) = idle_since.take() {
            idle += thread_time() - since;
        }
        for mut frame in batch.drain(..) {
            Route::turn(&mut frame);
            match worker.push(frame) {
                Ok(()) => work.packets += 1,
                Err(frame) => worker.put(frame),
            }
        }
        worker.flush();
        end = Instant::now();
    }
    if let Some(since) = idle_since {
        idle += thread_time() - since;
    }
    work.cpu = (thread_time() - begun).saturating_sub(idle);
    work.wall = end - start;
    work
}
