//! Frame memory and the tokens that own parts of it.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use crossbeam::queue::ArrayQueue;
use relay_common::wire::CELL_LEN;

use super::hint::prefetch_address;
use super::pages::{HugePages, Pages, map};

/// Chunks that an arena may have at most: 2 GiB of frame memory.
const MAX_FRAMES: u32 = 1 << 20;

/// Bytes of a cache line of the processors that matter here.
const CACHE_LINE: usize = 64;

/// `CELL_LEN` as the frame's length type.
const CELL_FRAME_LEN: u16 = {
    assert!(CELL_LEN <= u16::MAX as usize);
    #[expect(clippy::cast_possible_truncation, reason = "asserted one line above")]
    {
        CELL_LEN as u16
    }
};

/// Frame memory of a process: equal chunks and the pool of those that nobody owns.
///
/// An arena is never freed. Rings, sockets and frames all refer to it, sockets outlive what made them while the kernel
/// still drains their queues, and a process has one.
pub struct Arena {
    base: NonNull<u8>,
    pages: Pages,
    frames: u32,
    free: ArrayQueue<u32>,
}

// SAFETY: `base` is only turned into references through a `Frame`, and at most one `Frame` exists per chunk; every
// other field is `Send` by itself.
unsafe impl Send for Arena {}
// SAFETY: the arena's shared methods only touch `free`, which is a concurrent queue, and immutable fields; the bytes
// behind `base` are reached through `Frame`, which is exclusive per chunk.
unsafe impl Sync for Arena {}

impl Arena {
    /// Bytes of a chunk. A page holds two, and a 1360-byte cell with all its headers and the kernel's headroom fits.
    pub const CHUNK: usize = 2048;

    /// Makes an arena of `frames` chunks (1 to 2^20) in ordinary pages, all of them free, zeroed, and leaks it.
    ///
    /// # Errors
    /// As [`Self::in_pages`].
    pub fn anonymous(frames: u32) -> io::Result<&'static Self> {
        Self::in_pages(frames, HugePages::Off)
    }

    /// As [`Self::anonymous`], in the pages that are `wanted`.
    ///
    /// # Errors
    /// `InvalidInput` for a number out of range, `OutOfMemory` where the machine has not enough.
    pub fn in_pages(frames: u32, wanted: HugePages) -> io::Result<&'static Self> {
        if frames == 0 || frames > MAX_FRAMES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("an arena has 1 to {MAX_FRAMES} frames, not {frames}"),
            ));
        }
        let (base, pages) = map(frames as usize * Self::CHUNK, wanted)?;
        let free = ArrayQueue::new(frames as usize);
        for index in 0..frames {
            // The queue has room for exactly this many.
            let _ = free.push(index);
        }
        Ok(Box::leak(Box::new(Self { base, pages, frames, free })))
    }

    /// Number of chunks.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// What the chunks are in.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Chunks in the pool, owned by nobody. Approximate while other threads take and return frames.
    pub fn free_frames(&self) -> usize {
        self.free.len()
    }

    /// Takes a free chunk as a frame placed for a cell; its bytes are what its last owner left. `None` when all are in use.
    pub fn take(&'static self) -> Option<Frame> {
        let index = self.free.pop()?;
        Some(Frame { arena: self, index, offset: Frame::CELL_OFFSET, len: CELL_FRAME_LEN })
    }

    /// Address of the first byte, for registering the arena with the kernel.
    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Asks for `len` bytes at `offset` of a chunk to be brought into the cache. Reads nothing, and names what is not in the
    /// arena in vain.
    pub(super) fn prefetch(&self, index: u32, offset: u16, len: u16) {
        let end = usize::from(offset) + usize::from(len);
        if index < self.frames && end <= Self::CHUNK {
            let start = self.chunk(index).as_ptr().cast_const();
            for line in (usize::from(offset)..end).step_by(CACHE_LINE) {
                prefetch_address(start.wrapping_add(line));
            }
        }
    }

    fn chunk(&self, index: u32) -> NonNull<u8> {
        assert!(index < self.frames, "frame {index} of an arena of {}", self.frames);
        // SAFETY: `index < frames`, so the offset stays inside the one mapping of at least `frames * CHUNK` bytes.
        unsafe { self.base.add(index as usize * Self::CHUNK) }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("frames", &self.frames).field("free", &self.free.len()).finish()
    }
}

/// Exclusive right to one chunk, of which `data()` is the part in use. Dropping it returns the chunk to the arena's pool.
pub struct Frame {
    arena: &'static Arena,
    index: u32,
    offset: u16,
    len: u16,
}

impl Frame {
    /// Where a cell that is built here starts, in bytes from the start of the chunk. In front of it fit the 256 bytes
    /// of headroom that XDP keeps, Ethernet (14), two VLAN tags (8), IPv6 (40) and UDP (8). It lies in the cache lines as
    /// a cell does that came over IPv4 (headroom and 42 bytes of headers): otherwise the kernel copies cells of payload
    /// 10 to 20 ns faster than cells of cover, and a sharp observer tells them apart by it.
    pub const CELL_OFFSET: u16 = 256 + 42 + 64;

    /// The part in use.
    pub fn data(&self) -> &[u8] {
        // SAFETY: `reset` and `from_chunk` keep `offset + len <= CHUNK`; the memory was zeroed at allocation, lives
        // for ever, and this frame is the only one of its chunk, so nobody writes while `self` is borrowed.
        unsafe {
            std::slice::from_raw_parts(
                self.arena.chunk(self.index).add(self.offset.into()).as_ptr(),
                self.len.into(),
            )
        }
    }

    /// The part in use, to write.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `data`; exclusive because `self` is borrowed exclusively and is its chunk's only frame.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.arena.chunk(self.index).add(self.offset.into()).as_ptr(),
                self.len.into(),
            )
        }
    }

    /// Bytes in use.
    #[expect(clippy::len_without_is_empty, reason = "a frame is a buffer with a length, not a collection")]
    pub fn len(&self) -> u16 {
        self.len
    }

    /// Bytes of the chunk in front of the part in use.
    pub fn offset(&self) -> u16 {
        self.offset
    }

    /// Makes `[offset, offset + len)` of the chunk the part in use. The bytes stay.
    ///
    /// # Panics
    /// Where the part would leave the chunk of [`Arena::CHUNK`] bytes.
    pub fn reset(&mut self, offset: u16, len: u16) {
        assert!(
            usize::from(offset) + usize::from(len) <= Arena::CHUNK,
            "{len} bytes at {offset} leave the chunk"
        );
        self.offset = offset;
        self.len = len;
    }

    /// Gives the frame up to the kernel: its chunk's number and the part in use, as offset and length. Until
    /// [`Self::from_chunk`] the chunk has no owner in this process.
    pub(super) fn into_chunk(self) -> (u32, u16, u16) {
        let frame = std::mem::ManuallyDrop::new(self);
        (frame.index, frame.offset, frame.len)
    }

    /// Takes a chunk back that [`Self::into_chunk`] gave up. `None` where the part would leave the arena.
    ///
    /// # Safety
    /// The chunk was given up by [`Self::into_chunk`], was not taken back since, and the kernel is done with it.
    pub(super) unsafe fn from_chunk(
        arena: &'static Arena,
        index: u32,
        offset: u16,
        len: u16,
    ) -> Option<Self> {
        let inside = index < arena.frames && usize::from(offset) + usize::from(len) <= Arena::CHUNK;
        inside.then(|| Self { arena, index, offset, len })
    }

    /// The arena that the frame's chunk is of.
    pub(super) fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// The part in use as a cell, if it is as long as one.
    pub fn cell_mut(&mut self) -> Option<&mut [u8; CELL_LEN]> {
        self.data_mut().try_into().ok()
    }

    /// The part in use as a cell, if it is as long as one.
    pub fn cell(&self) -> Option<&[u8; CELL_LEN]> {
        self.data().try_into().ok()
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // There is room for every chunk of the arena, and this one was not in the pool.
        let returned = self.arena.free.push(self.index);
        debug_assert!(returned.is_ok(), "a chunk was in its pool twice");
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("index", &self.index)
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A worker's own stock of free frames in front of the arena's pool, so that the common case touches no shared memory.
#[derive(Debug)]
pub struct FramePool {
    arena: &'static Arena,
    stock: Vec<Frame>,
    cap: usize,
}

impl FramePool {
    /// An empty stock for at most `cap` frames (at least 1) of `arena`.
    pub fn new(arena: &'static Arena, cap: usize) -> Self {
        let cap = cap.max(1);
        Self { arena, stock: Vec::with_capacity(cap), cap }
    }

    /// The arena that the frames are of.
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// A frame placed for a cell; its bytes are what its last owner left. `None` when every chunk of the arena is in use.
    pub fn take(&mut self) -> Option<Frame> {
        if self.stock.is_empty() {
            // Half, so that a worker that takes and gives back by turns does not run to the shared pool each time.
            let batch = self.cap.div_ceil(2);
            self.stock.extend(std::iter::from_fn(|| self.arena.take()).take(batch));
        }
        self.stock.pop()
    }

    /// Takes a frame back; what is beyond the stock's bound goes to the pool of the frame's arena.
    pub fn put(&mut self, mut frame: Frame) {
        if self.stock.len() < self.cap && std::ptr::eq(frame.arena, self.arena) {
            frame.reset(Frame::CELL_OFFSET, CELL_FRAME_LEN);
            self.stock.push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_sizes_out_of_range() {
        for frames in [0, MAX_FRAMES + 1] {
            assert_eq!(Arena::anonymous(frames).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn every_chunk_is_owned_once_and_comes_back() {
        let arena = Arena::anonymous(8).unwrap();
        let mut frames: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(frames.len(), 8);
        for (tag, frame) in (0u8..).zip(&mut frames) {
            frame.cell_mut().unwrap().fill(tag);
        }
        for (tag, frame) in (0u8..).zip(&frames) {
            assert!(frame.data().iter().all(|byte| *byte == tag));
        }
        assert_eq!(arena.free_frames(), 0);
        drop(frames);
        assert_eq!(arena.free_frames(), 8);
    }

    #[test]
    fn a_cell_fits_in_front_of_the_chunks_end() {
        let arena = Arena::anonymous(1).unwrap();
        let mut frame = arena.take().unwrap();
        assert_eq!((frame.offset(), usize::from(frame.len())), (Frame::CELL_OFFSET, CELL_LEN));
        assert!(usize::from(Frame::CELL_OFFSET) >= 256 + 14 + 8 + 40 + 8);
        frame.reset(2047, 1);
        assert!(frame.cell_mut().is_none());
        assert_eq!(frame.data(), [0]);
    }

    #[test]
    #[should_panic(expected = "leave the chunk")]
    fn a_part_beyond_the_chunk_is_refused() {
        Arena::anonymous(1).unwrap().take().unwrap().reset(2000, 49);
    }

    #[test]
    fn what_is_not_in_the_arena_is_prefetched_in_vain() {
        let arena = Arena::anonymous(1).unwrap();
        for (index, offset, len) in [(0, 0, 2048), (0, 2047, 1), (0, 2047, 2), (1, 0, 64), (u32::MAX, 0, 0)] {
            arena.prefetch(index, offset, len);
        }
        assert_eq!(arena.free_frames(), 1);
    }

    #[test]
    fn frames_of_another_arena_go_home() {
        let (ours, theirs) = (Arena::anonymous(2).unwrap(), Arena::anonymous(2).unwrap());
        let mut pool = FramePool::new(ours, 4);
        let stranger = theirs.take().unwrap();
        pool.put(stranger);
        assert_eq!((theirs.free_frames(), ours.free_frames()), (2, 2));
    }

    proptest! {
        #[test]
        fn pools_never_lose_or_double_a_chunk(
            cap in 1usize..6,
            steps in proptest::collection::vec(any::<(bool, bool)>(), 0..64),
        ) {
            let arena = Arena::anonymous(8).unwrap();
            let mut pools = [FramePool::new(arena, cap), FramePool::new(arena, cap)];
            let mut held = Vec::new();
            for (which, take) in steps {
                let pool = &mut pools[usize::from(which)];
                if take {
                    held.extend(pool.take());
                } else if let Some(frame) = held.pop() {
                    pool.put(frame);
                }
                let mut indices: Vec<_> = held.iter().map(|frame: &Frame| frame.index).collect();
                indices.sort_unstable();
                indices.dedup();
                prop_assert_eq!(indices.len(), held.len());
            }
            drop(held);
            drop(pools);
            prop_assert_eq!(arena.free_frames(), 8);
        }
    }
}
