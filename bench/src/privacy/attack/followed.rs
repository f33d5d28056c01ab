//! Attacks 3 and 8: how the wire follows the payload, bin by bin.

use rand_chacha::ChaCha8Rng;
use relay_tests::Host;
use relay_user::observe::attacks::{correlation, information};
use relay_user::observe::finding::Attack;
use relay_user::observe::trace::{SECOND, Trace};

use super::{Found, Test, nothing, tested};
use crate::privacy::links::{CLIENT, TRUNKS, name_of};
use crate::privacy::record::Run;
use crate::privacy::scenario::Scenario;

/// Bins in which cells are held against payload, in nanoseconds, and how many of them payload may be ahead or behind.
const BIN: u64 = 10_000_000;
const LAGS: usize = 8;
/// Parts in which payload and wire are held against each other, in nanoseconds that count: a dozen stretches.
const PART: u64 = 10 * SECOND;
/// Where less is left of the stretches, what is left is another machine than what was measured.
const LEAST_LEFT: f64 = 0.5;

/// What enters the tunnel at either end.
#[derive(Clone, Copy, Debug)]
enum Payload {
    FromClient,
    ToClient,
}

/// A payload, and a direction that may follow it.
type Followed = (Payload, (Host, Host));

pub(super) const OTHER_WAY: &str = "the other way";

/// What is held against the payload at once: the client's link the way that the payload goes, and the other way; the trunks.
const PAIRS: [(&str, &[Followed]); 3] = [
    ("both ways", &[(Payload::FromClient, CLIENT[0]), (Payload::ToClient, CLIENT[1])]),
    (OTHER_WAY, &[(Payload::FromClient, CLIENT[1]), (Payload::ToClient, CLIENT[0])]),
    (
        "trunks",
        &[
            (Payload::FromClient, TRUNKS[0]),
            (Payload::ToClient, TRUNKS[1]),
            (Payload::FromClient, TRUNKS[2]),
            (Payload::ToClient, TRUNKS[3]),
        ],
    ),
];

/// Attacks 3 and 8: how the wire follows the payload.
pub(super) fn followed(run: &Run, scenario: Scenario, found: &mut Found, rng: &mut ChaCha8Rng) {
    let all: Vec<(u64, u64)> = run.stretches(scenario).map(|block| (block.from, block.to)).collect();
    let counted = run.stalls.outside(&all);
    let left = sum(&counted) as f64 / sum(&all).max(1) as f64;
    for (way, pairs) in PAIRS {
        if left < LEAST_LEFT {
            let why = format!("{:.0} % lie around gaps that no law explains", (1.0 - left) * 100.0);
            let attacks = [Attack::Correlation, Attack::Information];
            found.rows.extend(attacks.map(|attack| nothing(run, scenario, attack, way, &why)));
            continue;
        }
        let runs = beside(run, pairs, &counted);
        let whose = |direction: Option<u32>| {
            let pair = direction.and_then(|pair| pairs.get(usize::try_from(pair).ok()?));
            pair.map_or_else(|| "all".to_owned(), |(_, wire)| name_of(*wire))
        };
        let test = Test { attack: Attack::Correlation, scenario, way, shuffles: correlation::SHUFFLES };
        let mut place = None;
        let look = |rng: &mut ChaCha8Rng| {
            let (findings, found) = correlation::correlation(&runs, BIN, LAGS, rng);
            place = found;
            findings
        };
        tested(run, test, look, found, rng);
        if let (Some(row), Some(place)) = (found.rows.last_mut(), place) {
            let later = place.lag * isize::try_from(BIN / 1_000_000).unwrap_or(0);
            row.note +=
                &format!("; {} at {later} ms, {:+.3}, {}", place.seen, place.rho, whose(place.direction));
            if left < 1.0 {
                row.note += &format!("; {:.1} % left out", (1.0 - left) * 100.0);
            }
        }
        let test = Test { attack: Attack::Information, scenario, way, shuffles: information::SHUFFLES };
        let mut place = None;
        let look = |rng: &mut ChaCha8Rng| {
            let (findings, found) = information::of_bytes(&runs, BIN, rng);
            place = found;
            findings
        };
        tested(run, test, look, found, rng);
        if let (Some(row), Some(place)) = (found.rows.last_mut(), place) {
            row.note += &format!("; {}, {}", place.seen, whose(place.direction));
        }
    }
}

/// What entered the tunnel, beside the wire, in parts of which about [`PART`] counts.
fn beside<'a>(run: &'a Run, pairs: &'a [Followed], counted: &'a [(u64, u64)]) -> Vec<correlation::Run<'a>> {
    let end = run.blocks.last().map_or(0, |block| block.to);
    let parts = (sum(counted) / PART).max(1);
    let width = end / parts / BIN * BIN;
    let payload = |payload| -> &'a Trace {
        match payload {
            Payload::FromClient => &run.inside[0],
            Payload::ToClient => &run.entering,
        }
    };
    (0..)
        .zip(0..parts)
        .flat_map(|(number, part)| {
            let (start, end) = (part * width, (part + 1) * width);
            (0..).zip(pairs).filter_map(move |(direction, &(of, (from, to)))| {
                let wire = run.wire(from, to)?.window(start, end);
                let payload = payload(of).window(start, end);
                let (counted, turned_with) = (Some(counted), number);
                Some(correlation::Run { payload, wire, counted, turned_with, direction })
            })
        })
        .collect()
}

/// How long all of them are together, in nanoseconds.
fn sum(stretches: &[(u64, u64)]) -> u64 {
    stretches.iter().map(|(from, to)| to - from).sum()
}
