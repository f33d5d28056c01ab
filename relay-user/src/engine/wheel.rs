//! A timing wheel for slots: ticks of 4.096 µs, bitmaps searched by find-first-set, links in chunks of a cache line.
//! After construction it allocates nothing; filing and taking the earliest take constant time.

use super::time::Nanos;

const TICK_SHIFT: u32 = 12;
/// Width of a tick, by which a deadline may come up early.
pub const TICK: Nanos = Nanos(1 << TICK_SHIFT);
const SLOTS: usize = 1 << 16;
const WORDS: usize = SLOTS / 64;
const SUMMARY: usize = WORDS / 64;
const NIL: u32 = u32::MAX;
/// Links in a chunk: with its length and the number of the next one, a chunk fills a cache line.
const CHUNK_LINKS: usize = 14;

/// Deadlines of up to `capacity` links, each link at most once. Reaches 268 ms ahead; a later deadline comes up early
/// and its owner inserts it again.
///
/// A slot holds its links in chunks of one cache line, so that taking them out one by one reads memory in order: with a
/// million links, a list through the links' own entries would miss the cache at every step.
#[derive(Debug)]
pub struct Wheel {
    /// First chunk of each slot, the only one that may be partly filled.
    heads: Vec<u32>,
    chunks: Vec<Chunk>,
    free: u32,
    /// The slot that each link is filed in, [`NIL`] where it is not filed.
    slots: Vec<u32>,
    filed: usize,
    words: Vec<u64>,
    summary: [u64; SUMMARY],
    cursor: u64,
    /// The earliest filed tick, or an earlier one: where it lies ahead, nobody need search.
    earliest: u64,
}

#[repr(align(64))]
#[derive(Clone, Copy, Debug)]
struct Chunk {
    next: u32,
    len: u32,
    links: [u32; CHUNK_LINKS],
}

const _: () = assert!(size_of::<Chunk>() == 64);

impl Wheel {
    /// An empty wheel for links `0..capacity`.
    pub fn new(capacity: usize) -> Self {
        // Every slot may hold one chunk that is not full, and no chunk is empty.
        let chunks = capacity.min(SLOTS + capacity / CHUNK_LINKS);
        let next = |number: usize| if number + 1 == chunks { NIL } else { index(number + 1) };
        Self {
            heads: vec![NIL; SLOTS],
            chunks: (0..chunks)
                .map(|number| Chunk { next: next(number), len: 0, links: [NIL; CHUNK_LINKS] })
                .collect(),
            free: if chunks == 0 { NIL } else { 0 },
            slots: vec![NIL; capacity],
            filed: 0,
            words: vec![0; WORDS],
            summary: [0; SUMMARY],
            cursor: 0,
            earliest: 0,
        }
    }

    /// Files `link` under `deadline`, at `now`. A deadline already passed comes up at once. A link that is filed moves.
    pub fn insert(&mut self, link: u32, deadline: Nanos, now: Nanos) {
        if self.contains(link) {
            self.remove(link);
        }
        if self.filed == 0 {
            // Nobody popped while nothing was filed: the reach must count from now.
            self.cursor = self.cursor.max(now.0 >> TICK_SHIFT);
        }
        let tick = (deadline.0 >> TICK_SHIFT).clamp(self.cursor, self.cursor + SLOTS as u64 - 1);
        self.earliest = self.earliest.min(tick);
        let slot = Self::slot(tick);
        let mut head = self.heads[slot];
        if head == NIL || self.chunks[head as usize].len as usize == CHUNK_LINKS {
            let fresh = self.free;
            let chunk = &mut self.chunks[fresh as usize];
            self.free = std::mem::replace(&mut chunk.next, head);
            self.heads[slot] = fresh;
            if head == NIL {
                self.words[slot / 64] |= 1 << (slot % 64);
                self.summary[slot / 4096] |= 1 << (slot / 64 % 64);
            }
            head = fresh;
        }
        let chunk = &mut self.chunks[head as usize];
        chunk.links[chunk.len as usize] = link;
        chunk.len += 1;
        self.slots[link as usize] = index(slot);
        self.filed += 1;
    }

    /// Whether `link` is filed.
    pub fn contains(&self, link: u32) -> bool {
        self.slots[link as usize] != NIL
    }

    /// Takes `link` out, if it is filed. Takes as long as its slot has links, which are those due within 4 µs.
    pub fn remove(&mut self, link: u32) {
        let slot = self.slots[link as usize] as usize;
        let Some(&head) = self.heads.get(slot) else { return };
        let mut number = head;
        while let Some(chunk) = self.chunks.get(number as usize) {
            if let Some(at) = chunk.links[..chunk.len as usize].iter().position(|&other| other == link) {
                let last = self.pop_from(slot);
                if last != link {
                    self.chunks[number as usize].links[at] = last;
                    self.slots[last as usize] = index(slot);
                }
                self.slots[link as usize] = NIL;
                return;
            }
            number = chunk.next;
        }
    }

    /// Takes out one link whose tick has begun by `now`.
    pub fn pop(&mut self, now: Nanos) -> Option<u32> {
        let now_tick = now.0 >> TICK_SHIFT;
        if self.earliest <= now_tick
            && let Some(tick) = self.first_tick()
        {
            self.earliest = tick;
            if tick <= now_tick {
                self.cursor = tick;
                return Some(self.pop_from(Self::slot(tick)));
            }
        }
        self.cursor = self.cursor.max(now_tick);
        None
    }

    /// Takes the last link out of the first chunk of a slot that has one.
    fn pop_from(&mut self, slot: usize) -> u32 {
        let head = self.heads[slot];
        let chunk = &mut self.chunks[head as usize];
        chunk.len -= 1;
        let link = chunk.links[chunk.len as usize];
        if chunk.len == 0 {
            let next = std::mem::replace(&mut chunk.next, self.free);
            self.free = head;
            self.heads[slot] = next;
            if next == NIL {
                self.words[slot / 64] &= !(1 << (slot % 64));
                if self.words[slot / 64] == 0 {
                    self.summary[slot / 4096] &= !(1 << (slot / 64 % 64));
                }
            }
        }
        self.slots[link as usize] = NIL;
        self.filed -= 1;
        link
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

/// A slot's or chunk's number as the tables hold it.
#[expect(clippy::cast_possible_truncation, reason = "fewer than links and slots together, which u32 numbers")]
const fn index(number: usize) -> u32 {
    number as u32
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
