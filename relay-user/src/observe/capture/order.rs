//! Integers in a file's own byte order.

/// The order of the bytes of an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

impl Order {
    /// The integer at `offset`; zero where there is none, which no caller asks for.
    pub(super) fn u32(self, bytes: &[u8], offset: usize) -> u32 {
        let word = bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        match self {
            Self::Little => u32::from_le_bytes(word),
            Self::Big => u32::from_be_bytes(word),
        }
    }

    pub(super) fn u16(self, bytes: &[u8], offset: usize) -> u16 {
        let word = bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        match self {
            Self::Little => u16::from_le_bytes(word),
            Self::Big => u16::from_be_bytes(word),
        }
    }

    pub(super) fn i64(self, bytes: &[u8]) -> i64 {
        let word = bytes.first_chunk().copied().unwrap_or_default();
        match self {
            Self::Little => i64::from_le_bytes(word),
            Self::Big => i64::from_be_bytes(word),
        }
    }
}
