//! What a relay on the path can tell of a circuit, on the real kernel: is it used?
//!
//! ```text
//!  client ----- entry ------ middle ------ exit ----- service
//!  relay        notes        notes         relay
//!                 |            |
//!                 +-- times, queues, slots, numbers, drops; the kernel's times of the wire beside them
//!                              |
//!                 windows, idle and busy -> learners -> AUC
//! ```
//!
//! Entry and middle are this program's own processes: the relay's library, compiled with a witness that writes each cell
//! down. The `relay` that is built for use has none. The exit has the payload by design, and is not asked.

mod features;
pub mod notes;
mod view;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand_chacha::ChaCha8Rng;
use relay_tests::interrupt::Interrupt;
use relay_tests::nodes::{CLIENT_RATE, Class, Layout, RELAYS};
use relay_tests::{Host, Lab, Nodes};
use relay_user::observe::finding::{Attack, Finding, Target};
use relay_user::observe::learn::judge::{self, Learner};
use relay_user::observe::learn::table::Table;
use relay_user::observe::learn::{forest, threshold};

use self::features::Traces;
use self::view::View;
use super::network::{Defence, Network};
use super::record::{self, Cut, Plan, Run, SEEN_AT_LEAST};
use super::row::{Row, Status};
use super::scenario::Scenario;
use super::servers::Servers;
use super::{DIR, PREFIX, seed};

/// The relays that take notes.
const WATCHED: [Host; 2] = [Host::Entry, Host::Middle];
/// What flows in busy stretches.
const PAYLOADS: [Scenario; 4] = [Scenario::Bulk, Scenario::Chat, Scenario::Voice, Scenario::Web];
/// Notes that a relay takes in a second, and a third more.
const NOTES_A_SECOND: usize = 13_500;
/// Seconds beside the stretches: while nodes start and come to rest.
const BESIDE: usize = 30;
/// Length of a stretch. Short: what a relay has depends on how the links' slots lie to each other, which drifts within a
/// second, so that a stretch's windows say little more than one of them.
const STRETCH: Duration = Duration::from_millis(300);
/// Its beginning that is not looked at: programs start, and queues of the last stretch run dry.
const GUARD: Duration = Duration::from_millis(100);
/// A window's length, and what the learners' figures of it are called.
const WIDTHS: [(Duration, [&str; 2]); 2] = [
    (Duration::from_millis(100), ["forest AUC, 100 ms", "threshold AUC, 100 ms"]),
    (Duration::from_millis(20), ["forest AUC, 20 ms", "threshold AUC, 20 ms"]),
];
/// Stretches of each payload in a full run.
const FULL: u32 = 250;
const LEARNERS: [Learner; 2] = [forest::votes, threshold::votes];

/// How both kinds of cover are measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task<'a> {
    /// The program `relay`.
    pub(super) relay: &'a Path,
    /// Of clients' links; trunks have the usual one.
    pub(super) schedule: &'static str,
    /// Fewer stretches.
    pub(super) quick: bool,
    /// Processors of all workers, where they have some for themselves.
    pub(super) cpus: &'a [usize],
    /// Decides every order and every drawing.
    pub(super) seed: u64,
    /// Looked at between two stretches.
    pub(super) interrupt: &'a Interrupt,
}

/// One run: what flowed when, and what each relay had of it.
struct Watched {
    run: Run,
    views: Vec<(Host, View)>,
}

/// Records a circuit with circuit cover and one with link cover, and lets the relays' notes tell idle from busy.
///
/// # Errors
/// Where the network does not come up, or a node ends.
pub(super) fn measure(task: Task<'_>, mut progress: impl FnMut(&str)) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (cover, control) in [("circuit", false), ("link", true)] {
        let plan = plan(task.quick, control);
        let seconds = plan.lasts().as_secs();
        progress(&format!("{}, {cover} cover: entry and middle take notes, for {seconds} s", task.schedule));
        let watched = record(task, cover, plan)?;
        progress(&format!("{}, {cover} cover: what the notes tell", task.schedule));
        let mut rng = seed::rng(task.seed, &["attacks", cover]);
        rows.extend(judge(&watched, control, !task.quick, &mut rng));
    }
    Ok(rows)
}

/// Half of the stretches idle. What is plain to see takes few; an AUC to within 0.03 takes about 1450 that are judged.
fn plan(quick: bool, control: bool) -> Plan {
    let each = match (quick, control) {
        (true, false) => 9,
        (true, true) => 4,
        (false, false) => FULL,
        (false, true) => 15,
    };
    let idle = each * u32::try_from(PAYLOADS.len()).unwrap_or(0);
    let (scenarios, window) = (PAYLOADS.to_vec(), WIDTHS[0].0);
    Plan { fault: None, guard: GUARD, window, idle, scenarios, each, stretch: Some(STRETCH) }
}

fn record(task: Task<'_>, cover: &'static str, plan: Plan) -> Result<Watched> {
    let lab = Lab::build(PREFIX, Path::new(DIR))?;
    let service = Host::Service.address().context("the service has an address")?;
    let _servers = Servers::start(lab.netns(Host::Service), service)?;
    let usual = Layout::default();
    let client = Class { schedule: task.schedule, ..usual.client };
    let layout = Layout { client, cover, cpus: task.cpus, ..usual };
    let mut nodes = Nodes::prepare_as(&lab, task.relay, layout)?;
    let seconds = usize::try_from(plan.lasts().as_secs()).unwrap_or(usize::MAX).saturating_add(BESIDE);
    let room = seconds.saturating_mul(NOTES_A_SECOND);
    for host in RELAYS.into_iter().chain([Host::Client]) {
        if WATCHED.contains(&host) {
            let mut command = Command::new(std::env::current_exe().context("this program's file")?);
            command.arg(notes::WORD).args([nodes.file(host, "toml"), nodes.file(host, "notes")]);
            command.arg(room.to_string());
            nodes.start_by(host, command)?;
        } else {
            nodes.start(host)?;
        }
    }
    let mut network = Network::of(&lab, nodes)?;
    let defence = Defence::schedule(task.schedule);
    let recorded =
        record::record(&lab, &mut network, (defence, plan), seed::of(task.seed, &[cover]), task.interrupt);
    // Notes are written when their relay ends.
    drop(network);
    let (mut run, seen, began) = recorded?;
    let mut views = Vec::new();
    for host in WATCHED {
        let file = lab.dir().join(format!("{}.notes", host.name()));
        let view = view::of(&notes::read(&file)?, &seen, host, began);
        if cover == "circuit" && run.invalid.is_none() {
            run.invalid = complaint(&run, host, &view);
        }
        views.push((host, view));
    }
    Ok(Watched { run, views })
}

/// A circuit that fills its slots and is not seen to is not what was to be measured.
fn complaint(run: &Run, host: Host, view: &View) -> Option<String> {
    let [out, home] = rates(run, view);
    let least = f64::from(CLIENT_RATE) * SEEN_AT_LEAST;
    (out.min(home) < least).then(|| {
        let host = host.name();
        format!("{host} saw {out:.0} cells of the circuit a second go out and {home:.0} come home")
    })
}

/// Cells of the circuit a second, outwards and home.
fn rates(run: &Run, view: &View) -> [f64; 2] {
    let end = run.blocks.last().map_or(0, |block| block.to);
    let count = |way: usize| view.ways[way].arrivals.iter().filter(|cell| cell.wire < end).count();
    [0, 1].map(|way| count(way) as f64 / (end as f64 / 1e9).max(1e-9))
}

fn judge(watched: &Watched, control: bool, detailed: bool, rng: &mut ChaCha8Rng) -> Vec<Row> {
    let mut rows = Vec::new();
    for (host, view) in &watched.views {
        let traces = Traces::of(view);
        let scenario = format!("relay on the path: {}", host.name());
        for (width, statistics) in WIDTHS {
            let cuts = watched.run.cuts_of(width, width);
            let row = |cut: &Cut| features::of(view, &traces, cut.from, cut.to);
            let all: Vec<(Cut, Vec<f64>)> = cuts.into_iter().map(|cut| (cut, row(&cut))).collect();
            let table = table(&all, None);
            for (learner, statistic) in LEARNERS.into_iter().zip(statistics) {
                let finding = told(&table, learner, statistic, rng);
                rows.push(placed(watched, view, &finding, scenario.clone(), control));
            }
            if !detailed || control || (width, statistics) != WIDTHS[1] {
                continue;
            }
            for payload in PAYLOADS {
                // Of one payload there are too few stretches for a bound.
                let finding = told(&self::table(&all, Some(payload)), LEARNERS[0], statistics[0], rng);
                let finding = Finding { target: Target::None, ..finding };
                let scenario = format!("{scenario}, {}", payload.name());
                rows.push(placed(watched, view, &finding, scenario, control));
            }
        }
    }
    rows
}

/// Idle windows, and the busy ones of one payload or of all.
fn table(all: &[(Cut, Vec<f64>)], payload: Option<Scenario>) -> Table {
    let wanted = |cut: &Cut| payload.is_none() || cut.scenario.is_none() || cut.scenario == payload;
    let of = all.iter().filter(|(cut, _)| wanted(cut));
    let rows = of.clone().map(|(_, row)| row.clone()).collect();
    let labels: Vec<u16> = of.clone().map(|(cut, _)| u16::from(cut.scenario.is_some())).collect();
    let blocks: Vec<u32> = of.map(|(cut, _)| cut.block).collect();
    Table::new(rows, &labels, &blocks)
}

fn told(table: &Table, learner: Learner, statistic: &'static str, rng: &mut ChaCha8Rng) -> Finding {
    let target = Target::Chance { value: 0.5, half_width: 0.03 };
    judge::area(table, learner, rng).found(Attack::Activity, statistic, target)
}

fn placed(watched: &Watched, view: &View, finding: &Finding, scenario: String, control: bool) -> Row {
    let run = &watched.run;
    let defence = run.defence.name;
    let [out, home] = rates(run, view);
    let note = format!(
        "{out:.0} cells of the circuit a second out, {home:.0} home; {} slots missed",
        run.missed_slots
    );
    let row = if control {
        let row = Row::new(finding, scenario, format!("{defence}, link cover"));
        // What a busy stretch's shorter windows hold may still be on its way to the relay.
        let wanted =
            if finding.statistic.ends_with("100 ms") { Target::AtLeast { bound: 0.9 } } else { Target::None };
        row.as_control(wanted)
    } else {
        Row::new(finding, scenario, defence)
    };
    match &run.invalid {
        Some(why) => row.invalid(why),
        None if row.status == Status::Invalid => row,
        None => Row { note, ..row },
    }
}

#[cfg(test)]
mod tests {
    use super::features::tests::planted;
    use super::*;
    use rand_core::SeedableRng as _;
    use relay_user::observe::finding::Verdict;

    const MS: u64 = 1_000_000;

    /// What a learner tells of stretches of 200 ms, in windows of 20 ms behind a guard of 40 ms.
    fn attacked(stretches: u64, seed: u64, learner: Learner, leak: impl Fn(u64) -> u64) -> Finding {
        let view = planted(stretches, seed, leak);
        let traces = Traces::of(&view);
        let mut all = Vec::new();
        for stretch in 0..stretches {
            for window in 2..10 {
                let from = (200 * stretch + 20 * window) * MS;
                let scenario = (stretch % 2 == 1).then_some(Scenario::Bulk);
                let block = u32::try_from(stretch).unwrap_or(0);
                let cut = Cut { from, to: from + 20 * MS, block, scenario };
                all.push((cut, features::of(&view, &traces, cut.from, cut.to)));
            }
        }
        told(&table(&all, None), learner, "AUC", &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn waits_that_depend_on_use_give_it_away() {
        for learner in LEARNERS {
            // 100 µs in 350, and nothing that a wire shows.
            let found = attacked(24, 1, learner, |wait| wait + 100_000);
            assert!(found.value > 0.9 && found.verdict() == Verdict::Missed, "{found:?}");
        }
    }

    #[test]
    fn a_relay_that_has_the_same_of_both_knows_nothing() {
        for learner in LEARNERS {
            let found: Vec<Finding> =
                (0..6).map(|seed| attacked(24, 10 + seed, learner, |wait| wait)).collect();
            let wrong = found.iter().filter(|found| !found.interval.holds(0.5)).count();
            assert!(wrong <= 1, "{wrong} of 6: {found:?}");
        }
    }

    #[test]
    fn little_is_no_pass() {
        assert_eq!(attacked(16, 3, LEARNERS[0], |wait| wait).verdict(), Verdict::NoPower);
        assert_eq!(attacked(4, 3, LEARNERS[0], |wait| wait).verdict(), Verdict::NoPower);
    }

    #[test]
    fn there_are_stretches_enough_to_learn_from_and_to_judge() {
        for (quick, control) in [(true, false), (true, true), (false, false), (false, true)] {
            assert!(plan(quick, control).idle >= 16);
        }
        // The first two of ten parts are only learnt from.
        assert!(2 * plan(false, false).idle * 8 / 10 >= 1450);
    }
}
