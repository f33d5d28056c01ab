//! The loader: sends prepared packets and takes what comes back, on one queue, from one thread.

use anyhow::{Context as _, Result};
use relay_user::steering::Steering;
use relay_user::xsk::{Frame, FramePool, XskSocket};

use super::{End, RING, Rig};

/// System calls of one flush, at most.
const MAX_KICKS: u32 = 64;
/// Frames that the pool keeps at hand.
const STOCK: usize = 4096;

/// What a loader's socket did, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoaderCounts {
    /// Given to the kernel.
    pub sent: u64,
    /// Of these, dropped by it at once, since the other end's queue was full.
    pub lost: u64,
    /// Received.
    pub received: u64,
    /// Dropped by the kernel, since the receive ring was full or no frame was there to receive into.
    pub dropped: u64,
}

/// An AF_XDP socket at one end of the rig, with frames to send and to receive into.
pub struct Loader {
    socket: XskSocket,
    pool: FramePool,
    counts: LoaderCounts,
    completed: u64,
    calls: u64,
}

impl Loader {
    /// Opens a socket on `queue` of `end` and lets `steering`, which is attached there, hand cells to it. With `share`,
    /// both use one UMEM.
    ///
    /// # Errors
    /// Where the kernel refuses the socket.
    pub fn open(
        rig: &Rig,
        end: End,
        queue: u32,
        steering: &mut Steering,
        share: Option<&Self>,
    ) -> Result<Self> {
        let _inside = rig.enter(end)?;
        let arena = end.arena()?;
        let socket = XskSocket::open(arena, &Rig::socket_config(queue), share.map(|loader| &loader.socket))?;
        steering.bind_rings(queue, &socket)?;
        let pool = FramePool::new(arena, STOCK);
        let mut loader = Self { socket, pool, counts: LoaderCounts::default(), completed: 0, calls: 0 };
        loader.refill();
        Ok(loader)
    }

    /// A frame placed for a cell.
    ///
    /// # Errors
    /// Where all frames of this end are in use.
    pub fn frame(&mut self) -> Result<Frame> {
        self.pool.take().context("the rig is out of frames")
    }

    /// Takes a frame back.
    pub fn put(&mut self, frame: Frame) {
        self.pool.put(frame);
    }

    /// Queues a whole packet to be sent with the next [`Self::flush`]. Gives it back when the ring is full.
    ///
    /// # Errors
    /// The frame.
    pub fn push(&mut self, frame: Frame) -> std::result::Result<(), Frame> {
        self.socket.push_transmit(frame)?;
        self.counts.sent += 1;
        Ok(())
    }

    /// Sends what is queued, and takes the frames of what is gone back.
    pub fn flush(&mut self) {
        let kick = self.socket.kick(MAX_KICKS);
        self.calls += u64::from(kick.calls);
        self.counts.lost += u64::from(kick.lost);
        while let Some(frame) = self.socket.pop_completed() {
            self.completed += 1;
            self.pool.put(frame);
        }
        self.socket.release_completed();
    }

    /// Hands up to `max` received packets to `take` and returns how many. What `take` returns is received into anew.
    pub fn receive(&mut self, max: usize, mut take: impl FnMut(Frame) -> Option<Frame>) -> usize {
        let mut count = 0;
        while count < max
            && let Some(frame) = self.socket.pop_received()
        {
            count += 1;
            if let Some(frame) = take(frame) {
                self.pool.put(frame);
            }
        }
        if count > 0 {
            self.socket.release_received();
            self.counts.received += count as u64;
            self.refill();
        }
        count
    }

    fn refill(&mut self) {
        while self.socket.frames_to_receive() < RING {
            let Some(frame) = self.pool.take() else { break };
            if let Err(frame) = self.socket.push_fill(frame) {
                self.pool.put(frame);
                break;
            }
        }
        self.socket.publish_fill();
    }

    /// Packets queued and not done with by the kernel.
    pub const fn in_flight(&self) -> u64 {
        self.counts.sent - self.completed
    }

    /// System calls made to send.
    pub const fn calls(&self) -> u64 {
        self.calls
    }

    /// Totals so far.
    pub fn counts(&self) -> LoaderCounts {
        let mut counts = self.counts;
        if let Some(kernel) = self.socket.statistics() {
            counts.dropped = kernel.rx_dropped + kernel.rx_ring_full.unwrap_or(0);
        }
        counts
    }
}
