//! A defence, running: the three-hop network with a class for its client, or the tunnel without shaping.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use relay_tests::nodes::{Class, Layout, RELAYS, Status};
use relay_tests::{Host, Lab, Nodes};
use std::net::{Ipv4Addr, UdpSocket};

use super::{plain, servers};

/// Time for all nodes to become ready, and for the first packet to come through.
const PATIENCE: Duration = Duration::from_secs(60);

/// Cells per second of each of two clients that share a trunk.
pub(super) const SHARED_RATE: u32 = 800;

/// What stands between payload and wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Defence {
    /// Its name in tables and JSON.
    pub name: &'static str,
    /// The schedule of every link, by the word of the network document; `None` for the tunnel without shaping.
    pub schedule: Option<&'static str>,
    /// Its pattern, where it is one.
    pub pattern: Option<&'static str>,
    /// Maybenot machines run at the client, beyond the schedule.
    pub machines: bool,
}

/// A machine that answers each cell of payload with one more, 700 µs later.
const MACHINES: &str = "
[maybenot]
machines = [\"02eNply8EJACAMA8DExXQ0P+7pCC4gilYpbe8TEshcD66R8SUJkkDV+VTRWzEZ+OsG4gkO9w==\"]
max_padding_fraction = 0.5
guarantee = \"lost\"
";

impl Defence {
    /// The tunnel without shaping: what attacks must see through.
    pub const PLAIN: Self = Self { name: "plain", schedule: None, pattern: None, machines: false };

    /// A schedule of every link.
    pub const fn schedule(name: &'static str) -> Self {
        Self { name, schedule: Some(name), pattern: None, machines: false }
    }

    /// The schedule `pattern`, with an uneven one.
    pub const fn pattern() -> Self {
        Self { pattern: Some("[1, 1, 1, 5]"), ..Self::schedule("pattern") }
    }

    /// Machines on top of `jittered`: what the guarantee's loss costs.
    pub const fn maybenot() -> Self {
        Self { name: "maybenot", machines: true, ..Self::schedule("jittered") }
    }
}

/// What runs a worker in this lab.
pub const NODES: [Host; 4] = [Host::Client, Host::Entry, Host::Middle, Host::Exit];

/// Which processors workers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// The last ones, one each as far as they go, and nobody else's. One is left to everything else.
    Apart,
    /// The kernel's choice, among all threads there are.
    Shared,
    /// The last one, for the worker of this node. The others share the rest with everything else, and nothing that they
    /// send is judged.
    Alone(Host),
}

impl Cores {
    /// Which of `cpus` are for workers.
    pub(super) fn among(self, cpus: &[usize]) -> Vec<usize> {
        let wanted = match self {
            Self::Apart => NODES.len() + 1,
            Self::Shared => 0,
            Self::Alone(_) => 1,
        };
        cpus[cpus.len() - wanted.min(cpus.len().saturating_sub(1))..].to_vec()
    }

    /// By what a command says.
    pub fn of(shared: bool, alone: Option<&str>) -> Self {
        match NODES.into_iter().find(|node| Some(node.name()) == alone) {
            Some(node) => Self::Alone(node),
            None if shared => Self::Shared,
            None => Self::Apart,
        }
    }
}

/// The running tunnel.
#[derive(Debug)]
pub(super) struct Network<'a> {
    lab: &'a Lab,
    nodes: Option<Nodes<'a>>,
    alone: Option<Host>,
}

impl<'a> Network<'a> {
    /// Brings the defence up in `lab`, for these clients, with workers on `cpus` where some are given, or that of
    /// `alone` only, and waits until packets of each come through.
    ///
    /// # Errors
    /// Where it does not come up.
    pub(super) fn start(
        lab: &'a Lab,
        relay: &Path,
        defence: Defence,
        clients: &[Host],
        (cpus, alone): (&[usize], Option<Host>),
    ) -> Result<Self> {
        let nodes = match defence.schedule {
            None => {
                plain::lay(lab, clients).context("the tunnel without shaping cannot be laid")?;
                None
            }
            Some(schedule) => {
                let usual = Layout::default();
                // A trunk has room for one usual client, or for two slower ones.
                let rate = if clients.len() > 1 { SHARED_RATE } else { usual.client.rate };
                let pattern = defence.pattern;
                let client = Class { schedule, rate, pattern };
                // A trunk has to go like the clock that the defence is about, for the rows of trunks.
                let trunk = Class { schedule, pattern, ..usual.trunk };
                let client_tables = if defence.machines { MACHINES } else { "" };
                let pinned = alone.as_ref().map_or(usual.pinned, std::slice::from_ref);
                let layout = Layout { client, trunk, client_tables, cpus, pinned, ..usual };
                let mut nodes = Nodes::prepare_as(lab, relay, layout)?;
                for &host in RELAYS.iter().chain(clients) {
                    nodes.start(host)?;
                }
                nodes.wait_ready(PATIENCE)?;
                Some(nodes)
            }
        };
        let alone = alone.filter(|_| nodes.is_some());
        let mut network = Self { lab, nodes, alone };
        for &client in clients {
            network.wait_passable(client)?;
        }
        Ok(network)
    }

    /// Nodes that were started, once packets of the client come through.
    ///
    /// # Errors
    /// Where they do not become ready.
    pub(super) fn of(lab: &'a Lab, mut nodes: Nodes<'a>) -> Result<Self> {
        nodes.wait_ready(PATIENCE)?;
        let mut network = Self { lab, nodes: Some(nodes), alone: None };
        network.wait_passable(Host::Client)?;
        Ok(network)
    }

    fn wait_passable(&mut self, client: Host) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while ping(self.lab, client, Duration::from_millis(300))?.is_none() {
            self.check()?;
            ensure!(Instant::now() < until, "no packet comes through the tunnel");
        }
        Ok(())
    }

    /// Fails where a node has stopped by itself.
    ///
    /// # Errors
    /// Then.
    pub(super) fn check(&mut self) -> Result<()> {
        self.nodes.as_mut().map_or(Ok(()), Nodes::check_alive)
    }

    /// Whether what `host` sends is to be judged.
    pub(super) fn judges(&self, host: Host) -> bool {
        self.alone.is_none_or(|alone| alone == host)
    }

    /// Slots that the client and the relays missed so far, those that are judged.
    pub(super) fn missed_slots(&self) -> u64 {
        self.judged().map(|(_, status)| status.missed_slots).sum()
    }

    /// Of the moments at which cells of each node that is judged left so far, the share that its worker came late to.
    pub(super) fn late(&self) -> Vec<(&'static str, f64)> {
        let share = |status: &Status| status.late_ticks as f64 / status.ticks.max(1) as f64;
        self.judged().map(|(host, status)| (host.name(), share(&status))).collect()
    }

    /// The nodes that are judged and answer, and what they say.
    fn judged(&self) -> impl Iterator<Item = (Host, Status)> {
        let nodes = self.nodes.iter().flat_map(|nodes| NODES.map(|host| (nodes, host)));
        nodes
            .filter(|(_, host)| self.judges(*host))
            .filter_map(|(nodes, host)| nodes.status(host).ok().map(|status| (host, status)))
    }

    /// The client's interface into the tunnel.
    pub(super) fn interface(&self) -> &'static str {
        self.interface_of(Host::Client)
    }

    /// A client's interface into the tunnel.
    pub(super) fn interface_of(&self, client: Host) -> &'static str {
        match (&self.nodes, client) {
            (Some(_), _) => "ew0",
            (None, Host::Second) => plain::SECOND_INTERFACE,
            (None, _) => plain::INTERFACE,
        }
    }

    /// Round trips of `count` packets to the service and back, at random times, in milliseconds; lost ones are left
    /// out.
    ///
    /// # Errors
    /// Where no socket can be had, or nearly all packets are lost.
    pub(super) fn round_trips(&self, count: usize, mut pause: impl FnMut() -> Duration) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            std::thread::sleep(pause());
            if let Some(time) = ping(self.lab, Host::Client, Duration::from_millis(500))? {
                times.push(time.as_secs_f64() * 1e3);
            }
        }
        if times.len() * 2 < count {
            bail!("only {} of {count} packets came back", times.len());
        }
        Ok(times)
    }
}

/// Sends a packet to the service's call port and waits for its return.
fn ping(lab: &Lab, client: Host, patience: Duration) -> Result<Option<Duration>> {
    let service = Host::Service.address().context("the service has an address")?;
    lab.netns(client).run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(patience))?;
        let sent = Instant::now();
        // Until the tunnel's route is there, the network is unreachable.
        let echoed =
            socket.send_to(&[1; 64], (service, servers::VOICE)).and_then(|_| socket.recv_from(&mut [0; 128]));
        Ok(echoed.ok().map(|_| sent.elapsed()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_processor_is_left_to_programs() {
        let cpus = [0, 1, 2, 3, 4, 5, 6, 7];
        let of = |cores: Cores, count: usize| cores.among(&cpus[..count]);
        assert_eq!(
            of(Cores::Apart, 8),
            [3, 4, 5, 6, 7],
            "no more than there are nodes, with a second client"
        );
        assert_eq!(of(Cores::Apart, 4), [1, 2, 3]);
        assert_eq!(of(Cores::Apart, 2), [1]);
        assert_eq!(of(Cores::Alone(Host::Exit), 8), [7]);
        for (cores, count) in [(Cores::Apart, 1), (Cores::Shared, 8)] {
            assert_eq!(of(cores, count), [0_usize; 0]);
        }
    }
}
