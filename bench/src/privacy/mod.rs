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
pub mod network;
pub mod page;
mod picture;
mod plain;
pub mod record;
pub mod row;
pub mod scenario;
mod servers;
pub mod text;
mod tool;
pub mod truth;
pub mod witness;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use relay_tests::interrupt::Interrupt;
use relay_tests::{Host, Lab};
use relay_user::engine::schedule::Law;
use relay_user::observe::finding::{Attack, Interval, Target};

use self::attack::Found;
use self::duo::Duo;
use self::fault::Fault;
use self::network::{Defence, Network};
use self::page::Picture;
use self::record::{Plan, Run};
use self::row::{Cost, Row, Status};
use self::scenario::Scenario;
use self::servers::Servers;
use self::text::Report;
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
    /// Only these, by name; all where none is named.
    pub scenarios: Vec<String>,
    /// Only these, by name; all where none is named.
    pub defences: Vec<String>,
}

/// Measures everything. What cannot run here becomes a row that says so.
///
/// # Errors
/// Without root, and when the user interrupts.
pub fn run(options: &Options) -> Result<(Report, Vec<Picture>)> {
    if !relay_tests::privilege::is_root() {
        bail!(
            "cargo xtask privacy needs root: it makes network namespaces, loads an XDP program and opens raw sockets"
        );
    }
    let mut bench = Bench::new(options)?;
    for defence in defences(options) {
        if let Err(error) = bench.defence(defence) {
            if bench.interrupt.is_set() {
                bail!("interrupted: nothing is reported");
            }
            bench.rows.push(not_run(defence, &error));
        }
    }
    if is_wanted(&options.scenarios, "truth") {
        bench.truth();
    }
    if is_wanted(&options.scenarios, "witness") {
        bench.witness();
    }
    if bench.interrupt.is_set() {
        bail!("interrupted: nothing is reported");
    }
    bench.finish()
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

/// Names of all scenarios: payloads, faults of the link, two clients at once, cells whose content is known, and relays
/// that take notes.
pub fn scenario_names() -> impl Iterator<Item = &'static str> {
    let payloads = Scenario::ALL.into_iter().map(Scenario::name);
    payloads.chain(Fault::ALL.into_iter().map(Fault::name)).chain(["two", "truth", "witness"])
}

fn defences(options: &Options) -> impl Iterator<Item = Defence> {
    let count = if options.quick && options.defences.is_empty() { QUICK_DEFENCES } else { DEFENCES.len() };
    DEFENCES.into_iter().take(count).filter(|defence| is_wanted(&options.defences, defence.name))
}

fn is_wanted(named: &[String], name: &str) -> bool {
    named.is_empty() || named.iter().any(|wanted| wanted == name)
}

/// Every payload through a sound link, and a download through each unsound one. What is plain to see takes few
/// stretches; chance takes many to be bounded by 0.03.
fn plans(options: &Options, defence: Defence) -> Vec<Plan> {
    let each = match (options.quick, defence.schedule.is_some()) {
        (true, true) => 28,
        (true, false) => 8,
        (false, true) => 60,
        (false, false) => 20,
    };
    let scenarios = Scenario::ALL.into_iter().filter(|one| is_wanted(&options.scenarios, one.name()));
    let mixed = Plan {
        fault: None,
        guard: Duration::from_millis(200),
        window: Duration::from_millis(20),
        idle: 2 * each,
        scenarios: scenarios.collect(),
        each,
        stretch: None,
    };
    let faults = Fault::ALL.into_iter().filter(|fault| is_wanted(&options.scenarios, fault.name()));
    let faulty: Vec<Plan> = faults
        .map(|fault| Plan {
            fault: Some(fault),
            idle: each,
            each: if options.quick { each / 2 } else { each },
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
    interrupt: Interrupt,
    started: Instant,
    rng: ChaCha8Rng,
    probe: GapProbe,
    rows: Vec<Row>,
    cost: Vec<Cost>,
    pictures: Vec<Picture>,
    progress_shown: bool,
}

impl<'a> Bench<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        Ok(Self {
            options,
            interrupt: Interrupt::listen()?,
            started: Instant::now(),
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            probe: GapProbe::new(),
            rows: Vec::new(),
            cost: Vec::new(),
            pictures: Vec::new(),
            progress_shown: false,
        })
    }

    /// Measures one defence in every scenario, and attacks what was recorded once its programs have ended.
    fn defence(&mut self, defence: Defence) -> Result<()> {
        self.progress("gap probe");
        self.probe.watch(PROBE);
        let mut runs = Vec::new();
        self.record(defence, &mut runs)?;
        let mut found = Found::default();
        for run in &runs {
            self.pictures.extend(picture::of(run));
            for &scenario in &run.plan.scenarios {
                self.progress(&format!("{}, {}: attacks", defence.name, run.plan.name(scenario)));
                attack::one(run, scenario, &mut found, &mut self.rng);
                self.heed_interrupt()?;
            }
        }
        self.progress(&format!("{}: attacks over all scenarios", defence.name));
        attack::all(&runs, &mut found, &mut self.rng);
        // Machines give the guarantee up: what is found of them is told, and is no miss.
        let told = |row: Row| if defence.machines { row.without_target() } else { row };
        self.rows.extend(found.rows.into_iter().map(told));
        self.heed_interrupt()?;
        drop(runs);
        if is_wanted(&self.options.scenarios, "two") {
            self.progress(&format!("{}: two who chat", defence.name));
            let duo = self.record_two(defence)?;
            self.rows.extend(attack::two(&duo, defence, &mut self.rng).into_iter().map(told));
        }
        self.heed_interrupt()
    }

    fn record_two(&mut self, defence: Defence) -> Result<Duo> {
        let mut lab = Lab::build(PREFIX, Path::new(DIR))?;
        lab.add_second_client()?;
        let service = Host::Service.address().context("the service has an address")?;
        let servers = Servers::start(lab.netns(Host::Service), service)?;
        let mut network = Network::start(&lab, &self.options.relay, defence, &duo::CLIENTS)?;
        let blocks = match (self.options.quick, defence.schedule.is_some()) {
            (true, true) => 60,
            (true, false) => 20,
            (false, true) => 300,
            (false, false) => 40,
        };
        duo::record(&lab, &mut network, &servers, blocks, &mut self.rng, &self.interrupt)
    }

    /// Attack 10, with the truth at hand: as the schedules are, and with a leak planted.
    fn truth(&mut self) {
        let quick = self.options.quick;
        let kinds = [(Law::Constant, "constant"), (Law::Jittered, "jittered")];
        for (law, name) in kinds {
            if !is_wanted(&self.options.defences, name) {
                continue;
            }
            self.progress(&format!("{name}: a million cells with the truth at hand"));
            let found = cover::measure(law, name, quick, &mut self.rng);
            self.rows.extend(found.unwrap_or_else(|error| vec![not_run(Defence::schedule(name), &error)]));
            if self.interrupt.is_set() {
                return;
            }
        }
    }

    /// What relays on the path tell of a circuit, with circuit cover and without.
    fn witness(&mut self) {
        for schedule in ["constant", "jittered"] {
            if self.interrupt.is_set() || !is_wanted(&self.options.defences, schedule) {
                continue;
            }
            let (options, interrupt) = (self.options, self.interrupt.clone());
            let task = witness::Task {
                relay: &options.relay,
                schedule,
                quick: options.quick,
                interrupt: &interrupt,
            };
            let mut rng = ChaCha8Rng::seed_from_u64(self.rng.next_u64());
            let found = witness::measure(task, &mut rng, |what| self.progress(what));
            let scenario = "relay on the path";
            self.rows.extend(found.unwrap_or_else(|error| {
                vec![Row { scenario: scenario.into(), ..not_run(Defence::schedule(schedule), &error) }]
            }));
        }
    }

    fn record(&mut self, defence: Defence, runs: &mut Vec<Run>) -> Result<()> {
        self.progress(&format!("{}: starting", defence.name));
        let lab = Lab::build(PREFIX, Path::new(DIR))?;
        let service = Host::Service.address().context("the service has an address")?;
        let _servers = Servers::start(lab.netns(Host::Service), service)?;
        let mut network = Network::start(&lab, &self.options.relay, defence, &[Host::Client])?;
        self.progress(&format!("{}: round trips", defence.name));
        let rng = &mut self.rng;
        let pause = || Duration::from_micros(5_000 + rng.next_u64() % 20_000);
        let round_trips = network.round_trips(ROUND_TRIPS, pause)?;
        for plan in plans(self.options, defence) {
            let fault = plan.fault.map_or("sound link", Fault::name);
            self.progress(&format!("{}, {fault}: recording", defence.name));
            match record::record(&lab, &mut network, (defence, plan), &mut self.rng, &self.interrupt) {
                Ok(run) => runs.push(run),
                Err(error) => {
                    self.heed_interrupt()?;
                    network.check()?;
                    self.rows.push(Row { scenario: fault.into(), ..not_run(defence, &error) });
                }
            }
        }
        if let Some(sound) = runs.iter().find(|run| run.plan.scenarios.contains(&Scenario::Bulk)) {
            self.cost.push(cost::of(sound, round_trips));
        }
        Ok(())
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
        let others: Vec<&str> = defence_names().filter(|name| !measured.contains(name)).collect();
        if !others.is_empty() {
            left_out.push(format!("in this run: {}", others.join(", ")));
        }
        let report = Report {
            quick: self.options.quick,
            seconds: self.started.elapsed().as_secs_f64(),
            seed: self.options.seed,
            rows: self.rows,
            cost: self.cost,
            noise: self.probe.noise(),
            left_out,
        };
        Ok((report, self.pictures))
    }
}
