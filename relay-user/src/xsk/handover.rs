//! A bounded ring by which one worker hands cells to another: what moves is the right to a frame, never its bytes.
//!
//! A frame in the ring has no owner that safe code could name, as one that the kernel holds. It becomes a [`Frame`] again
//! in exactly one of two places: [`Taker::take`], or the drop of [`Remainder`], which both ends share and which therefore
//! goes after whichever of them goes last.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::arena::{Arena, Frame};
use super::plain::Plain;
use super::ring::{Consumer, Producer};

/// Cells that a ring may hold at most.
const MAX_CAPACITY: u32 = 1 << 16;

/// A frame on its way, and where its cell came from.
#[derive(Clone, Copy)]
struct Entry {
    chunk: u32,
    offset: u16,
    len: u16,
    source: SocketAddr,
}

/// The end that hands frames over.
pub struct Giver {
    producer: Producer<Arc<Plain<Entry>>>,
    remainder: Arc<Remainder>,
}

/// The end that gets the frames.
pub struct Taker {
    consumer: Consumer<Arc<Plain<Entry>>>,
    remainder: Arc<Remainder>,
}

/// What is in the ring when both ends are gone.
struct Remainder {
    ring: Arc<Plain<Entry>>,
    arena: &'static Arena,
}

/// Makes a ring for at most `capacity` cells (a power of two, 2 to 2^16) of `arena`.
///
/// # Panics
/// Where `capacity` is out of that range or not a power of two.
pub fn handover(arena: &'static Arena, capacity: u32) -> (Giver, Taker) {
    starting_at(arena, capacity, 0)
}

fn starting_at(arena: &'static Arena, capacity: u32, start: u32) -> (Giver, Taker) {
    assert!(
        (2..=MAX_CAPACITY).contains(&capacity) && capacity.is_power_of_two(),
        "a handover ring holds a power of two of cells, 2 to {MAX_CAPACITY}, not {capacity}"
    );
    let source = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let ring = Plain::new(capacity, start, Entry { chunk: 0, offset: 0, len: 0, source });
    let producer = Producer::new(Arc::clone(&ring));
    let consumer = Consumer::new(Arc::clone(&ring));
    let remainder = Arc::new(Remainder { ring, arena });
    (Giver { producer, remainder: Arc::clone(&remainder) }, Taker { consumer, remainder })
}

impl Giver {
    /// Queues `frame`, whose cell came from `source`; the other end sees it after [`Self::publish`].
    ///
    /// # Errors
    /// Gives the frame back when the ring is full or the frame is of another arena.
    pub fn give(&mut self, frame: Frame, source: SocketAddr) -> Result<(), Frame> {
        // The room is asked for first: once its chunk is given up, a frame cannot be handed back.
        if !std::ptr::eq(frame.arena(), self.remainder.arena) || !self.producer.has_room() {
            return Err(frame);
        }
        let (chunk, offset, len) = frame.into_chunk();
        let queued = self.producer.push(Entry { chunk, offset, len, source });
        debug_assert!(queued, "a ring that had room was full");
        Ok(())
    }

    /// Shows the other end everything given so far.
    pub fn publish(&mut self) {
        self.producer.publish();
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        // What was given and not shown would otherwise be lost: neither the taker nor the remainder looks beyond the
        // published index.
        self.producer.publish();
    }
}

impl Taker {
    /// The oldest frame published and not taken yet, and where its cell came from. Its place in the ring is the giver's
    /// again after [`Self::release`].
    pub fn take(&mut self) -> Option<(Frame, SocketAddr)> {
        let entry = self.consumer.pop()?;
        // SAFETY: the entry is from the ring of this arena, and only `give` writes there, what `into_chunk` gave it for
        // a frame of this arena. The consumer reads an entry once; the remainder starts at the index that dropping this
        // taker releases, behind it. The kernel never had the chunk: it was a frame up to `into_chunk`. What the giver
        // wrote into it is visible here, for the index was stored with release after it and loaded with acquire.
        let frame = unsafe { entry.into_frame(self.remainder.arena) }?;
        Some((frame, entry.source))
    }

    /// Gives the places of everything taken so far back to the giver.
    pub fn release(&mut self) {
        self.consumer.release();
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        // The remainder starts at the released index: a frame taken and not released would be made twice.
        self.consumer.release();
    }
}

impl Drop for Remainder {
    fn drop(&mut self) {
        let mut consumer = Consumer::new(Arc::clone(&self.ring));
        while let Some(entry) = consumer.pop() {
            // SAFETY: this runs when the last of the two references is dropped, and each end drops its own only after
            // its `drop` has published, or released, everything it did; the reference count orders both before this.
            // So nothing is written or read by either end any more, this is the only consumer, and it starts behind
            // the last entry that `take` made a frame of. Otherwise as for `take`.
            drop(unsafe { entry.into_frame(self.arena) });
        }
    }
}

impl Entry {
    /// The frame that this entry stands for. `None` never, unless the entry is not one of `arena`.
    ///
    /// # Safety
    /// As [`Frame::from_chunk`] demands: the chunk is of `arena`, was given up to this ring, and no frame was made of
    /// this entry since.
    unsafe fn into_frame(self, arena: &'static Arena) -> Option<Frame> {
        // SAFETY: the caller's promise is the one demanded.
        unsafe { Frame::from_chunk(arena, self.chunk, self.offset, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    #[test]
    fn a_full_ring_gives_the_frame_back() {
        let arena = Arena::anonymous(4).unwrap();
        let (mut giver, mut taker) = handover(arena, 2);
        for port in 1..=2 {
            giver.give(arena.take().unwrap(), source(port)).unwrap();
        }
        giver.publish();
        let mut frame = arena.take().unwrap();
        frame.data_mut().fill(3);
        let mut frame = giver.give(frame, source(3)).unwrap_err();
        assert_eq!(frame.data()[0], 3);
        assert_eq!(taker.take().unwrap().1, source(1));
        frame = giver.give(frame, source(3)).unwrap_err();
        taker.release();
        giver.give(frame, source(3)).unwrap();
        assert_eq!(taker.take().unwrap().1, source(2));
        assert!(taker.take().is_none());
        giver.publish();
        let (frame, from) = taker.take().unwrap();
        assert_eq!((frame.data()[0], from), (3, source(3)));
        drop(frame);
        assert_eq!(arena.free_frames(), 4);
    }
}
