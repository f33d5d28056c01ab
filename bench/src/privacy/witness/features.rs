//! A window of what a relay has of a circuit, as numbers that a learner can use.

use relay_user::observe::learn::features;
use relay_user::observe::stats::{entropy, mean, quantile, variance};
use relay_user::observe::trace::{Sight, Trace};

use super::view::{Arrival, Departure, View, Way};

/// Bytes of a cell; all are alike.
const CELL: u16 = 1360;
/// Gaps are binned by this, in microseconds, for their entropy.
const BIN: f64 = 50.0;
const BINS: usize = 32;

/// Cells of both ways by when they came on the wire and by when they left, as traces.
#[derive(Debug)]
pub(super) struct Traces {
    came: [Trace; 2],
    left: [Trace; 2],
}

impl Traces {
    /// Those of `view`.
    pub(super) fn of(view: &View) -> Self {
        let trace = |times: &mut dyn Iterator<Item = u64>| {
            Trace::new(times.map(|at| Sight { at, length: CELL }).collect())
        };
        Self {
            came: [0, 1].map(|way| trace(&mut view.ways[way].arrivals.iter().map(|cell| cell.wire))),
            left: [0, 1].map(|way| trace(&mut view.ways[way].departures.iter().map(|cell| cell.at))),
        }
    }
}

/// The numbers of what happened from `from` up to, not including, `to`: as many for every window, and all finite. First
/// those of attack 5 about cells that came and about cells that left; then what only a relay has: queues, how long cells
/// waited and for what, numbers that are missing, what was dropped, and how long after a cell one goes the other way.
pub(super) fn of(view: &View, traces: &Traces, from: u64, to: u64) -> Vec<f64> {
    let mut row = Vec::new();
    for ways in [&traces.came, &traces.left] {
        row.extend(features::of(&[ways[0].window(from, to), ways[1].window(from, to)]));
    }
    let came = [0, 1].map(|way| within(&view.ways[way].arrivals, |cell| cell.wire, from, to));
    for (way, came) in view.ways.iter().zip(came) {
        inside(&mut row, way, came, from, to);
    }
    for [first, second] in [[came[0], came[1]], [came[1], came[0]]] {
        spread(&mut row, &lags(first, second));
    }
    row.push(within(&view.missed, |at| *at, from, to).len() as f64);
    for value in &mut row {
        if !value.is_finite() {
            *value = 0.0;
        }
    }
    row
}

/// Of one way: its queue, its waits, its losses.
fn inside(row: &mut Vec<f64>, way: &Way, came: &[Arrival], from: u64, to: u64) {
    let gone = within(&way.departures, |cell| cell.at, from, to);
    let of = |value: fn(&Departure) -> f64| gone.iter().map(value).collect::<Vec<f64>>();
    row.push(gap_entropy(came));
    spread(row, &came.iter().map(|cell| f64::from(cell.waiting)).collect::<Vec<_>>());
    spread(row, &of(|cell| f64::from(cell.waiting)));
    spread(row, &came.iter().map(|cell| between(cell.wire, cell.opened)).collect::<Vec<_>>());
    spread(row, &of(|cell| between(cell.came, cell.slot)));
    spread(row, &of(|cell| between(cell.chosen, cell.slot)));
    spread(row, &of(|cell| between(cell.slot, cell.at)));
    let steps = came.windows(2).map(|pair| pair[1].seq.wrapping_sub(pair[0].seq).cast_signed());
    let (mut missing, mut turned) = (0.0, 0.0);
    for step in steps {
        missing += (step - 1).max(0) as f64;
        turned += f64::from(u8::from(step < 0));
    }
    row.extend([missing, turned, within(&way.refused, |at| *at, from, to).len() as f64]);
}

/// Mean, deviation, greatest, and where a tenth, half and nine tenths lie below.
fn spread(row: &mut Vec<f64>, values: &[f64]) {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    row.extend([mean(values), variance(values).sqrt()]);
    row.extend([0.1, 0.5, 0.9, 1.0].map(|q| quantile(&sorted, q)));
}

/// From each cell of `first` to the next of `second`, in microseconds.
fn lags(first: &[Arrival], second: &[Arrival]) -> Vec<f64> {
    let next = |cell: &Arrival| {
        let next = second.get(second.partition_point(|other| other.wire < cell.wire))?;
        Some(between(cell.wire, next.wire))
    };
    first.iter().filter_map(next).collect()
}

fn gap_entropy(came: &[Arrival]) -> f64 {
    let mut bins = [0; BINS];
    for pair in came.windows(2) {
        let gap = between(pair[0].wire, pair[1].wire) / BIN;
        let bin = (0..BINS - 1).find(|bin| gap < (bin + 1) as f64).unwrap_or(BINS - 1);
        bins[bin] += 1;
    }
    entropy(&bins)
}

/// Microseconds from one instant to another, which may lie before it.
fn between(from: u64, to: u64) -> f64 {
    (to.saturating_sub(from) as f64 - from.saturating_sub(to) as f64) / 1e3
}

/// Those of `sorted` whose time lies from `from` up to, not including, `to`.
fn within<T>(sorted: &[T], at: impl Fn(&T) -> u64, from: u64, to: u64) -> &[T] {
    let first = sorted.partition_point(|one| at(one) < from);
    let end = sorted.partition_point(|one| at(one) < to).max(first);
    &sorted[first..end]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng as _, SeedableRng as _};

    const MS: u64 = 1_000_000;

    /// A circuit in stretches of 200 ms, a cell each 700 µs or so both ways; `leak` makes of a cell's wait in its queue,
    /// in nanoseconds, what it is in stretches of odd number.
    pub(in super::super) fn planted(stretches: u64, seed: u64, leak: impl Fn(u64) -> u64) -> View {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut view = View::default();
        for way in &mut view.ways {
            let mut wire = 1;
            while wire < stretches * 200 * MS {
                wire += 500_000 + rng.next_u64() % 400_000;
                let wait = 200_000 + rng.next_u64() % 300_000;
                let busy = wire / (200 * MS) % 2 == 1;
                let slot = wire + if busy { leak(wait) } else { wait };
                let seq = way.arrivals.len() as u64;
                way.arrivals.push(Arrival { wire, opened: wire + 20_000, seq, waiting: 1 });
                way.departures.push(Departure {
                    at: slot + 9_000,
                    slot,
                    chosen: slot - 150_000,
                    came: wire,
                    waiting: 0,
                });
            }
        }
        view
    }

    fn row(view: &View, from: u64, to: u64) -> Vec<f64> {
        of(view, &Traces::of(view), from, to)
    }

    #[test]
    fn every_window_has_as_many_numbers_and_all_are_finite() {
        let view = planted(2, 1, |wait| wait);
        let full = row(&view, 0, 100 * MS);
        for other in [row(&view, 0, 1), row(&view, 10_000 * MS, 10_100 * MS), row(&View::default(), 0, MS)] {
            assert_eq!(other.len(), full.len());
            assert!(other.iter().all(|value| value.is_finite()));
        }
        assert!(full.iter().filter(|value| **value != 0.0).count() > 200);
    }

    #[test]
    fn each_thing_that_a_relay_has_moves_a_number() {
        let view = planted(1, 2, |wait| wait);
        let plain = row(&view, 0, 100 * MS);
        let differs = |change: fn(&mut View)| {
            let mut other = view.clone();
            change(&mut other);
            row(&other, 0, 100 * MS) != plain
        };
        assert!(!differs(|_| ()));
        assert!(differs(|view| view.ways[0].arrivals[9].waiting = 5));
        assert!(differs(|view| view.ways[1].departures[9].waiting = 5));
        assert!(differs(|view| view.ways[0].arrivals[9].opened += 1_000));
        assert!(differs(|view| view.ways[0].arrivals[9].wire += 1_000));
        assert!(differs(|view| view.ways[0].departures[9].at += 1_000));
        assert!(differs(|view| view.ways[0].departures[9].chosen += 1_000));
        assert!(differs(|view| view.ways[1].arrivals[9].seq += 100));
        assert!(differs(|view| view.ways[1].refused.push(MS)));
        assert!(differs(|view| view.missed.push(MS)));
    }

    #[test]
    fn lags_are_to_the_next_cell_the_other_way() {
        let cells = |times: &[u64]| -> Vec<Arrival> {
            times.iter().map(|&wire| Arrival { wire, opened: wire, seq: 0, waiting: 0 }).collect()
        };
        let (out, home) = (cells(&[1_000, 5_000, 9_000]), cells(&[2_000, 5_000]));
        assert_eq!(lags(&out, &home), [1.0, 0.0]);
        assert_eq!(lags(&home, &out), [3.0, 0.0]);
    }

    #[test]
    fn numbers_that_are_missing_or_turned_are_counted() {
        let mut view = planted(1, 3, |wait| wait);
        view.ways[0].arrivals.remove(20);
        view.ways[0].arrivals[40].seq = 5;
        let mut row = Vec::new();
        inside(&mut row, &view.ways[0], &view.ways[0].arrivals[..60], 0, 100 * MS);
        let [.., missing, turned, refused] = row[..] else { panic!("no numbers") };
        assert!(missing > 30.0, "{missing}: the one taken out, and those behind the one that came again");
        assert_eq!((turned, refused), (1.0, 0.0));
    }
}
