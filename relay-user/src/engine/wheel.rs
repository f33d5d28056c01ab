//! A timing wheel for slots: ticks of 4.096 µs, bitmaps searched by find-first-set, intrusive lists of link numbers.
//! After construction it allocates nothing; filing, taking the earliest and taking out any other take constant time.

use super::time::Nanos;

const TICK_SHIFT: u32 = 12;
const SLOTS: usize = 1 << 16;
const WORDS: usize = SLOTS / 64;
const SUMMARY: usize = WORDS / 64;
const NIL: u32 = u32::MAX;

/// Deadlines of up to `capacity` links, each link at most once. Reaches 268 ms ahead; a later deadline comes up early
/// and its owner inserts it again.
#[derive(Debug)]
pub struct Wheel {
    heads: Vec<u32>,
    entries: Vec<Entry>,
    filed: usize,
    words: Vec<u64>,
    summary: [u64; SUMMARY],
    cursor: u64,
}

/// A link's place in the list of its slot. `slot` is [`NIL`] where the link is not filed.
#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u32,
    before: u32,
    behind: u32,
}

const UNFILED: Entry = Entry { slot: NIL, before: NIL, behind: NIL };

impl Wheel {
    /// An empty wheel for links `0..capacity`.
    pub fn new(capacity: usize) -> Self {
        Self {
            heads: vec![NIL; SLOTS],
            entries: vec![UNFILED; capacity],
            filed: 0,
            words: vec![0; WORDS],
            summary: [0; SUMMARY],
            cursor: 0,
        }
    }

    /// Files `link` under `deadline`, at `now`. A deadline already passed comes up at once. A link that is filed moves.
    pub fn insert(&mut self, link: u32, deadline: Nanos, now: Nanos) {
        self.remove(link);
        if self.filed == 0 {
            // Nobody popped while nothing was filed: the reach must count from now.
            self.cursor = self.cursor.max(now.0 >> TICK_SHIFT);
        }
        let tick = (deadline.0 >> TICK_SHIFT).clamp(self.cursor, self.cursor + SLOTS as u64 - 1);
        let slot = Self::slot(tick);
        let behind = std::mem::replace(&mut self.heads[slot], link);
        if behind != NIL {
            self.entries[behind as usize].before = link;
        }
        self.entries[link as usize] = Entry { slot: slot_number(slot), before: NIL, behind };
        self.words[slot / 64] |= 1 << (slot % 64);
        self.summary[slot / 4096] |= 1 << (slot / 64 % 64);
        self.filed += 1;
    }

    /// Whether `link` is filed.
    pub fn contains(&self, link: u32) -> bool {
        self.entries[link as usize].slot != NIL
    }

    /// Takes `link` out, if it is filed.
    pub fn remove(&mut self, link: u32) {
        let Entry { slot, before, behind } = std::mem::replace(&mut self.entries[link as usize], UNFILED);
        if slot == NIL {
            return;
        }
        let slot = slot as usize;
        self.filed -= 1;
        if behind != NIL {
            self.entries[behind as usize].before = before;
        }
        if before != NIL {
            self.entries[before as usize].behind = behind;
            return;
        }
        self.heads[slot] = behind;
        if behind == NIL {
            self.words[slot / 64] &= !(1 << (slot % 64));
            if self.words[slot / 64] == 0 {
                self.summary[slot / 4096] &= !(1 << (slot / 64 % 64));
            }
        }
    }

    /// Takes out one link whose tick has begun by `now`.
    pub fn pop(&mut self, now: Nanos) -> Option<u32> {
        let now_tick = now.0 >> TICK_SHIFT;
        let Some(tick) = self.first_tick().filter(|&tick| tick <= now_tick) else {
            self.cursor = self.cursor.max(now_tick);
            return None;
        };
        self.cursor = tick;
        let link = self.heads[Self::slot(tick)];
        self.remove(link);
        Some(link)
    }

    /// The start of the earliest filed tick.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.first_tick().map(|tick| Nanos(tick << TICK_SHIFT))
    }

    fn first_tick(&self) -> Option<u64> {
        let start = Self::slot(self.cursor);
        let found = self.first_slot_from(start).or_else(|| self.first_slot_from(0))?;
        Some(self.cursor + ((found + SLOTS - start) % SLOTS) as u64)
    }

    fn first_slot_from(&self, start: usize) -> Option<usize> {
        let word = start / 64;
        let here = self.words[word] & (u64::MAX << (start % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let after = word + 1;
        let first_summary = after / 64;
        (first_summary..SUMMARY).find_map(|group| {
            let mask = if group == first_summary { u64::MAX << (after % 64) } else { u64::MAX };
            let bits = self.summary[group] & mask;
            (bits != 0).then(|| {
                let word = group * 64 + bits.trailing_zeros() as usize;
                word * 64 + self.words[word].trailing_zeros() as usize
            })
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked to the wheel's size")]
    const fn slot(tick: u64) -> usize {
        (tick & (SLOTS as u64 - 1)) as usize
    }
}

#[expect(clippy::cast_possible_truncation, reason = "below 2^16")]
const fn slot_number(slot: usize) -> u32 {
    slot as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_far_deadline_comes_up_early_not_never() {
        let mut wheel = Wheel::new(1);
        wheel.insert(0, Nanos(10 * Nanos::SECOND.0), Nanos(0));
        let early = wheel.next_deadline().expect("filed");
        assert!(early.0 < 300_000_000);
        assert_eq!(wheel.pop(early), Some(0));
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn a_wheel_left_alone_reaches_ahead_from_now() {
        let mut wheel = Wheel::new(2);
        let hour = 3_600 * Nanos::SECOND.0;
        wheel.insert(0, Nanos(hour + 1_000_000), Nanos(hour));
        assert!(wheel.next_deadline().is_some_and(|at| at.0 > hour));
        wheel.remove(0);
        wheel.remove(0);
        assert_eq!(wheel.next_deadline(), None);
        wheel.insert(0, Nanos(3 * hour), Nanos(2 * hour));
        wheel.insert(0, Nanos(2 * hour + 5_000_000), Nanos(2 * hour));
        assert_eq!(wheel.pop(Nanos(2 * hour + 5_000_000)), Some(0), "moved, not doubled");
        assert_eq!(wheel.pop(Nanos(4 * hour)), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_list(
            start in 0u64..1 << 50,
            gaps in prop::collection::vec((0u64..200_000_000, 0u64..3_000_000, any::<bool>()), 1..300),
        ) {
            let mut wheel = Wheel::new(gaps.len());
            let mut filed: Vec<(u64, u32)> = Vec::new();
            let mut now = start;
            prop_assert_eq!(wheel.pop(Nanos(now)), None);
            for (link, (ahead, step, out)) in gaps.into_iter().enumerate() {
                let link = u32::try_from(link).unwrap();
                wheel.insert(link, Nanos(now + ahead), Nanos(now));
                filed.push(((now + ahead) >> TICK_SHIFT, link));
                if out {
                    let (_, taken) = filed.swap_remove(filed.len() / 2);
                    wheel.remove(taken);
                    prop_assert!(!wheel.contains(taken));
                }
                now += step;
                while let Some(popped) = wheel.pop(Nanos(now)) {
                    let earliest = filed.iter().map(|f| f.0).min().unwrap();
                    let at = filed.iter().position(|f| f.1 == popped).unwrap();
                    prop_assert_eq!(filed.swap_remove(at).0, earliest);
                    prop_assert!(earliest <= now >> TICK_SHIFT);
                }
                prop_assert!(filed.iter().all(|f| f.0 > now >> TICK_SHIFT));
                prop_assert_eq!(
                    wheel.next_deadline().map(|d| d.0 >> TICK_SHIFT),
                    filed.iter().map(|f| f.0).min()
                );
            }
        }
    }
}
