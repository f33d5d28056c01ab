//! A session for machines.

use serde::Serialize;

use crate::figure::{Figure, Noise, Outcome};

#[derive(Debug, Serialize)]
struct Document<'a> {
    kernel: String,
    quick: bool,
    results: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    case: &'a str,
    figure: &'a str,
    value: Option<f64>,
    unit: &'a str,
    target: Option<String>,
    ok: Option<bool>,
    noise: Noise,
    /// `measured`, `skipped` or `invalid`.
    status: &'static str,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// The session's figures as one JSON document.
///
/// # Errors
/// None that a figure can cause; a serializer's own.
pub fn render(figures: &[Figure], quick: bool) -> anyhow::Result<String> {
    let document = Document { kernel: kernel(), quick, results: figures.iter().map(row).collect() };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn row(figure: &Figure) -> Row<'_> {
    let (status, reason) = match &figure.outcome {
        Outcome::Measured(_) => ("measured", None),
        Outcome::Skipped(reason) => ("skipped", Some(reason.as_str())),
        Outcome::Invalid(reason) => ("invalid", Some(reason.as_str())),
    };
    Row {
        case: figure.case,
        figure: &figure.figure,
        value: figure.value(),
        unit: figure.unit,
        target: figure.target.map(|target| target.to_string()),
        ok: figure.is_ok(),
        noise: figure.noise,
        status,
        reason,
    }
}

/// The running kernel's release, as far as it tells.
pub(crate) fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Target;

    #[test]
    fn rows_hold_what_machines_look_for() {
        let figure = |outcome| Figure {
            case: "ring",
            figure: "l2fwd".into(),
            outcome,
            unit: "ratio",
            target: Some(Target::AtMost(1.5)),
            noise: Noise::default(),
        };
        let figures = [figure(Outcome::Measured(1.25)), figure(Outcome::Skipped("no root".into()))];
        let json: serde_json::Value = serde_json::from_str(&render(&figures, true).unwrap()).unwrap();
        let rows = json["results"].as_array().unwrap();
        assert_eq!(rows[0]["value"], 1.25);
        assert_eq!((&rows[0]["ok"], &rows[0]["target"]), (&true.into(), &"<= 1.5".into()));
        assert_eq!((&rows[1]["value"], &rows[1]["ok"]), (&serde_json::Value::Null, &false.into()));
        assert_eq!(rows[1]["reason"], "no root");
        for key in ["case", "figure", "unit", "noise"] {
            assert!(rows[0].get(key).is_some(), "{key}");
        }
    }
}
