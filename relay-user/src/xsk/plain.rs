//! A ring in plain memory, between two threads of this process.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crossbeam::utils::CachePadded;

use super::ring::RingMemory;

/// The memory of a ring whose two ends are both in this process. The kernel has no part in it, hence no flags.
pub(super) struct Plain<T> {
    // Lines of their own: each index is written by one end and polled by the other, and neither may take the other's
    // line away when it moves its own.
    producer: CachePadded<AtomicU32>,
    consumer: CachePadded<AtomicU32>,
    entries: Box<[UnsafeCell<T>]>,
    size: u32,
}

// SAFETY: the indices are atomic; the entries are reached through `RingMemory` only, whose callers keep the two ends off
// the same entry, and what one end writes the other may read, since `T` is `Send`.
unsafe impl<T: Copy + Send> Sync for Plain<T> {}

impl<T: Copy> Plain<T> {
    /// An empty ring of `size` entries whose indices start at `start`. Every entry is `filler` until it is written.
    ///
    /// # Panics
    /// Where `size` is not a power of two.
    pub(super) fn new(size: u32, start: u32, filler: T) -> Arc<Self> {
        assert!(size.is_power_of_two(), "a ring of {size} entries, which is not a power of two");
        Arc::new(Self {
            producer: CachePadded::new(AtomicU32::new(start)),
            consumer: CachePadded::new(AtomicU32::new(start)),
            entries: (0..size).map(|_| UnsafeCell::new(filler)).collect(),
            size,
        })
    }
}

// SAFETY: `new` demands a power of two, the size never changes and the boxed slice has that many entries, all of them
// initialised. The indices are of this ring alone; whoever makes the cursors makes one of each at a time.
unsafe impl<T: Copy> RingMemory for Arc<Plain<T>> {
    type Entry = T;

    fn size(&self) -> u32 {
        self.size
    }

    fn producer(&self) -> &AtomicU32 {
        &self.producer
    }

    fn consumer(&self) -> &AtomicU32 {
        &self.consumer
    }

    fn flags(&self) -> Option<&AtomicU32> {
        None
    }

    unsafe fn read(&self, place: u32) -> T {
        // SAFETY: the caller keeps the other end from writing this entry meanwhile; the slice checks the place.
        unsafe { *self.entries[place as usize].get() }
    }

    unsafe fn write(&self, place: u32, entry: T) {
        // SAFETY: the caller keeps the other end from this entry meanwhile; the slice checks the place.
        unsafe { *self.entries[place as usize].get() = entry }
    }
}
