//! The attacks on what was recorded. Those that compare stretches look at each direction of each link by itself, since
//! links differ by more than payload; what directions say is then put together.

use std::time::Duration;

use relay_tests::Host;
use relay_user::observe::attacks::connections::{Event, Watch};
use relay_user::observe::attacks::{
    activity, connections, correlation, distribution, fingerprint, information, rates, sizes, start_stop,
};
use relay_user::observe::finding::{Finding, Interval, Target};
use relay_user::observe::learn::table::Table;
use relay_user::observe::trace::{SECOND, Sample, Trace};

use rand_chacha::ChaCha8Rng;

use super::duo::Duo;
use super::family::Family;
use super::network::Defence;
use super::record::Run;
use super::row::{Row, Status};
use super::scenario::Scenario;

/// What cannot be tried in this lab, and why.
pub(super) const LEFT_OUT: [&str; 2] = [
    "a mark read by a relay that counts a circuit's cells: in virtual time, where it reads each bit (sim/watermark.rs)",
    "a relay on the path: in virtual time, where an idle circuit is to it what a busy one is (sim/relays.rs)",
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
/// Bins in which cells are held against payload, in nanoseconds, and how many of them payload may be ahead or behind.
const BIN: u64 = 10_000_000;
const LAGS: usize = 8;
/// What came before a stretch and is looked at with it, so that payload begins within sight.
const BEFORE: u64 = 300_000_000;
/// To either side of a beginning or end.
const AROUND: u64 = 350_000_000;
/// Bins in which a beginning is looked for.
const CHANGE_BIN: u64 = 25_000_000;
/// Windows from which an activity is guessed: it takes longer to see what goes on than that something does.
const ACTIVITY_WINDOW: Duration = Duration::from_millis(100);
/// A control has to reach it.
const SEEN: f64 = 0.9;

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
        let all: Vec<Vec<Finding>> =
            traces(run, wires).map(|trace| activity::activity(&run.samples(trace, scenario), rng)).collect();
        let rows = together(run, scenario, &all);
        // What single numbers tell is for those who look for the mechanism of what was found.
        let told = rows.first().is_some_and(|row| row.status == Status::Missed);
        let shown = if told { rows.len() } else { 1 };
        let rows = rows.into_iter().take(shown);
        found.rows.extend(rows.map(|row| Row { scenario: format!("{name}{mark}"), ..row }));
    }
    let mut shares = Vec::new();
    for (trace, way) in traces(run, &CLIENT).zip(["from the client", "to the client"]) {
        let samples = run.samples(trace, scenario);
        let mut findings = distribution::distribution(&samples, rng);
        shares.push(findings.drain(..findings.len().min(1)).collect());
        let again = |rng: &mut ChaCha8Rng| distribution::distribution(&samples, rng).split_off(1);
        tested(run, scenario, way, findings, again, found, rng);
        let again = |rng: &mut ChaCha8Rng| information::of_labels(&samples, rng);
        tested(run, scenario, way, again(rng), again, found, rng);
    }
    found.rows.extend(together(run, scenario, &shares));
    if scenario != Scenario::Idle {
        let runs = beside(run, scenario);
        let again = |rng: &mut ChaCha8Rng| correlation::correlation(&runs, BIN, LAGS, rng);
        tested(run, scenario, "both ways", again(rng), again, found, rng);
        let again = |rng: &mut ChaCha8Rng| information::of_bytes(&runs, BIN, rng);
        tested(run, scenario, "both ways", again(rng), again, found, rng);
    }
}

/// What can be said of a defence from all its runs.
pub(super) fn all(runs: &[Run], found: &mut Found, rng: &mut ChaCha8Rng) {
    let Some(first) = runs.first() else { return };
    let invalid = runs.iter().find_map(|run| run.invalid.clone());
    let mut rows = Vec::new();
    let findings: Vec<Vec<Finding>> = CLIENT
        .iter()
        .chain(&TRUNKS)
        .map(|wire| start_stop::start_stop(&changes(runs, *wire), CHANGE_BIN, rng))
        .collect();
    rows.extend(join(first, "AUC", &findings).into_iter().take(1));
    rows.extend(mixed(first, runs, rng));
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

/// Of the run with every payload: which one flows, what rates tell, and what begins.
fn mixed(first: &Run, runs: &[Run], rng: &mut ChaCha8Rng) -> Vec<Row> {
    let mut rows = Vec::new();
    let Some(run) = runs.iter().find(|run| run.plan.fault.is_none() && run.plan.scenarios.len() > 1) else {
        return rows;
    };
    let [Some(out), Some(home)] = CLIENT.map(|(from, to)| run.wire(from, to)) else { return rows };
    let cuts = run.cuts_of(ACTIVITY_WINDOW);
    // The counterpart of all payloads is as frequent as three of them; that held against it is as frequent as one.
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
    rows.extend(fingerprint::fingerprint(&table, rng).iter().map(|finding| row(first, finding)));
    let end = run.blocks.last().map_or(0, |block| block.to);
    for trace in [out, home] {
        let windows: Vec<_> =
            (0..end / SECOND).map(|second| trace.window(second * SECOND, (second + 1) * SECOND)).collect();
        let found = row(first, &rates::rates(&windows, 1, 0.0));
        let way = if std::ptr::eq(trace, out) { "from the client" } else { "to the client" };
        rows.push(Row { statistic: format!("{}, {way}", found.statistic), ..found });
    }
    let [active, idle] = [true, false].map(|busy| watched(runs, busy));
    let hours = active.watched.min(idle.watched) as f64 / 3.6e12;
    // What can be told apart at all in the time that was watched.
    let resolution = 4.0 / hours.max(1e-6);
    let note = format!("to within {resolution:.0} an hour: {:.1} min of each were watched", hours * 60.0);
    let begun = connections::connections(&active, &idle, resolution, rng);
    rows.extend(begun.iter().map(|finding| Row { note: note.clone(), ..begun_row(first, finding) }));
    rows
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
fn watched(runs: &[Run], busy: bool) -> Watch {
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
    findings.extend(run.intersection(rng));
    let rows = findings.iter().map(|finding| {
        let row = Row::new(finding, "two who chat", defence.name);
        let control = defence.schedule.is_none();
        let row = if control { row.as_control(Target::AtLeast { bound: SEEN }) } else { row };
        match &run.invalid {
            Some(why) => row.invalid(why),
            None => row,
        }
    });
    rows.collect()
}

fn traces<'a>(run: &'a Run, wires: &'a [(Host, Host)]) -> impl Iterator<Item = &'a Trace> {
    wires.iter().filter_map(|&(from, to)| run.wire(from, to))
}

fn is_control(run: &Run) -> bool {
    run.defence.schedule.is_none()
}

/// Every stretch with this payload and the moment before it: what the programs did, beside the wire.
fn beside(run: &Run, scenario: Scenario) -> Vec<correlation::Run<'_>> {
    let blocks = run.blocks.iter().filter(|block| block.scenario == Some(scenario) && block.from > BEFORE);
    blocks
        .flat_map(|block| {
            let ways = run.inside.iter().zip(CLIENT);
            ways.filter_map(move |(inside, (from, to))| {
                let (start, end) = (block.from - BEFORE, block.to);
                let wire = run.wire(from, to)?.window(start, end);
                Some(correlation::Run { payload: inside.window(start, end), wire })
            })
        })
        .collect()
}

/// The moments around each border of two stretches: labelled 1 where payload begins, ends or changes, 0 where it goes on.
fn changes(runs: &[Run], (from, to): (Host, Host)) -> Vec<Sample<'_>> {
    let mut samples = Vec::new();
    for run in runs {
        let Some(trace) = run.wire(from, to) else { continue };
        for pair in run.blocks.windows(2) {
            let [before, after] = pair else { continue };
            let payload = |block: &super::record::Block| block.scenario.filter(|one| *one != Scenario::Idle);
            let (old, new) = (payload(before), payload(after));
            // From one payload to another something ends and something begins, and neither is clean.
            if old.is_some() && new.is_some() {
                continue;
            }
            let (start, end) = (after.from.saturating_sub(AROUND), after.from + AROUND);
            let block = u32::try_from(samples.len()).unwrap_or(u32::MAX);
            samples.push(Sample { window: trace.window(start, end), label: u16::from(old != new), block });
        }
    }
    samples
}

/// The p-value of a test, with more permutations where those of one look were all exceeded: its smallest p would not be
/// small enough among all tests of a family. `again` looks once more, with other permutations.
fn sure_p(first: f64, mut again: impl FnMut(&mut ChaCha8Rng) -> Option<f64>, rng: &mut ChaCha8Rng) -> f64 {
    if !(first > 0.0 && first < FLOOR) {
        return first;
    }
    // p is (1 + those that reach it) / (1 + permutations), and none reached it.
    let permutations = (1.0 / first).round() - 1.0;
    let (mut reached, mut looks) = (0.0, 1.0);
    while looks < LOOKS
        && let Some(p) = again(rng)
    {
        reached += (p * (permutations + 1.0) - 1.0).max(0.0);
        looks += 1.0;
    }
    (1.0 + reached) / (1.0 + looks * permutations)
}

/// Below this, a p-value is one that no permutation reached.
const FLOOR: f64 = 0.002_1;
/// Looks at a test that no permutation reached.
const LOOKS: f64 = 12.0;

/// A statistic with its p-value: the value is shown, and the p-value joins its family.
fn tested(
    run: &Run,
    scenario: Scenario,
    way: &str,
    findings: Vec<Finding>,
    mut again: impl FnMut(&mut ChaCha8Rng) -> Vec<Finding>,
    found: &mut Found,
    rng: &mut ChaCha8Rng,
) {
    let [value, p] = findings.as_slice() else { return };
    let sure = if is_control(run) {
        p.value
    } else {
        sure_p(p.value, |rng| again(rng).get(1).map(|finding| finding.value), rng)
    };
    let p = Finding { value: sure, ..p.clone() };
    let row = Row {
        scenario: run.plan.name(scenario),
        statistic: format!("{}, {way}", value.statistic),
        ..Row::new(value, "", run.defence.name)
    };
    let chance = match value.target {
        Target::AtMost { bound } => bound,
        _ => f64::NAN,
    };
    let note = format!("p {:.4}; 95 % of chance below {chance:.4}", p.value);
    let row = if is_control(run) && scenario != Scenario::Idle {
        Row { note, ..row.as_control(Target::AtLeast { bound: chance }) }
    } else {
        let status = if row.status == Status::NoPower { Status::NoPower } else { Status::Reported };
        Row { note, target: Target::None, status, ..row }
    };
    if run.invalid.is_none() && !is_control(run) {
        found.family.add(value.attack, p.value);
    }
    found.rows.push(judged(run, row));
}

fn judged(run: &Run, row: Row) -> Row {
    match &run.invalid {
        Some(why) => row.invalid(why),
        None => row,
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

fn together(run: &Run, scenario: Scenario, directions: &[Vec<Finding>]) -> Vec<Row> {
    let rows = combined(directions, is_control(run) && scenario != Scenario::Idle);
    let rows = rows.into_iter().map(|finding| {
        let row = Row::new(&finding, run.plan.name(scenario), run.defence.name);
        let is_control = is_control(run) && scenario != Scenario::Idle && finding.target != Target::None;
        judged(run, if is_control { row.as_control(Target::AtLeast { bound: SEEN }) } else { row })
    });
    rows.collect()
}

fn join(run: &Run, statistic: &'static str, directions: &[Vec<Finding>]) -> Vec<Row> {
    let found = combined(directions, is_control(run));
    found.into_iter().map(|finding| row(run, &Finding { statistic, ..finding })).collect()
}

/// Statistic by statistic, what directions say together: the mean, as wide as that of independent figures is. Of a
/// control, the direction that shows most: one in which nothing flows tells nothing.
fn combined(directions: &[Vec<Finding>], control: bool) -> Vec<Finding> {
    let count = directions.iter().map(Vec::len).min().unwrap_or(0);
    (0..count)
        .filter_map(|statistic| {
            let parts: Vec<&Finding> =
                directions.iter().filter_map(|findings| findings.get(statistic)).collect();
            let first = parts.first()?;
            if control {
                let told = parts.iter().filter(|part| part.value.is_finite());
                let best = told.max_by(|a, b| a.value.total_cmp(&b.value)).or(parts.first());
                return best.map(|best| (*best).clone());
            }
            let n = parts.len() as f64;
            let value = parts.iter().map(|part| part.value).sum::<f64>() / n;
            let side = |distance: &dyn Fn(&Finding) -> f64| {
                parts.iter().map(|part| distance(part).powi(2)).sum::<f64>().sqrt() / n
            };
            let interval = Interval {
                low: value - side(&|part| part.value - part.interval.low),
                high: value + side(&|part| part.interval.high - part.value),
            };
            let samples = parts.iter().map(|part| part.samples).sum();
            Some(Finding { value, interval, samples, ..(*first).clone() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;
    use relay_user::observe::finding::Attack;

    #[test]
    fn a_test_at_its_floor_is_looked_at_again() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(sure_p(0.04, |_| panic!("sure enough"), &mut rng), 0.04);
        let strong = sure_p(1.0 / 500.0, |_| Some(1.0 / 500.0), &mut rng);
        assert!(strong < 0.01 / 28.0, "{strong}: found among all tests of a family");
        let weak = sure_p(1.0 / 500.0, |_| Some(6.0 / 500.0), &mut rng);
        assert!((0.005..0.012).contains(&weak), "{weak}: it was luck");
        assert!(sure_p(f64::NAN, |_| panic!("no test"), &mut rng).is_nan());
    }

    fn finding(value: f64, half: f64) -> Finding {
        let target = Target::Chance { value: 0.5, half_width: 0.03 };
        let interval = Interval { low: value - half, high: value + half };
        Finding { attack: Attack::Activity, statistic: "accuracy", value, interval, target, samples: 500 }
    }

    #[test]
    fn two_directions_say_more_than_one() {
        let both = combined(&[vec![finding(0.52, 0.04)], vec![finding(0.48, 0.04)]], false);
        assert!((both[0].value - 0.5).abs() < 1e-9);
        assert!((both[0].interval.half_width() - 0.04 / 2_f64.sqrt()).abs() < 1e-9);
        assert_eq!(both[0].samples, 1000);
    }

    #[test]
    fn a_control_is_judged_where_it_shows() {
        let both = combined(&[vec![finding(0.5, 0.04)], vec![finding(0.97, 0.01)]], true);
        assert!((both[0].value - 0.97).abs() < 1e-9);
    }
}
