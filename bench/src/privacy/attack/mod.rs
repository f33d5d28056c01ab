//! The attacks on what was recorded. Those that compare stretches look at each direction of each link by itself, since
//! links differ by more than payload; the direction that tells most is what counts.

mod directions;
mod followed;
mod whole;

use rand_chacha::ChaCha8Rng;
use relay_tests::Host;
use relay_user::observe::attacks::intersection::{by_packets, by_unevenness};
use relay_user::observe::attacks::long_gaps::Stretch;
use relay_user::observe::attacks::{activity, distribution, information, long_gaps};
use relay_user::observe::finding::{Attack, Finding, Target};
use relay_user::observe::stats::{looked_again, mean};

use self::directions::{Said, furthest, parts};
use self::followed::{OTHER_WAY, followed};
pub(super) use self::whole::all;
use super::duo::Duo;
use super::family::Family;
use super::links::{CLIENT, TRUNKS};
use super::network::Defence;
use super::record::Run;
use super::row::{Row, Status};
use super::scenario::Scenario;
use crate::report::table::short;

/// What cannot be tried in this lab, and why.
pub(super) const LEFT_OUT: [&str; 2] = [
    "a mark read by a relay that counts a circuit's cells: in virtual time, where it reads each bit (sim/watermark.rs)",
    "other payloads than a download through a fault; 4, 7 and 12 with other payloads than a chat, or through a fault",
];

/// A control has to reach it.
const SEEN: f64 = 0.9;
/// A p-value below this is looked at again, with other permutations, so many times in all: the smallest of one look would
/// not be small enough among all tests of a family.
const CLOSE: f64 = 0.01;
const LOOKS: usize = 12;
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
                found.rows.push(nothing(run, scenario, attack, way, UNSEEN));
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

/// The gaps that no law explains, stretch by stretch; nothing where the law has gaps of any length.
fn interrupted(run: &Run, scenario: Scenario) -> Option<Vec<Stretch>> {
    let (labels, times): (Vec<u16>, Vec<(u64, u64)>) = run.stretches_alike(scenario).into_iter().unzip();
    let rates = run.stalls.per_second(&times)?;
    Some(labels.into_iter().zip(rates).map(|(label, per_second)| Stretch { label, per_second }).collect())
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

fn is_control(run: &Run) -> bool {
    run.defence.schedule.is_none()
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
        found.rows.push(nothing(run, scenario, attack, way, "the attack gave no figure"));
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

/// A test that could not be done, and why.
fn nothing(run: &Run, scenario: Scenario, attack: Attack, way: &str, why: &str) -> Row {
    let row = Row::nothing(attack, run.plan.name(scenario), run.defence.name, why);
    judged(run, Row { statistic: way.into(), ..row })
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

const UNSEEN: &str = "nothing was seen on the wire that it needs";
