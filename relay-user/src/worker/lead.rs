//! How long before a slot a worker that sleeps must want to wake.
//!
//! A timer fires late, by what the processor takes to come out of idleness and the kernel to switch: some 3 µs on an
//! awake core, 20 to 50 µs in a virtual machine or out of a deep idle state. How late depends on what the processor did
//! before, so on payload: a worker that may come after its slot shows that on the wire. One that comes early waits.

use crate::engine::time::Nanos;

/// The shortest lead of any. A shorter sleep is not worth its system call.
pub(super) const SHORTEST: Nanos = Nanos(15_000);
/// The longest, beside what is done in it: what a worker of 4000 slots per second may spin away, a quarter of its core.
pub(crate) const LONGEST: Nanos = Nanos(60_000);
/// What a wake that came too late adds, and one in time takes off: they balance where one of a thousand is too late.
const LONGER: u64 = 4_995;
const SHORTER: u64 = 5;

/// Wakes since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakes {
    /// All of them.
    pub all: u64,
    /// Those that came later than the lead had room for: after the slot, where a slot was what they were for, or too late to
    /// make its cell ready.
    pub late: u64,
}

/// The lead that all but one of a thousand wakes needed lately, at most [`LONGEST`] and what is done in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lead {
    lead: Nanos,
    /// What a wake must leave of it.
    room: Nanos,
    wakes: Wakes,
}

impl Lead {
    /// The shortest, for a worker that needs `room` between a wake and its slot.
    pub(super) const fn new(room: Nanos) -> Self {
        Self { lead: Nanos(SHORTEST.0 + room.0), room, wakes: Wakes { all: 0, late: 0 } }
    }

    /// How long before its slot a worker must want to wake.
    pub(super) const fn get(self) -> Nanos {
        self.lead
    }

    /// Wakes that it learnt from.
    pub(super) const fn wakes(self) -> Wakes {
        self.wakes
    }

    /// Learns from a wake that came `late` after the moment that was wanted.
    pub(super) fn learn(&mut self, late: Nanos) {
        let too_late = late + self.room > self.lead;
        self.wakes.all += 1;
        self.wakes.late += u64::from(too_late);
        let lead = if too_late { self.lead.0 + LONGER } else { self.lead.0.saturating_sub(SHORTER) };
        self.lead = Nanos(lead.clamp(SHORTEST.0 + self.room.0, LONGEST.0 + self.room.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng as _;

    /// After `wakes` that came up to `most` late, each as likely; and how many of as many more came too late.
    fn learnt(most: u64, wakes: u32) -> (Lead, u64) {
        learnt_with(Nanos(0), most, wakes)
    }

    fn learnt_with(room: Nanos, most: u64, wakes: u32) -> (Lead, u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut lead = Lead::new(room);
        let mut wake = |lead: &mut Lead| lead.learn(Nanos(rng.next_u64() % most));
        (0..wakes).for_each(|_| wake(&mut lead));
        let before = lead.wakes();
        (0..wakes).for_each(|_| wake(&mut lead));
        assert_eq!(lead.wakes().all, 2 * u64::from(wakes));
        (lead, lead.wakes().late - before.late)
    }

    #[test]
    fn nearly_all_wakes_come_before_the_slot() {
        let (lead, too_late) = learnt(40_000, 100_000);
        assert!((38_000..=41_000 + LONGER).contains(&lead.get().0), "{lead:?}");
        assert!((50..=200).contains(&too_late), "{too_late} of 100,000");
    }

    #[test]
    fn room_is_left_by_nearly_all_wakes() {
        let (without, with) = (learnt(40_000, 100_000), learnt_with(Nanos(30_000), 40_000, 100_000));
        assert_eq!(with.0.get(), without.0.get() + Nanos(30_000));
        assert_eq!(with.1, without.1);
    }

    #[test]
    fn wakes_in_time_leave_the_shortest_and_hopeless_ones_the_longest() {
        let (lead, too_late) = learnt(14_000, 10_000);
        assert_eq!((lead.get(), too_late), (SHORTEST, 0));
        assert_eq!(learnt(10_000_000, 10_000).0.get(), LONGEST);
    }

    proptest! {
        #[test]
        fn the_lead_stays_within_its_bounds(room in 0..100_000u64, lates in prop::collection::vec(any::<u32>(), 0..200)) {
            let room = Nanos(room);
            let mut lead = Lead::new(room);
            for late in lates {
                lead.learn(Nanos(late.into()));
                prop_assert!((SHORTEST + room..=LONGEST + room).contains(&lead.get()));
            }
        }
    }
}
