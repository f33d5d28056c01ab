//! Hints to the processor, which change nothing but how long things take.

/// Begins to load the cache line that `place` starts in. Without effect where the processor is not known.
#[inline]
pub fn prefetch<T>(place: &T) {
    prefetch_address(std::ptr::from_ref(place).cast());
}

/// Begins to load the cache line of any address, mapped or not.
#[inline]
pub(super) fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it has no effect but on time and faults at no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
