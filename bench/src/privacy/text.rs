//! Rows and costs for the terminal and for machines.

use std::fmt::Write as _;

use relay_user::observe::finding::Target;
use serde::Serialize;

use super::row::{Cost, Late, Load, Row, Status};
use crate::figure::Noise;
use crate::report::json::kernel;
use crate::report::table::short;

/// An interval of 95 % leaves the truth out so often.
const OUTSIDE: f64 = 0.05;

/// What a whole run says.
#[derive(Debug)]
pub struct Report {
    /// Fewer windows, so wider intervals.
    pub quick: bool,
    /// The user ended it before it was whole.
    pub interrupted: bool,
    /// Seconds that it took.
    pub seconds: f64,
    /// The seed of all drawing.
    pub seed: u64,
    /// `own` where workers had processors without programs, and how many or whose; `shared` otherwise.
    pub cores: String,
    /// What attacks found, failures first.
    pub rows: Vec<Row>,
    /// What the defences cost.
    pub cost: Vec<Cost>,
    /// How punctual nodes were that were judged.
    pub late: Vec<Late>,
    /// How busy the workers' processors were; of defences whose nodes share theirs with programs, nothing.
    pub load: Vec<Load>,
    /// The machine meanwhile.
    pub noise: Noise,
    /// What could not be tried here, and why.
    pub left_out: Vec<String>,
}

/// The report as a table, failures first.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let width = |column: &dyn Fn(&Row) -> usize| report.rows.iter().map(column).max().unwrap_or(0);
    let statistic = width(&|row| row.statistic.chars().count());
    let scenario = width(&|row| row.scenario.chars().count());
    let defence = width(&|row| row.defence.chars().count());
    let costs: Vec<String> = report.rows.iter().map(|row| Cost::beside(&report.cost, &row.defence)).collect();
    let cost_width = costs.iter().map(|cost| cost.chars().count()).max().unwrap_or(0);
    let mut status = None;
    for (row, beside) in report.rows.iter().zip(&costs) {
        if status.replace(row.status) != Some(row.status) {
            let _ = writeln!(out, "\n{}", heading(row.status));
        }
        let interval = row.interval_text().map_or_else(String::new, |[low, high]| format!("[{low}, {high}]"));
        let _ = writeln!(
            out,
            "  {:>2} {:<13} {:<scenario$} {:<defence$} {beside:<cost_width$} {:<statistic$} {:>8} {interval:<18} {:<12} {:<8} {}",
            row.attack.number(),
            row.attack.name(),
            row.scenario,
            row.defence,
            row.statistic,
            short(row.value),
            row.target_text(),
            row.status.word(),
            row.note
        );
    }
    let _ = writeln!(
        out,
        "\ncost of the client's link, both ways together; beside each row: idle, and the round trip's p50"
    );
    for cost in &report.cost {
        let added = |value: Option<f64>| value.map_or_else(String::new, |value| format!(" ({value:+.2})"));
        let _ = writeln!(
            out,
            "  {:<defence$} idle {:>6.2} Mbit/s   download {:>6.2} Mbit/s for {:>6.2} of payload ({:.2} to 1)   \
             round trip p50 {:.2} ms{}, p99 {:.2} ms{}   {} slots missed",
            cost.defence,
            cost.wire_idle_mbit,
            cost.wire_bulk_mbit,
            cost.payload_bulk_mbit,
            cost.overhead,
            cost.round_trip_p50_ms,
            added(cost.added_p50_ms),
            cost.round_trip_p99_ms,
            added(cost.added_p99_ms),
            cost.missed_slots,
        );
    }
    for (defence, shares) in punctuality(report) {
        let _ = writeln!(out, "{defence}: {shares}");
    }
    for reason in &report.left_out {
        let _ = writeln!(out, "not tried: {reason}");
    }
    let noise = report.noise;
    let _ = writeln!(
        out,
        "\n{}; seed {}; workers' processor {}; {:.0} s\nthe machine's gaps, µs: p99 {:.1}, p99.9 {:.1}, max {:.0}; {:.2} % of the time in gaps",
        summary(report),
        report.seed,
        report.cores,
        report.seconds,
        noise.gap_p99_us,
        noise.gap_p999_us,
        noise.gap_max_us,
        noise.lost_percent
    );
    out
}

const fn heading(status: Status) -> &'static str {
    match status {
        Status::Missed => "missed",
        Status::Invalid => "invalid: not to be read as anything",
        Status::NoPower => "no power: too little to tell, never a pass",
        Status::NotRun => "not run",
        Status::Met => "met",
        Status::Reported => "reported, without a target",
    }
}

/// Of each defence the share of late moments, node by node, and whether there was a processor's time for better.
pub(super) fn punctuality(report: &Report) -> Vec<(&'static str, String)> {
    let of = |late: &[Late]| {
        let defence = late.first()?.defence;
        let shares = late.iter().map(|late| format!("{} {:.1} %", late.node, late.share * 100.0));
        let mut text = "moments at which cells left over 1 µs late: ".to_owned();
        text += &shares.collect::<Vec<_>>().join(", ");
        if let Some(Load { busy, .. }) = report.load.iter().find(|load| load.defence == defence) {
            text += &format!("; workers' processors busy {:.1} % of the time", busy * 100.0);
            text += if *busy > SATURATED { ": too busy for their slots, on this machine" } else { "" };
        }
        Some((defence, text))
    };
    report.late.chunk_by(|a, b| a.defence == b.defence).filter_map(of).collect()
}

/// Workers wait for each other more than for their slots where they leave less of a processor idle.
const SATURATED: f64 = 0.95;

/// How many rows say what, and how many intervals leave chance out that would by chance.
pub fn summary(report: &Report) -> String {
    let is_judged = |row: &&Row| {
        matches!(row.target, Target::Chance { .. })
            && row.interval.low < row.interval.high
            && row.status != Status::Invalid
    };
    let intervals: Vec<&Row> = report.rows.iter().filter(is_judged).collect();
    let without = intervals.iter().filter(|row| row.status == Status::Missed).count();
    let expected = intervals.len() as f64 * OUTSIDE;
    let count = |status| report.rows.iter().filter(|row| row.status == status).count();
    format!(
        "{} rows: {} met, {} missed, {} without power, {} invalid, {} not run; of {} intervals that \
         should hold chance {without} do not, {expected:.1} where nothing leaks",
        report.rows.len(),
        count(Status::Met),
        count(Status::Missed),
        count(Status::NoPower),
        count(Status::Invalid),
        count(Status::NotRun),
        intervals.len()
    )
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    kernel: String,
    quick: bool,
    interrupted: bool,
    seconds: f64,
    seed: u64,
    cores: &'a str,
    noise: Noise,
    rows: Vec<JsonRow<'a>>,
    cost: &'a [Cost],
    late: &'a [Late],
    load: &'a [Load],
    left_out: &'a [String],
}

#[derive(Debug, Serialize)]
struct JsonRow<'a> {
    number: u8,
    attack: &'static str,
    scenario: &'a str,
    defence: &'a str,
    statistic: &'a str,
    value: Option<f64>,
    ci_low: Option<f64>,
    ci_high: Option<f64>,
    target: String,
    ok: Option<bool>,
    status: Status,
    samples: usize,
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'a str,
}

/// The report as one JSON document.
///
/// # Errors
/// None that a report can cause; a serializer's own.
pub fn json(report: &Report) -> anyhow::Result<String> {
    let rows = report.rows.iter().map(json_row);
    let document = Document {
        kernel: kernel(),
        quick: report.quick,
        interrupted: report.interrupted,
        seconds: report.seconds,
        seed: report.seed,
        cores: &report.cores,
        noise: report.noise,
        rows: rows.collect(),
        cost: &report.cost,
        late: &report.late,
        load: &report.load,
        left_out: &report.left_out,
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn json_row(row: &Row) -> JsonRow<'_> {
    let finite = |value: f64| value.is_finite().then_some(value);
    JsonRow {
        number: row.attack.number(),
        attack: row.attack.name(),
        scenario: &row.scenario,
        defence: &row.defence,
        statistic: &row.statistic,
        value: finite(row.value),
        ci_low: finite(row.interval.low),
        ci_high: finite(row.interval.high),
        target: row.target_text(),
        ok: row.is_ok(),
        status: row.status,
        samples: row.samples,
        note: &row.note,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_user::observe::finding::{Attack, Finding, Interval};

    fn row(low: f64, high: f64) -> Row {
        let finding = Finding {
            attack: Attack::Activity,
            statistic: "accuracy",
            value: (low + high) / 2.0,
            interval: Interval { low, high },
            target: Target::Chance { value: 0.5, half_width: 0.03 },
            samples: 1200,
        };
        Row::new(&finding, "bulk", "constant")
    }

    #[test]
    fn intervals_that_leave_chance_out_stand_beside_those_that_would_by_chance() {
        let mut rows = vec![row(0.48, 0.52); 39];
        rows.push(row(0.51, 0.54));
        rows.push(row(0.51, 0.54).invalid("lost packets"));
        rows.push(row(f64::NAN, f64::NAN));
        rows.push(row(0.51, 0.54).as_control(Target::AtLeast { bound: 0.9 }));
        let report = Report {
            quick: true,
            interrupted: false,
            seconds: 1.0,
            seed: 1,
            cores: "own".to_owned(),
            rows,
            cost: Vec::new(),
            late: Vec::new(),
            load: Vec::new(),
            noise: Noise::default(),
            left_out: Vec::new(),
        };
        let text = summary(&report);
        assert!(text.starts_with("43 rows: 39 met, 2 missed"), "{text}");
        assert!(
            text.ends_with("of 40 intervals that should hold chance 1 do not, 2.0 where nothing leaks"),
            "{text}"
        );
    }
}
