//! Traffic for the attacks' own tests: plain, which they must see through, and in slots, which they must not.

use crate::observe::stats::{below, unit};
use crate::observe::trace::{Sight, Trace};
use rand_chacha::ChaCha8Rng;

const MILLISECOND: u64 = 1_000_000;

/// Packets of activity 0 (idle), 1 (chat), 2 (web pages), 3 (a call), and, for others, a download, from 0 to `until`.
pub(super) fn activity(kind: u16, until: u64, rng: &mut ChaCha8Rng) -> Trace {
    // Time to the next burst, at least and at most; its packets, at least and at most; the gap in it; their length.
    let (pause, packets, gap, length) = match kind {
        0 => ((600, 900), (1, 1), 1, 120),
        1 => ((80, 300), (2, 6), 3, 400),
        2 => ((150, 400), (30, 80), 1, 1300),
        3 => ((19, 21), (1, 1), 1, 200),
        _ => ((1, 3), (2, 4), 1, 1300),
    };
    let mut sights = Vec::new();
    let mut at = 0;
    while at < until {
        at += between(pause.0 * MILLISECOND, pause.1 * MILLISECOND, rng);
        for _ in 0..between(packets.0, packets.1, rng) {
            sights.push(Sight { at, length });
            at += between(gap * MILLISECOND / 10, gap * MILLISECOND, rng);
        }
    }
    sights.retain(|sight| sight.at < until);
    Trace::new(sights)
}

/// The same packets, each a little later and none before the one ahead of it, as a relay without shaping sends them.
pub(super) fn relayed(trace: &Trace, rng: &mut ChaCha8Rng) -> Trace {
    let mut last = 0;
    let later = trace.sights().iter().map(|sight| {
        last = last.max(sight.at + between(MILLISECOND, 3 * MILLISECOND, rng));
        Sight { at: last, length: sight.length }
    });
    Trace::new(later.collect())
}

/// How [`cells`] are laid in time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// One period apart.
    Constant,
    /// Anywhere in their period.
    Jittered,
}

/// Cells in slots that know nothing of payload, at a random phase.
pub(super) fn cells(shape: Shape, rate: u64, until: u64, rng: &mut ChaCha8Rng) -> Trace {
    let period = 1000 * MILLISECOND / rate;
    let phase = between(0, period - 1, rng);
    let sights = (0..until / period + 1).map(|k| {
        let jitter = match shape {
            // What the kernel adds.
            Shape::Constant => between(0, 20_000, rng),
            Shape::Jittered => between(0, period - 1, rng),
        };
        Sight { at: phase + k * period + jitter, length: 1360 }
    });
    Trace::new(sights.filter(|sight| sight.at < until).collect())
}

/// A whole number from `least` to `most`.
pub(super) fn between(least: u64, most: u64, rng: &mut ChaCha8Rng) -> u64 {
    let span = usize::try_from(most - least).unwrap_or(usize::MAX);
    least + below(rng, span.saturating_add(1)) as u64
}

/// Whether something of this chance happens.
pub(super) fn happens(chance: f64, rng: &mut ChaCha8Rng) -> bool {
    unit(rng) < chance
}
