//! What one attack found about one defence in one scenario, as reports show it.

use relay_user::observe::finding::{Attack, Finding, Interval, Target, Verdict};
use serde::Serialize;

use crate::report::table::short;

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The target is missed.
    Missed,
    /// What was recorded cannot be judged.
    Invalid,
    /// Too little was recorded to tell.
    NoPower,
    /// Could not run here.
    NotRun,
    /// The target is met.
    Met,
    /// There is no target.
    Reported,
}

impl Status {
    /// As tables print it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Missed => "MISSED",
            Self::Invalid => "INVALID",
            Self::NoPower => "NO POWER",
            Self::NotRun => "not run",
            Self::Met => "ok",
            Self::Reported => "",
        }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which attack.
    pub attack: Attack,
    /// The payload.
    pub scenario: String,
    /// What stood between payload and wire.
    pub defence: String,
    /// What was computed.
    pub statistic: String,
    /// The figure; not a number where there is none.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// What it must be.
    pub target: Target,
    /// Observations that it rests on.
    pub samples: usize,
    /// What it says.
    pub status: Status,
    /// Why there is no value, or why it is not to be trusted.
    pub note: String,
}

impl Row {
    /// A finding in its place.
    pub fn new(finding: &Finding, scenario: impl Into<String>, defence: impl Into<String>) -> Self {
        let status = match finding.verdict() {
            Verdict::Met => Status::Met,
            Verdict::Missed => Status::Missed,
            Verdict::NoPower => Status::NoPower,
            Verdict::Reported => Status::Reported,
        };
        Self {
            attack: finding.attack,
            scenario: scenario.into(),
            defence: defence.into(),
            statistic: finding.statistic.into(),
            value: finding.value,
            interval: finding.interval,
            target: finding.target,
            samples: finding.samples,
            status,
            note: String::new(),
        }
    }

    /// A figure that could not be had, and why: a row that is missing would be taken for one that nobody asked for.
    pub fn nothing(
        attack: Attack,
        scenario: impl Into<String>,
        defence: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self {
            attack,
            scenario: scenario.into(),
            defence: defence.into(),
            statistic: "all".into(),
            value: f64::NAN,
            interval: Interval { low: f64::NAN, high: f64::NAN },
            target: Target::None,
            samples: 0,
            status: Status::NoPower,
            note: why.into(),
        }
    }

    /// The same row for a defence that attacks must see through: what is to be at chance must be far from it. Zero
    /// held against a bound of zero, as in a direction in which the payload sends nothing, has no power.
    pub fn as_control(mut self, wanted: Target) -> Self {
        let met = match wanted {
            Target::AtLeast { bound } => self.value >= bound,
            Target::AtMost { bound } => self.value <= bound,
            _ => return Self { target: Target::None, status: Status::Reported, ..self },
        };
        self.target = wanted;
        if self.status != Status::Invalid {
            let nothing = matches!(wanted, Target::AtLeast { bound } if self.value.max(bound) <= 0.0);
            self.status = match (met, self.value.is_finite() && !nothing) {
                (_, false) => Status::NoPower,
                (true, true) => Status::Met,
                (false, true) => Status::Missed,
            };
        }
        self
    }

    /// The same row, reported and not judged.
    pub fn without_target(self) -> Self {
        let status = match self.status {
            Status::Met | Status::Missed => Status::Reported,
            other => other,
        };
        Self { target: Target::None, status, ..self }
    }

    /// The same row, not to be judged.
    pub fn invalid(self, why: &str) -> Self {
        Self { status: Status::Invalid, note: why.to_owned(), ..self }
    }

    /// `None` where there is no target.
    pub fn is_ok(&self) -> Option<bool> {
        (self.status != Status::Reported).then_some(self.status == Status::Met)
    }

    /// Both ends of the interval; `None` where nothing bounds the value.
    pub fn interval_text(&self) -> Option<[String; 2]> {
        let ends = [self.interval.low, self.interval.high];
        ends.iter().all(|end| end.is_finite()).then(|| ends.map(short))
    }

    /// What it must be, in a few characters.
    pub fn target_text(&self) -> String {
        match self.target {
            Target::Chance { value, half_width } => format!("{} ± {half_width}", short(value)),
            Target::AtMost { bound } => format!("<= {}", short(bound)),
            Target::AtLeast { bound } => format!(">= {}", short(bound)),
            Target::Between { low, high } => format!("{} to {}", short(low), short(high)),
            Target::None => String::new(),
        }
    }
}

/// What a defence costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Which.
    pub defence: String,
    /// Mbit/s of UDP payload on the client's link, both ways together, without any payload.
    pub wire_idle_mbit: f64,
    /// The same during a download.
    pub wire_bulk_mbit: f64,
    /// Mbit/s of the client's IP packets during a download, both ways together.
    pub payload_bulk_mbit: f64,
    /// Bytes on the wire for each byte of payload during a download.
    pub overhead: f64,
    /// Milliseconds of a round trip to the service, half of all.
    pub round_trip_p50_ms: f64,
    /// The same, 99 % of all.
    pub round_trip_p99_ms: f64,
    /// Slots that the client and the relays missed in the same run, without a cell sent in them.
    pub missed_slots: u64,
    /// What round trips take more than without shaping, half of all.
    pub added_p50_ms: Option<f64>,
    /// The same, 99 %.
    pub added_p99_ms: Option<f64>,
}

impl Cost {
    /// What stands beside each row of a defence: the idle link's bandwidth and the usual round trip. Nothing of a defence
    /// whose cost was not measured.
    pub fn beside(costs: &[Self], defence: &str) -> String {
        let cost = costs.iter().find(|cost| cost.defence == defence);
        cost.map_or_else(String::new, |cost| {
            format!("{:.1} Mbit/s {:.1} ms", cost.wire_idle_mbit, cost.round_trip_p50_ms)
        })
    }
}

/// How punctual a node was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Late {
    /// Which defence it was part of.
    pub defence: &'static str,
    /// The node.
    pub node: &'static str,
    /// Of the moments at which its cells left, the share that its worker came more than 1 µs late to: what decides there
    /// is not the schedule.
    pub share: f64,
}

/// How much workers had to do, or their host took from them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Load {
    /// The defence.
    pub defence: &'static str,
    /// Of the time of the processors that workers had for themselves, the share in which they had more to do than to stay awake.
    pub busy: f64,
}

/// Failures first, then by attack, scenario and defence.
pub fn sort(rows: &mut [Row]) {
    rows.sort_by(|a, b| {
        let key = |row: &Row| (row.status, row.attack);
        key(a).cmp(&key(b)).then_with(|| (&a.scenario, &a.defence).cmp(&(&b.scenario, &b.defence)))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, half: f64) -> Row {
        let interval = Interval { low: value - half, high: value + half };
        let target = Target::Chance { value: 0.5, half_width: 0.03 };
        let finding = Finding {
            attack: Attack::Activity,
            statistic: "accuracy",
            value,
            interval,
            target,
            samples: 1200,
        };
        Row::new(&finding, "bulk", "constant")
    }

    #[test]
    fn nothing_but_a_met_target_is_a_pass() {
        assert_eq!(row(0.5, 0.02).is_ok(), Some(true));
        assert_eq!(row(0.5, 0.05).is_ok(), Some(false));
        assert_eq!(row(0.6, 0.02).is_ok(), Some(false));
        assert_eq!(row(0.5, 0.02).invalid("lost packets").is_ok(), Some(false));
        assert_eq!(row(0.5, 0.02).as_control(Target::None).is_ok(), None);
    }

    #[test]
    fn a_control_must_find_what_others_must_not() {
        let wanted = Target::AtLeast { bound: 0.9 };
        assert_eq!(row(0.98, 0.01).as_control(wanted).is_ok(), Some(true));
        assert_eq!(row(0.5, 0.01).as_control(wanted).is_ok(), Some(false));
        assert_eq!(row(f64::NAN, 0.01).as_control(wanted).status, Status::NoPower);
        assert_eq!(row(0.0, 0.0).as_control(Target::AtLeast { bound: 0.0 }).status, Status::NoPower);
        assert_eq!(row(0.98, 0.01).invalid("x").as_control(wanted).status, Status::Invalid);
    }

    #[test]
    fn what_could_not_be_had_is_no_pass() {
        let row = Row::nothing(Attack::Rates, "all", "constant", "nothing was seen");
        assert_eq!(
            (row.is_ok(), row.status, row.note.as_str()),
            (Some(false), Status::NoPower, "nothing was seen")
        );
    }

    #[test]
    fn failures_come_first() {
        let mut rows = [row(0.5, 0.02), row(0.6, 0.02), row(0.5, 0.05)];
        sort(&mut rows);
        let order: Vec<Status> = rows.iter().map(|row| row.status).collect();
        assert_eq!(order, [Status::Missed, Status::NoPower, Status::Met]);
    }
}
