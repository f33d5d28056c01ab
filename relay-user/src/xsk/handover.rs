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
    use std::collections::VecDeque;

    use proptest::prelude::*;

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

    #[test]
    fn a_frame_of_another_arena_is_refused() {
        let (ours, theirs) = (Arena::anonymous(2).unwrap(), Arena::anonymous(2).unwrap());
        let (mut giver, mut taker) = handover(ours, 2);
        let stranger = giver.give(theirs.take().unwrap(), source(1)).unwrap_err();
        assert_eq!(theirs.free_frames(), 1);
        drop(stranger);
        giver.publish();
        assert!(taker.take().is_none());
        assert_eq!((ours.free_frames(), theirs.free_frames()), (2, 2));
    }

    #[test]
    fn capacities_out_of_range_are_refused() {
        let arena = Arena::anonymous(1).unwrap();
        for capacity in [0, 1, 3, MAX_CAPACITY - 1, 2 * MAX_CAPACITY] {
            assert!(std::panic::catch_unwind(|| handover(arena, capacity)).is_err(), "{capacity}");
        }
        for capacity in [2, MAX_CAPACITY] {
            drop(handover(arena, capacity));
        }
    }

    /// One thread gives every frame of a few through the ring again and again, the other checks bytes, length and source.
    #[test]
    fn two_threads_hand_over_what_was_written() {
        const COUNT: u32 = 50_000;
        let arena = Arena::anonymous(24).unwrap();
        let (mut giver, mut taker) = starting_at(arena, 8, u32::MAX - COUNT / 2);
        let sender = std::thread::spawn(move || {
            for number in 0..COUNT {
                let mut frame = loop {
                    match arena.take() {
                        Some(frame) => break frame,
                        None => std::thread::yield_now(),
                    }
                };
                let len = 4 + u16::try_from(number % 1000).unwrap();
                frame.reset(u16::try_from(number % 700).unwrap(), len);
                frame.data_mut().fill(number.to_le_bytes()[0]);
                frame.data_mut()[..4].copy_from_slice(&number.to_be_bytes());
                let from = source(u16::try_from(number % 60_000).unwrap());
                while let Err(back) = giver.give(frame, from) {
                    frame = back;
                    giver.publish();
                    std::thread::yield_now();
                }
                if number % 3 == 0 {
                    giver.publish();
                }
            }
        });
        for number in 0..COUNT {
            let (frame, from) = loop {
                if let Some(taken) = taker.take() {
                    break taken;
                }
                // Without this neither end would move on: the giver waits for places.
                taker.release();
                // The giver's last batch becomes visible when it is dropped.
                std::thread::yield_now();
            };
            assert_eq!(u32::from(frame.len()), 4 + number % 1000);
            assert_eq!(u32::from(frame.offset()), number % 700);
            assert_eq!(u32::from(from.port()), number % 60_000);
            assert_eq!(frame.data()[..4], number.to_be_bytes());
            assert!(frame.data()[4..].iter().all(|byte| *byte == number.to_le_bytes()[0]));
        }
        sender.join().unwrap();
        assert!(taker.take().is_none());
        assert_eq!(arena.free_frames(), 24);
    }

    /// Both ends dropped at once, by two threads: one of them, whichever it is, finds the rest.
    #[test]
    fn ends_dropped_at_once_lose_nothing() {
        for round in 0..500u32 {
            let arena = Arena::anonymous(8).unwrap();
            let (mut giver, mut taker) = starting_at(arena, 8, u32::MAX - round % 12);
            let start = Arc::new(std::sync::Barrier::new(2));
            let other = Arc::clone(&start);
            let sender = std::thread::spawn(move || {
                for port in 0..6 {
                    giver.give(arena.take().unwrap(), source(port)).unwrap();
                    if port == 3 {
                        giver.publish();
                    }
                }
                other.wait();
            });
            start.wait();
            let held: Vec<_> = std::iter::from_fn(|| taker.take()).take((round % 7) as usize).collect();
            drop(taker);
            sender.join().unwrap();
            assert_eq!(arena.free_frames(), 8 - held.len());
            drop(held);
            assert_eq!(every_chunk(arena), 8);
        }
    }

    /// How many distinct chunks can be had: fewer than there are if one is lost, or in the pool twice.
    fn every_chunk(arena: &'static Arena) -> usize {
        let frames: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        let chunks: std::collections::BTreeSet<_> = frames.into_iter().map(|f| f.into_chunk().0).collect();
        chunks.len()
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Give,
        Publish,
        Take,
        Release,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Give), 1 => Just(Step::Publish), 4 => Just(Step::Take), 1 => Just(Step::Release)
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Against a queue, from any index; and wherever it stops, whoever goes first, and with frames in hand.
        #[test]
        fn behaves_like_a_fifo_and_gives_everything_back(
            bits in 1u32..5,
            start in prop_oneof![any::<u32>(), (0u32..40).prop_map(|back| u32::MAX - back)],
            steps in steps(),
            giver_first: bool,
            given_after in 0u16..4,
            taken_after in 0u16..4,
        ) {
            let capacity = 1usize << bits;
            let arena = Arena::anonymous(64).unwrap();
            let (mut giver, mut taker) = starting_at(arena, 1 << bits, start);
            let (mut written, mut visible, mut unreleased) = (VecDeque::new(), VecDeque::new(), 0);
            let mut held = Vec::new();
            let mut next = 0u16;
            for step in steps {
                match step {
                    Step::Give => {
                        let Some(mut frame) = arena.take() else { continue };
                        frame.reset(next, 2);
                        frame.data_mut().copy_from_slice(&next.to_be_bytes());
                        let room = written.len() + visible.len() + unreleased < capacity;
                        let given = giver.give(frame, source(next));
                        prop_assert_eq!(given.is_ok(), room);
                        if room {
                            written.push_back(next);
                            next += 1;
                        }
                    }
                    Step::Publish => {
                        giver.publish();
                        visible.append(&mut written);
                    }
                    Step::Take => {
                        let taken = taker.take();
                        prop_assert_eq!(taken.as_ref().map(|(_, from)| from.port()), visible.front().copied());
                        if let (Some((frame, _)), Some(number)) = (taken, visible.pop_front()) {
                            prop_assert_eq!(frame.data(), number.to_be_bytes());
                            prop_assert_eq!((frame.offset(), frame.len()), (number, 2));
                            unreleased += 1;
                            held.push(frame);
                            held.truncate(20);
                        }
                    }
                    Step::Release => {
                        taker.release();
                        unreleased = 0;
                    }
                }
                let queued = written.len() + visible.len();
                prop_assert_eq!(arena.free_frames(), 64 - queued - held.len());
            }
            if giver_first {
                drop(giver);
                visible.append(&mut written);
                // The ring outlives its giver, and so does what the giver had not published.
                for _ in 0..taken_after {
                    let taken = taker.take();
                    prop_assert_eq!(taken.as_ref().map(|(_, from)| from.port()), visible.pop_front());
                    held.extend(taken.map(|(frame, _)| frame));
                }
                prop_assert_eq!(arena.free_frames(), 64 - visible.len() - held.len());
                drop(taker);
            } else {
                drop(taker);
                // Dropping the taker released what it had taken.
                let mut queued = written.len() + visible.len();
                for _ in 0..given_after {
                    let Some(frame) = arena.take() else { break };
                    prop_assert_eq!(giver.give(frame, source(0)).is_ok(), queued < capacity);
                    queued = (queued + 1).min(capacity);
                }
                prop_assert_eq!(arena.free_frames(), 64 - queued - held.len());
                drop(giver);
            }
            prop_assert_eq!(arena.free_frames(), 64 - held.len());
            drop(held);
            prop_assert_eq!(every_chunk(arena), 64);
        }
    }
}
