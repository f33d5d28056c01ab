//! A report as one HTML page that needs nothing else.

use std::fmt::Write as _;

use relay_user::observe::finding::{Attack, Target};

use super::row::{Cost, Row, Status};
use super::text::{Report, punctuality, summary};
use crate::report::html::{STYLE, escape, figure, lines_css};
use crate::report::json::kernel;
use crate::report::plot::{Axis, GRID, INK, LINES, Scale};
use crate::report::table::short;
use crate::session::Series;

/// A picture of one wire.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What it shows.
    pub title: String,
    /// What stands along the x axis.
    pub x: String,
    /// What stands along the y axis.
    pub y: String,
    /// The lines.
    pub series: Vec<Series>,
}

/// The page.
pub fn render(report: &Report, pictures: &[Picture]) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    out.push_str(
        "<meta name=\"color-scheme\" content=\"light dark\">\n<title>Evenwire: what the wire tells</title>\n",
    );
    let _ = writeln!(out, "<style>\n{STYLE}{}{EXTRA}</style>\n</head>\n<body>", lines_css());
    out.push_str("<h1>Evenwire: what the wire tells</h1>\n");
    let length = if report.quick { ", <code>--quick</code>" } else { "" };
    let noise = report.noise;
    let _ = writeln!(
        out,
        "<p>{}. Linux {}{length}; seed {}; workers' processor {}; {:.0} s. Values are beside their 95 % intervals. The machine's gaps: p99 \
         {:.1} µs, p99.9 {:.1} µs, max {:.0} µs; {:.2} % of the time in gaps.</p>",
        summary(report),
        escape(&kernel()),
        report.seed,
        report.cores,
        report.seconds,
        noise.gap_p99_us,
        noise.gap_p999_us,
        noise.gap_max_us,
        noise.lost_percent
    );
    for (defence, shares) in punctuality(report) {
        let _ = writeln!(out, "<p>{defence}: {shares}.</p>");
    }
    if !report.left_out.is_empty() {
        out.push_str("<p>Not tried here:</p>\n<ul>\n");
        for reason in &report.left_out {
            let _ = writeln!(out, "<li>{}</li>", escape(reason));
        }
        out.push_str("</ul>\n");
    }
    costs(&mut out, &report.cost);
    out.push_str(
        "<h2>Attacks at a glance</h2>\n<p>The line is the interval, the dot the value; the grey band is what \
                  a defence must give, or from where on a control is passed.</p>\n",
    );
    for attack in Attack::ALL {
        let rows: Vec<&Row> =
            report.rows.iter().filter(|row| row.attack == attack && row.target != Target::None).collect();
        forest(&mut out, attack, &rows);
    }
    out.push_str("<h2>Every row</h2>\n");
    table(&mut out, &report.rows, &report.cost);
    out.push_str(
        "<h2>The wire</h2>\n<p>The client's link beside the payload of its programs, over the first seconds \
                  of each run.</p>\n",
    );
    for picture in pictures {
        let (x, y) = (
            Axis { title: &picture.x, scale: Scale::Linear },
            Axis { title: &picture.y, scale: Scale::Linear },
        );
        figure(&mut out, &picture.title, x, y, &picture.series);
    }
    out.push_str("</body>\n</html>\n");
    out
}

const EXTRA: &str = "td:first-child { min-width: 0; }\n.forest text { font: 13px system-ui, sans-serif; }\n\
                     .no-power { color: var(--bad); } .note { color: var(--faint); }\n";

fn costs(out: &mut String, costs: &[Cost]) {
    out.push_str("<h2>What it costs</h2>\n<table>\n<thead><tr><th>defence</th>");
    for title in [
        "link, idle, Mbit/s",
        "link, download, Mbit/s",
        "payload, download, Mbit/s",
        "bytes for one",
        "round trip p50, ms",
        "p99, ms",
        "added p50, ms",
        "added p99, ms",
        "slots missed",
    ] {
        let _ = write!(out, "<th class=\"number\">{title}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for cost in costs {
        let _ = write!(out, "<tr><td>{}</td>", escape(&cost.defence));
        for value in [
            Some(cost.wire_idle_mbit),
            Some(cost.wire_bulk_mbit),
            Some(cost.payload_bulk_mbit),
            Some(cost.overhead),
            Some(cost.round_trip_p50_ms),
            Some(cost.round_trip_p99_ms),
            cost.added_p50_ms,
            cost.added_p99_ms,
        ] {
            let text = value.map_or_else(String::new, |value| format!("{value:.2}"));
            let _ = write!(out, "<td class=\"number\">{text}</td>");
        }
        let _ = writeln!(out, "<td class=\"number\">{}</td></tr>", cost.missed_slots);
    }
    out.push_str("</tbody>\n</table>\n");
}

fn table(out: &mut String, rows: &[Row], costs: &[Cost]) {
    out.push_str("<table>\n<thead><tr><th>attack</th><th>scenario</th><th>defence</th><th>link, idle; round trip p50</th>");
    out.push_str("<th>statistic</th>");
    out.push_str("<th class=\"number\">value</th><th class=\"number\">interval</th><th>target</th>");
    out.push_str("<th class=\"number\">of</th><th>verdict</th></tr></thead>\n<tbody>\n");
    for row in rows {
        let _ = writeln!(
            out,
            "<tr><td>{} {}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"{}\">{} \
             <span class=\"note\">{}</span></td></tr>",
            row.attack.number(),
            row.attack.name(),
            escape(&row.scenario),
            escape(&row.defence),
            Cost::beside(costs, &row.defence),
            escape(&row.statistic),
            short(row.value),
            row.interval_text().map_or_else(String::new, |ends| ends.join(" to ")),
            escape(&row.target_text()),
            row.samples,
            class(row.status),
            row.status.word(),
            escape(&row.note)
        );
    }
    out.push_str("</tbody>\n</table>\n");
}

const fn class(status: Status) -> &'static str {
    match status {
        Status::Missed => "missed",
        Status::Invalid => "invalid",
        Status::NoPower => "no-power",
        Status::NotRun => "skipped",
        Status::Met => "ok",
        Status::Reported => "",
    }
}

/// Pixels of a row, of the labels' column, of the plot, and of the whole.
const ROW: f64 = 20.0;
const LABEL: f64 = 380.0;
const PLOT: f64 = 500.0;
const WIDTH: f64 = 930.0;

/// The values of an attack with their intervals, row under row.
fn forest(out: &mut String, attack: Attack, rows: &[&Row]) {
    let ends = rows.iter().flat_map(|row| [row.interval.low, row.interval.high, row.value]);
    let bands = rows.iter().filter_map(|row| band(row.target)).flat_map(|(low, high)| [low, high]);
    let shown = ends.chain(bands).filter(|value| value.is_finite());
    let (low, high) = shown
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return;
    }
    let room = ((high - low) * 0.04).max(1e-6);
    let (low, high) = (low - room, high + room);
    let x = |value: f64| LABEL + PLOT * (value.clamp(low, high) - low) / (high - low);
    let height = ROW * (rows.len() as f64 + 2.0);
    let _ = writeln!(
        out,
        "<figure>\n<figcaption>{} {}</figcaption>\n<svg class=\"forest\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">",
        attack.number(),
        attack.name()
    );
    let colours = colours(rows);
    for (number, row) in rows.iter().enumerate() {
        let y = ROW * (number as f64 + 0.7);
        if let Some((from, to)) = band(row.target) {
            let _ = writeln!(
                out,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{GRID}\" stroke-width=\"14\"/>",
                x(from),
                x(to.max(from + (high - low) * 0.002))
            );
        }
        let mark = if row.is_ok() == Some(true) { "" } else { " ✗" };
        let label = format!("{} · {} · {}{mark}", row.scenario, row.defence, row.statistic);
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{INK}\">{}</text>",
            LABEL - 12.0,
            y + 4.0,
            escape(&label)
        );
        if row.value.is_finite() {
            let colour = colours.get(number).copied().unwrap_or(INK);
            let _ = writeln!(
                out,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{INK}\" stroke-width=\"2\"/>\
                 <circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>",
                x(row.interval.low),
                x(row.interval.high),
                x(row.value)
            );
        }
    }
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let value = low + room + (high - low - 2.0 * room) * share;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{INK}\">{}</text>",
            x(value),
            height - ROW * 0.4,
            short(value)
        );
    }
    out.push_str("</svg>\n</figure>\n");
}

/// A colour for each defence, in the order in which they appear.
fn colours(rows: &[&Row]) -> Vec<&'static str> {
    let mut defences: Vec<&str> = Vec::new();
    rows.iter()
        .map(|row| {
            let place = defences.iter().position(|defence| *defence == row.defence).unwrap_or_else(|| {
                defences.push(&row.defence);
                defences.len() - 1
            });
            LINES.get(place % LINES.len()).copied().unwrap_or(INK)
        })
        .collect()
}

/// Where a value has to be; ends that are not given lie far outside.
fn band(target: Target) -> Option<(f64, f64)> {
    match target {
        Target::Chance { value, half_width } => Some((value - half_width, value + half_width)),
        Target::Between { low, high } => Some((low, high)),
        Target::AtMost { bound } | Target::AtLeast { bound } => Some((bound, bound)),
        Target::None => None,
    }
}
