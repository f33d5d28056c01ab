//! What a run is to do: which scenarios, faults and defences, and how often.

use std::path::PathBuf;
use std::time::Duration;

use relay_tests::Host;

use super::fault::Fault;
use super::network::{self, Cores, Defence};
use super::record::Plan;
use super::scenario::Scenario;

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
    pub(super) fn alone(&self) -> Option<Host> {
        match self.cores {
            Cores::Alone(host) => Some(host),
            Cores::Apart | Cores::Shared => None,
        }
    }

    /// Whether a scenario that judges all nodes together is to run.
    pub(super) fn wants_whole(&self, name: &str) -> bool {
        self.alone().is_none() && is_wanted(&self.scenarios, name)
    }
}

/// The laws under which attacker and truth are brought together, in the scenarios `truth` and `witness`.
pub(super) const TRUTHFUL: [&str; 2] = ["constant", "jittered"];

/// What is wrong where a scenario is named and no defence that it has.
pub(super) fn nothing_to_measure(options: &Options) -> Option<String> {
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
pub(super) const WITNESS: &str = "witness";
/// Scenarios that judge all nodes together.
pub(super) const WHOLE: [&str; 4] = ["two", "mark", "truth", WITNESS];

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
pub(super) fn is_short(options: &Options) -> bool {
    options.quick && options.scenarios.is_empty()
}

/// The payloads and faults of a run.
pub(super) fn scenarios(options: &Options) -> (Vec<Scenario>, Vec<Fault>) {
    let few = is_short(options);
    let (payloads, faults) =
        if few { (Scenario::QUICK, Fault::QUICK) } else { (Scenario::ALL.len(), Fault::ALL.len()) };
    let wanted = |name| is_wanted(&options.scenarios, name);
    (
        Scenario::ALL.into_iter().take(payloads).filter(|one| wanted(one.name())).collect(),
        Fault::ALL.into_iter().take(faults).filter(|one| wanted(one.name())).collect(),
    )
}

pub(super) fn defences(options: &Options) -> impl Iterator<Item = Defence> {
    let count = if options.quick && options.defences.is_empty() { QUICK_DEFENCES } else { DEFENCES.len() };
    DEFENCES.into_iter().take(count).filter(|defence| is_wanted(&options.defences, defence.name))
}

pub(super) fn is_wanted(named: &[String], name: &str) -> bool {
    named.is_empty() || named.iter().any(|wanted| wanted == name)
}

/// Stretches of each kind in a full run: where a law strews the cells, without a fault and with one, since attack 6 takes so
/// many; and under `constant`, where moments at which workers come late lie in clusters, so that stretches differ more.
const STREWN: (u32, u32) = (120, 240);
const CLUSTERED: (u32, u32) = (480, 480);

/// Every payload through a sound link, and a download through each unsound one. What is plain to see takes few
/// stretches; chance takes many to be bounded by 0.03.
pub(super) fn plans(options: &Options, defence: Defence) -> Vec<Plan> {
    // Of each payload; with a fault, without payload and with. A quick run has to end within 15 minutes.
    let (each, [faulty_idle, faulty_each]) = match (options.quick, defence.schedule.is_some()) {
        (true, true) => (24, [12, 8]),
        (true, false) => (10, [8, 4]),
        (false, true) => {
            let (each, faulty) = if defence.schedule == Some("constant") { CLUSTERED } else { STREWN };
            (each, [faulty; 2])
        }
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

#[cfg(test)]
mod tests {
    use super::super::mark;
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
