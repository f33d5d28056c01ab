//! The two ends of an AF_XDP ring: single producer, single consumer, over memory that another party also maps. The rings
//! between this process's own workers are of the same kind.
//!
//! Indices are `u32`, run freely and wrap; an entry's place is the index modulo the ring's size, a power of two. Each
//! end keeps its own copy of both indices and looks at the shared one of the other end only when its copy says that
//! the ring is full (or empty), so that the cache line moves between processors once a batch and not once an entry.

use std::sync::atomic::{AtomicU32, Ordering, fence};

/// `XDP_RING_NEED_WAKEUP` in a ring's flags (uapi/linux/if_xdp.h).
const NEED_WAKEUP: u32 = 1;

/// Where a ring lives: mapped from the kernel, or plain memory of this process.
///
/// # Safety
/// `size` is a power of two and never changes; the indices are those of one ring and each is written by one end only;
/// `read` and `write` reach `size` entries, of which every bit pattern is a value.
pub(super) unsafe trait RingMemory {
    /// What the ring carries.
    type Entry: Copy;

    /// Number of entries, a power of two.
    fn size(&self) -> u32;

    /// Index of the next entry to produce; written by the producer only.
    fn producer(&self) -> &AtomicU32;

    /// Index of the next entry to consume; written by the consumer only.
    fn consumer(&self) -> &AtomicU32;

    /// The ring's flags, where the kernel has them (5.4 and later).
    fn flags(&self) -> Option<&AtomicU32>;

    /// Reads the entry at `place`.
    ///
    /// # Safety
    /// `place < size`, and the other end does not write the entry meanwhile.
    unsafe fn read(&self, place: u32) -> Self::Entry;

    /// Writes the entry at `place`.
    ///
    /// # Safety
    /// `place < size`, and the other end does not touch the entry meanwhile.
    unsafe fn write(&self, place: u32, entry: Self::Entry);
}

/// The producing end of a ring.
pub(super) struct Producer<M> {
    memory: M,
    mask: u32,
    /// Index of the next entry to write; runs ahead of the shared one until [`Self::publish`].
    next: u32,
    /// The consumer's index when last looked at.
    consumed: u32,
}

impl<M: RingMemory> Producer<M> {
    /// Takes the producing end over at the index that the memory holds.
    pub(super) fn new(memory: M) -> Self {
        let next = memory.producer().load(Ordering::Relaxed);
        let consumed = memory.consumer().load(Ordering::Acquire);
        Self { mask: memory.size() - 1, next, consumed, memory }
    }

    /// Entries written that the consumer has not taken, as far as this end knows.
    fn in_use(&self) -> u32 {
        self.next.wrapping_sub(self.consumed)
    }

    /// Whether there is room for another entry. Looks at the shared index only where the copy says no.
    pub(super) fn has_room(&mut self) -> bool {
        // `<` and not `!=`: an index that the other end corrupted makes the ring look full, never larger than it is.
        if self.in_use() < self.memory.size() {
            return true;
        }
        self.consumed = self.memory.consumer().load(Ordering::Acquire);
        self.in_use() < self.memory.size()
    }

    /// Writes `entry`, for the consumer to see after the next [`Self::publish`]. `false` when the ring is full.
    pub(super) fn push(&mut self, entry: M::Entry) -> bool {
        if !self.has_room() {
            return false;
        }
        // SAFETY: the mask keeps the place below `size`. Fewer than `size` entries are in use, counted against a
        // consumer index loaded with acquire, so the consumer is done with this place and will not look at it again
        // before the index is published.
        unsafe { self.memory.write(self.next & self.mask, entry) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows the consumer everything written so far.
    pub(super) fn publish(&mut self) {
        self.memory.producer().store(self.next, Ordering::Release);
    }

    /// Published or written entries that the consumer has not taken, looked up afresh.
    pub(super) fn pending(&mut self) -> u32 {
        self.consumed = self.memory.consumer().load(Ordering::Acquire);
        self.in_use()
    }

    /// Whether the consumer sleeps and wants a system call. True where the kernel has no such flag.
    pub(super) fn needs_wakeup(&self) -> bool {
        // The store of the index must not pass the load of the flag: the kernel sets the flag, then looks at the index
        // once more before it sleeps, and without the fence each could miss the other.
        fence(Ordering::SeqCst);
        self.memory.flags().is_none_or(|flags| flags.load(Ordering::Relaxed) & NEED_WAKEUP != 0)
    }
}

/// The consuming end of a ring.
pub(super) struct Consumer<M> {
    memory: M,
    mask: u32,
    /// Index of the next entry to read; runs ahead of the shared one until [`Self::release`].
    next: u32,
    /// The producer's index when last looked at.
    produced: u32,
}

impl<M: RingMemory> Consumer<M> {
    /// Takes the consuming end over at the index that the memory holds.
    pub(super) fn new(memory: M) -> Self {
        let next = memory.consumer().load(Ordering::Relaxed);
        let produced = memory.producer().load(Ordering::Acquire);
        Self { mask: memory.size() - 1, next, produced, memory }
    }

    /// The oldest entry not read yet. Its place is the producer's again after the next [`Self::release`].
    pub(super) fn pop(&mut self) -> Option<M::Entry> {
        if self.next == self.produced {
            let produced = self.memory.producer().load(Ordering::Acquire);
            // An index that the other end corrupted makes the ring look empty, never fuller than it can be.
            if produced.wrapping_sub(self.next) > self.memory.size() {
                return None;
            }
            self.produced = produced;
            if self.next == self.produced {
                return None;
            }
        }
        // SAFETY: the mask keeps the place below `size`. `next` is before a producer index loaded with acquire, so the
        // entry was written before; the producer leaves it alone until `release` shows it a later consumer index.
        let entry = unsafe { self.memory.read(self.next & self.mask) };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// The entry `ahead` places behind the next one, where it is known to be there. It stays to be read.
    pub(super) fn peek(&self, ahead: u32) -> Option<M::Entry> {
        if self.produced.wrapping_sub(self.next) <= ahead {
            return None;
        }
        // SAFETY: the mask keeps the place below `size`. The entry is before `produced`, which `pop` loaded with acquire
        // and found no further than `size` from `next`, so the producer wrote it before and leaves it alone until
        // `release` shows it a later consumer index.
        Some(unsafe { self.memory.read(self.next.wrapping_add(ahead) & self.mask) })
    }

    /// Gives the places of everything read so far back to the producer.
    pub(super) fn release(&mut self) {
        self.memory.consumer().store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::plain::Plain;
    use super::*;

    /// A plain ring with the flags that the kernel's rings have.
    struct Flagged<'a> {
        ring: Arc<Plain<u64>>,
        flags: &'a AtomicU32,
    }

    // SAFETY: all but the flags is the plain ring's, which keeps the contract.
    unsafe impl RingMemory for Flagged<'_> {
        type Entry = u64;
        fn size(&self) -> u32 {
            self.ring.size()
        }
        fn producer(&self) -> &AtomicU32 {
            self.ring.producer()
        }
        fn consumer(&self) -> &AtomicU32 {
            self.ring.consumer()
        }
        fn flags(&self) -> Option<&AtomicU32> {
            Some(self.flags)
        }
        unsafe fn read(&self, place: u32) -> u64 {
            // SAFETY: the caller's promise is the one demanded.
            unsafe { self.ring.read(place) }
        }
        unsafe fn write(&self, place: u32, entry: u64) {
            // SAFETY: the caller's promise is the one demanded.
            unsafe { self.ring.write(place, entry) }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push,
        Publish,
        Pop,
        Release,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Pushes and pops weigh more, so that the ring does fill and drain between publications.
        let step = prop_oneof![
            4 => Just(Step::Push), 1 => Just(Step::Publish), 4 => Just(Step::Pop), 1 => Just(Step::Release)
        ];
        proptest::collection::vec(step, 0..400)
    }

    fn start() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), (0u32..40).prop_map(|back| u32::MAX - back)]
    }

    #[test]
    fn what_is_peeked_at_is_popped_later() {
        let memory = Plain::new(8, u32::MAX - 1, 0u64);
        let (mut producer, mut consumer) = (Producer::new(memory.clone()), Consumer::new(memory));
        assert_eq!(consumer.peek(0), None);
        for entry in 0..5 {
            assert!(producer.push(entry));
        }
        producer.publish();
        assert_eq!(consumer.pop(), Some(0));
        assert_eq!([0, 1, 3].map(|ahead| consumer.peek(ahead)), [Some(1), Some(2), Some(4)]);
        assert_eq!(consumer.peek(4), None);
        assert_eq!(std::iter::from_fn(|| consumer.pop()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn behaves_like_a_fifo_from_any_index(bits in 0u32..5, start in start(), steps in steps()) {
            let size = 1u32 << bits;
            let memory = Plain::new(size, start, u64::MAX);
            let mut producer = Producer::new(Arc::clone(&memory));
            let mut consumer = Consumer::new(Arc::clone(&memory));
            let (mut written, mut visible, mut unreleased) = (VecDeque::new(), VecDeque::new(), 0usize);
            let mut value = 0u64;
            for step in steps {
                match step {
                    Step::Push => {
                        let room = written.len() + visible.len() + unreleased < size as usize;
                        prop_assert_eq!(producer.push(value), room);
                        if room {
                            written.push_back(value);
                            value += 1;
                        }
                    }
                    Step::Publish => {
                        producer.publish();
                        visible.append(&mut written);
                    }
                    Step::Pop => {
                        let expected = visible.pop_front();
                        unreleased += usize::from(expected.is_some());
                        prop_assert_eq!(consumer.pop(), expected);
                    }
                    Step::Release => {
                        consumer.release();
                        unreleased = 0;
                        prop_assert_eq!(producer.pending() as usize, written.len() + visible.len());
                    }
                }
            }
        }

        #[test]
        fn a_corrupted_index_is_never_followed(
            bits in 0u32..5, start in start(), pushed in 0u32..16, produced: u32, consumed: u32,
        ) {
            let size = 1u32 << bits;
            let memory = Plain::new(size, start, u64::MAX);
            let mut producer = Producer::new(Arc::clone(&memory));
            let mut consumer = Consumer::new(Arc::clone(&memory));
            for value in 0..pushed {
                producer.push(value.into());
            }
            memory.producer().store(produced, Ordering::Relaxed);
            memory.consumer().store(consumed, Ordering::Relaxed);
            let popped = std::iter::from_fn(|| consumer.pop()).take(size as usize + 1).count();
            prop_assert!(popped <= size as usize);
            let more = (0..=2 * size).take_while(|_| producer.push(9)).count();
            prop_assert!(more <= size as usize * 2);
        }
    }

    #[test]
    fn the_flag_asks_for_a_wakeup() {
        let flags = AtomicU32::new(0);
        let producer = Producer::new(Flagged { ring: Plain::new(2, 0, u64::MAX), flags: &flags });
        assert!(!producer.needs_wakeup());
        flags.store(NEED_WAKEUP, Ordering::Relaxed);
        assert!(producer.needs_wakeup());
    }

    #[test]
    fn two_threads_keep_the_order_across_the_wrap() {
        const COUNT: u64 = 10_000;
        let memory = Plain::new(8, u32::MAX - 5_000, u64::MAX);
        let mut producer = Producer::new(Arc::clone(&memory));
        let mut consumer = Consumer::new(memory);
        let sender = std::thread::spawn(move || {
            for value in 0..COUNT {
                while !producer.push(value) {
                    std::thread::yield_now();
                }
                producer.publish();
            }
        });
        for expected in 0..COUNT {
            let got = loop {
                if let Some(value) = consumer.pop() {
                    break value;
                }
                std::thread::yield_now();
            };
            assert_eq!(got, expected);
            consumer.release();
        }
        sender.join().unwrap();
    }
}
