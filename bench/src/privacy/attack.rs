//! The attacks on what was recorded. Those that compare stretches look at each direction of each link by itself, since
//! links differ by more than payload; the direction that tells most is what counts.

use std::time::Duration;

use relay_tests::Host;
use relay_tests::nodes::{CLIENT_RATE, TRUNK_RATE};
use relay_user::observe::attacks::connections::{Event, Watch};
use relay_user::observe::attacks::directions::{Part, most_telling};
use relay_user::observe::attacks::intersection::{by_packets, by_unevenness};
use relay_user::observe::attacks::long_gaps::Stretch;
use relay_user::observe::attacks::{
    activity, connections, correlation, distribution, fingerprint, information, long_gaps, rates, sizes,
    start_stop,
};
use relay_user::observe::finding::{Attack, Finding, Target};
use relay_user::observe::learn::features;
use relay_user::observe::learn::table::Table;
use relay_user::observe::stats::{looked_again, mean};
use relay_user::observe::trace::{SECOND, Sample, Trace};

use rand_chacha::ChaCha8Rng;

use super::duo::Duo;
use super::family::Family;
use super::network::Defence;
use super::record::{Block, Run, nanos};
use super::row::{Row, Status};
use super::scenario::Scenario;
use super::stall;
use crate::report::table::short;

/// What cannot be tried in this lab, and why.
pub(super) const LEFT_OUT: [&str; 2] = [
    "a mark read by a relay that counts a circuit's cells: in virtual time, where it reads each bit (sim/watermark.rs)",
    "other payloads than a download through a fault; 4, 7 and 12 with other payloads than a chat, or through a fault",
];

/// The client's link, from the client and to it.
pub(super) const CLIENT: [(Host, Host); 2] = [(Host::Client, Host::Entry), (Host::Entry, Host::Client)];
/// Both trunks, both ways.
pub(super) const TRUNKS: [(Host, Host); 4] = [
    (Host::Entry, Host::Middle),
    (Host::Middle, Host::Entry),
    (Host::Middle, Host::Exit),
    (Host::Exit, Host::Middle),
];
/// Both kinds of links, and the cells per second of each of their directions.
pub(super) const LINKS: [(&[(Host, Host)], u32); 2] = [(&CLIENT, CLIENT_RATE), (&TRUNKS, TRUNK_RATE)];
/// Bins in which cells are held against payload, in nanoseconds, and how many of them payload may be ahead or behind.
const BIN: u64 = 10_000_000;
const LAGS: usize = 8;
/// Parts in which payload and wire are held against each other, in nanoseconds that count: a dozen stretches.
const PART: u64 = 10 * SECOND;
/// Where less is left of the stretches, what is left is another machine than what was measured.
const LEAST_LEFT: f64 = 0.5;
/// To either side of a beginning or end, and of the middle of a stretch without: in one of 800 ms, the moments around its
/// borders and its middle have nothing in common.
const AROUND: u64 = 200_000_000;
/// Bins in which a beginning is looked for.
const CHANGE_BIN: u64 = 25_000_000;
/// Windows from which an activity is guessed: it takes longer to see what goes on than that something does, and a window
/// that fits into one segment of a video shows what a long download shows. They overlap, so that what begins between two
/// of them is whole in one.
const ACTIVITY_WINDOW: Duration = Duration::from_millis(400);
const ACTIVITY_STEP: Duration = Duration::from_millis(100);
/// A control has to reach it.
const SEEN: f64 = 0.9;
/// A p-value below this is looked at again, with other permutations, so many times in all: the smallest of one look would
/// not be small enough among all tests of a family.
const CLOSE: f64 = 0.01;
const LOOKS: usize = 12;
/// What begins is to differ by less, an hour. Nothing seen in eleven minutes of each shows that.
const RESOLUTION: f64 = 20.0;

/// Rows of one defence, and the p-values that they share their false alarms over.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) rows: Vec<Row>,
    pub(super) family: Family,
}

/// What can be said of one scenario of a run.
pub(super) fn one(run: &Run, scenario: Scenario, found: &mut Found, rng: &mut ChaCha8Rng) {
    let name = run.plan.name(scenario);
    let links = [(&CLIENT[..], ""), (&TRUNKS[..], " (trunks)")];
    for (wires, mark) in links {
        let directions = parts(wires, rng, |wire, rng| {
            run.wire(wire.0, wire.1).map(|trace| activity::parts(&run.samples(trace, scenario), rng))
        });
        let rows = together(run, scenario, Attack::Activity, wires, &directions, rng);
        // What single numbers tell is for those who look for the mechanism of what was found.
        let told = rows.first().is_some_and(|row| row.status == Status::Missed);
        let shown = if told { rows.len() } else { 1 };
        let rows = rows.into_iter().take(shown);
        found.rows.extend(rows.map(|row| Row { scenario: format!("{name}{mark}"), ..row }));
    }
    let shares = parts(&CLIENT, rng, |(from, to), rng| {
        run.wire(from, to).map(|trace| vec![distribution::rejections(&run.samples(trace, scenario), rng)])
    });
    found.rows.extend(together(run, scenario, Attack::Distribution, &CLIENT, &shares, rng));
    for ((from, to), way) in CLIENT.into_iter().zip(["from the client", "to the client"]) {
        let Some(trace) = run.wire(from, to) else {
            for attack in [Attack::Distribution, Attack::Information] {
                let row = Row::nothing(attack, run.plan.name(scenario), run.defence.name, UNSEEN);
                found.rows.push(judged(run, Row { statistic: way.into(), ..row }));
            }
            continue;
        };
        let samples = run.samples(trace, scenario);
        let test = Test { attack: Attack::Distribution, scenario, way, shuffles: distribution::SHUFFLES };
        tested(run, test, |rng| distribution::laws(&samples, rng), found, rng);
        let test = Test { attack: Attack::Information, scenario, way, shuffles: information::SHUFFLES };
        tested(run, test, |rng| information::of_labels(&samples, rng), found, rng);
    }
    if let Some(stretches) = interrupted(run, scenario) {
        let test =
            Test { attack: Attack::Distribution, scenario, way: "all links", shuffles: long_gaps::SHUFFLES };
        tested(run, test, |rng| long_gaps::long_gaps(&stretches, rng), found, rng);
        let [idle, busy] = [0, 1].map(|label| {
            let of = stretches.iter().filter(|stretch| stretch.label == label);
            mean(&of.map(|stretch| stretch.per_second.iter().sum()).collect::<Vec<f64>>())
        });
        if let Some(row) = found.rows.last_mut() {
            row.note += &format!("; a second, {} idle and {} busy", short(idle), short(busy));
        }
    }
    if scenario != Scenario::Idle {
        followed(run, scenario, found, rng);
    }
}

/// Attacks 3 and 8: how the wire follows the payload.
fn followed(run: &Run, scenario: Scenario, found: &mut Found, rng: &mut ChaCha8Rng) {
    let all = stretches(run, scenario);
    let counted = stall::without(&all, &run.stalls);
    let left = sum(&counted) / sum(&all).max(1.0);
    for (way, pairs) in PAIRS {
        if left < LEAST_LEFT {
            let why = format!("{:.0} % lie around gaps that no law explains", (1.0 - left) * 100.0);
            for attack in [Attack::Correlation, Attack::Information] {
                let row = Row::nothing(attack, run.plan.name(scenario), run.defence.name, &why);
                found.rows.push(judged(run, Row { statistic: way.into(), ..row }));
            }
            continue;
        }
        let runs = beside(run, pairs, &counted);
        let test = Test { attack: Attack::Correlation, scenario, way, shuffles: correlation::SHUFFLES };
        tested(run, test, |rng| correlation::correlation(&runs, BIN, LAGS, rng), found, rng);
        if let (Some(row), Some(place)) = (found.rows.last_mut(), correlation::place(&runs, BIN, LAGS)) {
            let later = place.lag * isize::try_from(BIN / 1_000_000).unwrap_or(0);
            let pair = place.direction.and_then(|pair| pairs.get(usize::try_from(pair).ok()?));
            let whose = pair.map_or_else(|| "all".to_owned(), |(_, wire)| name_of(*wire));
            row.note += &format!("; {} at {later} ms, {:+.3}, {whose}", place.seen, place.rho);
            if left < 1.0 {
                row.note += &format!("; {:.1} % left out", (1.0 - left) * 100.0);
            }
        }
        let test = Test { attack: Attack::Information, scenario, way, shuffles: information::SHUFFLES };
        tested(run, test, |rng| information::of_bytes(&runs, BIN, rng), found, rng);
    }
}

/// The gaps that no law explains, stretch by stretch; nothing where the law has gaps of any length.
fn interrupted(run: &Run, scenario: Scenario) -> Option<Vec<Stretch>> {
    let (labels, times): (Vec<u16>, Vec<(u64, u64)>) = alike(run, scenario).into_iter().unzip();
    let rates = stall::per_second(&run.wires, run.defence, &times)?;
    Some(labels.into_iter().zip(rates).map(|(label, per_second)| Stretch { label, per_second }).collect())
}

/// The stretches with this payload, labelled 1, and their counterparts, each for as long as the shortest is: of what comes in
/// clusters, a longer one has other shares.
fn alike(run: &Run, scenario: Scenario) -> Vec<(u16, (u64, u64))> {
    let guard = nanos(run.plan.guard);
    let blocks = run.blocks.iter().filter(|block| block.scenario.is_none_or(|one| one == scenario));
    let shortest =
        blocks.clone().map(|block| (block.to - block.from).saturating_sub(guard)).min().unwrap_or(0);
    let of = |block: &Block| {
        let from = block.from + guard;
        (u16::from(block.scenario.is_some()), (from, from + shortest))
    };
    blocks.map(of).collect()
}

/// What can be said of a defence from all its runs that may be judged, or, where none may, why not.
pub(super) fn all(runs: &[Run], found: &mut Found, rng: &mut ChaCha8Rng) {
    let valid: Vec<&Run> = runs.iter().filter(|run| run.invalid.is_none()).collect();
    let (runs, invalid) = if valid.is_empty() {
        (runs.iter().collect(), runs.iter().find_map(|run| run.invalid.clone()))
    } else {
        (valid, None)
    };
    let Some(&first) = runs.first() else { return };
    let mut rows = Vec::new();
    let wires: Vec<(Host, Host)> = CLIENT.into_iter().chain(TRUNKS).collect();
    let directions = parts(&wires, rng, |wire, rng| {
        let runs = changes(&runs, wire);
        runs.iter().any(|run| !run.is_empty()).then(|| start_stop::parts(&runs, CHANGE_BIN, rng))
    });
    rows.push(match furthest(&directions, &wires, rng).into_iter().next() {
        Some((finding, note)) => Row { note, ..row(first, &finding) },
        None => Row::nothing(Attack::StartStop, "all", first.defence.name, UNSEEN),
    });
    rows.extend(sound(first, &runs, rng));
    let [active, idle] = [true, false].map(|busy| watched(&runs, busy));
    let minutes = active.watched.min(idle.watched) as f64 / 6e10;
    let note = format!("{minutes:.1} min of each were watched");
    let begun = connections::connections(&active, &idle, RESOLUTION, rng);
    rows.extend(begun.iter().map(|finding| Row { note: note.clone(), ..begun_row(first, finding) }));
    let windows = runs.iter().flat_map(|run| run.wires.values());
    let windows: Vec<_> = windows.map(|trace| trace.window(0, u64::MAX)).collect();
    rows.push(row(first, &sizes::lengths(&windows)));
    let datagrams = runs.iter().flat_map(|run| &run.whole).map(|datagram| datagram.bytes.as_slice());
    let bytes =
        if is_control(first) { sizes::bytes(datagrams) } else { sizes::bytes(sizes::sealed(datagrams)) };
    rows.extend(bytes.iter().map(|finding| row(first, finding)));
    rows.extend(found.family.rows(first.defence.name, !is_control(first)));
    if let Some(why) = invalid {
        rows = rows.into_iter().map(|row| row.invalid(&why)).collect();
    }
    found.rows.extend(rows);
}

/// Of the run over a sound link: which payload flows, and what rates tell.
fn sound(first: &Run, runs: &[&Run], rng: &mut ChaCha8Rng) -> Vec<Row> {
    let nothing = |attack, why: &str| Row::nothing(attack, "all", first.defence.name, why);
    let Some(run) = runs.iter().find(|run| run.plan.fault.is_none()) else {
        let why = "no run over a sound link that may be judged";
        return [Attack::Fingerprint, Attack::Rates].map(|attack| nothing(attack, why)).into();
    };
    let [Some(out), Some(home)] = CLIENT.map(|(from, to)| run.wire(from, to)) else {
        return [Attack::Fingerprint, Attack::Rates].map(|attack| nothing(attack, UNSEEN)).into();
    };
    let mut rows = match run.plan.scenarios.as_slice() {
        [] | [_] => vec![nothing(Attack::Fingerprint, "needs several payloads")],
        _ => which(run, [out, home], rng),
    };
    let end = run.blocks.last().map_or(0, |block| block.to);
    for (trace, way) in [(out, "from the client"), (home, "to the client")] {
        let windows: Vec<_> =
            (0..end / SECOND).map(|second| trace.window(second * SECOND, (second + 1) * SECOND)).collect();
        let found = row(first, &rates::rates(&windows, 1, 0.0));
        rows.push(Row { statistic: format!("{}, {way}", found.statistic), ..found });
    }
    rows
}

/// Attack 5.
fn which(run: &Run, [out, home]: [&Trace; 2], rng: &mut ChaCha8Rng) -> Vec<Row> {
    let cuts = run.cuts_of(ACTIVITY_WINDOW, ACTIVITY_STEP);
    // The counterpart of all payloads is as frequent as two of them; that held against it is as frequent as one.
    let cuts = cuts.into_iter().filter(|cut| cut.scenario.is_some());
    let (ways, back): (Vec<Sample<'_>>, Vec<_>) = cuts
        .map(|cut| {
            let label = cut.scenario.map_or(0, |scenario| scenario as u16);
            (
                Sample { window: out.window(cut.from, cut.to), label, block: cut.block },
                home.window(cut.from, cut.to),
            )
        })
        .unzip();
    let table = Table::two_way(&ways, &back);
    let mut rows: Vec<Row> =
        fingerprint::fingerprint(&table, rng).iter().map(|finding| row(run, finding)).collect();
    for row in rows.iter_mut().filter(|row| !is_control(run) && row.status == Status::Missed) {
        row.note = telling(&table, rng);
    }
    rows
}

/// The features that a forest learns most from: where to look for the mechanism.
fn telling(table: &Table, rng: &mut ChaCha8Rng) -> String {
    let mut shares: Vec<(f64, String)> =
        fingerprint::telling(table, rng).into_iter().zip(features::names(2)).collect();
    shares.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let most = shares.iter().take(4).map(|(share, name)| format!("{name} {:.0} %", share * 100.0));
    format!("learnt from {}", most.collect::<Vec<_>>().join(", "))
}

/// A tunnel without shaping has flows that begin, and no handshakes to show.
fn begun_row(run: &Run, finding: &Finding) -> Row {
    let row = Row::new(finding, "all", run.defence.name);
    match finding.target {
        Target::Chance { half_width, .. } if is_control(run) && finding.statistic.contains("flows") => {
            row.as_control(Target::AtLeast { bound: half_width })
        }
        _ if is_control(run) => row.as_control(Target::None),
        _ => row,
    }
}

/// What began in stretches with payload, or in those without.
fn watched(runs: &[&Run], busy: bool) -> Watch {
    let mut watch = Watch::default();
    for run in runs {
        for block in run.blocks.iter().filter(|block| block.is_busy() == busy) {
            let within = run.begun.iter().filter(|event| (block.from..block.to).contains(&event.at));
            // Stretches follow each other as if nothing lay between.
            watch
                .events
                .extend(within.map(|event| Event { at: watch.watched + event.at - block.from, ..*event }));
            watch.watched += block.to - block.from;
        }
    }
    watch
}

/// What can be said of two clients who chat, with each other or not.
pub(super) fn two(run: &Duo, defence: Defence, rng: &mut ChaCha8Rng) -> Vec<Row> {
    let mut findings = run.matching(rng);
    findings.extend(run.pairing(rng));
    let sought = run.intersection(by_packets, rng);
    let unseen =
        sought.is_none().then(|| Row::nothing(Attack::Intersection, "two who chat", defence.name, UNSEEN));
    findings.extend(sought);
    let control = defence.schedule.is_none();
    // A tunnel without shaping has no moments.
    findings.extend(run.clocks().filter(|_| !control));
    // Where packets themselves tell, nobody has to look at their gaps.
    let by_gaps = run.intersection(by_unevenness, rng).filter(|_| !control);
    findings.extend(by_gaps.map(|found| Finding { statistic: "posterior of the partner, by gaps", ..found }));
    let rows = findings.iter().map(|finding| {
        let row = Row::new(finding, "two who chat", defence.name);
        let row = if control { row.as_control(Target::AtLeast { bound: SEEN }) } else { row };
        match &run.invalid {
            Some(why) => row.invalid(why),
            None => row,
        }
    });
    rows.chain(unseen).collect()
}

/// What a direction says.
type Said<'a> = ((Host, Host), Vec<Part<'a>>);

/// What each direction says, where it was seen. All get the same randomness, so that they learn on the same stretches.
fn parts<'a>(
    wires: &[(Host, Host)],
    rng: &mut ChaCha8Rng,
    mut of: impl FnMut((Host, Host), &mut ChaCha8Rng) -> Option<Vec<Part<'a>>>,
) -> Vec<Said<'a>> {
    let same = rng.clone();
    let parts = wires.iter().filter_map(|&wire| {
        *rng = same.clone();
        Some((wire, of(wire, rng)?))
    });
    parts.collect()
}

fn is_control(run: &Run) -> bool {
    run.defence.schedule.is_none()
}

/// The stretches with this payload, and those without any.
fn stretches(run: &Run, scenario: Scenario) -> Vec<(u64, u64)> {
    let of = run.blocks.iter().filter(|block| block.scenario.is_none_or(|one| one == scenario));
    of.map(|block| (block.from, block.to)).collect()
}

/// How long all of them are together, in nanoseconds.
fn sum(stretches: &[(u64, u64)]) -> f64 {
    stretches.iter().map(|(from, to)| to - from).sum::<u64>() as f64
}

/// What enters the tunnel at either end.
#[derive(Clone, Copy, Debug)]
enum Payload {
    FromClient,
    ToClient,
}

/// A payload, and a direction that may follow it.
type Followed = (Payload, (Host, Host));

const OTHER_WAY: &str = "the other way";

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

/// What entered the tunnel, beside the wire, in parts of which about [`PART`] counts.
fn beside<'a>(run: &'a Run, pairs: &'a [Followed], counted: &'a [(u64, u64)]) -> Vec<correlation::Run<'a>> {
    let end = run.blocks.last().map_or(0, |block| block.to);
    let parts = (counted.iter().map(|(from, to)| to - from).sum::<u64>() / PART).max(1);
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

/// The moments around each border of two stretches, run by run, labelled 1 where payload begins or ends and 0 where there is
/// none on either side; and around the middle of each stretch without payload, labelled 0.
fn changes<'a>(runs: &[&'a Run], (from, to): (Host, Host)) -> Vec<Vec<Sample<'a>>> {
    // Moments have the same number in every direction, though one were not seen in a run.
    let mut number = 0;
    let mut changes = Vec::new();
    for run in runs {
        let mut samples = Vec::new();
        let mut take = |at: u64, label: u16| {
            number += 1;
            let trace = run.wire(from, to)?;
            let window = trace.window(at.saturating_sub(AROUND), at + AROUND);
            samples.push(Sample { window, label, block: number });
            Some(())
        };
        for (place, block) in run.blocks.iter().enumerate() {
            let payload = |block: &Block| block.scenario.filter(|one| *one != Scenario::Idle);
            let now = payload(block);
            let before = place.checked_sub(1).and_then(|place| run.blocks.get(place)).map(payload);
            match (before, now) {
                // From one payload to another something ends and something begins, and neither is clean.
                (None, _) | (Some(Some(_)), Some(_)) => {}
                (Some(before), _) => {
                    take(block.from, u16::from(before != now));
                }
            }
            let middle = block.from.midpoint(block.to);
            if now.is_none() && block.to - block.from >= 3 * AROUND {
                take(middle, 0);
            }
        }
        changes.push(samples);
    }
    changes
}

/// Which test of which family.
#[derive(Clone, Copy, Debug)]
struct Test<'a> {
    attack: Attack,
    scenario: Scenario,
    way: &'a str,
    /// Permutations of each p-value.
    shuffles: usize,
}

/// A statistic with its p-value, by `look`: the value is shown, and the p-value joins its family.
fn tested(
    run: &Run,
    Test { attack, scenario, way, shuffles }: Test<'_>,
    mut look: impl FnMut(&mut ChaCha8Rng) -> Vec<Finding>,
    found: &mut Found,
    rng: &mut ChaCha8Rng,
) {
    let findings = look(rng);
    let [value, p] = findings.as_slice() else {
        let row =
            Row::nothing(attack, run.plan.name(scenario), run.defence.name, "the attack gave no figure");
        found.rows.push(judged(run, Row { statistic: way.into(), ..row }));
        return;
    };
    let p = if is_control(run) || p.value > CLOSE {
        p.value
    } else {
        let again = || look(rng).get(1).map_or(f64::NAN, |finding| finding.value);
        looked_again(p.value, shuffles, LOOKS, again)
    };
    let row = Row {
        scenario: run.plan.name(scenario),
        statistic: format!("{}, {way}", value.statistic),
        ..Row::new(value, "", run.defence.name)
    };
    let chance = match value.target {
        Target::AtMost { bound } => bound,
        _ => f64::NAN,
    };
    let note = format!("p {p:.4}; 95 % of chance below {chance:.4}");
    let row = if is_control(run) && scenario != Scenario::Idle {
        // One way may flow without the other.
        let wanted = if way == OTHER_WAY { Target::None } else { Target::AtLeast { bound: chance } };
        Row { note, ..row.as_control(wanted) }
    } else {
        let status = if row.status == Status::NoPower { Status::NoPower } else { Status::Reported };
        Row { note, target: Target::None, status, ..row }
    };
    if run.invalid.is_none() && !is_control(run) {
        found.family.add(value.attack, p);
    }
    found.rows.push(judged(run, row));
}

/// What may not be judged is said, and so are slots that went by without a cell: whoever watches sees the gaps.
fn judged(run: &Run, row: Row) -> Row {
    match (&run.invalid, run.missed_slots) {
        (Some(why), _) => row.invalid(why),
        (None, 0) => row,
        (None, missed) => {
            let note =
                format!("{}{}{missed} slots missed", row.note, if row.note.is_empty() { "" } else { "; " });
            Row { note, ..row }
        }
    }
}

/// A figure of all runs together.
fn row(run: &Run, finding: &Finding) -> Row {
    let row = Row::new(finding, "all", run.defence.name);
    match (is_control(run), finding.target) {
        (false, _) | (_, Target::None) => row,
        // More than what the defence may show, and more than nothing.
        (true, Target::AtMost { bound }) => {
            row.as_control(Target::AtLeast { bound: bound.mul_add(1.000_001, f64::MIN_POSITIVE) })
        }
        (true, Target::AtLeast { bound }) => row.as_control(Target::AtMost { bound }),
        (true, _) => row.as_control(Target::AtLeast { bound: SEEN }),
    }
}

/// What directions say of a scenario together, and what is missing.
fn together(
    run: &Run,
    scenario: Scenario,
    attack: Attack,
    wanted: &[(Host, Host)],
    directions: &[Said<'_>],
    rng: &mut ChaCha8Rng,
) -> Vec<Row> {
    let name = run.plan.name(scenario);
    let control = is_control(run) && scenario != Scenario::Idle;
    let rows = furthest(directions, wanted, rng).into_iter().map(|(finding, note)| {
        let row = Row { note, ..Row::new(&finding, name.as_str(), run.defence.name) };
        let is_control = control && finding.target != Target::None;
        judged(run, if is_control { row.as_control(Target::AtLeast { bound: SEEN }) } else { row })
    });
    let rows: Vec<Row> = rows.collect();
    if rows.is_empty() {
        return vec![judged(run, Row::nothing(attack, name.as_str(), run.defence.name, UNSEEN))];
    }
    rows
}

/// A direction in words.
fn name_of((from, to): (Host, Host)) -> String {
    format!("{} to {}", from.name(), to.name())
}

const UNSEEN: &str = "nothing was seen on the wire that it needs";

/// Statistic by statistic, the direction that is furthest from chance, with a note: which that is, what each says, and
/// which of those that are `wanted` was not seen.
fn furthest(
    directions: &[Said<'_>],
    wanted: &[(Host, Host)],
    rng: &mut ChaCha8Rng,
) -> Vec<(Finding, String)> {
    let count = directions.iter().map(|(_, parts)| parts.len()).min().unwrap_or(0);
    (0..count)
        .filter_map(|statistic| {
            let parts: Vec<&Part<'_>> =
                directions.iter().filter_map(|(_, parts)| parts.get(statistic)).collect();
            let most = most_telling(&parts, rng)?;
            let whose =
                most.direction.and_then(|place| directions.get(place)).map(|(wire, _)| name_of(*wire));
            let whose = whose.unwrap_or_else(|| "the mean".to_owned());
            let each: Vec<String> = most.each.iter().map(|value| short(*value)).collect();
            let unseen = wanted.len() - directions.len();
            let unseen =
                if unseen == 0 { String::new() } else { format!("; {unseen} directions were not seen") };
            let width = if each.len() > 1 { format!(" ± {}", short(most.reach)) } else { String::new() };
            Some((most.finding, format!("{whose}, of {}{width}{unseen}", each.join(" "))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

    /// Two directions, each of windows whose gaps are spread as `spreads` says of idle and of busy ones.
    fn two(spreads: [[u64; 2]; 2]) -> Vec<(Finding, String)> {
        use relay_user::observe::stats::below;
        use relay_user::observe::trace::{Sight, Trace};
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let traces = spreads.map(|spreads| {
            let at = |slot: u64| {
                let spread = spreads[usize::from(slot / 200 % 2 == 1)];
                slot * 1_000_000 + below(&mut rng, usize::try_from(spread).unwrap()) as u64
            };
            Trace::new((0..8000).map(at).map(|at| Sight { at, length: 1360 }).collect())
        });
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let same = rng.clone();
        let directions: Vec<Said<'_>> = CLIENT
            .into_iter()
            .zip(&traces)
            .map(|(wire, trace)| {
                let samples: Vec<Sample<'_>> = (0..400_u32)
                    .map(|window| Sample {
                        window: trace
                            .window(u64::from(window) * 20_000_000, u64::from(window + 1) * 20_000_000),
                        label: u16::from(window / 10 % 2 == 1),
                        block: window / 10,
                    })
                    .collect();
                (wire, activity::parts(&samples, &mut same.clone()))
            })
            .collect();
        furthest(&directions, &CLIENT, &mut rng)
    }

    #[test]
    fn the_direction_that_tells_most_is_what_counts() {
        let (found, note) = two([[1000, 1000], [1000, 100_000]]).swap_remove(0);
        assert!(found.value > 0.95 && found.samples == 600 && found.interval.holds(found.value), "{found:?}");
        assert!(
            note.starts_with("entry to client, of 0.4") || note.starts_with("entry to client, of 0.5"),
            "{note}"
        );
        let (nothing, _) = two([[1000, 1000], [1000, 1000]]).swap_remove(0);
        assert!((nothing.value - 0.5).abs() < 0.1, "{nothing:?}");
    }
}
