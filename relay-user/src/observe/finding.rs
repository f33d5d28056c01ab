//! What an attack found, beside what it should find against a perfect defence.

use serde::{Deserialize, Serialize};

/// The observers, by the numbers that tables and documents use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    /// 1: is something going on? From variance and entropy of gaps.
    Activity = 1,
    /// 2: do gaps follow another law when something goes on?
    Distribution,
    /// 3: do cells follow the payload?
    Correlation,
    /// 4: which flow in belongs to which flow out?
    Matching,
    /// 5: what is going on?
    Fingerprint,
    /// 6: when did it begin?
    StartStop,
    /// 7: who talks with whom?
    Pairing,
    /// 8: what do cells tell about the payload, in bits?
    Information,
    /// 9: sizes and bytes.
    Sizes,
    /// 10: which cells are cover? With the truth at hand.
    Cover,
    /// 11: does a mark put on going in come out again?
    Watermark,
    /// 12: who was always on when the partner was?
    Intersection,
    /// 13: what do changes of rate tell?
    Rates,
    /// 14: how often are there handshakes and new flows?
    Connections,
}

impl Attack {
    /// All of them, by number.
    pub const ALL: [Self; 14] = [
        Self::Activity,
        Self::Distribution,
        Self::Correlation,
        Self::Matching,
        Self::Fingerprint,
        Self::StartStop,
        Self::Pairing,
        Self::Information,
        Self::Sizes,
        Self::Cover,
        Self::Watermark,
        Self::Intersection,
        Self::Rates,
        Self::Connections,
    ];

    /// 1 to 14.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Activity => "activity",
            Self::Distribution => "distribution",
            Self::Correlation => "correlation",
            Self::Matching => "matching",
            Self::Fingerprint => "fingerprint",
            Self::StartStop => "start-stop",
            Self::Pairing => "pairing",
            Self::Information => "information",
            Self::Sizes => "sizes",
            Self::Cover => "cover",
            Self::Watermark => "watermark",
            Self::Intersection => "intersection",
            Self::Rates => "rates",
            Self::Connections => "connections",
        }
    }
}

/// The 95 % interval of a value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// Of a value that is known exactly.
    pub const fn exact(value: f64) -> Self {
        Self { low: value, high: value }
    }

    /// Whether `value` is not ruled out.
    pub fn holds(self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Half of its length.
    pub fn half_width(self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Target {
    /// Guessing: the interval holds `value` and reaches no further than `half_width` to either side.
    Chance {
        /// What guessing gives.
        value: f64,
        /// Half of the interval, at most.
        half_width: f64,
    },
    /// The value is no greater.
    AtMost {
        /// Bound.
        bound: f64,
    },
    /// The value is no less: for positive controls.
    AtLeast {
        /// Bound.
        bound: f64,
    },
    /// The value lies in between, both ends included.
    Between {
        /// Lower bound.
        low: f64,
        /// Upper bound.
        high: f64,
    },
    /// Reported, with nothing to hold it against.
    None,
}

/// What an attack's figure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As the target wants it.
    Met,
    /// Not so.
    Missed,
    /// Too few packets to tell: never to be read as met.
    NoPower,
    /// There is no target.
    Reported,
}

/// One figure of one attack.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Which attack.
    pub attack: Attack,
    /// What was computed, in the field's words: "accuracy", "AUC", "max |rho|".
    pub statistic: &'static str,
    /// The figure.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// What it must be.
    pub target: Target,
    /// Observations (windows, pairs, cells) that it rests on.
    pub samples: usize,
}

impl Finding {
    /// What the figure says.
    pub fn verdict(&self) -> Verdict {
        if self.samples == 0 || !self.value.is_finite() {
            return Verdict::NoPower;
        }
        let met = match self.target {
            Target::Chance { value, half_width } => {
                if !self.interval.holds(value) {
                    false
                } else if self.interval.half_width() > half_width {
                    return Verdict::NoPower;
                } else {
                    true
                }
            }
            Target::AtMost { bound } => self.value <= bound,
            Target::AtLeast { bound } => self.value >= bound,
            Target::Between { low, high } => low <= self.value && self.value <= high,
            Target::None => return Verdict::Reported,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(value: f64, low: f64, high: f64, target: Target) -> Verdict {
        let interval = Interval { low, high };
        Finding { attack: Attack::Activity, statistic: "accuracy", value, interval, target, samples: 1000 }
            .verdict()
    }

    #[test]
    fn a_wide_interval_is_no_pass() {
        let chance = Target::Chance { value: 0.5, half_width: 0.03 };
        assert_eq!(finding(0.51, 0.49, 0.53, chance), Verdict::Met);
        assert_eq!(finding(0.51, 0.40, 0.60, chance), Verdict::NoPower);
        assert_eq!(finding(0.60, 0.55, 0.65, chance), Verdict::Missed);
        assert_eq!(finding(f64::NAN, 0.4, 0.6, chance), Verdict::NoPower);
    }

    #[test]
    fn attacks_are_numbered_as_documents_do() {
        let numbers: Vec<u8> = Attack::ALL.iter().map(|attack| attack.number()).collect();
        assert_eq!(numbers, (1..=14).collect::<Vec<u8>>());
    }
}
