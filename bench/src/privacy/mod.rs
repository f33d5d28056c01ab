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
mod choice;
mod cost;
mod cover;
mod duo;
mod family;
pub mod fault;
mod links;
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
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;
use relay_tests::interrupt::Interrupt;
use relay_tests::tools::{self, Tool};
use relay_tests::{Host, Lab};
use relay_user::engine::schedule::Law;
use relay_user::observe::finding::{Attack, Interval, Target};

use self::attack::Found;
pub use self::choice::{Options, defence_names, node_names, scenario_names};
use self::choice::{
    TRUTHFUL, WHOLE, WITNESS, defences, is_short, is_wanted, nothing_to_measure, plans, scenarios,
};
use self::duo::Duo;
use self::fault::Fault;
use self::network::{Defence, Network};
use self::page::Picture;
use self::record::{Plan, Run};
use self::row::{Cost, Late, Load, Row, Status};
use self::scenario::Scenario;
use self::servers::Servers;
use self::text::Report;
use crate::cpu::{self, Awake, Left};
use crate::probe::GapProbe;

/// Names of the lab's namespaces begin with it.
const PREFIX: &str = "privacy";
/// Keys, configurations and logs.
const DIR: &str = "/run/evenwire-privacy";
/// How long the gap probe runs before each defence, and at the end.
const PROBE: Duration = Duration::from_millis(500);
/// Round trips measured for each defence.
const ROUND_TRIPS: usize = 150;
/// What makes the payload and the faults, beside what every lab needs.
const PAYLOAD: [Tool; 2] = [("python3", "python3"), ("tc", "iproute2")];

/// Measures everything. What cannot run here becomes a row that says so.
///
/// # Errors
/// Without root, where what the lab needs cannot be installed, and when the user interrupts before there is anything to
/// report.
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
    tools::install(&tools::LAB)?;
    tools::install(&PAYLOAD)?;
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
    load: Vec<Load>,
    pictures: Vec<Picture>,
    progress_shown: bool,
}

/// The processors that workers have for themselves, for as long as this lives: this thread and its programs keep off, and none is
/// ever idle.
struct Apart {
    cpus: Vec<usize>,
    _left: Left,
    awake: Awake,
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
            load: Vec::new(),
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
        let apart = self.workers_apart()?;
        let _servers = Servers::start(lab.netns(Host::Service), service)?;
        let mut network =
            Network::start(&lab, &self.options.relay, defence, &[Host::Client], (&apart.cpus, None))?;
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
        let apart = self.workers_apart()?;
        let servers = Servers::start(lab.netns(Host::Service), service)?;
        let mut network =
            Network::start(&lab, &self.options.relay, defence, &duo::CLIENTS, (&apart.cpus, None))?;
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
        let apart = self.workers_apart()?;
        let (options, interrupt) = (self.options, self.interrupt.clone());
        let task = witness::Task {
            relay: &options.relay,
            schedule,
            quick: options.quick,
            cpus: &apart.cpus,
            seed: self.seed(&["witness", schedule]),
            interrupt: &interrupt,
        };
        witness::measure(task, |what| self.progress(what))
    }

    fn record(&mut self, defence: Defence, plans: Vec<Plan>, runs: &mut Vec<Run>) -> Result<()> {
        self.progress(&format!("{}: starting", defence.name));
        let lab = Lab::build(PREFIX, Path::new(DIR))?;
        let service = Host::Service.address().context("the service has an address")?;
        let apart = self.workers_apart()?;
        let _servers = Servers::start(lab.netns(Host::Service), service)?;
        let clients = [Host::Client];
        let mut network = Network::start(
            &lab,
            &self.options.relay,
            defence,
            &clients,
            (&apart.cpus, self.options.alone()),
        )?;
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
        self.load.extend(apart.awake.busy()?.map(|busy| Load { defence: defence.name, busy }));
        self.late.extend(network.late().into_iter().map(|(node, share)| Late {
            defence: defence.name,
            node,
            share,
        }));
        Ok(())
    }

    fn workers_apart(&self) -> Result<Apart> {
        let left = cpu::leave(&self.workers_cpus)?;
        Ok(Apart { cpus: self.workers_cpus.clone(), _left: left, awake: Awake::keep(&self.workers_cpus)? })
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
            load: self.load,
            noise: self.probe.noise(),
            left_out,
        };
        Ok((report, self.pictures))
    }
}
