//! `relay audit`: what a capture of the user's own wire tells an observer.
//!
//! ```text
//! capture -> links -> facts of each direction -------------------\
//!                 \-> attacks that need nothing else --> rows --> report: text, JSON, picture
//!         marks ---> attacks on idle against active --/
//! ```
//!
//! Pure: the same capture, marks and seed give the same report. No address gets into one.

#[cfg(test)]
mod calibration;
mod canvas;
mod direction;
mod law;
mod marked;
mod marks;
mod picture;
mod report;
mod row;
mod steady;
mod text;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

pub(crate) use marks::{Marks, MarksError};
pub(crate) use report::Report;
pub(crate) use row::Says;

use crate::observe::attacks::correlation::{Run, SHUFFLES, correlation};
use crate::observe::capture::{Capture, Direction};
use crate::observe::finding::{Attack, Finding, Interval};
use crate::observe::stats::looked_again;
use crate::observe::trace::{SECOND, Trace};
use report::{Begun, Untested};
use row::{Row, plain, with_p};

/// Nanoseconds after a capture's first packet in which the first cell of a link may come that was up before: a class has
/// one cell a second at least.
const SETTLED: u64 = 2 * SECOND;
/// Of a second, so many bins at most: delays between what is captured lie within it.
const BINS_A_SECOND: u64 = 20;
/// Pairs of directions that are held against each other.
const PAIRS: usize = 12;
/// Bins of that, at most, and how far one may lag behind the other, in bins.
const BINS: u64 = 50_000;
const LAGS: usize = 2;
/// The least p-value that one look at rotations gives.
const ROTATED_LEAST: f64 = 1.0 / (SHUFFLES as f64 + 1.0);
/// Parts of a capture that are rotated by themselves, at most.
const PARTS: u64 = 8;

/// Why a capture has no report.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuditError {
    /// Nothing of Evenwire in it.
    #[error(
        "holds no Evenwire link: none of its {udp} UDP datagrams is a cell; capture where the link's packets pass (not \
         on the tunnel's own interface), while it is up, unfiltered or with the filter `udp`"
    )]
    NoLink {
        /// Datagrams that are something else.
        udp: u64,
    },
    /// Too little of each packet.
    #[error(
        "holds {0} datagrams of a cell's length, but too little of each to tell; capture whole packets (`tcpdump -s 0`), \
         or 96 bytes of each at least"
    )]
    Headless(u64),
    /// A link that never came up.
    #[error(
        "holds handshakes ({0} datagrams) but no cell: the link did not come up; see `relay status`, and capture again"
    )]
    NoCell(usize),
    /// Nothing could be said.
    #[error(
        "holds {most} cells of the fullest direction, too few for any power: {needed} are the fewest that say anything, \
         and ten minutes of a link better; capture longer"
    )]
    TooFew {
        /// Cells of the direction with the most.
        most: u64,
        /// How many it takes.
        needed: usize,
    },
    /// The log is of another time.
    #[error(
        "none of the {marks} marks lies within the capture, which begins at {from} and ends at {to} (seconds since 1970); \
         use the clock of the capturing machine"
    )]
    MarksOutside {
        /// Marks of the log.
        marks: usize,
        /// Second of the capture's first cell.
        from: u64,
        /// Second of its last.
        to: u64,
    },
}

/// A direction with its name: A1, A2, B1, ...
type Named<'a> = (String, &'a Direction);

/// Holds a capture against every attack that applies.
///
/// # Errors
/// [`AuditError`] where nothing can be said.
pub(crate) fn audit(capture: &Capture, marks: Option<&Marks>, seed: u64) -> Result<Report, AuditError> {
    let all: Vec<Named<'_>> = capture
        .links
        .iter()
        .flat_map(|link| {
            link.directions.iter().zip(1..).map(|(of, number)| (format!("{}{number}", link.name), of))
        })
        .collect();
    let most = all.iter().map(|(_, direction)| direction.cells).max().unwrap_or(0);
    let handshakes = all.iter().map(|(_, direction)| direction.handshakes.len()).sum::<usize>();
    if most == 0 {
        return Err(match (handshakes, capture.totals.headless) {
            (0, 0) => AuditError::NoLink { udp: capture.totals.udp },
            (0, headless) => AuditError::Headless(headless),
            (handshakes, _) => AuditError::NoCell(handshakes),
        });
    }
    let enough = |direction: &Direction| direction.trace.sights().len() >= direction::FEWEST;
    let judged: Vec<&Named<'_>> = all.iter().filter(|(_, direction)| enough(direction)).collect();
    if judged.is_empty() {
        return Err(AuditError::TooFew { most, needed: direction::FEWEST });
    }
    let span = (
        judged.iter().map(|(_, direction)| direction.span.0).min().unwrap_or(0),
        judged.iter().map(|(_, direction)| direction.span.1).max().unwrap_or(0),
    );
    if let Some(marks) = marks
        && marks.busy().all(|mark| mark.to <= span.0 || mark.from >= span.1)
    {
        let (from, to) = (span.0 / SECOND, span.1 / SECOND);
        return Err(AuditError::MarksOutside { marks: marks.busy().count(), from, to });
    }

    let facts: Vec<_> = all.iter().map(|(name, direction)| direction::facts(name, direction)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = Vec::new();
    for (name, direction) in &judged {
        let facts = facts.iter().find(|facts| facts.name == *name);
        rows.extend(facts.map(|facts| direction::rows(facts, direction)).unwrap_or_default());
    }
    rows.extend(followers(&judged, &mut rng));
    let begun = begun(&all, capture, span);
    if let Some(marks) = marks {
        for (name, direction) in &judged {
            let back = judged.iter().find(|(other, _)| other != name && link_of(other) == link_of(name));
            let back = back.map(|(_, back)| &back.trace);
            rows.extend(marked::direction(name, &direction.trace, back, marks, &mut rng));
        }
        if let Some((one, other)) = two_links(&judged) {
            let name = format!("{} and {}", one.0, other.0);
            rows.extend(marked::devices(&name, &one.1.trace, &other.1.trace, marks, &mut rng));
        }
        rows.extend(marked::begun(&begun.events, marks, span, &mut rng));
    }
    rows.sort_by_key(|row| (row.attack().number(), row.of.clone()));
    let mut untested = untested(marks, two_links(&judged).is_some(), judged.len());
    let names: Vec<&str> = judged.iter().map(|(name, _)| name.as_str()).collect();
    untested.extend(beyond_bounds(&names, marks.is_some()));
    untested.sort_by_key(|untested| untested.attack);
    let picture = report::picture(&facts, capture, marks, span);
    let (totals, marks) = (capture.totals.clone(), marks.cloned());
    Ok(Report { totals, directions: facts, rows, untested, begun, marks, picture })
}

/// The letters of a direction's name.
fn link_of(name: &str) -> &str {
    name.trim_end_matches(|letter: char| letter.is_ascii_digit())
}

/// A direction of each of the first two links: the one in which the link was begun, where there is one.
fn two_links<'a>(judged: &[&'a Named<'a>]) -> Option<(&'a Named<'a>, &'a Named<'a>)> {
    let one = judged.first()?;
    let other = judged.iter().find(|(name, _)| link_of(name) != link_of(&one.0))?;
    Some((one, other))
}

/// What was left out since there are more directions and links than are held against each other.
fn beyond_bounds(directions: &[&str], marked: bool) -> Vec<Untested> {
    let mut links: Vec<&str> = directions.iter().map(|name| link_of(name)).collect();
    links.sort_unstable();
    links.dedup();
    let pairs = |count: usize| count * count.saturating_sub(1) / 2;
    let say = |attack, of: &str, all, tried| {
        let why =
            format!("only {tried} of {all} pairs of {of} were held against each other: capture fewer links");
        (tried < all).then(|| Untested { attack, why: why.into() })
    };
    let devices = say(Attack::Pairing, "links", pairs(links.len()), 1).filter(|_| marked);
    say(Attack::Matching, "directions", pairs(directions.len()), PAIRS).into_iter().chain(devices).collect()
}

/// Attack 4 without its truth: whether one direction's cells follow another's.
fn followers(judged: &[&Named<'_>], rng: &mut ChaCha8Rng) -> Vec<Row> {
    let pairs = judged
        .iter()
        .enumerate()
        .flat_map(|(place, one)| judged.iter().skip(place + 1).map(move |other| (*one, *other)));
    let pairs: Vec<_> = pairs.take(PAIRS).collect();
    let mut rows = Vec::new();
    for &((one, a), (other, b)) in &pairs {
        let (from, to) = (a.span.0.max(b.span.0), a.span.1.min(b.span.1));
        let findings = alike(&a.trace, &b.trace, (from, to), pairs.len(), rng);
        let power =
            |finding: &Finding| format!("{} is found", plain(4.2 / (finding.samples.max(1) as f64).sqrt()));
        let needs = "needs counts that change, and bins of 20 cells and more in which both were captured, 200 or more";
        rows.extend(with_p(&format!("{one} and {other}"), &findings, power, needs));
    }
    for row in &mut rows {
        if matches!(row.says, Says::Found | Says::Unclear) {
            row.power.push_str("; the payload's doing, or a stall of what both pass through");
        }
    }
    rows
}

/// How alike two directions' cells are, one of `pairs` such pairs. Each is a chance of a false alarm, so p-values are those
/// of the least of all.
fn alike(
    one: &Trace,
    other: &Trace,
    (from, to): (u64, u64),
    pairs: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Finding> {
    let rate = one.window(from, to).rate().min(other.window(from, to).rate()).max(1e-3);
    let bin = bin(20.0 / rate * 1e9).max(SECOND / BINS_A_SECOND).max(to.saturating_sub(from) / BINS);
    let runs = parted(one, other, (from, to), bin, LAGS);
    let (mut findings, _) = correlation(&runs, bin, LAGS, rng);
    // As many chances of a false alarm as there are pairs, and as many again for the other figures of a capture.
    let chances = 2 * pairs.max(1);
    let p_of = |findings: &[Finding]| findings.get(1).map_or(f64::NAN, |p| p.value);
    let first = p_of(&findings);
    if first <= ROTATED_LEAST {
        // None of the rotations reached it, and those of one look are too few to tell how rare it is.
        let again = || p_of(&correlation(&runs, bin, LAGS, rng).0);
        let p = looked_again(first, SHUFFLES, chances, again);
        if let Some(finding) = findings.get_mut(1) {
            finding.value = p;
        }
    }
    for finding in &mut findings {
        finding.attack = Attack::Matching;
        if finding.statistic.starts_with("p of ") {
            finding.value = (finding.value * chances as f64).min(1.0);
            finding.interval = Interval::exact(finding.value);
        }
    }
    findings
}

/// A capture as several runs, which are rotated each by itself: of a single one, the few
/// rotations that lie within the lags are as good as none, and no p-value is less than their share.
fn parted<'a>(
    one: &'a Trace,
    other: &'a Trace,
    (from, to): (u64, u64),
    bin: u64,
    lags: usize,
) -> Vec<Run<'a>> {
    let bins = to.saturating_sub(from) / bin.max(1);
    let parts = (bins / (10 * lags.max(1) as u64)).clamp(1, PARTS);
    let width = bins / parts * bin;
    (0..)
        .zip(0..parts)
        .map(|(number, part)| {
            let (from, to) = (from + part * width, from + (part + 1) * width);
            let (payload, wire) = (one.window(from, to), other.window(from, to));
            Run { payload, wire, counted: None, turned_with: number, direction: 0 }
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "positive, and saturates")]
fn bin(nanos: f64) -> u64 {
    nanos as u64
}

/// What began while the capture ran: attempts at a handshake, and links.
fn begun(all: &[Named<'_>], capture: &Capture, span: (u64, u64)) -> Begun {
    let handshakes = all.iter().flat_map(|(_, direction)| {
        let kind = relay_common::wire::DatagramType::HsInit;
        direction.handshakes.iter().filter(move |(_, of)| *of == kind).map(|(at, _)| *at)
    });
    // A link whose cells come as soon as the capture begins was up before.
    let start = capture.totals.span.0.saturating_add(SETTLED);
    let flows = capture.links.iter().filter_map(|link| {
        let cells = link.directions.iter().filter(|direction| direction.cells > 0);
        let first = cells.map(|direction| direction.span.0).min()?;
        let began = link.directions.iter().any(|direction| !direction.handshakes.is_empty());
        (began || first > start).then_some(first)
    });
    let events = marked::events(handshakes, flows);
    let rekeys = all.iter().map(|(_, direction)| direction.sessions.begun().saturating_sub(1)).sum();
    Begun { events, rekeys, hours: span.1.saturating_sub(span.0) as f64 / 3.6e12 }
}

fn untested(marks: Option<&Marks>, two: bool, directions: usize) -> Vec<Untested> {
    let mut untested = Vec::new();
    let mut say = |attack: Attack, why: &'static str| untested.push(Untested { attack, why: why.into() });
    let need_marks = "needs to know when you were active: log it as lines `START END LABEL` and give --marks";
    if marks.is_none() {
        for attack in [Attack::Activity, Attack::Distribution, Attack::Correlation, Attack::Fingerprint] {
            say(attack, need_marks);
        }
        say(
            Attack::StartStop,
            "against your own beginnings and ends: needs --marks; only changes of the rate were looked for",
        );
        say(Attack::Information, need_marks);
        say(Attack::Connections, "active against idle: needs --marks; only counted");
    } else if marks.is_some_and(|marks| marks.names.len() < 2) {
        say(Attack::Fingerprint, "needs marks of two activities or more, with different labels");
    }
    if directions < 2 {
        say(Attack::Matching, "needs two directions or links in one capture");
    } else {
        say(
            Attack::Matching,
            "which flow out belongs to which flow in: needs the truth of many; only whether they follow each other",
        );
    }
    match (two, marks.is_some()) {
        (true, true) => {}
        (true, false) => say(Attack::Pairing, need_marks),
        (false, _) => say(Attack::Pairing, "needs two devices' links in one capture"),
    }
    say(
        Attack::Cover,
        "needs to know which cells were cover: only the node itself does, and tests itself while it runs",
    );
    say(Attack::Watermark, "needs somebody who delays or drops packets on purpose, and a capture further on");
    say(Attack::Intersection, "needs weeks of many users");
    untested
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_are_not_held_against_each_other_are_counted() {
        let said = |directions: &[&str], marked| -> Vec<(Attack, String)> {
            let untested = beyond_bounds(directions, marked).into_iter();
            untested.map(|untested| (untested.attack, untested.why.to_string())).collect()
        };
        let two = ["A1", "A2", "B1", "B2"];
        assert_eq!(said(&two, true), [], "six pairs, and one of links");
        let three = ["A1", "A2", "B1", "B2", "C1", "C2"];
        let found = said(&three, true);
        assert_eq!(
            found.iter().map(|(attack, _)| *attack).collect::<Vec<_>>(),
            [Attack::Matching, Attack::Pairing]
        );
        assert!(found[0].1.starts_with("only 12 of 15 pairs of directions"), "{found:?}");
        assert!(found[1].1.starts_with("only 1 of 3 pairs of links"), "{found:?}");
        assert_eq!(said(&three, false).len(), 1, "pairs of links need marks");
        assert_eq!(said(&[], true), []);
    }
}
