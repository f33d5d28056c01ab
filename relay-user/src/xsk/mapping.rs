//! A ring in memory that the kernel lends by `mmap`.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::{XdpDesc, XdpRingOffset};

use super::ring::RingMemory;

/// Types that a ring may carry.
///
/// # Safety
/// Every bit pattern is a value, and the type has the layout that the kernel uses in the ring.
pub(super) unsafe trait RingEntry: Copy {}

// SAFETY: addresses in the fill and completion rings are plain u64 (uapi/linux/if_xdp.h).
unsafe impl RingEntry for u64 {}
// SAFETY: `repr(C)` of u64, u32 and a transparent u32 flags type that keeps unknown bits: `struct xdp_desc`.
unsafe impl RingEntry for XdpDesc {}

/// One mapped ring. Unmapped on drop: a mapping that outlives its socket keeps the queue taken.
pub(super) struct MappedRing<T> {
    base: NonNull<u8>,
    len: usize,
    size: u32,
    producer: usize,
    consumer: usize,
    flags: Option<usize>,
    entries: usize,
    entry: PhantomData<T>,
}

// SAFETY: the mapping belongs to this value alone, and no thread-bound state hangs on it.
unsafe impl<T: Send> Send for MappedRing<T> {}

impl<T: RingEntry> MappedRing<T> {
    /// Maps the ring of `size` entries that `socket` keeps at page offset `page_offset`.
    ///
    /// # Errors
    /// What `mmap` reports; `EINVAL` where the kernel's offsets cannot be those of such a ring.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &XdpRingOffset,
        size: u32,
    ) -> Result<Self, Errno> {
        let place = |offset: u64, align: usize| {
            usize::try_from(offset).ok().filter(|offset| offset % align == 0).ok_or(Errno::INVAL)
        };
        let producer = place(offsets.producer, align_of::<AtomicU32>())?;
        let consumer = place(offsets.consumer, align_of::<AtomicU32>())?;
        let flags = offsets.flags.map(|flags| place(flags, align_of::<AtomicU32>())).transpose()?;
        let entries = place(offsets.desc, align_of::<T>())?;
        // The kernel lays the entries out last; the mapping ends with them.
        let len = entries + size as usize * size_of::<T>();
        let word_end = producer.max(consumer).max(flags.unwrap_or(0)) + size_of::<AtomicU32>();
        if !size.is_power_of_two() || word_end > entries {
            return Err(Errno::INVAL);
        }
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                socket,
                page_offset,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len, size, producer, consumer, flags, entries, entry: PhantomData })
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `map` checked that the offset is aligned and in front of the entries, so inside the mapping, which
        // lives as long as `self`; the kernel accesses the word as an atomic u32 too.
        unsafe { self.base.add(offset).cast::<AtomicU32>().as_ref() }
    }

    fn entry(&self, place: u32) -> NonNull<T> {
        debug_assert!(place < self.size);
        // SAFETY: `place < size` by contract of the only callers, so this stays inside the mapping.
        unsafe { self.base.add(self.entries).cast::<T>().add(place as usize) }
    }
}

// SAFETY: `map` checked that the size is a power of two and that the mapping holds `size` entries; the words are the
// ring's own by the kernel's offsets; `RingEntry` vouches for bit patterns.
unsafe impl<T: RingEntry> RingMemory for MappedRing<T> {
    type Entry = T;

    fn size(&self) -> u32 {
        self.size
    }

    fn producer(&self) -> &AtomicU32 {
        self.word(self.producer)
    }

    fn consumer(&self) -> &AtomicU32 {
        self.word(self.consumer)
    }

    fn flags(&self) -> Option<&AtomicU32> {
        self.flags.map(|offset| self.word(offset))
    }

    unsafe fn read(&self, place: u32) -> T {
        // SAFETY: inside the mapping and aligned (see `map`); the caller vouches that the kernel does not write it now.
        unsafe { self.entry(place).read() }
    }

    unsafe fn write(&self, place: u32, entry: T) {
        // SAFETY: inside the mapping and aligned (see `map`); the caller vouches that the kernel does not touch it now.
        unsafe { self.entry(place).write(entry) }
    }
}

impl<T> Drop for MappedRing<T> {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; nothing borrowed from `self` is left.
        let result = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "unmapping a ring: {result:?}");
    }
}
