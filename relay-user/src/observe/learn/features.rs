//! What a window looks like in numbers: the features of k-fingerprinting (Hayes and Danezis, 2016), and those that tell
//! a disturbed timer from an undisturbed one.

use super::series::deviation;
use crate::observe::stats::{autocorrelation, cross_correlation, mean, quantile};
use crate::observe::trace::{Sight, Trace, Window};

/// Bins of a window: wide ones that show phases of a conversation, and narrow ones that show bursts.
const COARSE: u64 = 20;
const FINE: u64 = 100;
/// Packets that count together where both directions are given.
const CHUNK: usize = 20;

/// The features of what was seen at one time: one window, or one for each direction. As many for every window, and
/// all finite.
pub fn of(ways: &[Window<'_>]) -> Vec<f64> {
    row(ways).values
}

/// The names of the features of `ways` windows, in their order.
pub fn names(ways: usize) -> Vec<String> {
    let nothing = Trace::default();
    let row = row(&vec![nothing.window(0, 0); ways]);
    let each = row.names.len() - if ways == 2 { ORDERING } else { 0 };
    let each = each / ways.max(1);
    let named = |(i, name): (usize, &&str)| match (ways, i / each.max(1)) {
        (2, 0) => format!("out: {name}"),
        (2, 1) => format!("in: {name}"),
        _ => (*name).to_owned(),
    };
    row.names.iter().enumerate().map(named).collect()
}

fn row(ways: &[Window<'_>]) -> Row {
    let mut row = Row::default();
    for way in ways {
        sizes(&mut row, *way);
        gaps(&mut row, *way);
        bursts(&mut row, *way);
        bins(&mut row, *way);
        line(&mut row, *way);
    }
    if let [out, back] = ways {
        ordering(&mut row, *out, *back);
    }
    row
}

#[derive(Default)]
struct Row {
    names: Vec<&'static str>,
    values: Vec<f64>,
}

impl Row {
    fn put(&mut self, name: &'static str, value: f64) {
        self.names.push(name);
        self.values.push(if value.is_finite() { value } else { 0.0 });
    }
}

fn sizes(row: &mut Row, window: Window<'_>) {
    let lengths: Vec<f64> = window.sights().iter().map(|sight| f64::from(sight.length)).collect();
    row.put("packets", lengths.len() as f64);
    row.put("packets per second", window.rate());
    row.put("bytes", lengths.iter().sum());
    row.put("mean length", mean(&lengths));
    row.put("sd of length", deviation(&lengths));
    row.put("least length", lengths.iter().copied().fold(f64::INFINITY, f64::min));
    row.put("greatest length", lengths.iter().copied().fold(0.0, f64::max));
    let small = lengths.iter().filter(|length| **length < 200.0).count();
    row.put("share of small", small as f64 / lengths.len().max(1) as f64);
    // What is missing at both ends: all of the window where it is empty.
    let (first, last) = match (window.sights().first(), window.sights().last()) {
        (Some(first), Some(last)) => (first.at - window.from(), window.from() + window.width() - last.at),
        _ => (window.width(), window.width()),
    };
    row.put("time to first", first as f64 / 1e3);
    row.put("time after last", last as f64 / 1e3);
}

fn gaps(row: &mut Row, window: Window<'_>) {
    let gaps: Vec<f64> = window.gaps().collect();
    let mut sorted = gaps.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let (centre, spread) = (mean(&gaps), deviation(&gaps));
    row.put("mean gap", centre);
    row.put("sd of gap", spread);
    row.put("cv of gap", spread / centre);
    let skew = gaps.iter().map(|gap| ((gap - centre) / spread).powi(3)).sum::<f64>() / gaps.len() as f64;
    row.put("skew of gap", skew);
    let at = |q| quantile(&sorted, q);
    for (name, q) in [
        ("least gap", 0.0),
        ("gap p1", 0.01),
        ("gap p5", 0.05),
        ("gap p10", 0.1),
        ("gap p25", 0.25),
        ("gap p50", 0.5),
        ("gap p75", 0.75),
        ("gap p90", 0.9),
        ("gap p95", 0.95),
        ("gap p99", 0.99),
        ("greatest gap", 1.0),
    ] {
        row.put(name, at(q));
    }
    let mut apart: Vec<f64> = gaps.iter().map(|gap| (gap - at(0.5)).abs()).collect();
    apart.sort_unstable_by(f64::total_cmp);
    row.put("median deviation of gap", quantile(&apart, 0.5));
    for (name, lag) in [
        ("gap autocorrelation 1", 1),
        ("gap autocorrelation 2", 2),
        ("gap autocorrelation 3", 3),
        ("gap autocorrelation 5", 5),
    ] {
        row.put(name, autocorrelation(&gaps, lag));
    }
}

/// Runs of packets with less than a limit between each and the next. Both limits are the same for every window of a
/// width, so that runs are comparable.
fn bursts(row: &mut Row, window: Window<'_>) {
    let even = window.width() as f64 / 1e3 / window.sights().len().max(1) as f64;
    let gaps: Vec<f64> = window.gaps().collect();
    for (limit, names) in [
        (200.0, ["bursts", "mean burst", "sd of burst", "longest burst"]),
        (even / 2.0, ["even bursts", "mean even burst", "sd of even burst", "longest even burst"]),
    ] {
        let lengths: Vec<f64> = gaps
            .chunk_by(|_, next| *next < limit)
            .map(|run| run.iter().filter(|gap| **gap < limit).count())
            .filter(|joined| *joined > 0)
            .map(|joined| joined as f64 + 1.0)
            .collect();
        row.put(names[0], lengths.len() as f64);
        row.put(names[1], mean(&lengths));
        row.put(names[2], deviation(&lengths));
        row.put(names[3], lengths.iter().copied().fold(0.0, f64::max));
    }
    row.put("pauses", gaps.iter().filter(|gap| **gap > 4.0 * even).count() as f64);
    row.put("time in pauses", gaps.iter().filter(|gap| **gap > 4.0 * even).sum());
}

fn bins(row: &mut Row, window: Window<'_>) {
    for (share, names) in [
        (COARSE, ["coarse sd", "coarse least", "coarse greatest", "coarse Fano", "coarse empty"]),
        (FINE, ["fine sd", "fine least", "fine greatest", "fine Fano", "fine empty"]),
    ] {
        let counts = counts(window, share);
        let (centre, spread) = (mean(&counts), deviation(&counts));
        row.put(names[0], spread);
        row.put(names[1], counts.iter().copied().fold(f64::INFINITY, f64::min));
        row.put(names[2], counts.iter().copied().fold(0.0, f64::max));
        row.put(names[3], spread * spread / centre);
        row.put(names[4], counts.iter().filter(|count| **count == 0.0).count() as f64);
    }
    let fine = counts(window, FINE);
    for (name, lag) in [
        ("count autocorrelation 1", 1),
        ("count autocorrelation 2", 2),
        ("count autocorrelation 5", 5),
        ("count autocorrelation 10", 10),
    ] {
        row.put(name, autocorrelation(&fine, lag));
    }
    let quarters = counts(window, 4);
    for (i, name) in
        ["first quarter", "second quarter", "third quarter", "last quarter"].into_iter().enumerate()
    {
        let share = quarters.get(i).copied().unwrap_or(0.0) / window.sights().len() as f64;
        row.put(name, share);
    }
}

/// Packets in each of `share` equal parts of the window.
pub fn counts(window: Window<'_>, share: u64) -> Vec<f64> {
    window.counts((window.width() / share.max(1)).max(1)).into_iter().map(f64::from).collect()
}

/// How far packets stand from the straight line that a steady clock would put them on.
fn line(row: &mut Row, window: Window<'_>) {
    let at: Vec<f64> = window.sights().iter().map(|sight| (sight.at - window.from()) as f64 / 1e3).collect();
    let number: Vec<f64> = (0..at.len()).map(|i| i as f64).collect();
    let slope = cross_correlation(&number, &at, 0) * deviation(&at) / deviation(&number);
    let slope = if slope.is_finite() { slope } else { 0.0 };
    let (centre, middle) = (mean(&at), mean(&number));
    let off: Vec<f64> = at.iter().zip(&number).map(|(at, i)| at - centre - slope * (i - middle)).collect();
    row.put("period", slope);
    row.put("sd off the line", deviation(&off));
    row.put("farthest ahead", -off.iter().copied().fold(0.0, f64::min));
    row.put("farthest behind", off.iter().copied().fold(0.0, f64::max));
    row.put("off-line autocorrelation", autocorrelation(&off, 1));
}

/// Features that only two directions have.
const ORDERING: usize = 13;

fn ordering(row: &mut Row, out: Window<'_>, back: Window<'_>) {
    let mut order: Vec<(Sight, bool)> = out.sights().iter().map(|sight| (*sight, true)).collect();
    order.extend(back.sights().iter().map(|sight| (*sight, false)));
    order.sort_unstable();
    let ahead: Vec<bool> = order.into_iter().map(|(_, out)| out).collect();
    let places = |way: bool| -> Vec<f64> {
        ahead.iter().enumerate().filter(|(_, out)| **out == way).map(|(i, _)| i as f64).collect()
    };
    let (outs, backs) = (places(true), places(false));
    row.put("share out", outs.len() as f64 / ahead.len() as f64);
    row.put("mean place out", mean(&outs));
    row.put("sd of place out", deviation(&outs));
    row.put("mean place in", mean(&backs));
    row.put("sd of place in", deviation(&backs));
    let runs: Vec<f64> = ahead.chunk_by(|a, b| a == b).map(|run| run.len() as f64).collect();
    row.put("turns", runs.len() as f64);
    row.put("mean run", mean(&runs));
    row.put("longest run", runs.iter().copied().fold(0.0, f64::max));
    let shares: Vec<f64> = ahead
        .chunks_exact(CHUNK)
        .map(|chunk| chunk.iter().filter(|out| **out).count() as f64 / CHUNK as f64)
        .collect();
    row.put("mean concentration", mean(&shares));
    row.put("sd of concentration", deviation(&shares));
    row.put("greatest concentration", shares.iter().copied().fold(0.0, f64::max));
    let (out, back) = (counts(out, FINE), counts(back, FINE));
    row.put("correlation of directions", cross_correlation(&out, &back, 0));
    row.put("correlation one bin on", cross_correlation(&out, &back, 1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::trace::SECOND;

    fn steady(period: u64, count: u64) -> Trace {
        Trace::new((0..count).map(|k| Sight { at: k * period, length: 1360 }).collect())
    }

    fn value(of: &[f64], name: &str) -> f64 {
        let i = names(1).iter().position(|other| other == name).unwrap();
        of[i]
    }

    #[test]
    fn every_window_has_all_features_and_they_are_finite() {
        let trace = steady(1_000_000, 1000);
        let (full, empty) = (trace.window(0, SECOND), trace.window(2 * SECOND, 3 * SECOND));
        let one = trace.window(0, 1);
        for (ways, windows) in [(1, vec![full]), (1, vec![empty]), (1, vec![one]), (2, vec![full, empty])] {
            let features = of(&windows);
            assert_eq!(features.len(), names(ways).len());
            assert!(features.iter().all(|value| value.is_finite()));
        }
        assert!((60..=80).contains(&names(1).len()), "{}", names(1).len());
        assert_eq!(names(2).len(), 2 * names(1).len() + ORDERING);
        assert_eq!(names(2)[0], "out: packets");
        assert_eq!(names(2)[names(1).len()], "in: packets");
        assert_eq!(names(2)[2 * names(1).len()], "share out");
    }

    #[test]
    fn a_steady_clock_is_on_its_line() {
        let features = of(&[steady(1_000_000, 1000).window(0, SECOND)]);
        assert_eq!(value(&features, "packets"), 1000.0);
        assert_eq!(value(&features, "mean gap"), 1000.0);
        assert!(value(&features, "sd off the line") < 1e-3);
        assert!((value(&features, "period") - 1000.0).abs() < 1e-6);
        assert_eq!(value(&features, "coarse sd"), 0.0);
        assert_eq!(value(&features, "bursts"), 0.0);
    }

    #[test]
    fn bursts_and_pauses_are_counted() {
        // Five packets 100 us apart, every 100 ms.
        let sights =
            (0..50).map(|k| Sight { at: k / 5 * 100_000_000 + k % 5 * 100_000, length: 500 }).collect();
        let features = of(&[Trace::new(sights).window(0, SECOND)]);
        assert_eq!(value(&features, "bursts"), 10.0);
        assert_eq!(value(&features, "mean burst"), 5.0);
        assert_eq!(value(&features, "sd of burst"), 0.0);
        assert_eq!(value(&features, "pauses"), 9.0);
    }

    #[test]
    fn turns_are_of_both_directions() {
        let out = Trace::new((0..10).map(|k| Sight { at: 2 * k, length: 9 }).collect());
        let back = Trace::new((0..10).map(|k| Sight { at: 2 * k + 1, length: 9 }).collect());
        let features = of(&[out.window(0, 100), back.window(0, 100)]);
        let turns = names(2).iter().position(|name| name == "turns").unwrap();
        assert_eq!(features[turns], 20.0);
        assert_eq!(features[turns - 5], 0.5);
    }
}
