//! The layout of what the XDP program and the relay share: maps, their entries, load-time globals.
//!
//! Entries are `repr(C)` with every gap written out, so that a program built by one compiler and a relay built by
//! another mean the same bytes. Values are in the host's byte order unless a field says otherwise; both halves run
//! on one machine.

use crate::classify::DropReason;

/// Entries of the sessions map. A power of two: the low bits of a receiver index choose the entry.
pub const SESSION_SLOTS: u32 = 16384;
/// Entries of the sockets map, and so the highest number of receive queues that an interface may have.
pub const SOCKET_SLOTS: u32 = 256;

/// Name of the map from session slot to [`SessionEntry`] (array, written by the relay only).
pub const MAP_SESSIONS: &str = "SESSIONS";
/// Name of the map from [`tag_row`] to [`TAGS_PER_ROW`] tags (array, written by the relay only).
pub const MAP_TAGS: &str = "TAGS";
/// Name of the map from receive queue to AF_XDP socket.
pub const MAP_SOCKETS: &str = "SOCKETS";
/// Name of the map from [`Counter::index`] to a `u64` for each CPU.
pub const MAP_COUNTERS: &str = "COUNTERS";
/// Name of the global (`u16`) that holds the lowest of the relay's UDP ports.
pub const GLOBAL_PORT: &str = "RELAY_PORT";
/// Name of the global (`u16`) that holds how many ports the relay has from there on. Zero, its default, matches nothing.
pub const GLOBAL_PORTS: &str = "RELAY_PORTS";
/// Name of the global (`u8`) that switches log records on where it is not zero.
pub const GLOBAL_LOG: &str = "RELAY_LOG";
/// Name of the program, and of its function in the object.
pub const PROGRAM: &str = "evenwire";

/// The entry of [`MAP_SESSIONS`] that a cell with `receiver_index` must match.
pub const fn session_slot(receiver_index: u32) -> u32 {
    receiver_index & (SESSION_SLOTS - 1)
}

const TAG_ROW_BITS: u32 = 6;
/// Session tags that one entry of [`MAP_TAGS`] holds, a byte each.
pub const TAGS_PER_ROW: usize = 1 << TAG_ROW_BITS;
/// Entries of [`MAP_TAGS`].
pub const TAG_ROWS: u32 = SESSION_SLOTS >> TAG_ROW_BITS;

/// The entry of [`MAP_TAGS`] that holds the tag of a session slot.
pub const fn tag_row(slot: u32) -> u32 {
    slot >> TAG_ROW_BITS
}

/// The place of a session slot's tag in its row.
pub const fn tag_place(slot: u32) -> usize {
    slot as usize % TAGS_PER_ROW
}

/// What [`MAP_TAGS`] holds for a session, beside zero for a free slot. A cell whose index has another tag has no
/// session: the tags of all slots stay in a processor's nearest cache, and their entries do not, so that guessed
/// indices are sorted out without a wait for memory.
pub const fn session_tag(receiver_index: u32) -> u8 {
    receiver_index.to_be_bytes()[0] | 1
}

/// What the XDP program knows of one link session. An entry of zeros is a free one.
///
/// The kernel copies an updated entry without a lock, so a cell that arrives during an update may be judged by a
/// mixture. That loses a cell at worst: the link's AEAD decides what is let in, not this entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionEntry {
    /// The address that the peer's cells come from; an IPv4 address as `::ffff:a.b.c.d`. Network byte order.
    pub source: [u8; 16],
    /// All 32 bits of the receiver index.
    pub receiver_index: u32,
    /// The receive queue whose worker owns the link.
    pub queue: u32,
    /// The UDP port that the peer's cells come from.
    pub source_port: u16,
    /// 1 where the entry is in use, 0 where it is free.
    pub in_use: u16,
    /// Zero.
    pub reserved: u32,
}

/// Bytes of a [`SessionEntry`].
pub const SESSION_ENTRY_LEN: usize = 32;

const _: () = {
    assert!(SESSION_SLOTS.is_power_of_two());
    assert!(SESSION_SLOTS.is_multiple_of(1 << TAG_ROW_BITS));
    assert!(size_of::<SessionEntry>() == SESSION_ENTRY_LEN);
    assert!(align_of::<SessionEntry>() == 4);
    assert!(core::mem::offset_of!(SessionEntry, receiver_index) == 16);
    assert!(core::mem::offset_of!(SessionEntry, queue) == 20);
    assert!(core::mem::offset_of!(SessionEntry, source_port) == 24);
    assert!(core::mem::offset_of!(SessionEntry, in_use) == 26);
    assert!(core::mem::offset_of!(SessionEntry, reserved) == 28);
};

impl SessionEntry {
    /// An entry in use.
    pub const fn new(receiver_index: u32, source: [u8; 16], source_port: u16, queue: u32) -> Self {
        Self { source, receiver_index, queue, source_port, in_use: 1, reserved: 0 }
    }

    /// The entry as the map holds it.
    pub fn to_bytes(&self) -> [u8; SESSION_ENTRY_LEN] {
        let mut out = [0; SESSION_ENTRY_LEN];
        out[..16].copy_from_slice(&self.source);
        out[16..20].copy_from_slice(&self.receiver_index.to_ne_bytes());
        out[20..24].copy_from_slice(&self.queue.to_ne_bytes());
        out[24..26].copy_from_slice(&self.source_port.to_ne_bytes());
        out[26..28].copy_from_slice(&self.in_use.to_ne_bytes());
        out[28..].copy_from_slice(&self.reserved.to_ne_bytes());
        out
    }
}

/// What the XDP program counts, on each CPU: frames, by what became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Not for this relay; left to the kernel.
    Passed,
    /// A handshake datagram, left to the kernel for the control plane's socket.
    Handshake,
    /// A cell, handed to the AF_XDP socket of the queue it arrived on.
    Redirected,
    /// A redirected cell whose session another queue's worker owns. Counted beside [`Counter::Redirected`].
    OtherQueue,
    /// Dropped.
    Dropped(DropReason),
}

impl Counter {
    const BEFORE_DROPS: u32 = 4;
    /// Entries of [`MAP_COUNTERS`].
    pub const COUNT: u32 = Self::BEFORE_DROPS + DropReason::COUNT;

    /// The counter's entry in [`MAP_COUNTERS`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Passed => 0,
            Self::Handshake => 1,
            Self::Redirected => 2,
            Self::OtherQueue => 3,
            Self::Dropped(reason) => Self::BEFORE_DROPS + reason as u32,
        }
    }

    /// Every counter, in the order of [`Counter::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Passed, Self::Handshake, Self::Redirected, Self::OtherQueue]
            .into_iter()
            .chain(DropReason::ALL.into_iter().map(Self::Dropped))
    }

    /// The counter's name in metrics and status output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Handshake => "handshake",
            Self::Redirected => "redirected",
            Self::OtherQueue => "other_queue",
            Self::Dropped(reason) => reason.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;

    use super::*;

    #[test]
    fn counters_number_their_map_entries_without_gaps_and_have_names_of_their_own() {
        let indices: std::vec::Vec<u32> = Counter::all().map(Counter::index).collect();
        assert_eq!(indices, (0..Counter::COUNT).collect::<std::vec::Vec<_>>());
        let names: HashSet<_> = Counter::all().map(Counter::name).collect();
        assert_eq!(names.len(), indices.len());
    }

    #[test]
    fn session_bytes_stand_where_the_layout_says() {
        let mut source = [0; 16];
        source[15] = 9;
        let bytes = SessionEntry::new(0xdead_beef, source, 7443, 3).to_bytes();
        assert_eq!(bytes[..16], source);
        assert_eq!(bytes[16..20], 0xdead_beef_u32.to_ne_bytes());
        assert_eq!(bytes[20..24], 3_u32.to_ne_bytes());
        assert_eq!(bytes[24..26], 7443_u16.to_ne_bytes());
        assert_eq!(bytes[26..28], 1_u16.to_ne_bytes());
        assert_eq!(bytes[28..], [0; 4]);
        assert_eq!(SessionEntry::default().to_bytes(), [0; SESSION_ENTRY_LEN]);
    }

    #[test]
    fn every_slot_has_a_tag_of_its_own_and_no_session_the_tag_of_a_free_slot() {
        let places: HashSet<_> = (0..SESSION_SLOTS).map(|slot| (tag_row(slot), tag_place(slot))).collect();
        assert_eq!(places.len(), SESSION_SLOTS as usize);
        assert!(places.iter().all(|(row, place)| *row < TAG_ROWS && *place < TAGS_PER_ROW));
        assert!((0..=u8::MAX).all(|high| session_tag(u32::from(high) << 24) != 0));
    }

    #[test]
    fn the_slot_is_the_low_bits() {
        assert_eq!(session_slot(0xffff_ffff), 16383);
        assert_eq!(session_slot(0x0001_4001), 1);
    }
}
