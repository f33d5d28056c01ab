//! Reading a packet from front to back without ever touching a byte that is not there.
//!
//! The trait has no way to ask how much is left: the kernel's verifier learns what may be read from a pointer's
//! comparison with the packet's end, and nothing from a length.

/// A position in a packet. It only moves forwards, and only over bytes that exist.
pub trait Cursor {
    /// The next `N` bytes, behind which the cursor then stands. `None`, and no move, where fewer than `N` are left.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]>;

    /// Moves over `count` bytes. `None`, and no move, where fewer are left.
    fn skip(&mut self, count: u16) -> Option<()>;

    /// Whether at least `N` bytes are left.
    fn has<const N: usize>(&self) -> bool;
}

/// A [`Cursor`] over bytes in memory.
#[derive(Clone, Copy, Debug)]
pub struct SliceCursor<'a> {
    rest: &'a [u8],
}

impl<'a> SliceCursor<'a> {
    /// Stands in front of the first of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl Cursor for SliceCursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    fn skip(&mut self, count: u16) -> Option<()> {
        self.rest = self.rest.get(usize::from(count)..)?;
        Some(())
    }

    fn has<const N: usize>(&self) -> bool {
        self.rest.len() >= N
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reads_every_byte_once_and_never_past_the_end(bytes: Vec<u8>, skips: Vec<u16>) {
            let mut cursor = SliceCursor::new(&bytes);
            let mut at = 0usize;
            for skip in skips {
                let word = cursor.take::<4>();
                prop_assert_eq!(word.as_ref().map(|w| &w[..]), bytes.get(at..at + 4));
                at += word.map_or(0, |w| w.len());
                let skip = skip % 16;
                let skipped = cursor.skip(skip).is_some();
                prop_assert_eq!(skipped, at + usize::from(skip) <= bytes.len());
                at += if skipped { usize::from(skip) } else { 0 };
                prop_assert_eq!(cursor.rest(), &bytes[at..]);
                prop_assert_eq!(cursor.has::<5>(), bytes.len() - at >= 5);
            }
        }
    }

    #[test]
    fn a_refused_read_does_not_move() {
        let mut cursor = SliceCursor::new(&[1, 2, 3]);
        assert_eq!(cursor.take::<4>(), None);
        assert_eq!(cursor.skip(4), None);
        assert!(cursor.has::<3>() && !cursor.has::<4>());
        assert_eq!(cursor.take::<3>(), Some([1, 2, 3]));
        assert!(cursor.has::<0>());
        assert_eq!(cursor.take::<0>(), Some([]));
    }
}
