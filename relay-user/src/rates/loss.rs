//! Loss as the only sign of congestion: over all cells of a link, by counter, so that it is the same whatever they carry.
//!
//! A receiver counts how far the counters of authentic cells have come and how many came. It tells the sender both
//! totals once in a while, in a cell of the link. Totals, not differences: a report that is lost costs nothing but time.

use crate::engine::time::Nanos;

/// Cells that a window must have: of fewer, a single one would be a large share.
const MIN_CELLS: u64 = 32;
/// How long cells may be under way, or a whole direction dead, before the link is down for its silence.
const SLACK: Nanos = Nanos(3 * Nanos::SECOND.0);
/// A share is so many millionths.
const WHOLE: u32 = 1_000_000;

/// When loss has consequences. Shares are in millionths of all cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossRules {
    /// More loss than this in most windows of an epoch: one class down.
    pub high: u32,
    /// Epochs below that before it goes one class up again.
    pub recover: u32,
    /// More loss than this in every window: the link stops.
    pub limit: u32,
    /// Seconds for which it must last.
    pub seconds: u32,
    /// Seconds for which the link stays down then.
    pub pause: u32,
}

impl Default for LossRules {
    /// 2 % for a step, back after 4 epochs; 20 % for 10 s stop the link for 60 s.
    fn default() -> Self {
        Self { high: 20_000, recover: 4, limit: 200_000, seconds: 10, pause: 60 }
    }
}

/// What was lost of so many cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossWindow {
    /// Cells sent, as their counters tell.
    pub expected: u64,
    /// Those of them that did not come.
    pub missing: u64,
}

impl LossWindow {
    /// Whether more than `share` millionths are missing.
    pub const fn is_above(self, share: u32) -> bool {
        self.missing as u128 * WHOLE as u128 > self.expected as u128 * share as u128
    }
}

/// Turns the totals of reports into windows.
#[derive(Clone, Copy, Debug, Default)]
pub struct LossMeter {
    last: (u64, u64),
    /// When the last report came.
    heard: Option<Nanos>,
}

impl LossMeter {
    /// As [`Self::note`], for a report that comes at `now` about a link of at most `rate` cells per second. What it tells of
    /// more cells than can have been sent since the last one, cells on their way and machines' included, is no window:
    /// nobody saves cells up to lose them all at once.
    pub fn note_at(&mut self, expected: u64, received: u64, rate: u32, now: Nanos) -> Option<LossWindow> {
        let since = self.heard.replace(now).map_or(Nanos(0), |heard| now.since(heard)) + SLACK;
        let sent = 2 * u128::from(rate) * u128::from(since.0) / u128::from(Nanos::SECOND.0);
        if u128::from(expected.saturating_sub(self.last.0)) > sent {
            self.last = (expected, received.min(expected));
            return None;
        }
        self.note(expected, received)
    }

    /// Takes a report: cells expected and received since the link came up. Gives a window once it has enough cells.
    /// Totals that cannot follow the last ones are a new link's and begin anew.
    pub fn note(&mut self, expected: u64, received: u64) -> Option<LossWindow> {
        let (was_expected, was_received) = self.last;
        if expected < was_expected || received < was_received || received > expected {
            self.last = (expected, received.min(expected));
            return None;
        }
        let window = expected - was_expected;
        if window < MIN_CELLS {
            return None;
        }
        self.last = (expected, received);
        // Cells of the window before that came late can make up for more than this one lost.
        Some(LossWindow { expected: window, missing: window.saturating_sub(received - was_received) })
    }
}

/// How many classes a direction has gone down for its loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepDown {
    level: usize,
    good: u32,
    windows: u32,
    high: u32,
}

impl StepDown {
    /// Classes below that of the policy; 0 is the policy's own.
    pub const fn level(&self) -> usize {
        self.level
    }

    /// Takes a window of the epoch that runs.
    pub const fn note(&mut self, window: LossWindow, rules: &LossRules) {
        self.windows = self.windows.saturating_add(1);
        if window.is_above(rules.high) {
            self.high = self.high.saturating_add(1);
        }
    }

    /// How many answers [`Self::at_boundary`] may give, where there are `levels` classes to go down to.
    pub fn choices(&self, levels: usize) -> u32 {
        1 + u32::from(self.level < levels) + u32::from(self.level > 0)
    }

    /// Ends an epoch; true where the level changes. An epoch without a window says nothing. One is bad where most of
    /// its windows are: a short outage, however deep, is the breaker's business or nobody's.
    pub fn at_boundary(&mut self, levels: usize, rules: &LossRules) -> bool {
        let (windows, high) = (std::mem::take(&mut self.windows), std::mem::take(&mut self.high));
        let before = self.level;
        if windows > 0 && high > windows / 2 {
            self.good = 0;
            self.level = (self.level + 1).min(levels);
        } else if windows > 0 && self.level > 0 {
            self.good += 1;
            if self.good >= rules.recover {
                self.good = 0;
                self.level -= 1;
            }
        }
        self.level != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: LossRules = LossRules { high: 20_000, recover: 3, limit: 200_000, seconds: 10, pause: 60 };

    fn window(missing: u64) -> LossWindow {
        LossWindow { expected: 1000, missing }
    }

    fn epoch(steps: &mut StepDown, missing: &[u64]) -> usize {
        missing.iter().for_each(|&missing| steps.note(window(missing), &RULES));
        steps.at_boundary(2, &RULES);
        steps.level()
    }

    #[test]
    fn a_share_is_exceeded_only_above_it() {
        assert!(!window(20).is_above(20_000));
        assert!(window(21).is_above(20_000));
        assert!(!LossWindow::default().is_above(0));
    }

    #[test]
    fn lasting_loss_goes_down_a_class_an_epoch_and_good_epochs_go_up() {
        let mut steps = StepDown::default();
        assert_eq!(steps.choices(2), 2);
        assert_eq!(epoch(&mut steps, &[30; 5]), 1);
        assert_eq!(steps.choices(2), 3);
        assert_eq!(epoch(&mut steps, &[30; 5]), 2);
        assert_eq!(steps.choices(2), 2);
        assert_eq!(epoch(&mut steps, &[900; 5]), 2, "there is no lower class");
        for (missing, level) in [(0, 2), (20, 2), (0, 1), (0, 1), (0, 1), (30, 2), (0, 2), (0, 2), (0, 1)] {
            assert_eq!(epoch(&mut steps, &[missing; 5]), level, "{missing}");
        }
    }

    #[test]
    fn a_short_outage_and_an_epoch_of_silence_change_nothing() {
        let mut steps = StepDown::default();
        assert_eq!(epoch(&mut steps, &[1000, 1000, 0, 0]), 0, "half is not most");
        assert_eq!(epoch(&mut steps, &[30, 30, 0]), 1);
        for _ in 0..10 {
            assert_eq!(epoch(&mut steps, &[]), 1);
        }
    }

    #[test]
    fn reports_make_windows() {
        let mut meter = LossMeter::default();
        assert_eq!(meter.note(20, 20), None, "too few cells");
        assert_eq!(meter.note(100, 90), Some(LossWindow { expected: 100, missing: 10 }));
        // The report at 200 was lost.
        assert_eq!(meter.note(300, 270), Some(LossWindow { expected: 200, missing: 20 }));
        assert_eq!(meter.note(400, 385), Some(LossWindow { expected: 100, missing: 0 }), "late cells came");
        assert_eq!(meter.note(50, 50), None, "another link");
        assert_eq!(meter.note(150, 150), Some(LossWindow { expected: 100, missing: 0 }));
        assert_eq!(meter.note(250, 260), None, "more than were sent");
    }

    #[test]
    fn cells_are_not_saved_up_to_be_lost_at_once() {
        let at = |second: u64| Nanos(second * Nanos::SECOND.0);
        let mut meter = LossMeter::default();
        assert_eq!(meter.note_at(20, 20, 100, at(0)), None, "too few cells");
        // An hour in which the peer says of the cells nothing, and then that they did not come.
        (1..3600).for_each(|second| assert_eq!(meter.note_at(20, 20, 100, at(second)), None));
        assert_eq!(meter.note_at(360_000, 20, 100, at(3600)), None);
        let honest = LossWindow { expected: 100, missing: 1 };
        assert_eq!(meter.note_at(360_100, 119, 100, at(3601)), Some(honest), "and goes on from there");
        // A direction that was dead for two seconds, and a report that was lost.
        let late = LossWindow { expected: 400, missing: 200 };
        assert_eq!(meter.note_at(360_500, 319, 100, at(3603)), Some(late));
    }

    proptest! {
        #[test]
        fn the_level_stays_within_the_ladder_and_moves_by_one(
            levels in 0_usize..4,
            epochs in prop::collection::vec(prop::collection::vec(0u64..1000, 0..6), 1..40),
        ) {
            let mut steps = StepDown::default();
            for windows in epochs {
                let before = steps.level();
                windows.iter().for_each(|&missing| steps.note(window(missing), &RULES));
                let choices = steps.choices(levels);
                let changed = steps.at_boundary(levels, &RULES);
                prop_assert!(steps.level() <= levels && steps.level().abs_diff(before) <= 1);
                prop_assert_eq!(changed, steps.level() != before);
                prop_assert!(!changed || choices > 1, "a change that was no choice");
            }
        }

        #[test]
        fn windows_never_lose_more_than_was_sent(reports in prop::collection::vec((any::<u64>(), any::<u64>()), 1..50)) {
            let mut meter = LossMeter::default();
            for (expected, received) in reports {
                if let Some(window) = meter.note(expected, received) {
                    prop_assert!(window.missing <= window.expected && window.expected >= MIN_CELLS);
                }
            }
        }
    }
}
