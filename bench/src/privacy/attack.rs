//! The attacks on what was recorded. Those that compare stretches look at each direction of each link by itself, since
//! links differ by more than payload; what directions say is then put together.

use std::time::Duration;

use relay_tests::Host;
use relay_user::observe::attacks::connections::{Event, Watch};
use relay_user::observe::attacks::pooled::{Part, pooled};
use relay_user::observe::attacks::{
    activity, connections, correlation, distribution, fingerprint, information, rates, sizes, start_stop,
};
use relay_user::observe::finding::{Attack, Finding, Target};
use relay_user::observe::learn::table::Table;
use relay_user::observe::trace::{SECOND, Sample};

use rand_chacha::ChaCha8Rng;

use super::duo::Duo;
use super::family::Family;
use super::network::Defence;
use super::record::Run;
use super::row::{Row, Status};
use super::scenario::Scenario;

/// What cannot be tried in this lab, and why.
pub(super) const LEFT_OUT: [&str; 1] = [
    "a mark read by a relay that counts a circuit's cells: in virtual time, where it reads each bit (sim/watermark.rs)",
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
/// Parts in which payload and wire are held against each other, in nanoseconds that count: a dozen stretches.
const PART: u64 = 10 * SECOND;
/// To either side of a beginning or end.
const AROUND: u64 = 350_000_000;
/// Bins in which a beginning is looked for.
const CHANGE_BIN: u64 = 25_000_000;
/// Windows from which an activity is guessed: it takes longer to see what goes on than that something does, and a window
/// that fits into one segment of a video shows what a long download shows. They overlap, so that what begins between two
/// of them is whole in one.
const ACTIVITY_WINDOW: Duration = Duration::from_millis(400);
const ACTIVITY_STEP: Duration = Duration::from_millis(100);
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
        let directions = parts(wires, rng, |wire, rng| {
            run.wire(wire.0, wire.1).map(|trace| activity::parts(&run.samples(trace, scenario), rng))
        });
        let rows = together(run, scenario, Attack::Activity, wires.len(), &directions, rng);
        // What single numbers tell is for those who look for the mechanism of what was found.
        let told = rows.first().is_some_and(|row| row.status == Status::Missed);
        let shown = if told { rows.len() } else { 1 };
        let rows = rows.into_iter().take(shown);
        found.rows.extend(rows.map(|row| Row { scenario: format!("{name}{mark}"), ..row }));
    }
    let shares = parts(&CLIENT, rng, |(from, to), rng| {
        run.wire(from, to).map(|trace| vec![distribution::rejections(&run.samples(trace, scenario), rng)])
    });
    found.rows.extend(together(run, scenario, Attack::Distribution, CLIENT.len(), &shares, rng));
    for ((from, to), way) in CLIENT.into_iter().zip(["from the client", "to the client"]) {
        let Some(trace) = run.wire(from, to) else {
            for attack in [Attack::Distribution, Attack::Information] {
                let row = Row::nothing(attack, run.plan.name(scenario), run.defence.name, UNSEEN);
                found.rows.push(judged(run, Row { statistic: way.into(), ..row }));
            }
            continue;
        };
        let samples = run.samples(trace, scenario);
        let again = |rng: &mut ChaCha8Rng| distribution::laws(&samples, rng);
        tested(run, (Attack::Distribution, scenario, way), again(rng), again, found, rng);
        let again = |rng: &mut ChaCha8Rng| information::of_labels(&samples, rng);
        tested(run, (Attack::Information, scenario, way), again(rng), again, found, rng);
    }
    if scenario != Scenario::Idle {
        let counted = stretches(run, scenario);
        let runs = beside(run, &counted);
        let again = |rng: &mut ChaCha8Rng| correlation::correlation(&runs, BIN, LAGS, rng);
        tested(run, (Attack::Correlation, scenario, "both ways"), again(rng), again, found, rng);
        if let (Some(row), Some(place)) = (found.rows.last_mut(), correlation::place(&runs, BIN, LAGS)) {
            let later = place.lag * isize::try_from(BIN / 1_000_000).unwrap_or(0);
            row.note += &format!("; {} at {later} ms, {:+.3}", place.seen, place.rho);
        }
        let again = |rng: &mut ChaCha8Rng| information::of_bytes(&runs, BIN, rng);
        tested(run, (Attack::Information, scenario, "both ways"), again(rng), again, found, rng);
    }
}

/// What can be said of a defence from all its runs.
pub(super) fn all(runs: &[Run], found: &mut Found, rng: &mut ChaCha8Rng) {
    let Some(first) = runs.first() else { return };
    let invalid = runs.iter().find_map(|run| run.invalid.clone());
    let mut rows = Vec::new();
    let wires: Vec<(Host, Host)> = CLIENT.into_iter().chain(TRUNKS).collect();
    let directions = parts(&wires, rng, |wire, rng| {
        let samples = changes(runs, wire);
        (!samples.is_empty()).then(|| start_stop::parts(&samples, CHANGE_BIN, rng))
    });
    rows.push(join(first, (Attack::StartStop, "AUC"), wires.len(), &directions, rng));
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
    let nothing = |why: &str| {
        [Attack::Fingerprint, Attack::Rates, Attack::Connections]
            .map(|attack| Row::nothing(attack, "all", first.defence.name, why))
            .into()
    };
    let Some(run) = runs.iter().find(|run| run.plan.fault.is_none() && run.plan.scenarios.len() > 1) else {
        return nothing("no run with several payloads over a sound link");
    };
    let [Some(out), Some(home)] = CLIENT.map(|(from, to)| run.wire(from, to)) else {
        return nothing(UNSEEN);
    };
    let cuts = run.cuts_of(ACTIVITY_WINDOW, ACTIVITY_STEP);
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
    let mut rows: Vec<Row> =
        fingerprint::fingerprint(&table, rng).iter().map(|finding| row(first, finding)).collect();
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
    let resolution = (4.0 / hours.max(1e-6)).ceil();
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
    let sought = run.intersection(rng);
    let unseen =
        sought.is_none().then(|| Row::nothing(Attack::Intersection, "two who chat", defence.name, UNSEEN));
    findings.extend(sought);
    let control = defence.schedule.is_none();
    // A tunnel without shaping has no moments.
    findings.extend(run.clocks().filter(|_| !control));
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

/// What each direction says, where it was seen. All get the same randomness, so that they learn on the same stretches.
fn parts<'a>(
    wires: &[(Host, Host)],
    rng: &mut ChaCha8Rng,
    mut of: impl FnMut((Host, Host), &mut ChaCha8Rng) -> Option<Vec<Part<'a>>>,
) -> Vec<Vec<Part<'a>>> {
    let same = rng.clone();
    let parts = wires.iter().filter_map(|&wire| {
        *rng = same.clone();
        of(wire, rng)
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

/// What entered the tunnel, beside the wire, in parts of which about [`PART`] counts.
fn beside<'a>(run: &'a Run, counted: &'a [(u64, u64)]) -> Vec<correlation::Run<'a>> {
    let end = run.blocks.last().map_or(0, |block| block.to);
    let parts = (counted.iter().map(|(from, to)| to - from).sum::<u64>() / PART).max(1);
    let width = end / parts / BIN * BIN;
    (0..)
        .zip(0..parts)
        .flat_map(|(number, part)| {
            let (start, end) = (part * width, (part + 1) * width);
            let ways = [&run.inside[0], &run.entering].into_iter().zip(CLIENT);
            ways.filter_map(move |(payload, (from, to))| {
                let wire = run.wire(from, to)?.window(start, end);
                let payload = payload.window(start, end);
                Some(correlation::Run { payload, wire, counted: Some(counted), turned_with: number })
            })
        })
        .collect()
}

/// The moments around each border of two stretches: labelled 1 where payload begins, ends or changes, 0 where it goes on.
fn changes(runs: &[Run], (from, to): (Host, Host)) -> Vec<Sample<'_>> {
    let mut samples = Vec::new();
    // Borders have the same number in every direction, though one were not seen in a run.
    let mut block = 0;
    for run in runs {
        for pair in run.blocks.windows(2) {
            let [before, after] = pair else { continue };
            block += 1;
            let payload = |block: &super::record::Block| block.scenario.filter(|one| *one != Scenario::Idle);
            let (old, new) = (payload(before), payload(after));
            // From one payload to another something ends and something begins, and neither is clean.
            if old.is_some() && new.is_some() {
                continue;
            }
            let (start, end) = (after.from.saturating_sub(AROUND), after.from + AROUND);
            let Some(trace) = run.wire(from, to) else { continue };
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
    (attack, scenario, way): (Attack, Scenario, &str),
    findings: Vec<Finding>,
    mut again: impl FnMut(&mut ChaCha8Rng) -> Vec<Finding>,
    found: &mut Found,
    rng: &mut ChaCha8Rng,
) {
    let [value, p] = findings.as_slice() else {
        let row =
            Row::nothing(attack, run.plan.name(scenario), run.defence.name, "the attack gave no figure");
        found.rows.push(judged(run, Row { statistic: way.into(), ..row }));
        return;
    };
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
    wanted: usize,
    directions: &[Vec<Part<'_>>],
    rng: &mut ChaCha8Rng,
) -> Vec<Row> {
    let name = run.plan.name(scenario);
    let control = is_control(run) && scenario != Scenario::Idle;
    let rows = combined(directions, control, rng).into_iter().map(|finding| {
        let row = Row::new(&finding, name.as_str(), run.defence.name);
        let row = partial(row, directions.len(), wanted);
        let is_control = control && finding.target != Target::None;
        judged(run, if is_control { row.as_control(Target::AtLeast { bound: SEEN }) } else { row })
    });
    let rows: Vec<Row> = rows.collect();
    if rows.is_empty() {
        return vec![judged(run, Row::nothing(attack, name.as_str(), run.defence.name, UNSEEN))];
    }
    rows
}

/// What directions say of all runs together: the first figure, under the name `statistic`.
fn join(
    run: &Run,
    (attack, statistic): (Attack, &'static str),
    wanted: usize,
    directions: &[Vec<Part<'_>>],
    rng: &mut ChaCha8Rng,
) -> Row {
    match combined(directions, is_control(run), rng).into_iter().next() {
        Some(finding) => partial(row(run, &Finding { statistic, ..finding }), directions.len(), wanted),
        None => Row::nothing(attack, "all", run.defence.name, UNSEEN),
    }
}

/// Directions in which nothing was seen are said to be missing.
fn partial(row: Row, seen: usize, wanted: usize) -> Row {
    if seen == wanted {
        return row;
    }
    Row { note: format!("{seen} of {wanted} directions were seen"), ..row }
}

const UNSEEN: &str = "nothing was seen on the wire that it needs";

/// Statistic by statistic, what directions say together: the mean, over the stretches that they share. Of a control, the
/// direction that shows most: one in which nothing flows tells nothing.
fn combined(directions: &[Vec<Part<'_>>], control: bool, rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let count = directions.iter().map(Vec::len).min().unwrap_or(0);
    (0..count)
        .filter_map(|statistic| {
            let parts: Vec<&Part<'_>> = directions.iter().filter_map(|parts| parts.get(statistic)).collect();
            if control {
                let alone = parts.iter().map(|part| part.finding(rng));
                // What is no number is less than any.
                let key = |finding: &Finding| if finding.value.is_nan() { -1.0 } else { finding.value };
                return alone.max_by(|a, b| key(a).total_cmp(&key(b)));
            }
            pooled(&parts, rng)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

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

    /// Two directions, each of windows whose gaps are spread as `spreads` says of idle and of busy ones.
    fn two(spreads: [[u64; 2]; 2], control: bool) -> Vec<Finding> {
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
        let directions: Vec<_> = traces
            .iter()
            .map(|trace| {
                let samples: Vec<Sample<'_>> = (0..400_u32)
                    .map(|window| Sample {
                        window: trace
                            .window(u64::from(window) * 20_000_000, u64::from(window + 1) * 20_000_000),
                        label: u16::from(window / 10 % 2 == 1),
                        block: window / 10,
                    })
                    .collect();
                activity::parts(&samples, &mut same.clone())
            })
            .collect();
        combined(&directions, control, &mut rng)
    }

    #[test]
    fn directions_say_the_mean_of_what_each_says() {
        let found = two([[1000, 1000], [1000, 100_000]], false);
        assert_eq!(found[0].samples, 600);
        assert!(
            (0.65..0.85).contains(&found[0].value) && found[0].interval.holds(found[0].value),
            "{found:?}"
        );
        let nothing = two([[1000, 1000], [1000, 1000]], false);
        assert!((nothing[0].value - 0.5).abs() < 0.1, "{nothing:?}");
    }

    #[test]
    fn a_control_is_judged_where_it_shows() {
        let found = two([[1000, 1000], [1000, 100_000]], true);
        assert!(found[0].value > 0.95, "{found:?}");
    }
}
