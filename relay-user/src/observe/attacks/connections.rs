//! Attack 14: how often are there handshakes and new flows?

use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::learn::figure::Figure;
use crate::observe::stats::{ks, permutation, shuffle};
use rand_chacha::ChaCha8Rng;

/// What begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A handshake between two that may have one already.
    Handshake,
    /// Packets between addresses and ports that were not seen before.
    Flow,
}

/// Something that began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds.
    pub at: u64,
    /// What it is.
    pub kind: Kind,
}

/// What was seen of one user, or of several that do the same. Times of several follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// What began, in any order.
    pub events: Vec<Event>,
    /// Nanoseconds of watching.
    pub watched: u64,
}

/// Spacings of either user that are needed to compare them.
const FEWEST: usize = 8;
const SHUFFLES: usize = 999;

/// For handshakes and for new flows: how many more an hour an active user has than an idle one, which must be none, to
/// within `resolution` an hour. Where either has two or more, also how likely their spacings are to differ so much by
/// chance: a figure below 0.05 misses, as one in 20 does that means nothing.
///
/// To be sure of a difference below r an hour where nothing at all is seen, both must be watched for 3.7/r hours.
pub fn connections(active: &Watch, idle: &Watch, resolution: f64, rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (kind, more, spacing) in [
        (Kind::Handshake, "handshakes an hour more", "p of handshakes' spacing"),
        (Kind::Flow, "new flows an hour more", "p of new flows' spacing"),
    ] {
        let (active_at, idle_at) = (times(active, kind), times(idle, kind));
        let target = Target::Chance { value: 0.0, half_width: resolution };
        let figure = difference((active_at.len(), hours(active)), (idle_at.len(), hours(idle)));
        findings.push(figure.found(Attack::Connections, more, target));
        if active_at.len().max(idle_at.len()) > 1 {
            let target = Target::AtLeast { bound: 0.05 };
            findings.push(spacings(&active_at, &idle_at, rng).found(Attack::Connections, spacing, target));
        }
    }
    findings
}

fn times(watch: &Watch, kind: Kind) -> Vec<u64> {
    let mut times: Vec<u64> =
        watch.events.iter().filter(|event| event.kind == kind).map(|event| event.at).collect();
    times.sort_unstable();
    times
}

fn hours(watch: &Watch) -> f64 {
    watch.watched as f64 / 3.6e12
}

/// How many more an hour, of counts over hours. The interval takes what it can from the exact ones of both counts
/// (Donner and Zou's method of variance recovery).
fn difference((active, active_hours): (usize, f64), (idle, idle_hours): (usize, f64)) -> Figure {
    if active_hours <= 0.0 || idle_hours <= 0.0 {
        return Figure::NONE;
    }
    let (of_active, of_idle) = (poisson(active), poisson(idle));
    let (a, b) = (active as f64 / active_hours, idle as f64 / idle_hours);
    let reach = |x: f64, y: f64| (x * x + y * y).sqrt();
    let value = a - b;
    let low = value - reach(a - of_active.low / active_hours, of_idle.high / idle_hours - b);
    let high = value + reach(of_active.high / active_hours - a, b - of_idle.low / idle_hours);
    // Watching is an observation, though nothing begins.
    Figure { value, interval: Interval { low, high }, samples: (active + idle).max(1) }
}

/// The exact 95 % interval of what Poisson's law, having given this count, gives on average (Garwood, 1936).
fn poisson(count: usize) -> Interval {
    let reach = 10.0 + 6.0 * (count as f64).sqrt();
    let most = count as f64 + reach;
    // The chance of `least` or fewer falls as the mean grows.
    let solve = |least: usize, chance: f64| {
        let (mut low, mut high) = (0.0, most);
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            if at_most(least, middle) > chance { low = middle } else { high = middle }
        }
        f64::midpoint(low, high)
    };
    let low = count.checked_sub(1).map_or(0.0, |fewer| solve(fewer, 0.975));
    Interval { low, high: solve(count, 0.025) }
}

/// The chance that Poisson's law of this mean gives `count` or fewer.
fn at_most(count: usize, mean: f64) -> f64 {
    let mut log = -mean;
    let mut sum = log.exp();
    for k in 1..=count {
        log += (mean / k as f64).ln();
        sum += log.exp();
    }
    sum
}

fn spacings(active: &[u64], idle: &[u64], rng: &mut ChaCha8Rng) -> Figure {
    let gaps = |at: &[u64]| -> Vec<f64> { at.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect() };
    let (active, idle) = (gaps(active), gaps(idle));
    if active.len() < FEWEST || idle.len() < FEWEST {
        return Figure::NONE;
    }
    let mut all = [active.as_slice(), idle.as_slice()].concat();
    let found = permutation(ks(&active, &idle), SHUFFLES, || {
        shuffle(&mut all, rng);
        let (one, other) = all.split_at(active.len());
        ks(one, other)
    });
    Figure { value: found.p, interval: Interval::exact(found.p), samples: all.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::stats::unit;
    use rand_core::SeedableRng;

    const HOUR: u64 = 3_600_000_000_000;

    /// New flows at random over an hour, or evenly.
    fn flows(count: u64, evenly: bool, rng: &mut ChaCha8Rng) -> Watch {
        let mut log = 0.0;
        let spaces: Vec<f64> =
            (0..=count).map(|_| if evenly { 1.0 } else { -(1.0 - unit(rng)).ln() }).collect();
        let sum: f64 = spaces.iter().sum();
        let events = spaces[1..].iter().map(|space| {
            log += space;
            let at = std::time::Duration::from_secs_f64(3600.0 * log / sum);
            Event { at: u64::try_from(at.as_nanos()).unwrap(), kind: Kind::Flow }
        });
        Watch { events: events.collect(), watched: HOUR }
    }

    #[test]
    fn intervals_are_those_of_the_tables() {
        for (count, low, high) in
            [(0, 0.0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.39), (100, 81.36, 121.63)]
        {
            let interval = poisson(count);
            assert!((interval.low - low).abs() < 0.01 && (interval.high - high).abs() < 0.01, "{interval:?}");
        }
        let many = poisson(5000);
        assert!((many.low - 4862.4).abs() < 1.0 && (many.high - 5140.6).abs() < 1.0, "{many:?}");
    }

    #[test]
    fn a_user_whose_programs_open_flows_is_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let findings = connections(&flows(200, false, &mut rng), &flows(5, false, &mut rng), 60.0, &mut rng);
        assert_eq!(findings[0].verdict(), Verdict::Met, "there were no handshakes");
        assert_eq!(findings[1].verdict(), Verdict::Missed);
        assert_eq!(findings[2].verdict(), Verdict::NoPower, "five have four spacings");
    }

    #[test]
    fn the_same_number_at_other_times_is_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let findings = connections(&flows(100, false, &mut rng), &flows(100, true, &mut rng), 60.0, &mut rng);
        assert_eq!(findings[1].verdict(), Verdict::Met);
        assert_eq!(findings[2].verdict(), Verdict::Missed);
    }

    #[test]
    fn users_alike_are_seldom_told_apart() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (mut counts, mut spacings) = (0, 0);
        for _ in 0..40 {
            // Counts as Poisson's law gives them: flows of two hours, each in one of them.
            let mut drawn = || {
                let mut watch = flows(120, false, &mut rng);
                watch.events.retain(|_| unit(&mut rng) < 0.25);
                watch
            };
            let (one, other) = (drawn(), drawn());
            let findings = connections(&one, &other, 60.0, &mut rng);
            counts += u32::from(findings[1].verdict() == Verdict::Missed);
            spacings += u32::from(findings[2].verdict() == Verdict::Missed);
        }
        assert!(counts <= 6 && spacings <= 6, "{counts} and {spacings} of 40, where 2 are expected");
    }

    #[test]
    fn nothing_seen_is_enough_only_if_watched_long_enough() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let quiet = |watched| Watch { events: Vec::new(), watched };
        let verdicts = |watched, rng: &mut ChaCha8Rng| -> Vec<Verdict> {
            let findings = connections(&quiet(watched), &quiet(watched), 12.0, rng);
            findings.iter().map(Finding::verdict).collect()
        };
        assert_eq!(verdicts(HOUR / 2, &mut rng), [Verdict::Met; 2]);
        assert_eq!(verdicts(HOUR / 10, &mut rng), [Verdict::NoPower; 2]);
        assert_eq!(verdicts(0, &mut rng), [Verdict::NoPower; 2]);
    }
}
