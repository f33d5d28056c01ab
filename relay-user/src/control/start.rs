//! From a checked configuration to a running node.

use super::action::Outbox;
use super::builder::Builder;
use super::circuits::{Circuits, PathRelay};
use super::decoys::Decoys;
use super::links::{Identity, Links, Pace, Peer, Rates};
use super::node::{Node, Own, Part, StopRequests, runtime};
use super::path::{Neighbours, Path, Socket};
use super::plans;
use super::status::StatusSocket;
use crate::config::network::{Class, Relay};
use crate::config::{
    BindMode, BusyPoll, ClientConfig, ClientPolicy, ConfigError, Cover, Datapath, DatapathMode, HugePages,
    NetworkDocument, PollMode, Prefix, RelayConfig, Timestamp,
};
use crate::crypto::StaticKey;
use crate::edge::pool::PoolNetworks;
use crate::edge::routes::GuardedRoutes;
use crate::edge::{ClientEdge, ExitEdge, Offload};
use crate::engine::{Engine, Limits, Unwatched, Witness};
use crate::port::{AfXdpPort, Handshakes, Port, PortMode, UdpPort};
use crate::rates::Epochs;
use crate::steering::{AttachMode, Steering};
use crate::worker::{Clock, NodeEdge, Poll, Seat, Workers, frames_for_events, leave_to_workers};
use crate::xsk::{self, Arena, BindRequest, SocketConfig};
use anyhow::{Context, Result, bail};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use relay_common::classify::Ports;
use relay_common::wire::MAX_HOPS;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

/// Handshake datagrams that may wait for the control plane.
const HANDSHAKES: usize = 256;

/// Runs a relay until it is told to stop.
///
/// # Errors
/// What kept it from starting, or why its worker ended.
pub fn run_relay(config: RelayConfig) -> Result<()> {
    run_watched_relay(config, |_| Unwatched)
}

/// As [`run_relay`], with a witness looking on at each worker. It is a part of the program that calls this, and of no
/// other: what `relay` runs is [`run_relay`].
///
/// # Errors
/// As [`run_relay`].
pub fn run_watched_relay<W: Witness>(config: RelayConfig, witness: impl Fn(Clock) -> W) -> Result<()> {
    let key = StaticKey::load(&config.key)?;
    let network = config.load_network(Timestamp::from(SystemTime::now()))?;
    let me = config.find_in(&network, &key)?.clone();
    runtime()?.block_on(relay(config, key, network, me, witness))
}

/// Runs a client until it is told to stop.
///
/// # Errors
/// What kept it from starting, or why its worker ended.
pub fn run_client(config: ClientConfig) -> Result<()> {
    let network = config.load_network(Timestamp::from(SystemTime::now()))?;
    config.check_against(&network)?;
    runtime()?.block_on(client(config, network))
}

async fn relay<W: Witness>(
    config: RelayConfig,
    key: StaticKey,
    network: NetworkDocument,
    me: Relay,
    witness: impl Fn(Clock) -> W,
) -> Result<()> {
    leave_to_workers(&config.worker.cpus).context("worker.cpus")?;
    let requests = StopRequests::listen()?;
    let status = bind_status(&config.control.socket)?;
    let clock = Clock::start();
    let mut rng = system_rng()?;
    let mut limits = Limits { exit: config.exit.is_some(), ..Limits::default() };
    // A fill ring has a quarter of the frames at most.
    let frames = config.datapath.frames as usize;
    (limits.events, limits.waiting) = (frames_for_events(frames), frames / 2);
    let clients = Arc::new(plans::of_clients(&config.network, &network, ClientPolicy::Adaptive)?);
    let rates = rates(&network, clock, &mut rng);
    limits.spare = rates.spare(&clients);
    let port = me.address.port();

    let workers = config.worker.count;
    let ports = network.ports(&me.name);
    let datapath = open_datapath(&config.datapath, me.address, ports, workers).await?;
    let edges = match &config.exit {
        Some(exit) => {
            let networks = pool_networks(exit.pool4, exit.pool6)?;
            let (circuits, count) = (limits.circuits as usize, u32::from(workers));
            ExitEdge::open_many(&exit.tun, &exit.outside, networks, circuits, count, Offload::Auto)?
                .into_iter()
                .map(|edge| {
                    let edge = edge.with_porter().context("the thread of the TUN")?;
                    Ok(NodeEdge::exit(edge, limits.circuits, ChaCha20Rng::from_rng(&mut rng)))
                })
                .collect::<Result<_>>()?
        }
        None => std::iter::repeat_with(|| NodeEdge::None).take(workers.into()).collect(),
    };
    let peers = trunk_peers(&network, &me)?;
    let policy = clients.policy.name();
    let identity = Identity::new(me.id, key, port, clients, clock.now(), &mut rng);
    let links = Links::new(network.suite, Some(identity), peers, limits.links, workers, rates);
    let circuits = Circuits::new(me.id, network.suite, limits.circuits, limits.exit, workers);
    let OpenDatapath { arena, queues, mode, steering, socket, neighbours, local } = datapath;
    let witness = || witness(clock);
    let workers = queues.start(limits, edges, arena, clock, &config.worker, witness)?;
    log::info!("relay {} runs with {} workers", me.name, workers.count());
    let out = Outbox::new(arena);
    let node = Node {
        name: me.name,
        clock,
        rng,
        links,
        part: Part::Relay(circuits),
        out,
        workers,
        mode,
        steering,
        path: Path::new(socket, local),
        neighbours,
        status,
        policy,
        kernel_path: 0,
        breaches_logged: 0,
    };
    node.run(requests).await
}

async fn client(config: ClientConfig, network: NetworkDocument) -> Result<()> {
    leave_to_workers(&config.worker.cpus).context("worker.cpus")?;
    let requests = StopRequests::listen()?;
    let status = bind_status(&config.control.socket)?;
    let clock = Clock::start();
    let mut rng = system_rng()?;
    let wanted = config.policy.unwrap_or(ClientPolicy::Scheduled);
    let plan = Arc::new(plans::of_clients(&config.network, &network, wanted)?);
    let policy = plan.policy.name();
    let path = client_path(&config, &network)?;
    let entry = network.relay_by_id(&path[0].id).context("the entry is in the document")?;
    let peers = vec![Peer {
        name: entry.name.clone(),
        id: entry.id,
        public: entry.key,
        address: entry.address,
        lane: 0,
        plan,
        initiates: true,
    }];
    let listen = config.datapath.listen.unwrap_or_else(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
    let datapath = open_datapath(&config.datapath, listen, 1, 1).await?;
    let tun = ClientEdge::open(&config.tun.name, Offload::Auto)?;
    let tun = tun.with_porter().context("the thread of the TUN")?;
    let prefixes: Vec<(IpAddr, u8)> =
        config.tun.routes.iter().map(|route| (route.address(), route.prefix_len())).collect();
    let routes = GuardedRoutes::install(tun.tun().index(), &prefixes).await?;

    let waiting = config.datapath.frames as usize / 2;
    let limits = Limits { links: 16, circuits: 16, waiting, ..Limits::default() };
    let rates = rates(&network, clock, &mut rng);
    let mut links = Links::new(network.suite, None, peers, limits.links, 1, rates);
    if let Some(maybenot) = config.maybenot {
        log::warn!("Maybenot machines run: what leaves no longer is the same with and without payload");
        links.run_machines(maybenot);
    }
    let covered = config.cover == Cover::Circuit;
    let decoys = config.decoys.map(|plan| {
        let paths = network.paths().filter(|path| path[0].name == entry.name).map(path_relays).collect();
        Decoys::new(plan, paths, network.suite, covered, clock.now(), &mut rng)
    });
    let builder = Builder::new(path, network.suite, covered);
    let OpenDatapath { arena, queues, mode, steering, socket, neighbours, local } = datapath;
    let edges = vec![NodeEdge::client(tun)];
    let workers = queues.start(limits, edges, arena, clock, &config.worker, || Unwatched)?;
    let out = Outbox::new(arena);
    let node = Node {
        name: "client".to_owned(),
        clock,
        rng,
        links,
        part: Part::Client(Box::new(Own { builder, decoys })),
        out,
        workers,
        mode,
        steering,
        path: Path::new(socket, local),
        neighbours,
        status,
        policy,
        kernel_path: 0,
        breaches_logged: 0,
    };
    let ended = node.run(requests).await;
    // Last: until here, packets without a tunnel met the guard and not the open network.
    routes.remove().await?;
    ended
}

/// The ports and what belongs to them, before the workers have them.
struct OpenDatapath {
    arena: &'static Arena,
    queues: Queues,
    mode: PortMode,
    steering: Option<Steering>,
    socket: Socket,
    neighbours: Option<Neighbours>,
    local: SocketAddr,
}

/// One port for each worker.
enum Queues {
    AfXdp(Vec<AfXdpPort>),
    Udp(Box<UdpPort>),
}

impl Queues {
    fn start<W: Witness>(
        self,
        limits: Limits,
        edges: Vec<NodeEdge>,
        arena: &'static Arena,
        clock: Clock,
        config: &crate::config::Worker,
        witness: impl Fn() -> W,
    ) -> Result<Workers> {
        let mut rng = system_rng()?;
        let poll = match config.poll {
            PollMode::Adaptive => Poll::Adaptive,
            PollMode::Busy => Poll::Busy,
        };
        match self {
            Self::AfXdp(mut ports) => {
                if poll == Poll::Busy && config.busy_poll == BusyPoll::Auto {
                    ports.iter_mut().for_each(AfXdpPort::prefer_busy_poll);
                }
                Workers::start(seats(ports, edges, limits, config, witness, &mut rng), arena, clock, poll)
            }
            Self::Udp(port) => Workers::start(
                seats(vec![*port], edges, limits, config, witness, &mut rng),
                arena,
                clock,
                poll,
            ),
        }
        .context("the worker threads")
    }
}

fn seats<P: Port, W: Witness>(
    ports: Vec<P>,
    edges: Vec<NodeEdge>,
    limits: Limits,
    config: &crate::config::Worker,
    witness: impl Fn() -> W,
    rng: &mut ChaCha20Rng,
) -> Vec<Seat<P, W>> {
    let count = ports.len().max(1);
    // The frames that may wait are the node's.
    let limits = Limits { waiting: limits.waiting / count, events: limits.events / count, ..limits };
    ports
        .into_iter()
        .zip(edges)
        .enumerate()
        .map(|(number, (port, edge))| Seat {
            engine: Engine::watched(limits, witness()),
            port,
            edge,
            cpu: config.cpus.get(number).copied(),
            rng: ChaCha20Rng::from_rng(rng),
        })
        .collect()
}

/// `local` is the address of lane 0, `ports` how many UDP ports there are from its on.
async fn open_datapath(
    config: &Datapath,
    local: SocketAddr,
    ports: u16,
    workers: u16,
) -> Result<OpenDatapath> {
    let attach = match config.mode {
        DatapathMode::Udp => return open_udp(config, local),
        DatapathMode::Auto => AttachMode::Auto,
        DatapathMode::Native => AttachMode::Native,
        DatapathMode::Generic => AttachMode::Generic,
    };
    match open_afxdp(config, local, ports, workers, attach).await {
        Err(error) if config.mode == DatapathMode::Auto && workers == 1 && ports == 1 => {
            log::warn!("no AF_XDP, cells take UDP sockets instead: {error:#}");
            open_udp(config, local)
        }
        other => other,
    }
}

async fn open_afxdp(
    config: &Datapath,
    local: SocketAddr,
    ports: u16,
    workers: u16,
    attach: AttachMode,
) -> Result<OpenDatapath> {
    let interface = config
        .interface
        .as_deref()
        .context("datapath.interface: AF_XDP needs one; name it, or set datapath.mode = \"udp\"")?;
    let bind = match config.bind {
        BindMode::Auto => BindRequest::Auto,
        BindMode::Copy => BindRequest::Copy,
        BindMode::ZeroCopy => BindRequest::ZeroCopy,
    };
    // The program logs only where somebody asked to see it: RUST_LOG=debug.
    let log = log::log_enabled!(log::Level::Debug);
    let mut steering =
        Steering::attach_with_log(interface, attach, Ports { first: local.port(), count: ports }, log)?;
    let mut sockets = Vec::with_capacity(ports.into());
    for lane in 0..ports {
        let mut at = local;
        at.set_port(local.port() + lane);
        let socket = tokio::net::UdpSocket::bind(at).await;
        sockets
            .push(socket.with_context(|| format!("UDP port {}: is another relay running here?", at.port()))?);
    }
    let neighbours = Neighbours::new(interface).await?;
    // Behind what fails where there is no XDP: an arena is never freed.
    let arena = frames(config, config.huge_pages)?;
    let mut opened: Vec<AfXdpPort> = Vec::with_capacity(workers.into());
    for queue in 0..workers.into() {
        let request = SocketConfig { interface: interface.to_owned(), queue, ring: config.ring, bind };
        let served = Ports { first: local.port(), count: ports };
        let mut port = AfXdpPort::open(arena, &request, served, opened.first())?;
        port.steer(&mut steering)?;
        opened.push(port);
    }
    let mode = opened.first().context("a relay has a worker")?.mode();
    log::info!("cells go over {interface} by AF_XDP, {}", mode.bind.name());
    Ok(OpenDatapath {
        arena,
        queues: Queues::AfXdp(opened),
        mode,
        steering: Some(steering),
        socket: Socket::Own(sockets),
        neighbours: Some(neighbours),
        local,
    })
}

fn frames(config: &Datapath, pages: HugePages) -> Result<&'static Arena> {
    let wanted = match pages {
        HugePages::Auto => xsk::HugePages::Auto,
        HugePages::Off => xsk::HugePages::Off,
        HugePages::Require => xsk::HugePages::Require,
    };
    let arena = Arena::in_pages(config.frames, wanted).context("memory for datapath.frames")?;
    log::info!("{} frames are in {}", config.frames, arena.pages().name());
    Ok(arena)
}

fn open_udp(config: &Datapath, local: SocketAddr) -> Result<OpenDatapath> {
    // The kernel copies in any case, and a client touches few of its frames: they are made when they are touched.
    let pages = if config.huge_pages == HugePages::Require { HugePages::Require } else { HugePages::Off };
    let arena = frames(config, pages)?;
    let socket = std::net::UdpSocket::bind(local)
        .with_context(|| format!("UDP port {}: is another relay or client using it?", local.port()))?;
    let (arrived, to_control_plane) = crossbeam::channel::bounded(HANDSHAKES);
    let (from_control_plane, leaving) = crossbeam::channel::bounded(HANDSHAKES);
    let port = UdpPort::new(socket, Some(Handshakes { arrived, leaving }))?;
    let local = port.local_address()?;
    Ok(OpenDatapath {
        arena,
        mode: port.mode(),
        socket: Socket::Shared { arrived: to_control_plane, leaving: from_control_plane },
        queues: Queues::Udp(Box::new(port)),
        steering: None,
        neighbours: None,
        local,
    })
}

fn bind_status(path: &std::path::Path) -> Result<StatusSocket> {
    StatusSocket::bind(path).with_context(|| {
        format!("control.socket {}: cannot listen; is the node running already?", path.display())
    })
}

fn system_rng() -> Result<ChaCha20Rng> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).ok().context("the system's random generator")?;
    Ok(ChaCha20Rng::from_seed(seed))
}

const fn pace(class: &Class) -> Pace {
    Pace { law: class.schedule, rate: class.rate }
}

/// What links need to know of classes.
fn rates(network: &NetworkDocument, clock: Clock, rng: &mut ChaCha20Rng) -> Rates {
    let paces = network.classes.values().map(pace).collect();
    let mut key = [0; 16];
    rng.fill_bytes(&mut key);
    Rates::new(paces, Epochs::new(network.epoch_seconds), SystemTime::now().into(), clock.now(), key)
}

fn trunk_peers(network: &NetworkDocument, me: &Relay) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for trunk in &network.trunks {
        let [one, other] = &trunk.between;
        let (name, initiates) = match (*one == me.name, *other == me.name) {
            (true, _) => (other, true),
            (_, true) => (one, false),
            _ => continue,
        };
        let peer = network.relay(name).context("a trunk joins relays of the document")?;
        let plan = Arc::new(plans::of_trunk(network, trunk)?);
        for lane in 0..trunk.lanes {
            let mut address = peer.address;
            address.set_port(address.port() + lane);
            peers.push(Peer {
                name: peer.name.clone(),
                id: peer.id,
                public: peer.key,
                address,
                lane,
                plan: Arc::clone(&plan),
                initiates,
            });
        }
    }
    Ok(peers)
}

/// The relays of a client's circuits.
fn client_path(config: &ClientConfig, network: &NetworkDocument) -> Result<Vec<PathRelay>, ConfigError> {
    Ok(path_relays(config.path_in(network)?))
}

fn path_relays(path: [&Relay; MAX_HOPS]) -> Vec<PathRelay> {
    let of = |relay: &Relay| PathRelay { name: relay.name.clone(), id: relay.id, public: relay.key };
    path.map(of).to_vec()
}

fn pool_networks(pool4: Prefix, pool6: Prefix) -> Result<PoolNetworks> {
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (pool4.address(), pool6.address()) else {
        bail!("exit.pool4 and exit.pool6 must be of their IP versions");
    };
    Ok(PoolNetworks::new((v4, pool4.prefix_len()), (v6, pool6.prefix_len()))?)
}
