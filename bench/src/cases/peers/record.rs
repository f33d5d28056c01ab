//! What a hub did over all rounds, and the figures that come of it.

use super::Outcome;
use crate::session::{Series, Session};

/// Share of payloads that may be lost on a rung that counts.
const TOLERATED: f64 = 0.001;
/// Share of a core that others may use before its busy time tells nothing of the hub.
const MOST_AT_REST: f64 = 0.2;

/// What one hub did, by rung.
#[derive(Debug)]
pub(super) struct Record {
    name: &'static str,
    rungs: Vec<Rung>,
    /// What kept it from being measured further.
    pub(super) failure: Option<String>,
}

#[derive(Debug)]
struct Rung {
    rate: u32,
    outcomes: Vec<Outcome>,
    /// The rounds in which no more was lost than may be.
    carried: Vec<Cost>,
}

/// A round on a rung, or the medians of several.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Payloads that should have been sent per second.
    rung: u32,
    /// Payloads that arrived per second.
    rate: f64,
    /// Microseconds per payload.
    cpu: f64,
    /// The same of the core's busy time.
    core: f64,
    /// Share of the time in which the core was not idle with every hub at rest.
    at_rest: f64,
    lost_percent: f64,
}

impl Record {
    /// Nothing yet.
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, rungs: Vec::new(), failure: None }
    }

    /// As the hub's figures call it.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// Adds a round; `at_rest` is the share of time in which the core was not idle anyway.
    pub(super) fn add(&mut self, rate: u32, at_rest: f64, outcome: Outcome) {
        let at = self.rungs.iter().position(|rung| rung.rate == rate).unwrap_or_else(|| {
            self.rungs.push(Rung { rate, outcomes: Vec::new(), carried: Vec::new() });
            self.rungs.len() - 1
        });
        let rung = &mut self.rungs[at];
        if outcome.contradiction.is_none() && outcome.tally.loss() <= TOLERATED {
            let wall = outcome.used.wall.as_secs_f64();
            rung.carried.push(Cost {
                rung: rate,
                rate: outcome.rate(),
                cpu: outcome.each(outcome.used.cpu.as_secs_f64()),
                core: outcome.each(outcome.used.core.as_secs_f64() - at_rest * wall),
                at_rest,
                lost_percent: 100.0 * outcome.tally.loss(),
            });
        }
        rung.outcomes.push(outcome);
    }

    /// The rungs that most of the rounds carried.
    fn costs(&self) -> impl Iterator<Item = Cost> {
        let carried = |rung: &&Rung| 2 * rung.carried.len() > rung.outcomes.len();
        self.rungs.iter().filter(carried).map(|rung| {
            let of = |part: fn(&Cost) -> f64| median(rung.carried.iter().map(part));
            Cost {
                rung: rung.rate,
                rate: of(|cost| cost.rate),
                cpu: of(|cost| cost.cpu),
                core: of(|cost| cost.core),
                at_rest: of(|cost| cost.at_rest),
                lost_percent: of(|cost| cost.lost_percent),
            }
        })
    }

    /// The rung where a payload costs least CPU time.
    fn cheapest(&self) -> Option<Cost> {
        self.costs().min_by(|one, other| one.cpu.total_cmp(&other.cpu))
    }

    /// Hands in its figures, and returns CPU time per payload, in microseconds.
    pub(super) fn report(&self, session: &mut Session) -> Option<f64> {
        let figure = per_packet(self.name);
        let contradiction = self.rungs.iter().find_map(|rung| {
            let of = |outcome: &Outcome| outcome.contradiction.clone();
            rung.outcomes.iter().find_map(of).map(|what| format!("at {}/s: {what}", rung.rate))
        });
        if let Some(what) = contradiction {
            session.invalid(figure, None, what);
            return None;
        }
        let Some(cost) = self.cheapest() else {
            let why = self.failure.clone().unwrap_or_else(|| self.losses());
            session.invalid(figure, None, why);
            return None;
        };
        session.measured(figure, cost.cpu, "µs", None);
        let detail = |what: &str| format!("  {}, {what}", self.name);
        let core = detail("core's busy µs per packet");
        if cost.at_rest <= MOST_AT_REST {
            session.measured(core, cost.core, "µs", None);
        } else {
            let busy = 100.0 * cost.at_rest;
            session.invalid(core, None, format!("the core was {busy:.0} % busy with every hub at rest"));
        }
        session.measured(detail("packets per second at that"), cost.rate, "1/s", None);
        session.measured(detail("lost at that"), cost.lost_percent, "%", None);
        if let Some(cost) = self.costs().next() {
            let figure = detail(&format!("µs per packet at {}/s", cost.rung));
            session.measured(figure, cost.cpu, "µs", None);
        }
        Some(cost.cpu)
    }

    /// What became of each rung, where none counts.
    fn losses(&self) -> String {
        let rungs = self.rungs.iter().map(|rung| {
            let (sent, lost) = rung.outcomes.iter().fold((0, 0), |(sent, lost), outcome| {
                (sent + outcome.tally.sent, lost + outcome.tally.lost())
            });
            format!("{lost} of {sent} lost at {}/s", rung.rate)
        });
        let rungs = rungs.collect::<Vec<_>>().join(", ");
        format!("more than 0.1 % was lost in most rounds: {rungs}")
    }

    /// Its line in the plot.
    pub(super) fn line(&self) -> Series {
        let points = self.costs().map(|cost| (cost.rate, cost.cpu)).collect();
        Series { name: self.name.into(), points }
    }
}

/// The name of a hub's main figure.
pub(super) fn per_packet(name: &str) -> String {
    let unit = if name == super::relay::NAME { "relayed cell" } else { "packet" };
    format!("{name}, CPU µs per {unit}")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
