//! How much of a link its client would have used: the statistic behind the adaptive policy.

use crate::engine::time::Nanos;
use relay_common::wire::DATA_LEN;

/// The busiest stretch of this length stands for an epoch: a mean over an hour would hide that a call needs a rate.
const STRETCH: Nanos = Nanos(10 * Nanos::SECOND.0);
/// Windows into which a stretch falls at least, for epochs that are not much longer.
const WINDOWS_PER_EPOCH: u64 = 4;

/// Turns running totals of bytes into the highest demand since it was last asked.
#[derive(Clone, Debug)]
pub struct DemandMeter {
    stretch: Nanos,
    since: Option<(Nanos, [u64; 2])>,
    peak: u64,
}

impl DemandMeter {
    /// A meter for epochs of this length.
    pub fn new(epoch: Nanos) -> Self {
        Self { stretch: STRETCH.min(Nanos((epoch.0 / WINDOWS_PER_EPOCH).max(1))), since: None, peak: 0 }
    }

    /// Takes the totals of bytes of payload that came and went so far. Both directions run at one class, so the busier
    /// one counts. Totals that go backwards, as after the interface was made anew, begin a new stretch.
    pub fn note(&mut self, now: Nanos, totals: [u64; 2]) {
        let Some((at, before)) = self.since else {
            self.since = Some((now, totals));
            return;
        };
        let span = now.since(at);
        if span < self.stretch {
            return;
        }
        let moved = totals.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before));
        let cells = moved.max().unwrap_or(0).div_ceil(DATA_LEN as u64);
        let rate = u128::from(cells) * u128::from(Nanos::SECOND.0) / u128::from(span.0.max(1));
        self.peak = self.peak.max(u64::try_from(rate).unwrap_or(u64::MAX));
        self.since = Some((now, totals));
    }

    /// The highest demand, in cells per second, of the whole stretches since the last call. The stretch that runs counts
    /// for neither call, so that no moment's use is in two choices.
    pub fn take(&mut self) -> u64 {
        self.since = None;
        std::mem::take(&mut self.peak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = Nanos::SECOND.0;
    const CELL: u64 = DATA_LEN as u64;

    #[test]
    fn the_busiest_stretch_of_the_busier_direction_counts() {
        let mut meter = DemandMeter::new(Nanos(3600 * SECOND));
        for (second, up, down) in [(0, 5, 0), (4, 105, 0), (10, 105, 500), (20, 105, 600), (30, 1105, 600)] {
            meter.note(Nanos(second * SECOND), [up * CELL, down * CELL]);
        }
        assert_eq!(meter.take(), 100, "1000 cells up in the last ten seconds");
        assert_eq!(meter.take(), 0, "and nothing since");
        meter.note(Nanos(30 * SECOND), [1105 * CELL, 600 * CELL]);
        meter.note(Nanos(50 * SECOND), [1105 * CELL, 1000 * CELL]);
        assert_eq!(meter.take(), 20, "over the time that really passed");
    }

    #[test]
    fn a_stretch_that_lies_across_a_choice_is_in_none() {
        let mut meter = DemandMeter::new(Nanos(3600 * SECOND));
        meter.note(Nanos(0), [0, 0]);
        meter.note(Nanos(8 * SECOND), [5000 * CELL, 0]);
        assert_eq!(meter.take(), 0);
        meter.note(Nanos(12 * SECOND), [6000 * CELL, 0]);
        meter.note(Nanos(22 * SECOND), [6100 * CELL, 0]);
        assert_eq!(meter.take(), 10);
    }

    #[test]
    fn totals_that_start_again_are_no_demand() {
        let mut meter = DemandMeter::new(Nanos(3600 * SECOND));
        meter.note(Nanos(0), [1 << 40, 0]);
        meter.note(Nanos(10 * SECOND), [0, 0]);
        assert_eq!(meter.take(), 0);
    }

    #[test]
    fn a_short_epoch_is_measured_too() {
        let mut meter = DemandMeter::new(Nanos(8 * SECOND));
        meter.note(Nanos(0), [0, 0]);
        meter.note(Nanos(2 * SECOND), [300 * CELL, 0]);
        assert_eq!(meter.take(), 150);
    }
}
