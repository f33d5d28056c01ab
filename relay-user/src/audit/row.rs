//! What each figure says, and what it could have said.

use crate::observe::finding::{Attack, Finding, Target};

/// How far 95 % intervals are stretched before a figure counts as found: there are many, and one in twenty misses.
const STRETCH: f64 = 1.5;
/// What a normal figure's interval reaches to, in deviations, and what finds four in five beyond a bound.
const REACH: f64 = 1.96;
const POWER: f64 = 0.84;
/// P-values from which something is found, and from which it is worth another capture.
const FOUND: f64 = 0.002;
const UNCLEAR: f64 = 0.01;

/// What a figure says. There is no word for "all is well": only what would have been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Says {
    /// An observer learns something.
    Found,
    /// More than chance usually gives, less than could be relied on.
    Unclear,
    /// No more than chance gives; the power says how much would have been more.
    NotFound,
    /// Too little was captured.
    NoPower,
}

/// A figure about a direction, a link, or two.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What it is about: "A1", "A", "A1 and B2".
    pub(crate) of: String,
    /// The figure.
    pub(crate) finding: Finding,
    /// What it says.
    pub(crate) says: Says,
    /// What would have been found, or what is needed to find anything.
    pub(crate) power: String,
}

impl Row {
    /// A figure whose target is chance: more than chance is a leak, less is none, except where `either` way is.
    pub(crate) fn of_chance(of: &str, finding: Finding, either: bool, needs: &str) -> Self {
        let Target::Chance { value: chance, .. } = finding.target else {
            return Self::silent(of, finding, needs);
        };
        if finding.samples == 0 || !finding.value.is_finite() || !finding.interval.half_width().is_finite() {
            return Self::silent(of, finding, needs);
        }
        let (value, interval) = (finding.value, finding.interval);
        let above = |stretch: f64| value - (value - interval.low) * stretch > chance;
        let below = |stretch: f64| either && value + (interval.high - value) * stretch < chance;
        let says = if above(STRETCH) || below(STRETCH) {
            Says::Found
        } else if above(1.0) || below(1.0) {
            Says::Unclear
        } else {
            Says::NotFound
        };
        let least = chance + interval.half_width() * (STRETCH * REACH + POWER) / REACH;
        let power = match (says, either) {
            (Says::Found, _) => String::new(),
            (_, true) => format!("a difference of {} is found four times in five", plain(least - chance)),
            (_, false) if least >= 1.0 => {
                return Self { says: says.max(Says::NoPower), ..Self::silent(of, finding, needs) };
            }
            (_, false) => format!("{} or more is found four times in five", plain(least)),
        };
        Self { of: of.to_owned(), finding, says, power }
    }

    /// A p-value, with what it is the p-value of.
    pub(crate) fn of_p(of: &str, finding: Finding, power: String, needs: &str) -> Self {
        if finding.samples == 0 || !finding.value.is_finite() {
            return Self::silent(of, finding, needs);
        }
        let says = match finding.value {
            ..=FOUND => Says::Found,
            ..=UNCLEAR => Says::Unclear,
            _ => Says::NotFound,
        };
        let power = if says == Says::Found { String::new() } else { power };
        Self { of: of.to_owned(), finding, says, power }
    }

    /// A figure that is right or wrong by its target.
    pub(crate) fn of_target(of: &str, finding: Finding, power: String, needs: &str) -> Self {
        if finding.samples == 0 || !finding.value.is_finite() {
            return Self::silent(of, finding, needs);
        }
        let met = match finding.target {
            Target::AtMost { bound } => finding.value <= bound,
            Target::AtLeast { bound } => finding.value >= bound,
            Target::Between { low, high } => low <= finding.value && finding.value <= high,
            Target::Chance { .. } | Target::None => true,
        };
        let says = if met { Says::NotFound } else { Says::Found };
        Self { of: of.to_owned(), finding, says, power: if met { power } else { String::new() } }
    }

    fn silent(of: &str, finding: Finding, needs: &str) -> Self {
        Self { of: of.to_owned(), finding, says: Says::NoPower, power: needs.to_owned() }
    }

    /// The attack's number and name.
    pub(crate) fn attack(&self) -> Attack {
        self.finding.attack
    }
}

/// Figures that come as a value and its p-value, as one row each: the p-value's, under the value's name.
pub(crate) fn with_p(
    of: &str,
    findings: &[Finding],
    power: impl Fn(&Finding) -> String,
    needs: &str,
) -> Vec<Row> {
    findings
        .windows(2)
        .filter(|pair| matches!(pair, [_, p] if p.statistic.starts_with("p of ")))
        .filter_map(|pair| {
            let [value, p] = pair else { return None };
            let row = Row::of_p(of, p.clone(), power(value), needs);
            if row.says == Says::NoPower {
                return Some(row);
            }
            // What it is of is what a reader wants to see.
            Some(Row {
                power: joined(&format!("{} = {}", value.statistic, plain(value.value)), &row.power),
                ..row
            })
        })
        .collect()
}

fn joined(one: &str, other: &str) -> String {
    if other.is_empty() { one.to_owned() } else { format!("{one}; {other}") }
}

/// A number with as many digits as say something.
pub(crate) fn plain(value: f64) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.01.. => 3,
        0.0 => 0,
        _ => 5,
    };
    if value.is_finite() { format!("{value:.digits$}") } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::finding::Interval;

    fn row(value: f64, half: f64, either: bool) -> Row {
        let finding = Finding {
            attack: Attack::Activity,
            statistic: "accuracy",
            value,
            interval: Interval { low: value - half, high: value + half },
            target: Target::Chance { value: 0.5, half_width: 0.03 },
            samples: 100,
        };
        Row::of_chance("A1", finding, either, "more")
    }

    #[test]
    fn only_what_is_clearly_above_chance_is_found() {
        assert_eq!(row(0.9, 0.1, false).says, Says::Found);
        assert_eq!(row(0.62, 0.1, false).says, Says::Unclear);
        assert_eq!(row(0.55, 0.1, false).says, Says::NotFound);
        assert_eq!(row(0.2, 0.1, false).says, Says::NotFound);
        assert_eq!(row(0.2, 0.1, true).says, Says::Found);
        assert!(row(0.55, 0.1, false).power.starts_with("0.693"), "{:?}", row(0.55, 0.1, false));
        let wide = row(0.55, 0.4, false);
        assert_eq!((wide.says, wide.power.as_str()), (Says::NoPower, "more"));
        assert_eq!(row(f64::NAN, 0.1, false).says, Says::NoPower);
    }

    #[test]
    fn p_values_go_with_what_they_are_of() {
        let of = |statistic, value| Finding {
            attack: Attack::Correlation,
            statistic,
            value,
            interval: Interval::exact(value),
            target: Target::None,
            samples: 10,
        };
        let rows =
            with_p("A1", &[of("max |rho|", 0.5), of("p of max |rho|", 0.001)], |_| "0.1".to_owned(), "");
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].says, rows[0].power.as_str()), (Says::Found, "max |rho| = 0.500"));
    }
}
