//! What a configuration costs and gives, worked out before anything starts.
//!
//! Nothing here looks at the machine. Costs on the wire and latencies follow from the network document; what a core
//! carries and what a link takes of memory are measured figures of another machine, and are called estimates.

mod costs;
mod delay;
mod leakage;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use leakage::Leakage;

use relay_common::wire::MAX_HOPS;
use serde::Serialize;

use crate::config::network::{Class, Relay, RelayRole, Trunk};
use crate::config::{
    ClientConfig, ClientPolicy, Config, Cover, Datapath, NetworkDocument, RelayConfig, Timestamp,
};
use crate::control::plans;
use crate::engine::Limits;
use crate::rates::Epochs;
use costs::{Memory, Work, goodput_mbit, month_gb, speeds, wire_mbit};
use delay::{Delay, Delays};

/// What a file and its network document come to.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// `relay` or `client`.
    kind: &'static str,
    /// A relay's name, or that of a client's class.
    name: String,
    /// Epoch of the document.
    epoch: u64,
    links: Vec<Link>,
    all_links: Option<Total>,
    latency: Vec<Way>,
    goodput: Option<Goodput>,
    cores: Vec<Cores>,
    memory: Memory,
    /// What the changes of rates can tell.
    pub(crate) leakage: Leakage,
    /// Why this cannot work as it stands.
    problems: Vec<String>,
    /// What the figures leave out.
    notes: Vec<&'static str>,
}

/// What a link, or several of a kind, take on the wire.
#[derive(Debug, Serialize)]
struct Link {
    to: String,
    class: String,
    schedule: String,
    /// Sessions side by side.
    lanes: u16,
    /// Each way, all lanes together.
    cells_per_second: u32,
    mbit_per_second_each_way: f64,
    gb_per_month_each_way: f64,
    /// Circuits of the clients' class that fit.
    circuits: Option<u32>,
}

/// What all links take together.
#[derive(Debug, Serialize)]
struct Total {
    what: String,
    cells_per_second: u64,
    mbit_per_second_each_way: f64,
    gb_per_month_each_way: f64,
}

/// What a way over one or more hops adds to a packet's time.
#[derive(Debug, Serialize)]
struct Way {
    way: String,
    hops: Vec<Hop>,
    mean_us: f64,
    p99_us: f64,
}

/// What one node adds to it.
#[derive(Debug, Serialize)]
struct Hop {
    from: String,
    to: String,
    mean_us: f64,
    p99_us: f64,
}

/// IP packets that a client can send and get, in Mbit/s.
#[derive(Debug, Serialize)]
struct Goodput {
    mtu: u16,
    out_mbit_per_second: f64,
    home_mbit_per_second: f64,
}

/// Processor time under one assumption about load and port.
#[derive(Debug, Serialize)]
struct Cores {
    when: String,
    datapath: &'static str,
    /// Each way.
    cells_per_second: f64,
    cores: f64,
    source: &'static str,
}

impl Plan {
    /// The plan of a relay's or a client's file, by the document that it names.
    ///
    /// # Errors
    /// [`crate::config::ConfigError`] where the document is wrong, is not in force at `now`, or does not fit the file.
    pub(crate) fn of(config: &Config, now: Timestamp) -> anyhow::Result<Self> {
        match config {
            Config::Relay(relay) => Self::of_relay(relay, &relay.load_network(now)?),
            Config::Client(client) => Self::of_client(client, &client.load_network(now)?),
        }
    }

    /// Whether it can work.
    pub(crate) fn works(&self) -> bool {
        self.problems.is_empty()
    }

    fn of_client(config: &ClientConfig, network: &NetworkDocument) -> anyhow::Result<Self> {
        config.check_against(network)?;
        let (name, class) = network.class_of_clients(&config.network)?;
        let path = config.path_in(network)?;
        let trunks = joints(network, path);
        let rate = f64::from(class.rate);
        let covered = config.cover == Cover::Circuit;
        let answered = if covered { answers(class) } else { rate };
        let clients = of_clients(network);
        let problems = trunks
            .iter()
            .filter_map(|(trunk, _)| Room::of(network, trunk, &clients).problem(trunk))
            .collect();
        let policy =
            plans::of_clients(&config.network, network, config.policy.unwrap_or(ClientPolicy::Scheduled))?;
        let leakage = Leakage::of_link(&policy, Epochs::new(network.epoch_seconds));
        // Machines send by the payload.
        let leakage =
            Leakage { bits_per_day: leakage.bits_per_day.filter(|_| config.maybenot.is_none()), ..leakage };
        Ok(Self {
            kind: "client",
            name: name.to_owned(),
            epoch: network.epoch,
            links: vec![link(&path[0].name, name, class, 1, path[0], None)],
            all_links: None,
            latency: ways(path, class, &trunks, covered),
            goodput: Some(Goodput {
                mtu: config.tun.mtu,
                out_mbit_per_second: goodput_mbit(rate, config.tun.mtu),
                home_mbit_per_second: goodput_mbit(answered, config.tun.mtu),
            }),
            cores: cores(&config.datapath, "always", rate, Work::Beginning),
            memory: Memory::of(config.datapath.frames, 1, 1),
            leakage,
            problems,
            notes: notes().into_iter().chain(extras(config)).collect(),
        })
    }

    fn of_relay(config: &RelayConfig, network: &NetworkDocument) -> anyhow::Result<Self> {
        let me = config.named_in(network)?;
        let (client_class, class) = network.class_of_clients(&config.network)?;
        let (mut links, mut latency, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        let (mut cells, mut circuits, mut lanes) = (0.0, 0_u32, 0_u32);
        let (clients, mut policies) = (of_clients(network), Vec::new());
        for trunk in network.trunks.iter().filter(|trunk| trunk.between.contains(&me.name)) {
            let other = trunk.between.iter().find(|name| **name != me.name);
            let (Some(peer), Some(of)) =
                (other.and_then(|name| network.relay(name)), network.classes.get(&trunk.class).copied())
            else {
                continue;
            };
            let room = Room::of(network, trunk, &clients);
            problems.extend(room.problem(trunk));
            policies.push(plans::of_trunk(network, trunk)?);
            links.push(link(&peer.name, &trunk.class, of, trunk.lanes, peer, Some(room.circuits())));
            latency.push(way("this relay", [&me.name, &peer.name], &delay::alone(&[of])));
            cells += f64::from(of.rate) * f64::from(trunk.lanes);
            circuits = circuits.saturating_add(room.circuits());
            lanes += u32::from(trunk.lanes);
        }
        if lanes == 0 {
            problems.push("no trunk of the document ends here: no circuit can pass".to_owned());
        }
        let limits = Limits::default();
        let circuits = circuits.min(limits.circuits);
        let entry = me.roles.contains(&RelayRole::Entry);
        let clients = if entry { circuits.min(limits.links.saturating_sub(lanes)) } else { 0 };
        let exit = config.exit.is_some();
        let work = if exit { Work::Ending } else { Work::Relaying };
        let mut load = cores(&config.datapath, "all trunks", cells, work);
        let mut all_links = total("all trunks".to_owned(), &links, 0);
        if entry {
            policies.push(plans::of_clients(&config.network, network, ClientPolicy::Adaptive)?);
            links.push(link("each client", client_class, class, 1, me, None));
            latency.push(way("this relay", [&me.name, "client"], &delay::alone(&[class])));
            let full = cells + f64::from(clients) * f64::from(class.rate);
            load.extend(cores(&config.datapath, &format!("and {clients} clients"), full, work));
            all_links = total(format!("all trunks and {clients} clients"), &links, clients);
        }
        problems.extend(too_few_workers(&load, config.worker.count));
        Ok(Self {
            kind: "relay",
            name: me.name.clone(),
            epoch: network.epoch,
            links,
            all_links: Some(all_links),
            latency,
            goodput: None,
            cores: load,
            memory: Memory::of(config.datapath.frames, lanes + clients, circuits),
            leakage: Leakage::greatest(&policies, Epochs::new(network.epoch_seconds)),
            problems,
            notes: notes(),
        })
    }
}

/// Cells per second with which an exit answers a client that fills its slots.
fn answers(class: Class) -> f64 {
    f64::from(class.rate) * (1.0 - 1.0 / f64::from(class.schedule.spare()))
}

/// The trunks of a path, with their classes.
fn joints<'a>(network: &'a NetworkDocument, path: [&Relay; MAX_HOPS]) -> Vec<(&'a Trunk, Class)> {
    let joint = |pair: &[&Relay]| {
        let trunk = network.trunk(&pair[0].name, &pair[1].name)?;
        Some((trunk, *network.classes.get(&trunk.class)?))
    };
    path.windows(2).filter_map(joint).collect()
}

/// The classes that clients' links may come to have.
fn of_clients(network: &NetworkDocument) -> Vec<Class> {
    network.client_classes().into_iter().filter_map(|name| network.classes.get(name).copied()).collect()
}

/// What a lane has for circuits in its trunk's slowest class, steps for loss included, and what one takes in its client's fastest.
#[derive(Clone, Copy, Debug)]
struct Room {
    usable: u32,
    needed: u32,
    lanes: u16,
}

impl Room {
    fn of(network: &NetworkDocument, trunk: &Trunk, clients: &[Class]) -> Self {
        let hours = trunk.hours.iter().map(|hour| &hour.class);
        let names: Vec<&String> = if trunk.hours.is_empty() { vec![&trunk.class] } else { hours.collect() };
        let classes = names.into_iter().chain(&trunk.lower).filter_map(|name| network.classes.get(name));
        let laws = || clients.iter().map(|client| client.schedule);
        let usable = classes.map(|class| class.schedule.usable_by_any(class.rate, laws()));
        Self {
            usable: usable.min().unwrap_or(0),
            needed: clients.iter().map(|class| class.rate).max().unwrap_or(1),
            lanes: trunk.lanes,
        }
    }

    /// Circuits that the trunk can carry: none is shared out over lanes.
    fn circuits(self) -> u32 {
        self.usable / self.needed.max(1) * u32::from(self.lanes)
    }

    fn problem(self, trunk: &Trunk) -> Option<String> {
        let [one, other] = &trunk.between;
        (self.circuits() == 0).then(|| {
            format!(
                "a lane of the trunk of {one} and {other} has {} cells/s for circuits, and one takes {}; raise the rate \
                 of classes.{}",
                self.usable, self.needed, trunk.class
            )
        })
    }
}

fn link(to: &str, name: &str, class: Class, lanes: u16, at: &Relay, circuits: Option<u32>) -> Link {
    let cells = class.rate * u32::from(lanes);
    Link {
        to: to.to_owned(),
        class: name.to_owned(),
        schedule: class.schedule.to_string(),
        lanes,
        cells_per_second: cells,
        mbit_per_second_each_way: wire_mbit(cells.into(), at.address.ip()),
        gb_per_month_each_way: month_gb(cells.into(), at.address.ip()),
        circuits,
    }
}

/// All trunks, and the row of one client so many times.
fn total(what: String, links: &[Link], clients: u32) -> Total {
    let times = |link: &Link| if link.circuits.is_some() { 1 } else { clients };
    let sum = |of: fn(&Link) -> f64| links.iter().map(|link| of(link) * f64::from(times(link))).sum();
    Total {
        what,
        cells_per_second: links
            .iter()
            .map(|link| u64::from(link.cells_per_second) * u64::from(times(link)))
            .sum(),
        mbit_per_second_each_way: sum(|link| link.mbit_per_second_each_way),
        gb_per_month_each_way: sum(|link| link.gb_per_month_each_way),
    }
}

fn ways(path: [&Relay; MAX_HOPS], class: Class, trunks: &[(&Trunk, Class)], covered: bool) -> Vec<Way> {
    let [entry, middle, exit] = path.map(|relay| relay.name.as_str());
    let &[(_, first), (_, second)] = trunks else { return Vec::new() };
    let [out, home] = if covered {
        delay::covered(class, [first, second], class.schedule.spare())
    } else {
        [delay::alone(&[class, first, second]), delay::alone(&[second, first, class])]
    };
    vec![
        way("out", ["client", entry, middle, exit], &out),
        way("home", [exit, middle, entry, "client"], &home),
    ]
}

/// A way over these nodes.
fn way<const NODES: usize>(way: &str, nodes: [&str; NODES], delays: &Delays) -> Way {
    let hop = |(pair, delay): (&[&str], &Delay)| Hop {
        from: pair[0].to_owned(),
        to: pair[1].to_owned(),
        mean_us: delay.mean,
        p99_us: delay.p99,
    };
    Way {
        way: way.to_owned(),
        hops: nodes.windows(2).zip(&delays.hops).map(hop).collect(),
        mean_us: delays.whole.mean,
        p99_us: delays.whole.p99,
    }
}

fn cores(datapath: &Datapath, when: &str, cells: f64, work: Work) -> Vec<Cores> {
    speeds(datapath)
        .into_iter()
        .map(|speed| Cores {
            when: when.to_owned(),
            datapath: speed.datapath,
            cells_per_second: cells,
            cores: speed.cores(cells, work),
            source: speed.source,
        })
        .collect()
}

/// By the port that is preferred: others are what it falls back to.
fn too_few_workers(load: &[Cores], workers: u16) -> Option<String> {
    let first = load.first()?;
    let heaviest = load
        .iter()
        .filter(|cores| cores.datapath == first.datapath && cores.cores > f64::from(workers))
        .max_by(|a, b| a.cores.total_cmp(&b.cores))?;
    Some(format!(
        "{}: {:.1} cores by {}, and worker.count is {workers}; raise it, or have fewer cells",
        heaviest.when, heaviest.cores, heaviest.datapath
    ))
}

/// What a client adds on top of what is planned.
fn extras(config: &ClientConfig) -> impl Iterator<Item = &'static str> {
    let machines = config.maybenot.is_some().then_some(
        "leakage: Maybenot machines send by the payload, and nothing bounds what that tells; bandwidth counts none of their cells",
    );
    let decoys = config.decoys.is_some().then_some(
        if config.cover == Cover::Circuit {
            "goodput: half as much while there is a decoy circuit, and each reserves the class's rate on the trunks once more"
        } else {
            "goodput: three quarters of it while a decoy circuit is busy, and each reserves the class's rate on the trunks \
             once more"
        },
    );
    machines.into_iter().chain(decoys)
}

fn notes() -> Vec<&'static str> {
    vec![
        "latency: what slots add, by trial, the path's own cover included; without wires, processing and other payload; a \
         worker sends at moments 8 µs apart, 32 µs where the kernel copies",
        "bandwidth, latency, cores: in the class that is named; circuits: in the trunk's slowest, steps for loss \
         included, and the clients' fastest",
        "bandwidth: handshakes, rekeys and control travel in the same slots and add nothing",
        "cores: what cells take; TUN, NAT and an exit's packets come on top, and poll = \"busy\" takes its cores whole",
        "leakage: of rates; that a node is on, and when, shows in any case. Of a link that the breaker stops, 17 bits come on \
         top, and one for each boundary that a node misses: the ledger in the status enters both",
    ]
}
