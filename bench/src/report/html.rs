//! A session as one HTML page that needs nothing else, and the percentile files beside it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::plot::{self, Axis, Scale};
use super::table::short;
use super::{json, percentiles};
use crate::figure::{Figure, Noise, Outcome};
use crate::session::{Distribution, Series, Session};

/// Above this ratio between the highest and the lowest value, a percentile plot is logarithmic in y as well.
const WIDE: f64 = 30.0;
pub(crate) const STYLE: &str = include_str!("style.css");

/// Writes the page to `path` and a `.hgrm` file for each distribution beside it; returns what was written.
///
/// # Errors
/// Where a file cannot be written.
pub fn write(path: &Path, session: &Session) -> anyhow::Result<Vec<PathBuf>> {
    let stem = path.file_stem().map_or_else(|| "bench".into(), |stem| stem.to_string_lossy().into_owned());
    let mut written = Vec::new();
    let mut put = |path: PathBuf, text: String| {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
        anyhow::Ok(())
    };
    put(path.to_owned(), render(session, &stem))?;
    for distribution in session.distributions() {
        put(
            path.with_file_name(percentiles::file_name(&stem, distribution)),
            percentiles::hgrm(distribution),
        )?;
    }
    Ok(written)
}

fn render(session: &Session, stem: &str) -> String {
    let figures = session.figures();
    let mut out = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    out.push_str("<meta name=\"color-scheme\" content=\"light dark\">\n<title>Evenwire benchmarks</title>\n");
    let _ = writeln!(out, "<style>\n{}{}</style>\n</head>\n<body>", STYLE, lines_css());
    out.push_str("<h1>Evenwire benchmarks</h1>\n");
    let length = if session.quick { ", shortened measurements (<code>--quick</code>)" } else { "" };
    let _ = writeln!(
        out,
        "<p>{}. Linux {}{length}. Ratios divide two values of this run.</p>",
        summary(figures),
        escape(&json::kernel())
    );
    out.push_str(&table(figures));
    let mut cases: Vec<&str> = figures.iter().map(|figure| figure.case).collect();
    cases.dedup();
    for case in cases {
        pictures(&mut out, case, session, stem);
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn summary(figures: &[Figure]) -> String {
    let count = |wanted: &dyn Fn(&Figure) -> bool| figures.iter().filter(|figure| wanted(figure)).count();
    let met = count(&|figure| figure.is_ok() == Some(true));
    let missed = count(&|figure| figure.is_ok() == Some(false) && figure.value().is_some());
    let skipped = count(&|figure| matches!(figure.outcome, Outcome::Skipped(_)));
    let invalid = count(&|figure| matches!(figure.outcome, Outcome::Invalid(_)));
    format!(
        "{} figures: {met} targets met, {missed} missed; {skipped} not run, {invalid} invalid",
        figures.len()
    )
}

fn table(figures: &[Figure]) -> String {
    let mut out = String::from("<table>\n<thead><tr><th>figure</th><th class=\"number\">value</th>");
    out.push_str("<th>unit</th><th>target</th><th>verdict</th></tr></thead>\n");
    let mut case = "";
    for figure in figures {
        if figure.case != case {
            if !case.is_empty() {
                out.push_str("</tbody>\n");
            }
            case = figure.case;
            let _ = writeln!(
                out,
                "<tbody>\n<tr class=\"case\"><th colspan=\"5\">{} <span class=\"noise\">{}</span></th></tr>",
                escape(case),
                noise(figure.noise)
            );
        }
        out.push_str(&row(figure));
    }
    if !case.is_empty() {
        out.push_str("</tbody>\n");
    }
    out.push_str("</table>\n");
    out
}

fn row(figure: &Figure) -> String {
    let target = figure.target.map_or_else(String::new, |target| escape(&target.to_string()));
    let (value, class, verdict) = match (&figure.outcome, figure.is_ok()) {
        (Outcome::Measured(value), None) => (short(*value), "", String::new()),
        (Outcome::Measured(value), Some(true)) => (short(*value), "ok", "ok".into()),
        (Outcome::Measured(value), Some(false)) => (short(*value), "missed", "MISSED".into()),
        (Outcome::Skipped(reason), _) => (String::new(), "skipped", format!("not run: {}", escape(reason))),
        (Outcome::Invalid(reason), _) => (String::new(), "invalid", format!("INVALID: {}", escape(reason))),
    };
    // Leading blanks say that a row belongs to the one above.
    let depth = figure.figure.chars().take_while(|character| *character == ' ').count() / 2;
    let inset = if depth > 0 { " class=\"part\"" } else { "" };
    format!(
        "<tr><td{inset}>{}</td><td class=\"number\">{value}</td><td>{}</td><td>{target}</td>\
         <td class=\"{class}\">{verdict}</td></tr>\n",
        escape(figure.figure.trim()),
        escape(figure.unit),
    )
}

fn noise(noise: Noise) -> String {
    format!(
        "gap probe: p99 {:.1} µs, p99.9 {:.1} µs, max {:.0} µs; {:.2} % of the time in gaps",
        noise.gap_p99_us, noise.gap_p999_us, noise.gap_max_us, noise.lost_percent
    )
}

fn pictures(out: &mut String, case: &str, session: &Session, stem: &str) {
    let plots: Vec<_> = session.plots().iter().filter(|plot| plot.case == case).collect();
    let distributions: Vec<_> =
        session.distributions().iter().filter(|distribution| distribution.case == case).collect();
    if plots.is_empty() && distributions.is_empty() {
        return;
    }
    let _ = writeln!(out, "<h2>{}</h2>", escape(case));
    for plot in plots {
        let scale = if plot.log_x { Scale::Log } else { Scale::Linear };
        let (x, y) = (Axis { title: &plot.x, scale }, Axis { title: &plot.y, scale: Scale::Linear });
        for lines in plot.series.chunks(plot::LINES.len()) {
            figure(out, &plot.title, x, y, lines);
        }
    }
    for group in distributions.chunks(plot::LINES.len()) {
        let lines: Vec<Series> = group.iter().map(|distribution| percentiles::series(distribution)).collect();
        let scale = if is_wide(&lines) { Scale::Log } else { Scale::Linear };
        let x = Axis { title: "percentile", scale: Scale::Percentile };
        figure(out, "By percentile", x, Axis { title: "value, µs", scale }, &lines);
        files(out, group, stem);
    }
}

fn is_wide(lines: &[Series]) -> bool {
    let values = || lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    high > WIDE * low
}

pub(crate) fn figure(out: &mut String, title: &str, x: Axis<'_>, y: Axis<'_>, lines: &[Series]) {
    let _ = writeln!(out, "<figure>\n<figcaption>{}</figcaption>", escape(title));
    match plot::svg(x, y, lines) {
        Some(svg) => {
            out.push_str("<ul class=\"legend\">");
            for (line, colour) in lines.iter().zip(plot::LINES) {
                let _ = write!(
                    out,
                    "<li><svg width=\"34\" height=\"10\" aria-hidden=\"true\"><polyline fill=\"none\" \
                     stroke=\"{colour}\" stroke-width=\"2\" points=\"0,5 34,5\"/></svg>{}</li>",
                    escape(&line.name)
                );
            }
            let _ = writeln!(out, "</ul>\n{svg}");
        }
        None => out.push_str("<p>No points to draw.</p>\n"),
    }
    out.push_str("</figure>\n");
}

fn files(out: &mut String, group: &[&Distribution], stem: &str) {
    out.push_str("<p class=\"files\">Percentile files, values in µs: ");
    for (at, distribution) in group.iter().enumerate() {
        let name = escape(&percentiles::file_name(stem, distribution));
        let comma = if at > 0 { ", " } else { "" };
        let _ = write!(out, "{comma}<a href=\"{name}\">{}</a>", escape(&distribution.name));
    }
    out.push_str("</p>\n");
}

/// Dashes for each colour, and the colours that a dark page has instead.
pub(crate) fn lines_css() -> String {
    const DASHES: [&str; plot::LINES.len()] =
        ["none", "9 4", "3 3", "12 3 3 3", "6 2 2 2 2 2", "14 6", "1 4"];
    const DARK: [&str; plot::LINES.len()] =
        ["#4DA3DB", "#F08A3C", "#2BC79A", "#E3A3C7", "#F0BE4A", "#8FD0F5", "#B0B0B0"];
    let mut out = String::new();
    let (ink, grid) = (plot::INK, plot::GRID);
    let _ = writeln!(out, "svg text[fill=\"{ink}\"] {{ fill: var(--ink); }}");
    let _ = writeln!(out, "svg [stroke=\"{ink}\"] {{ stroke: var(--ink); }}");
    let _ = writeln!(out, "svg [stroke=\"{grid}\"] {{ stroke: var(--grid); }}");
    for (colour, dashes) in plot::LINES.iter().zip(DASHES) {
        let _ = writeln!(out, "svg [stroke=\"{colour}\"] {{ stroke-dasharray: {dashes}; }}");
    }
    out.push_str("@media (prefers-color-scheme: dark) {\n");
    for (colour, dark) in plot::LINES.iter().zip(DARK) {
        let _ = writeln!(out, "  svg [stroke=\"{colour}\"] {{ stroke: {dark}; }}");
    }
    out.push_str("}\n");
    out
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Target;
    use hdrhistogram::Histogram;

    fn session() -> Session {
        let mut session = Session::new(true);
        session.run("pacing", |session| {
            session.measured("a < b", 1.25, "ratio", Some(Target::AtMost(1.5)));
            session.measured("c", 2.0, "ratio", Some(Target::Below(1.0)));
            session.skip("d", None, "no <root>");
            session.invalid("e", Some(Target::AtLeast(0.9)), "9 of 8 arrived");
            let points = vec![(1.0, 1.0), (2.0, 3.0)];
            session.plot("Rise", "load, %", "µs", false, vec![Series { name: "x & y".into(), points }]);
            let mut values = Histogram::new(3)?;
            values.record_n(1_000, 10)?;
            values.record(90_000)?;
            session.distribution("busy idle", values);
            Ok(())
        });
        session
    }

    #[test]
    fn the_page_says_all_that_the_session_holds_and_needs_nothing_else() {
        let page = render(&session(), "out");
        for text in [
            "a &lt; b",
            "&lt;= 1.5",
            ">ok<",
            ">MISSED<",
            "not run: no &lt;root&gt;",
            "INVALID: 9 of 8 arrived",
            "gap probe: p99",
            "x &amp; y",
            "1 targets met, 1 missed; 1 not run, 1 invalid",
            "out-pacing-busy-idle.hgrm",
        ] {
            assert!(page.contains(text), "{text}");
        }
        assert_eq!(page.matches("<figure>").count(), 2);
        assert_eq!(page.matches("</tbody>").count(), 1);
        for elsewhere in ["<script", "<link", "@import", "url(", "src="] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn every_distribution_gets_a_file_beside_the_page() {
        let dir = std::env::temp_dir().join(format!("evenwire-report-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let written = write(&dir.join("out.html"), &session()).unwrap();
        let names: Vec<_> = written.iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["out.html", "out-pacing-busy-idle.hgrm"]);
        let lengths: Vec<u64> = written.iter().map(|path| path.metadata().unwrap().len()).collect();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(lengths.iter().all(|length| *length > 200), "{lengths:?}");
    }
}
