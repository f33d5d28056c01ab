//! How this machine takes the processor away, so that other figures can be read beside it.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::figure::Noise;

/// A turn that took longer is a gap: many times what reading the clock takes.
const GAP: Duration = Duration::from_micros(10);

/// An empty loop that reads the clock, and how long its turns took.
#[derive(Debug)]
pub struct GapProbe {
    turns: Histogram<u64>,
    watched: Duration,
    lost: Duration,
}

impl Default for GapProbe {
    fn default() -> Self {
        Self::new()
    }
}

impl GapProbe {
    /// A probe that has seen nothing.
    ///
    /// # Panics
    /// Never: the histogram's bounds are constants that it takes.
    pub fn new() -> Self {
        // 1 ns to 10 s.
        let turns = Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds in order");
        Self { turns, watched: Duration::ZERO, lost: Duration::ZERO }
    }

    /// Spins on the calling thread for `duration`.
    pub fn watch(&mut self, duration: Duration) {
        let start = Instant::now();
        let mut last = start;
        while last - start < duration {
            let now = Instant::now();
            let turn = now - last;
            self.turns.saturating_record(u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX));
            if turn > GAP {
                self.lost += turn;
            }
            last = now;
        }
        self.watched += last - start;
    }

    /// What was seen so far, as a report prints it.
    pub fn noise(&self) -> Noise {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Noise {
            gap_p99_us: micros(self.lateness(0.99)),
            gap_p999_us: micros(self.lateness(0.999)),
            gap_max_us: micros(self.turns.max()),
            lost_percent: 100.0 * self.lost.as_secs_f64() / self.watched.as_secs_f64().max(1e-9),
        }
    }

    /// How late a perfect spinner would have been, in nanoseconds, for a deadline that falls at a random instant, at
    /// `quantile` (0 to 1). A deadline inside a turn of length `g` is met when the turn ends, late by a part of `g`
    /// that is uniform; so a turn counts by its length, and its parts evenly.
    pub fn lateness(&self, quantile: f64) -> u64 {
        // P(late > x) = sum over turns longer than x of (g - x), over the time watched.
        let total: f64 = self.turns.iter_recorded().map(|bin| weight(&bin, 0)).sum();
        let beyond = |x: u64| self.turns.iter_recorded().map(|bin| weight(&bin, x)).sum::<f64>();
        let allowed = (1.0 - quantile) * total;
        let (mut low, mut high) = (0, self.turns.max());
        while low < high {
            let middle = low + (high - low) / 2;
            if beyond(middle) <= allowed {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

fn weight(bin: &hdrhistogram::iterators::IterationValue<u64>, beyond: u64) -> f64 {
    bin.count_at_value() as f64 * bin.value_iterated_to().saturating_sub(beyond) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_weighs_as_much_as_it_lasts() {
        let mut probe = GapProbe::new();
        // 1 ms in turns of 100 ns, and one gap of 1 ms: half of all deadlines fall into the gap.
        probe.turns.record_n(100, 10_000).expect("in range");
        probe.turns.record(1_000_000).expect("in range");
        let median = probe.lateness(0.5);
        assert!(median < 2_000, "{median}");
        let three_quarters = probe.lateness(0.75);
        assert!(three_quarters.abs_diff(500_000) < 5_000, "{three_quarters}");
        assert!(probe.lateness(1.0) >= 999_000);
    }

    #[test]
    fn watching_takes_as_long_as_asked_and_sees_turns() {
        let mut probe = GapProbe::new();
        probe.watch(Duration::from_millis(5));
        assert!(probe.watched >= Duration::from_millis(5));
        assert!(probe.noise().gap_max_us > 0.0);
    }
}
