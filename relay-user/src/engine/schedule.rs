//! When a link's slots are: laid down from the class and a seed alone, before any payload is known.
//!
//! Times are kept in 2^-32 ns, so that no rate is rounded and nothing adds up. Each slot takes one number of the seed's
//! row at most; the generator makes them 32 at a time.

mod pattern;
#[cfg(test)]
mod tests;

pub use pattern::{MAX_GAP, MAX_SLOTS, Pattern, PatternError};

use super::time::Nanos;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::fmt;

/// Cells per second, at most.
pub const MAX_RATE: u32 = 200_000;
/// The longest gap of `poisson`, as a multiple of the mean. Longer ones, one in 5·10^8, are drawn again: that takes
/// 4·10^-8 from the mean, and an observer would have to see as many slots to know the law from one without end.
pub const POISSON_LONGEST: u32 = 20;
/// How far a link's rate lies from its class's at most, in parts per million.
pub const RATE_OFFSET_PPM: u32 = 200;

/// Bits behind the point of a time in nanoseconds.
pub(crate) const FRACTION: u32 = 32;
/// Slots of `poisson` that a skip goes through one by one: about a microsecond's work.
const WALK: u32 = 32;

/// The law by which a class lays its slots in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// Slot k at `t0 + k * period`.
    Constant,
    /// Slot k somewhere in `[t0 + k * period, t0 + (k + 1) * period)`, uniformly.
    Jittered,
    /// Gaps independent of each other and exponential, as of a Poisson process; none is longer than
    /// [`POISSON_LONGEST`] periods.
    Poisson,
    /// Gaps that repeat, in these proportions.
    Pattern(Pattern),
}

impl Law {
    /// One in so many slots of a link must stay free of circuits, or cells that come by this law would pile up. Two
    /// links of one class differ by up to twice [`RATE_OFFSET_PPM`], and hosts' clocks besides; by `poisson`, cells come
    /// so unevenly that a link without slots to spare keeps a circuit's queue full.
    pub const fn spare(self) -> u32 {
        match self {
            Self::Constant | Self::Jittered | Self::Pattern(_) => 256,
            Self::Poisson => 8,
        }
    }

    /// Cells per second that circuits may have of a link of this law at `rate`, where their clients' links are of law
    /// `clients`.
    pub const fn usable(self, rate: u32, clients: Self) -> u32 {
        let spare = if self.spare() < clients.spare() { self.spare() } else { clients.spare() };
        rate - rate.div_ceil(spare)
    }

    /// As [`Self::usable`], whichever of these laws clients' links have; as for its own where there are none.
    pub fn usable_by_any(self, rate: u32, clients: impl IntoIterator<Item = Self>) -> u32 {
        let each = clients.into_iter().map(|client| self.usable(rate, client));
        each.min().unwrap_or_else(|| self.usable(rate, self))
    }

    /// The longest gap between two slots, as a multiple of the mean.
    pub fn longest_gap(self) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Jittered => 2.0,
            Self::Poisson => f64::from(POISSON_LONGEST),
            Self::Pattern(pattern) => pattern.longest(),
        }
    }
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::Jittered => f.write_str("jittered"),
            Self::Poisson => f.write_str("poisson"),
            Self::Pattern(pattern) => write!(f, "pattern {pattern}"),
        }
    }
}

/// How far one direction of one link is off its class's rate: within [`RATE_OFFSET_PPM`] either way. Who changes a link's
/// class keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateOffset(u64);

impl RateOffset {
    /// Draws one.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self(rng.next_u64())
    }

    /// Draws one that lies no further than half the range from what `own`, a draw itself, has as its share.
    fn around(own: Self, rng: &mut impl Rng) -> Self {
        Self(own.0 / 2 + rng.next_u64() / 2)
    }

    /// The mean gap of a link whose class has `nominal`.
    pub(crate) fn apply(self, nominal: u64) -> u64 {
        let span = nominal / 1_000_000 * u64::from(2 * RATE_OFFSET_PPM);
        nominal - span / 2 + scale(self.0, span)
    }
}

/// What one node draws offsets from. Whoever can break a link makes its node draw again and again, and the mean of many
/// draws would be the host's clock; so half of each offset is the node's own, and stays for a day. Their mean is the clock and
/// that half, which nobody can tell apart.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// The node's own half, and when it was drawn.
    own: Option<(Nanos, RateOffset)>,
}

/// How long a node keeps its half, in nanoseconds.
const OWN_FOR: Nanos = Nanos(86_400 * Nanos::SECOND.0);

impl Offsets {
    /// The offset of what begins now.
    pub(crate) fn draw(&mut self, now: Nanos, rng: &mut impl Rng) -> RateOffset {
        let kept = self.own.filter(|(drawn, _)| now.since(*drawn) < OWN_FOR);
        let (_, own) = *self.own.insert(kept.unwrap_or_else(|| (now, RateOffset::draw(rng))));
        RateOffset::around(own, rng)
    }
}

/// The slots of one direction of one link.
#[derive(Debug)]
pub struct Schedule {
    law: Law,
    /// The gap's unit, in 2^-32 ns: the mean gap, for a pattern what its numbers count.
    unit: u64,
    /// Where the coming slot's gap began, in 2^-32 ns: for all laws but `jittered`, the slot itself.
    base: u128,
    /// The coming slot's place in the pattern.
    place: u8,
    deadline: Nanos,
    rng: ChaCha8Rng,
}

impl Schedule {
    /// Slots at `rate` cells per second (1 to [`MAX_RATE`]), from a random phase after `start`. The rate is off by up to
    /// [`RATE_OFFSET_PPM`], uniformly, for as long as the schedule lives: who measures it learns little of the host's
    /// clock, and nothing from measuring for longer. The seed decides all of it and every later deadline.
    pub fn new(law: Law, rate: u32, start: Nanos, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let offset = RateOffset::draw(&mut rng);
        Self::with_period(law, offset.apply(nominal(rate)), start, rng)
    }

    /// Like [`Schedule::new`], with an offset that the link has already.
    pub fn with_offset(law: Law, rate: u32, offset: RateOffset, start: Nanos, seed: [u8; 32]) -> Self {
        Self::with_period(law, offset.apply(nominal(rate)), start, ChaCha8Rng::from_seed(seed))
    }

    /// Like [`Schedule::new`], at the class's rate exactly: for measurements that count slots against a clock.
    pub fn without_offset(law: Law, rate: u32, start: Nanos, seed: [u8; 32]) -> Self {
        Self::with_period(law, nominal(rate), start, ChaCha8Rng::from_seed(seed))
    }

    fn with_period(law: Law, period: u64, start: Nanos, mut rng: ChaCha8Rng) -> Self {
        let start = fixed(start);
        let (unit, base, place) = match law {
            Law::Constant | Law::Jittered => (period, start + u128::from(uniform(&mut rng, period)), 0),
            // The time from any instant to the next slot has the law of the gaps.
            Law::Poisson => (period, start + exponential(&mut rng, period), 0),
            Law::Pattern(pattern) => {
                let unit = unit(period, &pattern);
                let (ahead, place) = phase(&mut rng, unit, &pattern);
                (unit, start + ahead, place)
            }
        };
        let mut schedule = Self { law, unit, base, place, deadline: Nanos(0), rng };
        schedule.draw();
        schedule
    }

    /// When the coming slot is due.
    pub const fn deadline(&self) -> Nanos {
        self.deadline
    }

    /// Mean time between slots, to the nanosecond.
    pub fn period(&self) -> Nanos {
        Nanos(self.mean() >> FRACTION)
    }

    fn mean(&self) -> u64 {
        match &self.law {
            Law::Constant | Law::Jittered | Law::Poisson => self.unit,
            Law::Pattern(pattern) => {
                let cycle = u128::from(self.unit) * u128::from(pattern.total());
                u64::try_from(cycle / u128::from(pattern.len())).unwrap_or(u64::MAX)
            }
        }
    }

    /// Goes on to the next slot. The base moves by the law's gap, never from now.
    pub fn advance(&mut self) {
        self.base += match &self.law {
            Law::Constant | Law::Jittered => u128::from(self.unit),
            Law::Poisson => exponential(&mut self.rng, self.unit),
            Law::Pattern(pattern) => {
                let gap = u128::from(self.unit) * u128::from(pattern.gap(self.place));
                self.place = pattern.next(self.place);
                gap
            }
        };
        self.draw();
    }

    /// Goes on to the first slot due at `earliest` or later; returns how many slots that skips. However many they are, it
    /// takes a bounded time: a division, and for a pattern one round of it. By `poisson`, 32 slots are gone through one by
    /// one; behind them the wait from `earliest` on is drawn afresh, which has the law of the wait for the slot that
    /// would have come, and what lies between is counted by its mean.
    pub fn skip_to(&mut self, earliest: Nanos) -> u64 {
        if self.deadline >= earliest {
            return 0;
        }
        match self.law {
            Law::Constant | Law::Jittered => self.skip_periods(earliest),
            Law::Poisson => self.skip_drawn(earliest),
            Law::Pattern(pattern) => self.skip_rounds(earliest, &pattern),
        }
    }

    fn skip_periods(&mut self, earliest: Nanos) -> u64 {
        // The coming slot's period is the one that holds `earliest`, or the one behind it.
        let periods = (self.until(earliest) / u128::from(self.unit)).max(1);
        self.base += periods * u128::from(self.unit);
        self.draw();
        let skipped = u64::try_from(periods).unwrap_or(u64::MAX);
        if self.deadline >= earliest {
            return skipped;
        }
        self.advance();
        skipped.saturating_add(1)
    }

    fn skip_rounds(&mut self, earliest: Nanos, pattern: &Pattern) -> u64 {
        let round = u128::from(self.unit) * u128::from(pattern.total());
        let rounds = self.until(earliest) / round;
        self.base += rounds * round;
        self.draw();
        let mut skipped = u64::try_from(rounds).unwrap_or(u64::MAX).saturating_mul(pattern.len().into());
        while self.deadline < earliest {
            self.advance();
            skipped = skipped.saturating_add(1);
        }
        skipped
    }

    fn skip_drawn(&mut self, earliest: Nanos) -> u64 {
        for skipped in 1..=WALK {
            self.advance();
            if self.deadline >= earliest {
                return skipped.into();
            }
        }
        // The slots walked through, the one stood on, and those up to `earliest`.
        let mean = u128::from(self.unit);
        let between = (self.until(earliest) + mean / 2) / mean;
        self.base = fixed(earliest) + exponential(&mut self.rng, self.unit);
        self.draw();
        u64::try_from(between).unwrap_or(u64::MAX).saturating_add(u64::from(WALK) + 1)
    }

    /// From the base to `at`, in 2^-32 ns.
    fn until(&self, at: Nanos) -> u128 {
        fixed(at).saturating_sub(self.base)
    }

    /// Slots in any stretch of time of this length, at most. By `poisson` there is no such bound: more than this come
    /// once in 10^9 stretches.
    pub fn most_within(&self, span: Nanos) -> u64 {
        let span = fixed(span);
        let count = |slots: u128| u64::try_from(slots).unwrap_or(u64::MAX);
        match &self.law {
            Law::Constant => count(span / u128::from(self.unit) + 1),
            Law::Jittered => count(span / u128::from(self.unit) + 2),
            Law::Poisson => {
                let mean = count(span / u128::from(self.unit));
                // Ten standard deviations, and what a small mean needs beyond them.
                mean.saturating_add(mean.saturating_mul(100).isqrt()).saturating_add(16)
            }
            Law::Pattern(pattern) => {
                let round = u128::from(self.unit) * u128::from(pattern.total());
                let rest = span % round;
                let from = |place: u8| {
                    let (mut slots, mut at, mut place) = (1, 0, place);
                    while slots < u128::from(pattern.len()) {
                        at += u128::from(self.unit) * u128::from(pattern.gap(place));
                        if at > rest {
                            break;
                        }
                        place = pattern.next(place);
                        slots += 1;
                    }
                    slots
                };
                let dense = (0..pattern.len()).map(from).max().unwrap_or(1);
                count(span / round * u128::from(pattern.len()) + dense)
            }
        }
    }

    fn draw(&mut self) {
        let offset = match &self.law {
            Law::Jittered => u128::from(uniform(&mut self.rng, self.unit)),
            Law::Constant | Law::Poisson | Law::Pattern(_) => 0,
        };
        // Of times beyond 584 years there are none.
        self.deadline = Nanos(u64::try_from((self.base + offset) >> FRACTION).unwrap_or(u64::MAX));
    }
}

/// The mean gap of a class, in 2^-32 ns.
fn nominal(rate: u32) -> u64 {
    let second = u128::from(Nanos::SECOND.0) << FRACTION;
    // A second in this unit is less than 2^62.
    u64::try_from(second / u128::from(rate.clamp(1, MAX_RATE))).unwrap_or(u64::MAX)
}

/// What a pattern's numbers count, in 2^-32 ns, where its mean gap is `period`.
fn unit(period: u64, pattern: &Pattern) -> u64 {
    let round = u128::from(period) * u128::from(pattern.len());
    u64::try_from(round / u128::from(pattern.total())).unwrap_or(u64::MAX)
}

/// From an instant that lies anywhere in a pattern's round to the next slot, in 2^-32 ns, and that slot's place.
fn phase(rng: &mut impl Rng, unit: u64, pattern: &Pattern) -> (u128, u8) {
    let whole = uniform(rng, pattern.total().into());
    let at = u128::from(whole) * u128::from(unit) + u128::from(uniform(rng, unit));
    let mut slot = 0;
    for (place, &gap) in (0..).zip(pattern.gaps()) {
        if slot >= at {
            return (slot - at, place);
        }
        slot += u128::from(unit) * u128::from(gap);
    }
    (slot - at, 0)
}

const fn fixed(at: Nanos) -> u128 {
    (at.0 as u128) << FRACTION
}

/// A number below `bound`, uniform to within 2^-64 of `bound`; 0 where that is 0.
pub(crate) fn uniform(rng: &mut impl Rng, bound: u64) -> u64 {
    scale(rng.next_u64(), bound)
}

/// The share `number` / 2^64 of `bound`.
fn scale(number: u64, bound: u64) -> u64 {
    u64::try_from((u128::from(number) * u128::from(bound)) >> 64).unwrap_or(0)
}

/// A gap of an exponential law with this mean, given that it is shorter than [`POISSON_LONGEST`] means: by the inverse of
/// its distribution function, so that one number is drawn whatever comes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and at most twenty times a number of 63 bits"
)]
fn exponential(rng: &mut impl Rng, mean: u64) -> u128 {
    /// 1 - exp(-[`POISSON_LONGEST`]).
    const SHARE: f64 = 1.0 - 2.061_153_622_438_558e-9;
    let uniform = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    let gap = -(1.0 - uniform * SHARE).ln();
    (gap * mean as f64) as u128
}
