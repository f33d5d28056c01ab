//! All workers of a node: each has a queue of the port, links, circuits and a wheel of its own, and they share nothing but
//! the arena and the rings between them.

use super::crossing::{Crossing, Owners};
use super::{Clock, EVENTS, Events, NodeEdge, Poll, Report, ToWorker, Totals, Worker, WorkerBusy};
use crate::engine::{Command, Engine, Home, Unwatched, Witness};
use crate::port::Port;
use crate::xsk::{Arena, FramePool};
use rand_chacha::ChaCha20Rng;
use std::sync::Arc;

/// What one worker starts with.
pub struct Seat<P, W = Unwatched> {
    /// Its data plane. Numbers of links and circuits are those of the node: worker i of n has all that are i modulo n.
    pub engine: Engine<W>,
    /// Its queue.
    pub port: P,
    /// Its edge.
    pub edge: NodeEdge,
    /// The processor that it is pinned to.
    pub cpu: Option<usize>,
    /// Decides at which moments its cells leave: how its grid lies on the clock.
    pub rng: ChaCha20Rng,
}

/// Frames that a worker keeps to itself.
const POOL: usize = 512;

/// How many of so many frames may wait with events that peers cause on their way to the control plane, and as many again in
/// the engines: what is left is for slots, and peers who send more than the control plane takes must not leave them without.
pub const fn frames_for_events(frames: usize) -> usize {
    frames / 16
}

/// The workers of a node.
#[derive(Debug)]
pub struct Workers {
    all: Vec<Worker>,
    events: Arc<Events>,
    owners: Arc<Owners>,
}

impl Workers {
    /// Starts a thread for each seat. Frames are of `arena`, to which all ports belong.
    ///
    /// # Errors
    /// Where a thread cannot be made or pinned; those already started are ended.
    pub fn start<P: Port + Send + 'static, W: Witness>(
        seats: Vec<Seat<P, W>>,
        arena: &'static Arena,
        clock: Clock,
        poll: Poll,
    ) -> std::io::Result<Self> {
        let events = Arc::new(Events::holding(EVENTS.min(frames_for_events(arena.frames() as usize))));
        let owners = Arc::new(Owners::new());
        let count = u16::try_from(seats.len()).map_err(std::io::Error::other)?;
        let mut crossings = Crossing::among(count, arena, &owners).into_iter();
        let mut all = Vec::with_capacity(seats.len());
        for (number, seat) in (0..).zip(seats) {
            let crossing = crossings.next().filter(|_| count > 1);
            let pool = FramePool::new(arena, POOL);
            let events = Arc::clone(&events);
            all.push(Worker::launch(number, seat, pool, clock, poll, crossing, events)?);
        }
        Ok(Self { all, events, owners })
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        u16::try_from(self.all.len()).unwrap_or(u16::MAX)
    }

    /// The worker that has a link or circuit of this number.
    pub fn home(&self, number: u32) -> u16 {
        u16::try_from(number % u32::from(self.count().max(1))).unwrap_or(0)
    }

    /// Which worker has which session.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// Queues a command for whom it concerns.
    ///
    /// # Errors
    /// Where a queue is full or a worker has ended; the command is lost then.
    pub fn tell(&self, command: ToWorker) -> Result<(), WorkerBusy> {
        let number = match &command {
            ToWorker::Engine(command) => match command.home() {
                Home::Link(number) | Home::Circuit(number) => number,
                // Who has it need not be known: to the others it says nothing.
                Home::Session(receive_index) => {
                    let forget = || ToWorker::Engine(Command::RemoveSession { receive_index });
                    return self.all.iter().map(|worker| worker.tell(forget())).fold(Ok(()), Result::and);
                }
            },
            ToWorker::SetPeer { link, .. } => *link,
            ToWorker::Stop => {
                return self.all.iter().map(|w| w.tell(ToWorker::Stop)).fold(Ok(()), Result::and);
            }
        };
        self.all[usize::from(self.home(number))].tell(command)
    }

    /// The next report of any worker, when there is one.
    pub async fn report(&self) -> Report {
        self.events.next().await
    }

    /// What each worker last published.
    pub fn totals(&self) -> impl Iterator<Item = Totals> {
        self.all.iter().map(Worker::totals)
    }

    /// Whether all threads still run.
    pub fn are_alive(&self) -> bool {
        self.all.iter().all(Worker::is_alive)
    }

    /// Ends the threads and waits for them. The ports are closed when this returns.
    pub fn stop(&mut self) {
        self.all.iter_mut().for_each(Worker::stop);
    }
}
