//! Both neighbours of the relay, on one thread: the entry, which sends payloads at a constant rate, and the exit, which
//! opens and counts what comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use relay_common::wire::{
    BODY_OFFSET, CELL_LEN, CIRCUIT_HEADER_LEN, CircuitHeader, Command as CellCommand, HopCommand,
    LINK_HEADER_LEN, LinkHeader,
};
use relay_user::crypto::LinkKeys;
use relay_user::engine::blank_cell;
use relay_user::port::{AfXdpPort, Port as _, PortCounters, Received};
use relay_user::xsk::{Arena, FramePool};

use super::relay::{BACK, Entry, LANES, circ_id, link_keys, towards_hub};
use super::traffic::{PAYLOAD, Pace, Seen, Tally, precise_sleep};

/// Cells that one look takes in.
const BATCH: usize = 64;
/// The longest sleep, so that cells never wait long for the exit.
const LONGEST_SLEEP: Duration = Duration::from_micros(200);
/// A shorter sleep costs more than it spares.
const SHORTEST_SLEEP: Duration = Duration::from_micros(10);

#[derive(Debug, Default)]
struct Shared {
    stop_sending: AtomicBool,
    stop: AtomicBool,
    received: AtomicU64,
}

/// The thread that plays both.
#[derive(Debug)]
pub(super) struct Neighbours {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(Tally, PortCounters)>>>,
}

impl Neighbours {
    /// Begins to send `rate` payloads a second.
    ///
    /// # Errors
    /// Where the thread cannot be made.
    pub(super) fn start(port: AfXdpPort, arena: &'static Arena, rate: u32) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut playing = Playing {
            port,
            pool: FramePool::new(arena, 256),
            entry: Entry::extended(),
            exit: (1..=LANES).map(|link| link_keys(link, false)).collect(),
            seen: Seen::default(),
            tally: Tally::default(),
            number: 0,
            received: Vec::with_capacity(BATCH),
            shared: Arc::clone(&shared),
        };
        playing.port.set_peer(BACK, Some(towards_hub()));
        let work = move || playing.run(rate);
        let thread = std::thread::Builder::new().name("neighbours".into()).spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Payloads that the exit has opened so far.
    pub(super) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Lets the entry send no more.
    pub(super) fn stop_sending(&self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
    }

    /// Ends the thread and tells what it counted.
    ///
    /// # Errors
    /// What kept the thread from going on.
    pub(super) fn finish(mut self) -> Result<(Tally, PortCounters)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the neighbours have ended already")?;
        thread.join().map_err(|_| anyhow!("the neighbours' thread panicked"))?
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its error belongs to a measurement that is given up anyway.
            thread.join().ok();
        }
    }
}

struct Playing {
    port: AfXdpPort,
    pool: FramePool,
    entry: Entry,
    exit: Vec<LinkKeys>,
    seen: Seen,
    tally: Tally,
    number: u64,
    received: Vec<Received>,
    shared: Arc<Shared>,
}

impl Playing {
    fn run(&mut self, rate: u32) -> Result<(Tally, PortCounters)> {
        precise_sleep()?;
        let mut pace = Pace::new(rate);
        while !self.shared.stop.load(Ordering::Relaxed) {
            let sending = !self.shared.stop_sending.load(Ordering::Relaxed);
            let due = if sending { pace.due(Instant::now()) } else { 0 };
            for _ in 0..due {
                self.send()?;
            }
            if due > 0 {
                self.port.flush(&mut self.pool);
            }
            let taken = self.take_in();
            let wait = if sending { pace.wait(Instant::now()) } else { LONGEST_SLEEP };
            if taken == 0 && wait >= SHORTEST_SLEEP {
                std::thread::sleep(wait.min(LONGEST_SLEEP));
            } else {
                // Whoever measures is on this core, too.
                std::thread::yield_now();
            }
        }
        Ok((self.tally, self.port.counters()))
    }

    fn send(&mut self) -> Result<()> {
        let mut frame = self.pool.take().context("the entry is out of frames")?;
        let cell = blank_cell(&mut frame).context("a frame without room for a cell")?;
        let lane = u32::try_from(self.number % u64::from(LANES))?;
        self.entry.write(cell, lane, HopCommand::Forward, &payload(self.number));
        match self.port.transmit(BACK, frame) {
            Ok(()) => {
                self.tally.sent += 1;
                self.number += 1;
            }
            // Its numbers are spent; the payload goes in the next cell.
            Err(refused) => self.pool.put(refused.frame),
        }
        Ok(())
    }

    fn take_in(&mut self) -> usize {
        let count = self.port.receive(&mut self.pool, &mut self.received, BATCH);
        for mut received in self.received.drain(..) {
            match received.frame.cell_mut().map(|cell| open(&self.exit, cell)) {
                Some(Opened::Payload(number)) if self.seen.first_time(number) => {
                    self.tally.received += 1;
                    self.shared.received.store(self.tally.received, Ordering::Relaxed);
                }
                Some(Opened::Other) => {}
                _ => self.tally.strange += 1,
            }
            self.pool.put(received.frame);
        }
        count
    }
}

enum Opened {
    /// The payload of this number, whole.
    Payload(u64),
    /// Cover, or the circuit's own business.
    Other,
    /// Nothing that the relay should have sent.
    Strange,
}

fn open(exit: &[LinkKeys], cell: &mut [u8; CELL_LEN]) -> Opened {
    let Some(header) = cell.first_chunk().and_then(LinkHeader::decode) else { return Opened::Strange };
    if header.receiver_index == BACK {
        return Opened::Other;
    }
    let lane = header.receiver_index - 1;
    let Some(keys) = exit.get(lane as usize) else { return Opened::Strange };
    if keys.receive.open_cell(cell).is_err() {
        return Opened::Strange;
    }
    let header = cell[LINK_HEADER_LEN..LINK_HEADER_LEN + CIRCUIT_HEADER_LEN].first_chunk();
    let Some(header) = header.and_then(CircuitHeader::decode) else { return Opened::Strange };
    if CellCommand::from_byte(header.command) != Some(CellCommand::Relay) {
        return Opened::Other;
    }
    let data = &cell[BODY_OFFSET..BODY_OFFSET + PAYLOAD];
    let number = data.first_chunk().map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes));
    if header.circ_id == circ_id(lane) && data == payload(number) {
        Opened::Payload(number)
    } else {
        Opened::Strange
    }
}

fn payload(number: u64) -> [u8; PAYLOAD] {
    let mut payload = [0x5a; PAYLOAD];
    payload[..8].copy_from_slice(&number.to_be_bytes());
    payload
}
