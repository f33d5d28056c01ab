//! Whether a direction did the same all the time: its rate, its gaps' spread, and echoes in its counts.

use crate::observe::stats::{autocorrelation, cusum, kolmogorov_p, mean, variance};
use crate::observe::trace::Window;

/// Cells in a bin, on average.
const CELLS: f64 = 50.0;
/// Bins below which nothing is said, and above which they are made wider.
const FEWEST: usize = 20;
const MOST: f64 = 4000.0;
/// Lags of the echoes that are looked for. Under `jittered` neighbouring bins share a cell's place: lag 1 says nothing.
const LAGS: std::ops::RangeInclusive<usize> = 2..=64;
/// What the greatest of as many correlations of noise, in units of 1/sqrt(n), stays below in 95 of 100 series.
const BAND: f64 = 3.36;
/// The distance that `cusum` of noise stays below in 999 of 1000 series, and what finds a change in 4 of 5 beyond it.
const THRESHOLD: f64 = 1.95;
const POWER: f64 = 0.84;
/// Cells by which a change half-way must move the sum of counts, times four, to be more than rounding.
const WHOLE: f64 = 8.0;

/// Where a series changed most, and whether noise does as much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// How far the sum of deviations strayed, in units of sqrt(n) deviations.
    pub(crate) statistic: f64,
    /// How likely that would be if nothing changed. For paced cells, whose counts vary less than their sum suggests,
    /// it is too high rather than too low.
    pub(crate) p: f64,
    /// Seconds after the first cell.
    pub(crate) at: f64,
    /// By what share of the mean it was higher afterwards.
    pub(crate) by: f64,
    /// The least such share, half-way, that would have been found four times in five.
    pub(crate) detectable: f64,
}

/// What a direction did over time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steadiness {
    /// Seconds of a bin.
    pub(crate) bin: f64,
    pub(crate) bins: usize,
    pub(crate) rate: Change,
    pub(crate) spread: Change,
    /// The greatest autocorrelation of counts and its lag in bins.
    pub(crate) echo: (f64, usize),
    /// What the greatest of noise would be, in 95 of 100 series.
    pub(crate) band: f64,
}

/// Nanoseconds of a bin for a window's cells.
pub(crate) fn bin(window: Window<'_>) -> u64 {
    let width = window.width() as f64;
    let cells = window.sights().len().max(1) as f64;
    nanos((width / cells * CELLS).max(width / MOST).ceil())
}

/// Looks at a window that begins with a cell and ends with one; `None` where it is too short.
pub(crate) fn look(window: Window<'_>) -> Option<Steadiness> {
    let width = bin(window);
    let counts: Vec<f64> = window.counts(width).into_iter().map(f64::from).collect();
    if counts.len() < FEWEST {
        return None;
    }
    let seconds = width as f64 / 1e9;
    let per_bin = (counts.iter().sum::<f64>() / counts.len() as f64).max(1.0);
    let gaps: Vec<f64> = window.gaps().collect();
    let spreads: Vec<f64> = gaps.chunks_exact(whole(per_bin)).map(|gaps| variance(gaps).sqrt()).collect();
    let scale = seconds * counts.len() as f64 / spreads.len().max(1) as f64;
    let echo = LAGS
        .filter(|lag| lag * 4 < counts.len())
        .map(|lag| (autocorrelation(&counts, lag), lag))
        .max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))
        .unwrap_or((0.0, 0));
    let band = BAND / (counts.len() as f64).sqrt();
    let (mut rate, spread) = (change(&counts, seconds), change(&spreads, scale));
    // Counts that never differ are counts of whole cells all the same.
    rate.detectable = rate.detectable.max(WHOLE / (per_bin * counts.len() as f64));
    Some(Steadiness { bin: seconds, bins: counts.len(), rate, spread, echo, band })
}

fn change(values: &[f64], seconds: f64) -> Change {
    let n = values.len().max(1) as f64;
    let center = mean(values);
    let mut sum = 0.0;
    let mut furthest = (0, 0.0_f64);
    for (place, value) in values.iter().enumerate() {
        sum += value - center;
        if f64::abs(sum) > furthest.1.abs() {
            furthest = (place + 1, sum);
        }
    }
    let (before, after) = values.split_at(furthest.0.min(values.len()));
    let by = if before.is_empty() || after.is_empty() { 0.0 } else { (mean(after) - mean(before)) / center };
    let statistic = cusum(values);
    // Kolmogorov's law is that of a Brownian bridge's furthest point.
    let p = kolmogorov_p(statistic / n.sqrt(), n);
    let detectable = 4.0 * (THRESHOLD + POWER) * variance(values).sqrt() / (n.sqrt() * center.max(1e-9));
    Change { statistic, p, at: furthest.0 as f64 * seconds, by, detectable }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates; positive")]
fn nanos(value: f64) -> u64 {
    (value as u64).max(1)
}

#[expect(clippy::cast_possible_truncation, reason = "saturates; positive")]
fn whole(value: f64) -> usize {
    (value as usize).max(2)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::observe::stats::unit;
    use crate::observe::trace::{SECOND, Sight, Trace};

    /// Cells with exponential gaps, of a mean by time.
    fn poisson(seed: u64, mean: impl Fn(u64) -> f64) -> Trace {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut at = 0;
        let mut sights = Vec::new();
        while at < 100 * SECOND {
            at += nanos(-mean(at) * (1.0 - unit(&mut rng)).ln() * 1e9);
            sights.push(Sight { at, length: 1360 });
        }
        Trace::new(sights)
    }

    fn whole_of(trace: &Trace) -> Steadiness {
        look(trace.window(trace.sights()[0].at, 100 * SECOND)).unwrap()
    }

    #[test]
    fn a_rate_that_changes_is_found_and_one_that_does_not_is_not() {
        let mut alarms = 0;
        for seed in 0..40 {
            let still = whole_of(&poisson(seed, |_| 0.005));
            alarms += u32::from(still.rate.p < 0.05);
        }
        assert!(alarms <= 6, "{alarms} of 40 at 5 %");
        let trace = poisson(1, |at| if at < 50 * SECOND { 0.005 } else { 0.0045 });
        let changed = whole_of(&trace);
        assert!(changed.rate.p < 0.001, "{changed:?}");
        assert!((changed.rate.at - 50.0).abs() < 5.0 && (changed.rate.by - 0.11).abs() < 0.04, "{changed:?}");
        assert!(changed.rate.detectable < 0.12, "{changed:?}");
    }

    #[test]
    fn an_echo_is_found() {
        let still = whole_of(&poisson(3, |_| 0.005));
        assert!(still.echo.0.abs() < still.band * 1.3, "{still:?}");
        let second =
            whole_of(&poisson(3, |at| if (at / (2 * SECOND)).is_multiple_of(2) { 0.005 } else { 0.004 }));
        assert!(second.echo.0.abs() > 2.0 * second.band, "{second:?}");
    }

    #[test]
    fn a_spread_that_changes_is_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let sights = |wide: u64, rng: &mut ChaCha8Rng| -> Vec<Sight> {
            (0..20_000)
                .map(|k| {
                    let spread = if k < 10_000 { 20_000 } else { wide };
                    Sight { at: k * 1_000_000 + nanos(unit(rng) * spread as f64), length: 1360 }
                })
                .collect()
        };
        let window = |trace: &Trace| {
            look(trace.window(trace.sights()[0].at, trace.sights()[19_999].at + 1)).unwrap().spread
        };
        let still = window(&Trace::new(sights(20_000, &mut rng)));
        assert!(still.p > 0.01, "{still:?}");
        let changed = window(&Trace::new(sights(26_000, &mut rng)));
        assert!(changed.p < 0.001 && changed.by > 0.1, "{changed:?}");
    }
}
