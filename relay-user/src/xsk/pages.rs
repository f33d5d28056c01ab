//! Memory for frames, in pages as large as the machine has.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::host::memory::{HUGE_PAGE, huge_pages, pages_for, transparent_bytes};

/// What kind of pages frames shall be in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Ordinary ones.
    #[default]
    Off,
    /// Huge ones where enough are free, else those that the kernel makes by itself, else ordinary ones.
    Auto,
    /// Huge ones or none.
    Require,
}

/// What kind of pages frames are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// The processor's smallest, 4 KiB on x86-64.
    #[default]
    Ordinary,
    /// Huge ones of 2 MiB that the kernel made by itself and may take apart again.
    Transparent,
    /// Huge ones of 2 MiB from the kernel's pool.
    Huge,
}

impl Pages {
    /// The words that status and log use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary pages",
            Self::Transparent => "transparent huge pages",
            Self::Huge => "huge pages, 2 MiB",
        }
    }
}

/// [`HUGE_PAGE`] as a length in memory.
const HUGE: usize = {
    assert!(HUGE_PAGE <= u32::MAX as u64);
    #[expect(clippy::cast_possible_truncation, reason = "asserted one line above")]
    {
        HUGE_PAGE as usize
    }
};

/// Maps `len` zeroed bytes, which nobody ever unmaps, and says what they are in. Huge pages of either kind are made at
/// once, ordinary ones when they are first touched.
///
/// # Errors
/// `OutOfMemory` where the machine has not as many, naming what to do.
pub(super) fn map(len: usize, wanted: HugePages) -> io::Result<(NonNull<u8>, Pages)> {
    if wanted == HugePages::Require || (wanted == HugePages::Auto && len >= HUGE) {
        match map_huge(len) {
            Ok(base) => return Ok((base, Pages::Huge)),
            Err(error) if wanted == HugePages::Require => return Err(refusal(len, &error)),
            Err(_) => {}
        }
    }
    // One huge page more than asked for, so that there is a first byte where a huge page can begin.
    let slack = if wanted == HugePages::Auto && len >= HUGE { HUGE } else { 0 };
    let whole = len + slack;
    let base = anonymous(whole, MapFlags::empty()).map_err(|error| {
        io::Error::new(io::ErrorKind::OutOfMemory, format!("no memory for {len} bytes of frames: {error}"))
    })?;
    if slack == 0 {
        return Ok((base, Pages::Ordinary));
    }
    let base = {
        let skip = base.addr().get().next_multiple_of(HUGE) - base.addr().get();
        // SAFETY: `skip` is below `HUGE`, which is how much longer than `len` the mapping is, so `len` bytes from there
        // on are inside it.
        unsafe { base.add(skip) }
    };
    // Whether the kernel follows the advice is seen below, from what it did.
    for advice in [Advice::LinuxHugepage, Advice::LinuxPopulateWrite] {
        // SAFETY: `len` bytes at `base` are inside the mapping made above, which nothing refers to yet; neither advice
        // changes what the bytes hold.
        let _ = unsafe { madvise(base.as_ptr().cast(), len, advice) };
    }
    let whole_pages = (len / HUGE * HUGE) as u64;
    let transparent = transparent_bytes(base.addr().get()).is_some_and(|bytes| bytes >= whole_pages);
    Ok((base, if transparent { Pages::Transparent } else { Pages::Ordinary }))
}

fn map_huge(len: usize) -> io::Result<NonNull<u8>> {
    let whole = len.next_multiple_of(HUGE);
    let base = anonymous(whole, MapFlags::HUGETLB | MapFlags::HUGE_2MB)?;
    // A control group may have fewer than the pool. Touched later, what is missing would end the process.
    // SAFETY: exactly the mapping made above; populating keeps what it holds.
    if let Err(error) = unsafe { madvise(base.as_ptr().cast(), whole, Advice::LinuxPopulateWrite) } {
        // SAFETY: exactly the mapping made above, which nothing refers to yet.
        unsafe { munmap(base.as_ptr().cast(), whole) }?;
        return Err(error.into());
    }
    Ok(base)
}

fn anonymous(len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: no address is asked for, so no existing mapping can be replaced.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE | flags) }?;
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

fn refusal(len: usize, error: &io::Error) -> io::Error {
    let wanted = pages_for(len as u64);
    let (total, free) = huge_pages().map_or((0, 0), |pages| (pages.total, pages.free));
    // Where enough are free, another limit is at work, and the pool is as large as it has to be.
    let pool = total + wanted.saturating_sub(free);
    io::Error::new(
        io::ErrorKind::OutOfMemory,
        format!(
            "{wanted} huge pages of 2 MiB are wanted and {free} are free ({error}); `sysctl -w vm.nr_hugepages={pool}`, \
             or set datapath.huge_pages to \"auto\""
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As no machine has: 64 TiB.
    const TOO_MUCH: usize = 1 << 46;

    #[test]
    fn memory_is_zeroed_and_can_be_written_to_its_end() {
        for (len, wanted) in [(4096, HugePages::Off), (3 * HUGE, HugePages::Auto), (4096, HugePages::Auto)] {
            let (base, pages) = map(len, wanted).unwrap();
            if wanted == HugePages::Off || len < HUGE {
                assert_eq!(pages, Pages::Ordinary);
            }
            // SAFETY: `len` bytes were just mapped at `base`, for good, and nothing else refers to them.
            let bytes = unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), len) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(1);
        }
    }

    #[test]
    fn what_is_required_and_not_there_says_what_to_do() {
        let error = map(TOO_MUCH, HugePages::Require).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("sysctl -w vm.nr_hugepages="), "{error}");
    }

    #[test]
    fn huge_pages_are_taken_from_the_pool_where_it_has_them() {
        let enough = huge_pages().is_some_and(|pages| pages.free >= 1);
        match map(4096, HugePages::Require) {
            Ok((_, pages)) => assert_eq!(pages, Pages::Huge),
            // Somebody else may have taken them meanwhile; an empty pool has to be said so in any case.
            Err(error) => assert!(enough || error.to_string().contains("0 are free"), "{error}"),
        }
    }
}
