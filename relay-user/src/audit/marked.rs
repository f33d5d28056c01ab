//! The attacks that need to know when the user was active: idle against active windows of one direction, of two, and of
//! two links.

use rand_chacha::ChaCha8Rng;

use super::marks::{Mark, Marks, Span};
use super::row::{Row, plain, with_p};
use super::{BINS, parted};
use crate::observe::attacks::activity::activity;
use crate::observe::attacks::connections::{Event, Kind, Watch, connections};
use crate::observe::attacks::correlation::correlation;
use crate::observe::attacks::distribution::distribution;
use crate::observe::attacks::fingerprint::fingerprint;
use crate::observe::attacks::information::of_labels;
use crate::observe::attacks::pairing::{Devices, pairing};
use crate::observe::attacks::start_stop::start_stop;
use crate::observe::finding::{Finding, Target};
use crate::observe::learn::table::Table;
use crate::observe::trace::{SECOND, Sample, Sight, Trace};

/// Marks below which blocks are too few to resample.
pub(crate) const FEWEST_MARKS: usize = 8;
const NEEDS: &str =
    "needs 8 marks with idle time before and after each, better 30, and some 2000 windows in all";
/// A log's times are those of a person or of a script: this much next to a mark's end belongs to neither side.
const GUARD: u64 = SECOND / 2;
/// Windows that a mark should have, and cells that a window should.
const WINDOWS: u64 = 20;
const CELLS: f64 = 40.0;
/// A stretch in which something begins or ends.
const STRETCH: u64 = 2 * SECOND;
/// Bins of the correlation with marks, and how far the two clocks may be apart, in bins.
const BIN: u64 = SECOND / 2;
const LAGS: usize = 6;
/// Handshakes or flows an hour that an active user may have more or fewer.
const RESOLUTION: f64 = 1.0;

/// Nanoseconds of a window: so that marks have several, and each holds cells enough to have a shape.
pub(crate) fn width(marks: &Marks, rate: f64) -> u64 {
    let mut lengths: Vec<u64> = marks.busy().map(|mark| mark.to - mark.from).collect();
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or(SECOND);
    (median / WINDOWS).clamp(cells(CELLS, rate), (10 * SECOND).max(cells(CELLS, rate)))
}

/// Nanoseconds in which so many cells pass.
#[expect(clippy::cast_possible_truncation, reason = "positive, and saturates")]
fn cells(count: f64, rate: f64) -> u64 {
    (count / rate.max(1e-3) * 1e9) as u64
}

/// Attacks 1, 2, 3, 5, 6, 8 on a direction; with the way back where it was captured.
pub(crate) fn direction(
    name: &str,
    trace: &Trace,
    back: Option<&Trace>,
    marks: &Marks,
    rng: &mut ChaCha8Rng,
) -> Vec<Row> {
    let Some((from, to)) = range(trace, back) else { return Vec::new() };
    let whole = trace.window(from, to);
    let spans = marks.windows(from, to, width(marks, whole.rate()), GUARD);
    let sample = |span: &Span| Sample {
        window: trace.window(span.from, span.to),
        label: span.label,
        block: span.block,
    };
    let samples: Vec<Sample<'_>> = spans.iter().map(sample).collect();
    let n = samples.len().max(1) as f64;
    let mut rows = Vec::new();
    // Numbers behind the first are what single statistics do: too many to be held against chance one by one.
    rows.extend(activity(&samples, rng).into_iter().take(1).map(|finding| chance(name, finding)));
    let law = distribution(&samples, rng);
    rows.extend(law.first().cloned().map(|finding| chance(name, finding)));
    let apart = |finding: &Finding| {
        format!("{} is, at best", plain(2.5 / (finding.samples.max(1) as f64 / 4.0).sqrt()))
    };
    rows.extend(with_p(name, law.get(1..).unwrap_or_default(), apart, NEEDS));
    rows.extend(with_marks(name, trace, marks, (from, to), rng));
    let bits = |_: &Finding| {
        format!("{} bits a window are, at best", plain(25.0 / (2.0 * n * std::f64::consts::LN_2)))
    };
    rows.extend(with_p(name, &of_labels(&samples, rng), bits, NEEDS));
    rows.extend(beginnings(name, trace, marks, (from, to), rng));
    let busy: Vec<Sample<'_>> = samples.iter().copied().filter(|sample| sample.label > 0).collect();
    if marks.names.len() > 1 {
        let table = match back {
            None => Table::one_way(&busy),
            Some(back) => {
                let spans = spans.iter().filter(|span| span.label > 0);
                Table::two_way(&busy, &spans.map(|span| back.window(span.from, span.to)).collect::<Vec<_>>())
            }
        };
        rows.extend(fingerprint(&table, rng).into_iter().map(|finding| chance(name, finding)));
    }
    rows
}

/// The time in which all of these have cells.
fn range(trace: &Trace, back: Option<&Trace>) -> Option<(u64, u64)> {
    let ends = |trace: &Trace| Some((trace.sights().first()?.at, trace.sights().last()?.at));
    let (from, to) = ends(trace)?;
    let (from, to) = match back.and_then(ends) {
        Some(back) => (from.max(back.0), to.min(back.1)),
        None => (from, to),
    };
    (from < to).then_some((from, to))
}

fn chance(name: &str, finding: Finding) -> Row {
    Row::of_chance(name, finding, false, NEEDS)
}

/// Attack 3, with the marks for the payload: one packet a bin while active.
fn with_marks(
    name: &str,
    trace: &Trace,
    marks: &Marks,
    (from, to): (u64, u64),
    rng: &mut ChaCha8Rng,
) -> Vec<Row> {
    let inside = |mark: &&Mark| mark.from < to && mark.to > from;
    if marks.busy().filter(inside).count() < FEWEST_MARKS {
        let none = correlation(&[], BIN, LAGS, rng).0;
        return with_p(name, &none, |_| String::new(), NEEDS);
    }
    // A capture may say that it lasted for years.
    let width = BIN.max((to - from) / BINS);
    let packets = marks.busy().filter(inside).flat_map(|mark| {
        let first = mark.from.max(from);
        (0..(mark.to.min(to) - first) / width).map(move |bin| Sight { at: first + bin * width, length: 1000 })
    });
    let payload = Trace::new(packets.collect());
    let runs = parted(&payload, trace, (from, to), width, LAGS);
    let power = |finding: &Finding| format!("{} is", plain(4.2 / (finding.samples.max(1) as f64).sqrt()));
    with_p(name, &correlation(&runs, width, LAGS, rng).0, power, NEEDS)
}

/// Attack 6: stretches around marks' ends against stretches just before and in the middle of them.
fn beginnings(
    name: &str,
    trace: &Trace,
    marks: &Marks,
    (from, to): (u64, u64),
    rng: &mut ChaCha8Rng,
) -> Vec<Row> {
    let busy: Vec<&Mark> = marks.busy().collect();
    let mut samples = Vec::new();
    for (place, mark) in busy.iter().enumerate() {
        let before = place.checked_sub(1).and_then(|place| busy.get(place)).map_or(from, |mark| mark.to);
        let after = busy.get(place + 1).map_or(to, |mark| mark.from);
        let Ok(block) = u32::try_from(place) else { continue };
        let (half, middle) = (STRETCH / 2, mark.from / 2 + mark.to / 2);
        let long = mark.to - mark.from >= 2 * STRETCH;
        let ends = [(mark.from, long), (mark.to, long && mark.to + STRETCH <= after)];
        let still = [
            (mark.from.saturating_sub(half + STRETCH), mark.from >= before + 2 * STRETCH + half),
            (middle, mark.to - mark.from >= 3 * STRETCH),
        ];
        for (label, (center, clear)) in
            ends.map(|end| (1, end)).into_iter().chain(still.map(|still| (0, still)))
        {
            let (start, end) = (center.saturating_sub(half), center + half);
            if clear && start >= from && end <= to {
                samples.push(Sample { window: trace.window(start, end), label, block });
            }
        }
    }
    let rate = trace.window(from, to).rate();
    let bin = cells(20.0, rate).clamp(SECOND / 10, STRETCH / 8);
    start_stop(&samples, bin, rng).into_iter().take(1).map(|finding| chance(name, finding)).collect()
}

/// Attack 7: whether the sending directions of two links are more alike while the user is active.
pub(crate) fn devices(
    name: &str,
    one: &Trace,
    other: &Trace,
    marks: &Marks,
    rng: &mut ChaCha8Rng,
) -> Vec<Row> {
    let Some((from, to)) = range(one, Some(other)) else { return Vec::new() };
    let rate = one.window(from, to).rate().min(other.window(from, to).rate());
    let spans = marks.windows(from, to, width(marks, rate), GUARD);
    let seen: Vec<Devices<'_>> = spans
        .iter()
        .map(|span| Devices {
            one: one.window(span.from, span.to),
            other: other.window(span.from, span.to),
            talking: span.label > 0,
            block: span.block,
        })
        .collect();
    pairing(&seen, rng).into_iter().map(|finding| chance(name, finding)).collect()
}

/// Attack 14: handshakes and new flows an hour, active against idle.
pub(crate) fn begun(events: &[Event], marks: &Marks, span: (u64, u64), rng: &mut ChaCha8Rng) -> Vec<Row> {
    let (from, to) = span;
    let length = |label: bool| -> u64 {
        let of = marks.marks.iter().filter(|mark| (mark.label > 0) == label);
        of.map(|mark| mark.to.min(to).saturating_sub(mark.from.max(from))).sum()
    };
    let said = marks.marks.iter().any(|mark| mark.label == 0);
    let active = length(true);
    let idle = if said { length(false) } else { (to - from.min(to)).saturating_sub(active) };
    let doing = |event: &Event| marks.marks.iter().find(|mark| mark.from <= event.at && event.at < mark.to);
    let (mut of_active, mut of_idle) = (Vec::new(), Vec::new());
    for event in events {
        match doing(event) {
            Some(mark) if mark.label > 0 => of_active.push(*event),
            Some(_) => of_idle.push(*event),
            None if !said => of_idle.push(*event),
            None => {}
        }
    }
    let (of_active, of_idle) =
        (Watch { events: of_active, watched: active }, Watch { events: of_idle, watched: idle });
    let needs = "needs hours of both: 3.7 of each for one an hour";
    let findings = connections(&of_active, &of_idle, RESOLUTION, rng);
    let row = |finding: Finding| match finding.target {
        Target::Chance { .. } => Row::of_chance("all links", finding, true, needs),
        _ => Row::of_p("all links", finding, "spacings that differ are".to_owned(), needs),
    };
    findings.into_iter().map(row).collect()
}

/// What began in a capture.
pub(crate) fn events(handshakes: impl Iterator<Item = u64>, flows: impl Iterator<Item = u64>) -> Vec<Event> {
    let of = |kind| move |at| Event { at, kind };
    handshakes.map(of(Kind::Handshake)).chain(flows.map(of(Kind::Flow))).collect()
}
