//! A timing wheel for slots: ticks of 4.096 µs, bitmaps searched by find-first-set, intrusive lists of link numbers.
//! After construction it allocates nothing; insertion and removal of the earliest take constant time.

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
    next: Vec<u32>,
    words: Vec<u64>,
    summary: [u64; SUMMARY],
    cursor: u64,
}

impl Wheel {
    /// An empty wheel for links `0..capacity`.
    pub fn new(capacity: usize) -> Self {
        Self {
            heads: vec![NIL; SLOTS],
            next: vec![NIL; capacity],
            words: vec![0; WORDS],
            summary: [0; SUMMARY],
            cursor: 0,
        }
    }

    /// Files `link` under `deadline`. A deadline already passed comes up at once. The link must not be filed already.
    pub fn insert(&mut self, link: u32, deadline: Nanos) {
        let tick = (deadline.0 >> TICK_SHIFT).clamp(self.cursor, self.cursor + SLOTS as u64 - 1);
        let slot = Self::slot(tick);
        self.next[link as usize] = self.heads[slot];
        self.heads[slot] = link;
        self.words[slot / 64] |= 1 << (slot % 64);
        self.summary[slot / 4096] |= 1 << (slot / 64 % 64);
    }

    /// Takes out one link whose tick has begun by `now`.
    pub fn pop(&mut self, now: Nanos) -> Option<u32> {
        let now_tick = now.0 >> TICK_SHIFT;
        let Some(tick) = self.first_tick().filter(|&tick| tick <= now_tick) else {
            self.cursor = self.cursor.max(now_tick);
            return None;
        };
        self.cursor = tick;
        let slot = Self::slot(tick);
        let link = self.heads[slot];
        self.heads[slot] = self.next[link as usize];
        if self.heads[slot] == NIL {
            self.words[slot / 64] &= !(1 << (slot % 64));
            if self.words[slot / 64] == 0 {
                self.summary[slot / 4096] &= !(1 << (slot / 64 % 64));
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_far_deadline_comes_up_early_not_never() {
        let mut wheel = Wheel::new(1);
        wheel.insert(0, Nanos(10 * Nanos::SECOND.0));
        let early = wheel.next_deadline().expect("filed");
        assert!(early.0 < 300_000_000);
        assert_eq!(wheel.pop(early), Some(0));
        assert_eq!(wheel.next_deadline(), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_list(
            start in 0u64..1 << 50,
            gaps in prop::collection::vec((0u64..200_000_000, 0u64..3_000_000), 1..300),
        ) {
            let mut wheel = Wheel::new(gaps.len());
            let mut filed: Vec<(u64, u32)> = Vec::new();
            let mut now = start;
            prop_assert_eq!(wheel.pop(Nanos(now)), None);
            for (link, (ahead, step)) in gaps.into_iter().enumerate() {
                let link = u32::try_from(link).unwrap();
                wheel.insert(link, Nanos(now + ahead));
                filed.push(((now + ahead) >> TICK_SHIFT, link));
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
