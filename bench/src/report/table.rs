//! A session for the terminal.

use std::fmt::Write as _;

use crate::figure::{Figure, Outcome};

/// The figures as a table, case by case, each case with the machine's gaps in its headline.
pub fn render(figures: &[Figure]) -> String {
    let mut out = String::new();
    let width = figures.iter().map(|figure| figure.figure.chars().count()).max().unwrap_or(0);
    let mut case = "";
    for figure in figures {
        if figure.case != case {
            case = figure.case;
            let noise = figure.noise;
            let _ = writeln!(
                out,
                "\n{case}   (gap probe, µs: p99 {:.1}, p99.9 {:.1}, max {:.0}; {:.2} % of the time in gaps)",
                noise.gap_p99_us, noise.gap_p999_us, noise.gap_max_us, noise.lost_percent
            );
        }
        let target = figure.target.map_or_else(String::new, |target| target.to_string());
        let verdict = match figure.is_ok() {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        };
        let _ = match &figure.outcome {
            Outcome::Measured(value) => {
                let value = short(*value);
                writeln!(
                    out,
                    "  {:<width$} {value:>12} {:<9} {target:<9} {verdict}",
                    figure.figure, figure.unit
                )
            }
            Outcome::Skipped(reason) => {
                writeln!(out, "  {:<width$} {:>12} {target:<9} {reason}", figure.figure, "not run")
            }
            Outcome::Invalid(reason) => {
                writeln!(out, "  {:<width$} {:>12} {target:<9} {reason}", figure.figure, "INVALID")
            }
        };
    }
    out
}

/// A number with as many places as it needs to be read.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 || size.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 {
        format!("{value:.3}")
    } else if size >= 0.01 {
        format!("{value:.4}")
    } else {
        format!("{value:.2e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Noise, Target};

    #[test]
    fn rows_say_what_was_met_missed_left_out_and_wrong() {
        let row = |figure: &str, outcome| Figure {
            case: "xdp",
            figure: figure.into(),
            outcome,
            unit: "ratio",
            target: Some(Target::AtLeast(0.9)),
            noise: Noise::default(),
        };
        let table = render(&[
            row("met", Outcome::Measured(0.95)),
            row("missed", Outcome::Measured(0.5)),
            row("left out", Outcome::Skipped("needs root".into())),
            row("wrong", Outcome::Invalid("9 of 8 arrived".into())),
        ]);
        let lines: Vec<&str> = table.lines().filter(|line| !line.is_empty()).collect();
        assert!(lines[0].starts_with("xdp") && lines[0].contains("gap probe"));
        assert!(lines[1].ends_with("ok") && lines[2].ends_with("MISSED"));
        assert!(lines[3].contains("not run") && lines[3].ends_with("needs root"));
        assert!(lines[4].contains("INVALID") && lines[4].ends_with("9 of 8 arrived"));
    }

    #[test]
    fn numbers_stay_readable() {
        let pairs = [
            (12345.6, "12346"),
            (12.34, "12.3"),
            (1.2345, "1.234"),
            (0.00123, "1.23e-3"),
            (0.0212, "0.0212"),
            (2.0, "2"),
            (0.0, "0"),
        ];
        for (value, text) in pairs {
            assert_eq!(short(value), text);
        }
    }
}
