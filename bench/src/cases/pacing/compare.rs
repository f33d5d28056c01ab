//! How late slots were, and how far two sets of latenesses lie apart.

use super::relay::MADE_UP;
use hdrhistogram::Histogram;
use relay_user::engine::schedule::Schedule;
use relay_user::engine::time::Nanos;

/// The cells of one link, matched with its slots.
#[derive(Debug, Default)]
pub(super) struct Matched {
    /// How late each slot was, in nanoseconds; one left empty as late as its link's next cell, since what kept the
    /// worker from it lasted until then.
    pub(super) lateness: Vec<u32>,
    /// Slots that no cell fits, and those among them that count.
    pub(super) empty: u64,
    pub(super) missed: u64,
    /// Cells that no slot fits: each makes up for one slot that was taken for empty.
    pub(super) astray: u64,
}

/// Gives each cell, in the order in which they left, the first slot that the engine could still have filled then.
/// Slots before `from` do not count.
pub(super) fn match_slots(mut slots: Schedule, sent: impl Iterator<Item = Nanos>, from: Nanos) -> Matched {
    let mut matched = Matched::default();
    let late = |at: Nanos, deadline: Nanos| u32::try_from((at - deadline).0).unwrap_or(u32::MAX);
    for at in sent {
        while at.since(slots.deadline()) > MADE_UP {
            matched.empty += 1;
            if slots.deadline() >= from {
                matched.missed += 1;
                matched.lateness.push(late(at, slots.deadline()));
            }
            slots.advance();
        }
        let deadline = slots.deadline();
        if at < deadline {
            matched.astray += 1;
            continue;
        }
        if deadline >= from {
            matched.lateness.push(late(at, deadline));
        }
        slots.advance();
    }
    matched
}

/// The greatest distance between the distribution functions of two samples, both sorted (Kolmogorov and Smirnov); 1
/// where one is empty.
pub(super) fn ks_distance(a: &[u32], b: &[u32]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let (mut i, mut j, mut greatest) = (0, 0, 0.0_f64);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let value = *x.min(y);
        i += a[i..].iter().take_while(|other| **other == value).count();
        j += b[j..].iter().take_while(|other| **other == value).count();
        greatest = greatest.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    greatest
}

/// The value that a share `quantile` of a sorted sample does not exceed, in µs.
pub(super) fn quantile_us(sorted: &[u32], quantile: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of the sample")]
    let at = ((sorted.len() as f64 * quantile).ceil() as usize).saturating_sub(1).min(last);
    sorted.get(at).map_or(f64::NAN, |nanos| f64::from(*nanos) / 1e3)
}

/// The sample as a histogram in nanoseconds.
pub(super) fn histogram(sample: &[u32]) -> anyhow::Result<Histogram<u64>> {
    let mut values = Histogram::new_with_bounds(1, u64::from(u32::MAX), 3)?;
    for &nanos in sample {
        values.record(u64::from(nanos))?;
    }
    Ok(values)
}

/// Share of the sample at or below each value (µs), at every step of 1/200.
pub(super) fn cdf(sorted: &[u32]) -> Vec<(f64, f64)> {
    const STEPS: u32 = 200;
    (1..STEPS)
        .map(|step| {
            let share = f64::from(step) / f64::from(STEPS);
            (quantile_us(sorted, share), share)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_user::engine::schedule::Law;

    fn slots() -> Schedule {
        Schedule::without_offset(Law::Constant, 1000, Nanos(0), [1; 32])
    }

    fn deadlines(count: usize) -> Vec<Nanos> {
        let mut slots = slots();
        std::iter::repeat_with(|| {
            let at = slots.deadline();
            slots.advance();
            at
        })
        .take(count)
        .collect()
    }

    #[test]
    fn cells_find_their_slots_after_a_stall() {
        let due = deadlines(10);
        let stall = due[6] + Nanos(500);
        // Slots 0 to 2 on time, then nothing until shortly after slot 6: 5 and 6 are made up for, 3 and 4 are not.
        let sent =
            [due[0] + Nanos(100), due[1] + Nanos(200), due[2], stall, stall + Nanos(50), due[7] + Nanos(1)];
        let matched = match_slots(slots(), sent.into_iter(), due[1]);
        assert_eq!(matched.lateness, [200, 0, 3_000_500, 2_000_500, 1_000_500, 550, 1]);
        assert_eq!((matched.empty, matched.missed, matched.astray), (2, 2, 0));
    }

    #[test]
    fn a_cell_on_the_edge_of_tolerance_is_paid_back() {
        let due = deadlines(5);
        let edge = MADE_UP + Nanos(10);
        let sent = [due[0] + edge, due[1] + edge, due[2] + Nanos(20), due[3]];
        let matched = match_slots(slots(), sent.into_iter(), Nanos(0));
        assert_eq!(matched.empty - matched.astray, 0, "{matched:?}");
        assert_eq!(matched.lateness.last(), Some(&0));
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        let a: Vec<u32> = (0..1000).collect();
        let shifted: Vec<u32> = (100..1100).collect();
        assert!(ks_distance(&a, &a) < 1e-9);
        assert!((ks_distance(&a, &shifted) - 0.1).abs() < 1e-9);
        assert!((ks_distance(&a, &[5000]) - 1.0).abs() < 1e-9);
        assert!((ks_distance(&[1, 1, 2], &[1, 2, 2]) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn quantiles_count_from_the_least() {
        let sample: Vec<u32> = (1..=1000).map(|at| at * 1000).collect();
        let values = [0.5, 0.99, 0.999, 1.0].map(|quantile| quantile_us(&sample, quantile));
        assert_eq!(values, [500.0, 990.0, 999.0, 1000.0]);
        assert!(quantile_us(&[], 0.5).is_nan());
    }
}
