//! A repeating pattern of slots, as the proportions of the gaps between them.

use std::fmt;

/// Slots of a pattern, at most.
pub const MAX_SLOTS: usize = 32;
/// The longest gap of a pattern, as a multiple of the shortest that can be written.
pub const MAX_GAP: u8 = 100;

/// The gaps between one slot and the next, in proportion to each other: `[1, 1, 6]` are two gaps and one six times as
/// long. How long they are follows from the class's rate, so a pattern never contradicts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    gaps: [u8; MAX_SLOTS],
    len: u8,
}

/// What is wrong with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Too few or too many gaps.
    #[error("has {0} gaps and not 2 to {MAX_SLOTS}")]
    Length(usize),
    /// A gap of zero, or too long a one.
    #[error("has a gap of {0}, which is not from 1 to {MAX_GAP}")]
    Gap(i64),
}

impl Pattern {
    /// The pattern with these gaps.
    ///
    /// # Errors
    /// [`PatternError`] where there are not 2 to [`MAX_SLOTS`] of them, or one is not from 1 to [`MAX_GAP`].
    pub fn new(gaps: &[i64]) -> Result<Self, PatternError> {
        let mut pattern = Self { gaps: [0; MAX_SLOTS], len: 0 };
        let len = u8::try_from(gaps.len()).ok().filter(|&len| (2..=MAX_SLOTS).contains(&usize::from(len)));
        pattern.len = len.ok_or(PatternError::Length(gaps.len()))?;
        for (place, &gap) in pattern.gaps.iter_mut().zip(gaps) {
            let fits = u8::try_from(gap).ok().filter(|gap| (1..=MAX_GAP).contains(gap));
            *place = fits.ok_or(PatternError::Gap(gap))?;
        }
        Ok(pattern)
    }

    /// The gaps, 1 to [`MAX_GAP`] each; the last one leads to the first slot of the next round.
    pub fn gaps(&self) -> &[u8] {
        &self.gaps[..usize::from(self.len)]
    }

    /// The gap behind the slot at `place`, which counts round and round.
    pub(super) fn gap(&self, place: u8) -> u8 {
        self.gaps[usize::from(place % self.len)]
    }

    /// The place behind `place`.
    pub(super) const fn next(&self, place: u8) -> u8 {
        let next = place + 1;
        if next < self.len { next } else { 0 }
    }

    /// Slots of a round.
    pub(super) const fn len(&self) -> u8 {
        self.len
    }

    /// The sum of the gaps: how long a round is in the pattern's own unit.
    pub fn total(&self) -> u32 {
        self.gaps().iter().copied().map(u32::from).sum()
    }

    /// Mean of the squares of the gaps over the square of their mean: 1 where all are equal.
    pub fn unevenness(&self) -> f64 {
        let squares: u32 = self.gaps().iter().map(|&gap| u32::from(gap) * u32::from(gap)).sum();
        let total = f64::from(self.total());
        f64::from(squares) * f64::from(self.len) / (total * total)
    }

    /// The longest gap as a multiple of the mean.
    pub fn longest(&self) -> f64 {
        let longest = self.gaps().iter().copied().max().unwrap_or(1);
        f64::from(longest) * f64::from(self.len) / f64::from(self.total().max(1))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, gap) in self.gaps().iter().enumerate() {
            write!(f, "{}{gap}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_bounded() {
        assert_eq!(Pattern::new(&[]), Err(PatternError::Length(0)));
        assert_eq!(Pattern::new(&[1]), Err(PatternError::Length(1)));
        assert_eq!(Pattern::new(&[1; 33]), Err(PatternError::Length(33)));
        assert_eq!(Pattern::new(&[1; 400]), Err(PatternError::Length(400)));
        for gap in [0, -1, 101, 256, 257, i64::MAX] {
            assert_eq!(Pattern::new(&[1, gap]), Err(PatternError::Gap(gap)));
        }
        assert_eq!(Pattern::new(&[100; 32]).unwrap().total(), 3200);
    }

    #[test]
    fn a_pattern_says_what_it_is() {
        let pattern = Pattern::new(&[1, 1, 6]).unwrap();
        assert_eq!((pattern.to_string(), pattern.gaps()), ("1:1:6".to_owned(), &[1, 1, 6][..]));
        // 38 / 3 over (8 / 3)², and 6 over 8 / 3.
        assert!((pattern.unevenness() - 38.0 * 3.0 / 64.0).abs() < 1e-12);
        assert!((pattern.longest() - 2.25).abs() < 1e-12);
        let even = Pattern::new(&[7, 7]).unwrap();
        assert!((even.unevenness() - 1.0).abs() < 1e-12 && (even.longest() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn places_go_round() {
        let pattern = Pattern::new(&[3, 5]).unwrap();
        assert_eq!((pattern.next(0), pattern.next(1)), (1, 0));
        assert_eq!((pattern.gap(0), pattern.gap(1)), (3, 5));
    }
}
