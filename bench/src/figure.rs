//! What a benchmark says: one figure, what it should be, and how noisy the machine was meanwhile.

use serde::Serialize;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// Strictly less than this.
    Below(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Target {
    /// Whether `value` is what it should be.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sign, bound) = match self {
            Self::AtMost(bound) => ("<=", bound),
            Self::Below(bound) => ("<", bound),
            Self::AtLeast(bound) => (">=", bound),
        };
        write!(f, "{sign} {bound}")
    }
}

/// How the machine took the processor away while a case ran: gaps of an empty spin loop, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Noise {
    /// 99 % of the loop's turns took no longer.
    pub gap_p99_us: f64,
    /// 99.9 % of the loop's turns took no longer, counted by time (a gap weighs as much as it lasts).
    pub gap_p999_us: f64,
    /// The longest turn.
    pub gap_max_us: f64,
    /// Share of the probe's time that lies in gaps longer than 10 µs, in percent.
    pub lost_percent: f64,
}

/// What came of the attempt to measure a figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Measured, in the figure's unit.
    Measured(f64),
    /// Could not run here, and why: what is missing and how to get it.
    Skipped(String),
    /// Ran, but what was sent, received and dropped does not add up.
    Invalid(String),
}

/// One row of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The case that measured it.
    pub case: &'static str,
    /// What was measured.
    pub figure: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Unit of the value; `ratio` where two values of this run were divided.
    pub unit: &'static str,
    /// What it should be; `None` for a figure that only explains others.
    pub target: Option<Target>,
    /// The machine meanwhile.
    pub noise: Noise,
}

impl Figure {
    /// The value, where there is one.
    pub const fn value(&self) -> Option<f64> {
        match self.outcome {
            Outcome::Measured(value) => Some(value),
            _ => None,
        }
    }

    /// Whether the target is met; `None` where there is no target. A target that could not be measured is not met.
    pub fn is_ok(&self) -> Option<bool> {
        let target = self.target?;
        Some(self.value().is_some_and(|value| target.is_met(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_meets_no_target() {
        let mut figure = Figure {
            case: "engine",
            figure: "x".into(),
            outcome: Outcome::Measured(1.0),
            unit: "ratio",
            target: Some(Target::AtMost(1.0)),
            noise: Noise::default(),
        };
        assert_eq!(figure.is_ok(), Some(true));
        figure.target = Some(Target::Below(1.0));
        assert_eq!(figure.is_ok(), Some(false));
        figure.target = Some(Target::AtLeast(0.0));
        figure.outcome = Outcome::Invalid("1 sent, 2 received".into());
        assert_eq!(figure.is_ok(), Some(false));
        figure.target = None;
        assert_eq!(figure.is_ok(), None);
    }
}
