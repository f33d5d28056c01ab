//! What is known in the end, as JSON and as a picture; `text` has the words.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::direction::{self, Facts};
use super::marks::Marks;
use super::picture::{LENGTHS, Picture, ROWS, TIMES};
use super::row::{Row, Says};
use crate::observe::attacks::connections::{Event, Kind};
use crate::observe::capture::{Capture, Other, Totals};
use crate::observe::finding::{Attack, Target, Verdict};
use crate::observe::stats::quantile;

/// An attack that was not tried, or not in full.
#[derive(Clone, Debug)]
pub(crate) struct Untested {
    pub(crate) attack: Attack,
    pub(crate) why: Cow<'static, str>,
}

/// What began.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    pub(crate) events: Vec<Event>,
    /// Changes of the receiver index: rekeys and new handshakes, which the index in each cell's header shows.
    pub(crate) rekeys: u64,
    pub(crate) hours: f64,
}

impl Begun {
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.events.iter().filter(|event| event.kind == kind).count()
    }
}

/// All that is said about a capture.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) totals: Totals,
    pub(crate) directions: Vec<Facts>,
    pub(crate) rows: Vec<Row>,
    pub(crate) untested: Vec<Untested>,
    pub(crate) begun: Begun,
    pub(crate) marks: Option<Marks>,
    pub(crate) picture: Picture,
}

impl Report {
    /// Figures that say so.
    pub(crate) fn that(&self, says: Says) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.says == says)
    }

    /// Everything, for machines; `rows` as `cargo xtask privacy` has them.
    pub(crate) fn json(&self) -> Value {
        let others: serde_json::Map<String, Value> = Other::ALL
            .iter()
            .filter_map(|other| Some((other.name().to_owned(), json!(self.totals.others.get(other)?))))
            .collect();
        json!({
            "capture": {
                "packets": self.totals.packets,
                "seconds": self.totals.span.1.saturating_sub(self.totals.span.0) as f64 / 1e9,
                "of_links": self.totals.of_links,
                "udp": self.totals.udp,
                "cut_short": self.totals.headless,
                "unlisted": self.totals.unlisted,
                "others": others,
            },
            "directions": self.directions.iter().map(facts).collect::<Vec<_>>(),
            "begun": {
                "handshakes": self.begun.count(Kind::Handshake),
                "links": self.begun.count(Kind::Flow),
                "rekeys": self.begun.rekeys,
                "hours": self.begun.hours,
            },
            "marks": self.marks.as_ref().map(|marks| marks.busy().count()),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "untested": self.untested.iter().map(|untested| json!({
                "attack": untested.attack.name(),
                "number": untested.attack.number(),
                "why": untested.why,
            })).collect::<Vec<_>>(),
            "verdict": match (self.that(Says::Found).count(), self.that(Says::Unclear).count()) {
                (0, 0) => "nothing found",
                (0, _) => "unclear",
                _ => "found",
            },
        })
    }
}

fn row(row: &Row) -> Value {
    let finding = &row.finding;
    json!({
        "of": row.of,
        "attack": finding.attack.name(),
        "number": finding.attack.number(),
        "statistic": finding.statistic,
        "value": number(finding.value),
        "ci_low": number(finding.interval.low),
        "ci_high": number(finding.interval.high),
        "target": match finding.target { Target::None => Value::Null, target => json!(target) },
        "samples": finding.samples,
        "says": row.says,
        "ok": ok(row),
        "power": row.power,
    })
}

/// Whether the target is met; nothing where that was not shown, as by an interval wider than the target wants it, or where
/// there is none.
fn ok(row: &Row) -> Option<bool> {
    match (row.says, row.finding.verdict()) {
        (Says::Found, _) => Some(false),
        (Says::NotFound, Verdict::Met | Verdict::Missed) => Some(true),
        _ => None,
    }
}

/// JSON has no infinities.
fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { Value::Null }
}

fn facts(facts: &Facts) -> Value {
    json!({
        "name": facts.name,
        "ports": [facts.ports.0, facts.ports.1],
        "cells": facts.cells,
        "seconds": facts.seconds,
        "rate": facts.rate,
        "lengths": facts.lengths,
        "strange": facts.strange,
        "lost": facts.lost,
        "late": facts.late,
        "repeated": facts.repeated,
        "times_not_kept": facts.unkept,
        "cut_short": facts.cut,
        "handshakes": facts.handshakes,
        "sessions": facts.sessions,
        "gaps_us": facts.gaps.map(|gaps| json!({
            "count": gaps.count, "mean": gaps.mean, "deviation": gaps.deviation, "least": gaps.least,
            "p1": gaps.p1, "median": gaps.median, "p99": gaps.p99, "most": gaps.most,
        })),
        "law": facts.fit.map(|fit| json!({
            "name": fit.law.name(), "period_us": fit.period, "spread": fit.spread,
            "jittered_d": fit.jittered.0, "jittered_p": fit.jittered.1,
            "poisson_d": fit.poisson.0, "poisson_p": fit.poisson.1,
            "gaps_over_empty_slots": fit.missed,
        })),
        "steady": facts.steady.map(|steady| json!({
            "bin_s": steady.bin, "bins": steady.bins,
            "rate": { "cusum": steady.rate.statistic, "p": steady.rate.p, "at_s": steady.rate.at, "by": steady.rate.by },
            "gap_deviation": {
                "cusum": steady.spread.statistic, "p": steady.spread.p, "at_s": steady.spread.at, "by": steady.spread.by,
            },
            "autocorrelation": steady.echo.0, "lag": steady.echo.1, "band": steady.band,
        })),
        "entropy_bits": facts.entropy.map(|entropy| entropy.0),
    })
}

/// The wire by direction, those with most cells first to be kept.
pub(crate) fn picture(
    facts: &[Facts],
    capture: &Capture,
    marks: Option<&Marks>,
    span: (u64, u64),
) -> Picture {
    let seconds = |at: u64| at.saturating_sub(span.0) as f64 / 1e9;
    let width = (span.1.saturating_sub(span.0) / TIMES as u64).max(1);
    let directions = capture.links.iter().flat_map(|link| &link.directions);
    let drawn: Vec<_> = facts
        .iter()
        .zip(directions)
        .filter(|(_, direction)| direction.trace.sights().len() > 1)
        .take(ROWS)
        .collect();
    let rows = drawn
        .into_iter()
        .map(|(facts, direction)| {
            let gaps: Vec<f64> = direction::window(direction).gaps().collect();
            let (gap_from, gap_bin, gaps) = histogram(&gaps);
            let mut title =
                format!("{}, port {} to {}: {} cells", facts.name, facts.ports.0, facts.ports.1, facts.cells);
            if let Some(fit) = facts.fit {
                title = format!("{title}, gaps: {}", fit.law.name());
            }
            super::picture::Row {
                title,
                counts: direction.trace.window(span.0, span.0 + width * TIMES as u64).counts(width),
                gap_from,
                gap_bin,
                gaps,
            }
        })
        .collect();
    let marks = marks.iter().flat_map(|marks| marks.busy());
    let marks: Vec<_> = marks.filter(|mark| mark.to > span.0 && mark.from < span.1).collect();
    let shaded = if marks.is_empty() { "" } else { "; yellow where marked as active" };
    Picture {
        title: format!(
            "Cells per {} s{shaded}, and time between cells",
            super::row::plain(width as f64 / 1e9)
        ),
        seconds: seconds(span.1),
        bin: width as f64 / 1e9,
        marks: marks.into_iter().map(|mark| (seconds(mark.from), seconds(mark.to.min(span.1)))).collect(),
        rows,
    }
}

/// Where the first bin begins and how wide each is, in microseconds, and the share of gaps in each. One gap in a thousand
/// lies beyond at either end, so that a narrow law fills the picture, too.
#[expect(clippy::cast_possible_truncation, reason = "positive, and saturates")]
fn histogram(gaps: &[f64]) -> (f64, f64, Vec<f64>) {
    let mut sorted = gaps.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (quantile(&sorted, 0.001), quantile(&sorted, 0.999));
    let room = ((high - low) * 0.1).max(1.0);
    let from = (low - room).max(0.0);
    let width = (high + room - from) / LENGTHS as f64;
    let mut shares = vec![0.0; LENGTHS];
    for gap in gaps.iter().filter(|gap| **gap >= from) {
        if let Some(share) = shares.get_mut(((gap - from) / width) as usize) {
            *share += 1.0 / gaps.len() as f64;
        }
    }
    (from, width, shares)
}
