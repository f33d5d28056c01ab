//! One run of the benchmarks: what the cases hand in, and the line that says what is going on.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::figure::{Figure, Noise, Outcome, Target};
use crate::probe::GapProbe;

/// How long the gap probe runs before and after each case.
const PROBE: Duration = Duration::from_millis(300);

/// A distribution that a case measured, in nanoseconds.
#[derive(Debug)]
pub struct Distribution {
    /// The case that measured it.
    pub case: &'static str,
    /// What it is of; becomes the name of the `.hgrm` file, so letters, digits, spaces and `-` only.
    pub name: String,
    /// The values, in nanoseconds.
    pub values: Histogram<u64>,
}

/// Points of one line in a plot.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
}

/// A picture for the report.
#[derive(Clone, Debug)]
pub struct Plot {
    /// The case it belongs to.
    pub case: &'static str,
    /// What it shows.
    pub title: String,
    /// What stands along the x axis, with its unit.
    pub x: String,
    /// What stands along the y axis, with its unit.
    pub y: String,
    /// Whether the x axis is logarithmic.
    pub log_x: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// Collects what the cases measure.
#[derive(Debug)]
pub struct Session {
    /// Shorter measurements, for a first look and for continuous integration: the same cases, wider noise.
    pub quick: bool,
    figures: Vec<Figure>,
    distributions: Vec<Distribution>,
    plots: Vec<Plot>,
    case: &'static str,
    probe: GapProbe,
    started: Instant,
    progress_shown: bool,
}

impl Session {
    /// An empty session.
    pub fn new(quick: bool) -> Self {
        Self {
            quick,
            figures: Vec::new(),
            distributions: Vec::new(),
            plots: Vec::new(),
            case: "",
            probe: GapProbe::new(),
            started: Instant::now(),
            progress_shown: false,
        }
    }

    /// Runs one case. An error ends the case, not the session: it becomes a row that says what kept it from running.
    pub fn run(&mut self, case: &'static str, work: impl FnOnce(&mut Self) -> anyhow::Result<()>) {
        self.case = case;
        self.progress("gap probe");
        self.probe = GapProbe::new();
        self.probe.watch(PROBE);
        let first = self.figures.len();
        if let Err(error) = work(self) {
            self.skip("the case", None, format!("{error:#}"));
        }
        self.probe.watch(PROBE);
        let noise = self.probe.noise();
        for figure in &mut self.figures[first..] {
            figure.noise = noise;
        }
        self.clear_progress();
    }

    /// Says what is being measured now: one line that replaces the last, on standard error.
    pub fn progress(&mut self, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        let mut out = std::io::stderr().lock();
        // Nothing is lost where standard error is closed: the report does not depend on it.
        let _ = if out.is_terminal() {
            write!(out, "\r\x1b[2K{seconds:>4} s  {}: {what}", self.case)
        } else {
            writeln!(out, "{seconds:>4} s  {}: {what}", self.case)
        };
        let _ = out.flush();
        self.progress_shown = true;
    }

    fn clear_progress(&mut self) {
        if std::mem::take(&mut self.progress_shown) && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[2K");
        }
    }

    /// Hands in a measured figure.
    pub fn measured(
        &mut self,
        figure: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Option<Target>,
    ) {
        let outcome = if value.is_finite() {
            Outcome::Measured(value)
        } else {
            Outcome::Invalid(format!("the measurement gave {value}"))
        };
        self.push(figure.into(), outcome, unit, target);
    }

    /// Hands in a figure that could not be measured here: `reason` says what is missing and what to do.
    pub fn skip(&mut self, figure: impl Into<String>, target: Option<Target>, reason: impl Into<String>) {
        self.push(figure.into(), Outcome::Skipped(reason.into()), "", target);
    }

    /// Hands in a figure whose measurement contradicts itself.
    pub fn invalid(&mut self, figure: impl Into<String>, target: Option<Target>, reason: impl Into<String>) {
        self.push(figure.into(), Outcome::Invalid(reason.into()), "", target);
    }

    fn push(&mut self, figure: String, outcome: Outcome, unit: &'static str, target: Option<Target>) {
        // The noise is known when the case is over.
        self.figures.push(Figure { case: self.case, figure, outcome, unit, target, noise: Noise::default() });
    }

    /// Hands in a distribution, in nanoseconds.
    pub fn distribution(&mut self, name: impl Into<String>, values: Histogram<u64>) {
        self.distributions.push(Distribution { case: self.case, name: name.into(), values });
    }

    /// Hands in a picture.
    pub fn plot(
        &mut self,
        title: impl Into<String>,
        x: impl Into<String>,
        y: impl Into<String>,
        log_x: bool,
        series: Vec<Series>,
    ) {
        let plot = Plot { case: self.case, title: title.into(), x: x.into(), y: y.into(), log_x, series };
        self.plots.push(plot);
    }

    /// The gap probe of the case at hand, to compare a lateness with on the same core.
    pub const fn probe(&self) -> &GapProbe {
        &self.probe
    }

    /// What was measured so far.
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// The distributions handed in so far.
    pub fn distributions(&self) -> &[Distribution] {
        &self.distributions
    }

    /// The pictures handed in so far.
    pub fn plots(&self) -> &[Plot] {
        &self.plots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_that_fails_becomes_a_row_and_the_session_goes_on() {
        let mut session = Session::new(true);
        session.run("one", |session| {
            session.measured("a ratio", 2.0, "ratio", Some(Target::AtMost(1.0)));
            session.measured("nothing over nothing", f64::NAN, "ratio", None);
            anyhow::bail!("no such device")
        });
        session.run("two", |session| {
            session.measured("b", 1.0, "ns", None);
            Ok(())
        });
        let rows: Vec<_> = session.figures().iter().map(|row| (row.case, row.value(), row.is_ok())).collect();
        assert_eq!(
            rows,
            [
                ("one", Some(2.0), Some(false)),
                ("one", None, None),
                ("one", None, None),
                ("two", Some(1.0), None)
            ]
        );
        assert!(session.figures().iter().all(|row| row.noise.gap_max_us > 0.0));
        assert!(matches!(&session.figures()[2].outcome, Outcome::Skipped(why) if why == "no such device"));
    }
}
