//! The packet cursor over an XDP frame.

use aya_ebpf::programs::XdpContext;
use relay_common::cursor::Cursor;

/// A position in a frame. Invariant: `at..end` lies in the frame, from `XdpContext::data` and `data_end`, neither
/// of which moves while the program runs, since it never calls a helper that changes the frame.
pub(crate) struct FrameCursor {
    at: usize,
    end: usize,
}

impl FrameCursor {
    #[inline(always)]
    pub(crate) fn new(context: &XdpContext) -> Self {
        Self { at: context.data(), end: context.data_end() }
    }
}

impl Cursor for FrameCursor {
    #[inline(always)]
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.at + N > self.end {
            return None;
        }
        // SAFETY: `at..at + N` is below `end` by the line above, so these N bytes belong to the frame; any bytes
        // are a valid [u8; N], and it has no alignment.
        let bytes = unsafe { *(self.at as *const [u8; N]) };
        self.at += N;
        Some(bytes)
    }

    #[inline(always)]
    fn skip(&mut self, count: u16) -> Option<()> {
        let next = self.at + usize::from(count);
        if next > self.end {
            return None;
        }
        self.at = next;
        Some(())
    }

    #[inline(always)]
    fn has<const N: usize>(&self) -> bool {
        self.at + N <= self.end
    }
}
