//! The anti-replay window of RFC 6479: a ring of bitmap words that moves a word at a time.

/// Remembers which of the last `64 * (WORDS - 1)` numbers were seen.
#[derive(Clone, Debug)]
pub struct ReplayWindow<const WORDS: usize> {
    words: [u64; WORDS],
    floor: u64,
    highest: u64,
}

/// The window of a link session: 8192 cells.
pub type LinkWindow = ReplayWindow<129>;
/// The window of one direction of a circuit: 1024 cells.
pub type CircuitWindow = ReplayWindow<17>;

impl<const WORDS: usize> ReplayWindow<WORDS> {
    /// Numbers that may arrive late and still be told apart from repeats.
    pub const REACH: u64 = 64 * (WORDS as u64 - 1);

    /// A window that takes no number below `floor`.
    pub const fn starting_at(floor: u64) -> Self {
        Self { words: [0; WORDS], floor, highest: floor }
    }

    /// Whether `number` is new: neither seen before nor too old to tell. Changes nothing, so that an
    /// unauthenticated number leaves no trace.
    #[inline]
    pub fn is_new(&self, number: u64) -> bool {
        if number < self.floor {
            return false;
        }
        if number > self.highest {
            return true;
        }
        self.highest - number < Self::REACH && self.words[Self::word(number)] & Self::bit(number) == 0
    }

    /// Marks `number` as seen, once it is authenticated. False, and no change, where it is not new.
    #[inline]
    pub fn accept(&mut self, number: u64) -> bool {
        let new = self.is_new(number);
        if new {
            self.mark(number);
        }
        new
    }

    /// Marks `number` as seen, which [`Self::is_new`] has just found to be new.
    #[inline]
    pub fn mark(&mut self, number: u64) {
        if number > self.highest {
            let (from, to) = (self.highest / 64, number / 64);
            for word in from + 1..=to.min(from + WORDS as u64) {
                self.words[Self::index(word)] = 0;
            }
            self.highest = number;
        }
        self.words[Self::word(number)] |= Self::bit(number);
    }

    #[expect(clippy::cast_possible_truncation, reason = "below the ring's size")]
    const fn index(word: u64) -> usize {
        (word % WORDS as u64) as usize
    }

    const fn word(number: u64) -> usize {
        Self::index(number / 64)
    }

    const fn bit(number: u64) -> u64 {
        1 << (number % 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn reach_covers_the_protocols_windows() {
        assert_eq!(LinkWindow::REACH, 8192);
        assert_eq!(CircuitWindow::REACH, 1024);
    }

    #[test]
    fn nothing_below_the_floor_and_nothing_too_old() {
        let mut window = CircuitWindow::starting_at(100);
        assert!(!window.accept(99));
        assert!(window.accept(100) && !window.accept(100));
        assert!(window.accept(100 + 1024));
        assert!(!window.accept(100), "seen");
        assert!(!window.is_new(100), "too old to tell");
        assert!(window.is_new(101));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(start in 0..u64::MAX / 2, steps in prop::collection::vec(-1500i64..1500, 1..400)) {
            let mut window = CircuitWindow::starting_at(start);
            let mut seen = BTreeSet::new();
            let mut at = start;
            for step in steps {
                at = at.saturating_add_signed(step);
                let highest = seen.last().copied().unwrap_or(start).max(start);
                let expected = at >= start
                    && !seen.contains(&at)
                    && (at > highest || highest - at < CircuitWindow::REACH);
                prop_assert_eq!(window.accept(at), expected, "number {}", at);
                if expected {
                    seen.insert(at);
                }
            }
        }
    }
}
