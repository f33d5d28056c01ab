//! What the wire tells: scenarios of payload, through defences, against attacks, on the real kernel.
//!
//! ```text
//!  scenario's programs -> client's tunnel -> wire -> ... -> exit -> service
//!                            |                |
//!                        the truth        what anybody has: time, length, addresses
//!                            +---- record ----+
//!                                    |
//!                 windows, labelled -> attacks (relay_user::observe) -> rows -> table, JSON, page
//! ```
//!
//! Every defence is measured in the same way as the tunnel without shaping, which the attacks must see through: a row
//! at chance says nothing where the same attack is blind there.

mod attack;
mod cost;
mod cover;
mod duo;
mod family;
pub mod fault;
mod mark;
pub mod network;
pub mod page;
mod picture;
mod plain;
pub mod record;
pub mod row;
pub mod scenario;
mod seed;
mod servers;
mod stall;
pub mod text;
mod tool;
pub mod truth;
pub mod witness;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;
use relay_tests::interrupt::Interrupt;
use relay_tests::{Host, Lab};
use relay_user::engine::schedule::Law;
use relay_user::observe::finding::{Attack, Interval, Target};

use self::attack::Found;
use self::duo::Duo;
use self::fault::Fault;
use self::network::{Cores, Defence, Network};
use self::page::Picture;
use self::record::{Plan, Run};
use self::row::{Cost, Late, Row, Status};
use self::scenario::Scenario;
use self::servers::Servers;
use self::text::Report;
use crate::cpu::{self, Left};
use crate::probe::GapProbe;

/// Names of the lab's namespaces begin with it.
const PREFIX: &str = "privacy";
/// Keys, configurations and logs.
const DIR: &str = "/run/evenwire-privacy";
/// How long the gap probe runs before each defence, and at the end.
const PROBE: Duration = Duration::from_millis(500);
/// Round trips measured for each defence.
const ROUND_TRIPS: usize = 150;

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fewer windows, so wider intervals.
    pub quick: bool,
    /// The program `relay`, built for release.
    pub relay: PathBuf,
    /// Decides every order and every drawing.
    pub seed: u64,
    /// Which processors workers have.
    pub cores: Cores,
    /// Only these, by name; all where none is named.
    pub scenarios: Vec<String>,
    /// Only these, by name; all where none is named.
    pub defences: Vec<String>,
}

impl Options {
    /// The only node whose worker has a processor, and that is judged.
    fn alone(&self) -> Option<Host> {
        match self.cores {
            Cores::Alone(host) => Some(host),
            Cores::Apart | Cores::Shared => None,
        }
    }

    /// Whether a scenario that judges all nodes together is to run.
    fn wants_whole(&self, name: &str) -> bool {
        self.alone().is_none() && is_wanted(&self.scenarios, name)
    }
}

/// Measures everything. What cannot run here becomes a row that says so.
///
/// # Errors
/// Without root, and when the user interrupts before there is anything to report.
pub fn run(options: &Options) -> Result<(Report, Vec<Picture>)> {
    if !relay_tests::privilege::is_root() {
        bail!(
            "cargo xtask privacy needs root: it makes network namespaces, loads an XDP program and opens raw sockets"
        );
    }
    let whole = WHOLE.iter().find(|name| options.scenarios.iter().any(|wanted| wanted == *name));
    if let (Some(host), Some(name)) = (options.alone(), whole) {
        bail!(
            "the scenario {name} judges all nodes together: leave it out, or leave out --alone {}",
            host.name()
        );
    }
    if let Some(why) = nothing_to_measure(options) {
        bail!(why);
    }
    let mut bench = Bench::new(options)?;
    for defence in defences(options) {
        if let Err(error) = bench.defence(defence) {
            if bench.interrupt.is_set() {
                break;
            }
            bench.rows.push(not_run(defence, &error));
        }
    }
    if options.wants_whole("truth") {
        bench.truth();
    }
    // The notes of a quick run would have no power, and there is no time for them.
    if options.wants_whole(WITNESS) && !is_short(options) {
        bench.witness();
    }
    if bench.interrupt.is_set() && bench.rows.is_empty() {
        bail!("interrupted: nothing had been measured");
    }
    bench.finish()
}

/// The laws under which attacker and truth are brought together, in the scenarios `truth` and `witness`.
const TRUTHFUL: [&str; 2] = ["constant", "jittered"];

/// What is wrong where a scenario is named and no defence that it has.
fn nothing_to_measure(options: &Options) -> Option<String> {
    let truthful = |name: &&String| ["truth", WITNESS].contains(&name.as_str());
    let named = options.scenarios.iter().find(truthful)?;
    let wanted = TRUTHFUL.iter().any(|law| is_wanted(&options.defences, law));
    let laws = TRUTHFUL.join(" and ");
    (!wanted).then(|| format!("the scenario {named} has the defences {laws} only: name one of them, or none"))
}

/// All defences: the control first, since others are compared with it.
const DEFENCES: [Defence; 6] = [
    Defence::PLAIN,
    Defence::schedule("constant"),
    Defence::schedule("jittered"),
    Defence::maybenot(),
    Defence::schedule("poisson"),
    Defence::pattern(),
];
/// Of these, a quick run takes so many where none is named.
const QUICK_DEFENCES: usize = 3;

/// Names of all defences.
pub fn defence_names() -> impl Iterator<Item = &'static str> {
    DEFENCES.into_iter().map(|defence| defence.name)
}

/// The scenario in which relays take notes.
const WITNESS: &str = "witness";
/// Scenarios that judge all nodes together.
const WHOLE: [&str; 4] = ["two", "mark", "truth", WITNESS];

/// Names of all scenarios: payloads, faults of a link, two clients at once, marks that somebody puts on cells, cells
/// whose content is known, and relays that take notes.
pub fn scenario_names() -> impl Iterator<Item = &'static str> {
    let payloads = Scenario::ALL.into_iter().map(Scenario::name);
    payloads.chain(Fault::ALL.into_iter().map(Fault::name)).chain(WHOLE)
}

/// Names of all nodes.
pub fn node_names() -> impl Iterator<Item = &'static str> {
    network::NODES.into_iter().map(Host::name)
}

/// A quick run that nobody told what to take.
fn is_short(options: &Options) -> bool {
    options.quick && options.scenarios.is_empty()
}

/// The payloads and faults of a run.
fn scenarios(options: &Options) -> (Vec<Scenario>, Vec<Fault>) {
    let few = is_short(options);
    let (payloads, faults) =
        if few { (Scenario::QUICK, Fault::QUICK) } else { (Scenario::ALL.len(), Fault::ALL.len()) };
    let wanted = |name| is_wanted(&options.scenarios, name);
    (
        Scenario::ALL.into_iter().take(payloads).filter(|one| wanted(one.name())).collect(),
        Fault::ALL.into_iter().take(faults).filter(|one| wanted(one.name())).collect(),
    )
}

fn defences(options: &Options) -> impl Iterator<Item = Defence> {
    let count = if options.quick && options.defences.is_empty() { QUICK_DEFENCES } else { DEFENCES.len() };
    DEFENCES.into_iter().take(count).filter(|defence| is_wanted(&options.defences, defence.name))
}

fn is_wanted(named: &[String], name: &str) -> bool {
    named.is_empty() || named.iter().any(|wanted| wanted == name)
}

/// Stretches of each kind in a full run of `constant`: moments at which workers come late lie in clusters there, so
/// stretches differ more than where a law strews the cells. With a fault under every law: attack 6 takes so many.
const CLUSTERED: u32 = 240;

/// Every payload through a sound link, and a download through each unsound one. What is plain to see takes few
/// stretches; chance takes many to be bounded by 0.03.
fn plans(options: &Options, defence: Defence) -> Vec<Plan> {
    // Of each payload; with a fault, without payload and with. A quick run has to end within 15 minutes.
    let (each, [faulty_idle, faulty_each]) = match (options.quick, defence.schedule.is_some()) {
        (true, true) => (24, [12, 8]),
        (true, false) => (10, [8, 4]),
        (false, true) if defence.schedule == Some("constant") => (CLUSTERED, [CLUSTERED; 2]),
        (false, true) => (120, [CLUSTERED; 2]),
        (false, false) => (20, [20, 20]),
    };
    let (scenarios, faults) = scenarios(options);
    let mixed = Plan {
        fault: None,
        guard: Duration::from_millis(200),
        window: Duration::from_millis(20),
        idle: 2 * each,
        scenarios,
        each,
        stretch: None,
    };
    let faulty: Vec<Plan> = faults
        .into_iter()
        .map(|fault| Plan {
            fault: Some(fault),
            idle: faulty_idle,
            each: faulty_each,
            scenarios: vec![Scenario::Bulk],
            ..mixed.clone()
        })
        .collect();
    let mixed = (!mixed.scenarios.is_empty()).then_some(mixed);
    mixed.into_iter().chain(faulty).collect()
}

fn not_run(defence: Defence, error: &anyhow::Error) -> Row {
    Row {
        attack: Attack::Activity,
        scenario: "all".into(),
        defence: defence.name.into(),
        statistic: "all".into(),
        value: f64::NAN,
        interval: Interval { low: f64::NAN, high: f64::NAN },
        target: Target::None,
        samples: 0,
        status: Status::NotRun,
        note: format!("{error:#}"),
    }
}

struct Bench<'a> {
    options: &'a Options,
    workers_cpus: Vec<usize>,
    interrupt: Interrupt,
    started: Instant,
    probe: GapProbe,
    rows: Vec<Row>,
    cost: Vec<Cost>,
    late: Vec<Late>,
    pictures: Vec<Picture>,
    progress_shown: bool,
}

impl<'a> Bench<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let cpus = cpu::allowed()?;
        if let (Some(host), ..=1) = (options.alone(), cpus.len()) {
            bail!("--alone {}: there is no second processor to give to its worker", host.name());
        }
        Ok(Self {
            options,
            workers_cpus: options.cores.among(&cpus),
            interrupt: Interrupt::listen()?,
            started: Instant::now(),
            probe: GapProbe::new(),
            rows: Vec::new(),
            cost: Vec::new(),
            late: Vec::new(),
            pictures: Vec::new(),
            progress_shown: false,
        })
    }

    /// Measures one defence in every scenario, and attacks what was recorded once its programs have ended.
    fn defence(&mut self, defence: Defence) -> Result<()> {
        self.progress("gap probe");
        self.probe.watch(PROBE);
        let plans = plans(self.options, defence);
        let mut runs = Vec::new();
        if !plans.is_empty() {
            self.record(defence, plans, &mut runs)?;
        }
        let mut found = Found::default();
        for run in &runs {
            self.pictures.extend(picture::of(run));
            for &scenario in &run.plan.scenarios {
                self.progress(&format!("{}, {}: attacks", defence.name, run.plan.name(scenario)));
                let name = run.plan.name(scenario);
                let mut rng = self.rng(&["attacks", defence.name, &name]);
                attack::one(run, scenario, &mut found, &mut rng);
                self.heed_interrupt()?;
            }
        }
        self.progress(&format!("{}: attacks over all scenarios", defence.name));
        attack::all(&runs, &mut found, &mut self.rng(&["attacks", defence.name]));
        // Machines give the guarantee up: what is found of them is told, and is no miss.
        let told = |row: Row| if defence.machines { row.without_target() } else { row };
        self.rows.extend(found.rows.into_iter().map(told));
        self.heed_interrupt()?;
        drop(runs);
        if self.options.wants_whole("two") {
            let blocks = self.blocks_of_two(defence);
            let seconds = (duo::BLOCK * blocks).as_secs();
            self.progress(&format!("{}: two who chat, for {seconds} s", defence.name));
            let duo = self.record_two(defence, blocks)?;
            let mut rng = self.rng(&["attacks", defence.name, "two"]);
            self.rows.extend(attack::two(&duo, defence, &mut rng).into_iter().map(told));
        }
        self.heed_interrupt()?;
        if self.options.wants_whole("mark") {
            let plan = mark::Plan::of(self.options.quick, defence.schedule.is_some());
            self.progress(&format!("{}: marks, for {} s", defence.name, plan.lasts().as_secs()));
            let rows = self.marks(defence, plan).unwrap_or_else(|error| {
                let row = not_run(defence, &error);
                vec![Row { attack: Attack::Watermark, scenario: "mark".into(), ..row }]
            });
            self.rows.extend(rows.into_iter().map(told));
        }
        self.heed_interrupt()
    }

    fn marks(&mut self, defence: Defence, plan: mark::Plan) -> Result<Vec<Row>> {
        let lab = Lab::build(PREFIX, Path::new(DIR))?;
        let service = Host::Service.address().context("the service has an address")?;
        let (cpus, _left) = self.workers_apart()?;
        let _servers = Servers::start(lab.netns(Host::Service), service)?;
        let mut network = Network::start(&lab, &self.options.relay, defence, &[Host::Client], (&cpus, None))?;
        let mut rng = self.rng(&["marks", defence.name]);
        let marked = mark::record(&lab, &mut network, (defence, plan), &mut rng, &self.interrupt)?;
        drop(network);
        self.progress(&format!("{}: attacks on marks", defence.name));
        Ok(marked.rows(&mut self.rng(&["attacks", defence.name, "marks"])))
    }

    /// Stretches in which two clients chat.
    fn blocks_of_two(&self, defence: Defence) -> u32 {
        match (self.options.quick, defence.schedule.is_some()) {
            (true, true) => 60,
            (true, false) => 24,
            (false, true) => 360,
            (false, false) => 40,
        }
    }

    fn record_two(&mut self, defence: Defence, blocks: u32) -> Result<Duo> {
        let mut lab = Lab::build(PREFIX, Path::new(DIR))?;
        lab.add_second_client()?;
        let service = Host::Service.address().context("the service has an address")?;
        let (cpus, _left) = self.workers_apart()?;
        let servers = Servers::start(lab.netns(Host::Service), service)?;
        let mut network = Network::start(&lab, &self.options.relay, defence, &duo::CLIENTS, (&cpus, None))?;
        let stretches = (blocks, defence.schedule.is_some());
        let seed = self.seed(&["two", defence.name]);
        duo::record(&lab, &mut network, &servers, stretches, seed, &self.interrupt)
    }

    /// Attack 10, with the truth at hand: as the schedules are, and with a leak planted.
    fn truth(&mut self) {
        let quick = self.options.quick;
        for (law, name) in [Law::Constant, Law::Jittered].into_iter().zip(TRUTHFUL) {
            if self.interrupt.is_set() || !is_wanted(&self.options.defences, name) {
                continue;
            }
            self.progress(&format!("{name}: a million cells with the truth at hand"));
            let found = cover::measure(law, name, quick, &mut self.rng(&["truth", name]));
            self.rows.extend(found.unwrap_or_else(|error| vec![not_run(Defence::schedule(name), &error)]));
        }
    }

    /// What relays on the path tell of a circuit, with circuit cover and without.
    fn witness(&mut self) {
        for schedule in TRUTHFUL {
            if self.interrupt.is_set() || !is_wanted(&self.options.defences, schedule) {
                continue;
            }
            let found = self.watched(schedule).unwrap_or_else(|error| {
                let row = not_run(Defence::schedule(schedule), &error);
                vec![Row { scenario: "relay on the path".into(), ..row }]
            });
            self.rows.extend(found);
        }
    }

    fn watched(&mut self, schedule: &'static str) -> Result<Vec<Row>> {
        let (cpus, _left) = self.workers_apart()?;
        let (options, interrupt) = (self.options, self.interrupt.clone());
        let task = witness::Task {
            relay: &options.relay,
            schedule,
            quick: options.quick,
            cpus: &cpus,
            seed: self.seed(&["witness", schedule]),
            interrupt: &interrupt,
        };
        witness::measure(task, |what| self.progress(what))
    }

    fn record(&mut self, defence: Defence, plans: Vec<Plan>, runs: &mut Vec<Run>) -> Result<()> {
        self.progress(&format!("{}: starting", defence.name));
        let lab = Lab::build(PREFIX, Path::new(DIR))?;
        let service = Host::Service.address().context("the service has an address")?;
        let (cpus, _left) = self.workers_apart()?;
        let _servers = Servers::start(lab.netns(Host::Service), service)?;
        let clients = [Host::Client];
        let mut network =
            Network::start(&lab, &self.options.relay, defence, &clients, (&cpus, self.options.alone()))?;
        self.progress(&format!("{}: round trips", defence.name));
        let mut rng = self.rng(&["round trips", defence.name]);
        let pause = || Duration::from_micros(5_000 + rng.next_u64() % 20_000);
        let round_trips = network.round_trips(ROUND_TRIPS, pause)?;
        for plan in plans {
            let fault = plan.fault.map_or("sound link", Fault::name);
            let seconds = plan.lasts().as_secs();
            self.progress(&format!("{}, {fault}: recording, for {seconds} s", defence.name));
            let seed = self.seed(&["record", defence.name, fault]);
            match record::record(&lab, &mut network, (defence, plan), seed, &self.interrupt) {
                Ok((run, ..)) => runs.push(run),
                Err(error) => {
                    self.heed_interrupt()?;
                    network.check()?;
                    self.rows.push(Row { scenario: fault.into(), ..not_run(defence, &error) });
                }
            }
        }
        let is_sound = |run: &&Run| run.plan.fault.is_none() && run.plan.scenarios.contains(&Scenario::Bulk);
        // Of a node that is judged alone, one direction is kept, which is not what the link costs.
        if let Some(sound) = runs.iter().find(is_sound).filter(|_| self.options.alone().is_none()) {
            self.cost.push(cost::of(sound, round_trips));
        }
        self.late.extend(network.late().into_iter().map(|(node, share)| Late {
            defence: defence.name,
            node,
            share,
        }));
        Ok(())
    }

    /// The processors that workers have for themselves, and this thread's word that it and its programs keep off.
    fn workers_apart(&self) -> Result<(Vec<usize>, Left)> {
        Ok((self.workers_cpus.clone(), cpu::leave(&self.workers_cpus)?))
    }

    fn seed(&self, purpose: &[&str]) -> u64 {
        seed::of(self.options.seed, purpose)
    }

    fn rng(&self, purpose: &[&str]) -> ChaCha8Rng {
        seed::rng(self.options.seed, purpose)
    }

    fn heed_interrupt(&self) -> Result<()> {
        if self.interrupt.is_set() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// One line that replaces the last, on standard error.
    fn progress(&mut self, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        let mut out = std::io::stderr().lock();
        // Nothing is lost where standard error is closed: the report does not depend on it.
        let _ = if out.is_terminal() {
            write!(out, "\r\x1b[2K{seconds:>4} s  {what}")
        } else {
            writeln!(out, "{seconds:>4} s  {what}")
        };
        let _ = out.flush();
        self.progress_shown = true;
    }

    fn finish(mut self) -> Result<(Report, Vec<Picture>)> {
        self.progress("gap probe");
        self.probe.watch(PROBE);
        if self.progress_shown && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[2K");
        }
        cost::compare(&mut self.cost);
        row::sort(&mut self.rows);
        let mut left_out = attack::LEFT_OUT.map(str::to_owned).to_vec();
        let measured: Vec<&str> = defences(self.options).map(|defence| defence.name).collect();
        let mut others: Vec<&str> = defence_names().filter(|name| !measured.contains(name)).collect();
        if self.options.scenarios.is_empty() {
            let (payloads, faults) = scenarios(self.options);
            others
                .extend(Scenario::ALL.into_iter().filter(|one| !payloads.contains(one)).map(Scenario::name));
            others.extend(Fault::ALL.into_iter().filter(|one| !faults.contains(one)).map(Fault::name));
            others.extend(WHOLE.iter().filter(|_| self.options.alone().is_some()));
            others.extend((is_short(self.options) && self.options.alone().is_none()).then_some(WITNESS));
        }
        if !others.is_empty() {
            left_out.push(format!("in this run: {}", others.join(", ")));
        }
        let interrupted = self.interrupt.is_set();
        if interrupted {
            left_out.push("what this run had not come to when it was interrupted".to_owned());
        }
        let report = Report {
            quick: self.options.quick,
            interrupted,
            seconds: self.started.elapsed().as_secs_f64(),
            seed: self.options.seed,
            cores: match (self.workers_cpus.len(), self.options.alone()) {
                (0, _) => "shared".to_owned(),
                (_, Some(host)) => format!("own, the worker of {} alone", host.name()),
                (1, None) => "own, one for all of them".to_owned(),
                (count, None) => format!("own, {count} of them"),
            },
            rows: self.rows,
            cost: self.cost,
            late: self.late,
            noise: self.probe.noise(),
            left_out,
        };
        Ok((report, self.pictures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_tests::nodes::{CLIENT_RATE, TRUNK_RATE};

    fn options(quick: bool, scenarios: &[&str]) -> Options {
        let scenarios = scenarios.iter().map(|&name| name.to_owned()).collect();
        Options {
            quick,
            relay: PathBuf::new(),
            seed: 1,
            cores: Cores::Apart,
            scenarios,
            defences: Vec::new(),
        }
    }

    #[test]
    fn a_quick_run_takes_fewer_faults_and_payloads_but_any_that_is_named() {
        let count = |quick, named: &[&str]| {
            let (payloads, faults) = scenarios(&options(quick, named));
            (payloads.len(), faults.len())
        };
        assert_eq!(count(true, &[]), (7, 2));
        assert_eq!(count(false, &[]), (8, 5));
        for quick in [true, false] {
            assert_eq!(count(quick, &["overload-down", "delay", "throttled-trunk", "mark"]), (1, 2));
            assert_eq!(count(quick, &["mark"]), (0, 0));
        }
        let names: Vec<&str> = scenario_names().collect();
        assert!(["overload-down", "throttled-up", "delay", "mark"].iter().all(|name| names.contains(name)));
    }

    #[test]
    fn a_scenario_without_any_defence_of_its_own_is_refused() {
        let named = |scenario, defences: &[&str]| {
            let defences = defences.iter().map(|&name| name.to_owned()).collect();
            nothing_to_measure(&Options { defences, ..options(true, &[scenario]) })
        };
        assert!(named("truth", &["plain"]).is_some_and(|why| why.contains("constant and jittered only")));
        assert!(named("witness", &["poisson", "pattern"]).is_some());
        for (scenario, defences) in
            [("truth", &["plain", "jittered"][..]), ("witness", &[]), ("bulk", &["plain"])]
        {
            assert_eq!(named(scenario, defences), None, "{scenario}");
        }
    }

    #[test]
    fn recorders_have_room_for_the_longest_run() {
        let cells = u64::from(2 * CLIENT_RATE + 4 * TRUNK_RATE);
        let packets = |plan: Plan| cells * plan.lasts().as_secs();
        let full = options(false, &[]);
        let most = defences(&full).flat_map(|defence| plans(&full, defence)).map(packets).max();
        let kept = relay_tests::recorder::PACKETS_KEPT as u64;
        assert!(most.is_some_and(|most| most < kept / 10 * 9), "{most:?} of {kept}");
    }

    /// The rest of 15 minutes goes to two clients (130 s), to attack 10 (80 s), and to laying out and computing (46 s).
    #[test]
    fn a_quick_run_has_no_more_stretches_than_fit_into_its_time() {
        let quick = options(true, &[]);
        let defence = |defence: Defence| {
            let marks = mark::Plan::of(true, defence.schedule.is_some()).lasts().as_secs_f64();
            plans(&quick, defence).iter().map(|plan| plan.lasts().as_secs_f64()).sum::<f64>() + marks
        };
        let all: f64 = defences(&quick).map(defence).sum();
        assert!(all < 644.0, "{all:.0} s are recorded");
    }
}
