//! The relay under test: the real engine on real workers, at one end of the rig. All use of the relay's own set-up is
//! here.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use relay_user::engine::{Command, DropReason, Engine, Event, Limits};
use relay_user::port::{AfXdpPort, UdpPort};
use relay_user::steering::Steering;
use relay_user::worker::{Clock, Poll, Report, ToWorker, Totals, Worker};
use relay_user::xsk::FramePool;

use super::metered::{Meter, Sample};
use crate::cells::Pair;
use crate::rig::{Cores, End, Rig, UDP_PORT, seat};

/// Pairs of links of a worker: enough that the engine's highest rate per link is never what bounds it.
pub(super) const PAIRS: u32 = 4;
/// Frames that a worker's pool keeps at hand.
const STOCK: usize = 1024;
/// Time that the circuits get to come up.
const PATIENCE: Duration = Duration::from_secs(5);

/// How datagrams get to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortKind {
    /// AF_XDP behind the project's XDP program.
    Xdp,
    /// A UDP socket behind the kernel's network stack.
    Udp,
}

/// A relay with one worker per queue.
pub(super) struct Subject {
    // Detached before the workers close their sockets.
    _steering: Option<Steering>,
    workers: Vec<(Worker, Meter)>,
    runtime: tokio::runtime::Runtime,
    clock: Clock,
}

impl Subject {
    /// Starts a relay of `workers` workers without links; each has a core of its own.
    ///
    /// # Errors
    /// Where the kernel refuses a socket, or there are too few cores.
    pub(super) fn start(rig: &Rig, kind: PortKind, workers: u32) -> Result<Self> {
        let mut steering = match kind {
            PortKind::Xdp => Some(rig.steering(End::Relay)?),
            PortKind::Udp => None,
        };
        let cores = Cores::available();
        let (arena, clock) = (End::Relay.arena()?, Clock::start());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let ports = open_ports(rig, kind, workers, steering.as_mut())?;
        let mut started = Vec::new();
        for (number, port) in ports.into_iter().enumerate() {
            let cpu = cores.worker(number).context("a worker without a core of its own")?;
            let limits =
                Limits { links: 2 * PAIRS * workers, circuits: PAIRS * workers, ..Limits::default() };
            let (engine, meter) = (Engine::new(limits), Meter::default());
            let pool = FramePool::new(arena, STOCK);
            let worker = match port {
                AnyPort::Xdp(port) => {
                    Worker::start(seat(engine, meter.around(*port), cpu), pool, clock, Poll::Busy)
                }
                AnyPort::Udp(port) => {
                    Worker::start(seat(engine, meter.around(*port), cpu), pool, clock, Poll::Busy)
                }
            };
            started.push((worker.context("a worker does not start")?, meter));
        }
        if let Some(steering) = &mut steering {
            for (queue, pair) in pairs(workers) {
                for link in pair.links() {
                    steering.set_session(&End::Relay.session(Pair::index_at_relay(link), queue))?;
                }
            }
        }
        Ok(Self { _steering: steering, workers: started, runtime, clock })
    }

    /// Number of workers.
    pub(super) fn workers(&self) -> u32 {
        u32::try_from(self.workers.len()).unwrap_or(u32::MAX)
    }

    /// Sets up the links and circuits of `pair` on `worker`, `rate` slots per second towards the exit. EXTEND must come
    /// next, and [`Self::finish`] after it.
    ///
    /// # Errors
    /// Where the worker takes no commands.
    pub(super) fn connect(&self, worker: u32, pair: Pair, rate: u32) -> Result<()> {
        for link in pair.links() {
            self.tell(worker, ToWorker::SetPeer { link, peer: Some(End::Relay.peer()) })?;
        }
        let source = SocketAddr::V4(End::Loader.address());
        for command in pair.commands(rate, source, self.clock.now()) {
            self.tell(worker, ToWorker::Engine(command))?;
        }
        Ok(())
    }

    /// Answers the EXTENDs of all pairs of `worker`, so that their circuits carry cells.
    ///
    /// # Errors
    /// Where they do not arrive within 5 s.
    pub(super) fn finish(&self, worker: u32) -> Result<()> {
        let (handle, _) = self.worker(worker)?;
        for _ in 0..PAIRS {
            let event = self.runtime.block_on(async {
                tokio::time::timeout(PATIENCE, async {
                    loop {
                        if let Report::Engine(Event::Extend { circuit, frame, .. }) = handle.event().await {
                            return (circuit, frame);
                        }
                    }
                })
                .await
            });
            let (circuit, frame) = event.context("no EXTEND reached the relay")?;
            let extend = Command::Extend { circuit, ahead: Pair(circuit).ahead(), frame };
            self.tell(worker, ToWorker::Engine(extend))?;
        }
        Ok(())
    }

    fn tell(&self, worker: u32, command: ToWorker) -> Result<()> {
        Ok(self.worker(worker)?.0.tell(command)?)
    }

    fn worker(&self, worker: u32) -> Result<&(Worker, Meter)> {
        self.workers.get(worker as usize).with_context(|| format!("there is no worker {worker}"))
    }

    /// The workers' totals now, added up.
    ///
    /// # Errors
    /// Where a worker stands still.
    pub(super) fn sample(&self) -> Result<Sample> {
        let mut sum = Sample::default();
        for (_, meter) in &self.workers {
            let sample = meter.sample()?;
            sum.cpu += sample.cpu;
            sum.turns += sample.turns;
            sum.idle += sample.idle;
            sum.port.rx += sample.port.rx;
            sum.port.tx += sample.port.tx;
            sum.port.kicks += sample.port.kicks;
            sum.port.tx_lost += sample.port.tx_lost;
            sum.port.tx_full += sample.port.tx_full;
            sum.port.invalid += sample.port.invalid;
            sum.port.rx_dropped += sample.port.rx_dropped;
            sum.port.rx_ring_full += sample.port.rx_ring_full;
        }
        Ok(sum)
    }

    /// What the engines counted, added up, at the last time that each published it.
    pub(super) fn published(&self) -> EngineTotals {
        let mut sum = EngineTotals::default();
        for (worker, _) in &self.workers {
            let Totals { engine, .. } = worker.totals();
            sum.received += engine.received;
            sum.sent += engine.sent;
            sum.missed += engine.missed_slots;
            sum.dropped += DropReason::ALL.iter().map(|reason| engine.dropped(*reason)).sum::<u64>();
        }
        sum
    }
}

/// Totals of all engines, in cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EngineTotals {
    /// Authenticated.
    pub(super) received: u64,
    /// Handed to the port.
    pub(super) sent: u64,
    /// Slots that were missed.
    pub(super) missed: u64,
    /// Dropped, or not made, for whatever reason.
    pub(super) dropped: u64,
}

/// The pairs of a relay of `workers` workers, each with the queue, and so the worker, that it belongs to.
pub(super) fn pairs(workers: u32) -> impl Iterator<Item = (u32, Pair)> {
    (0..workers * PAIRS).map(|number| (number / PAIRS, Pair(number)))
}

enum AnyPort {
    Xdp(Box<AfXdpPort>),
    Udp(Box<UdpPort>),
}

fn open_ports(
    rig: &Rig,
    kind: PortKind,
    workers: u32,
    mut steering: Option<&mut Steering>,
) -> Result<Vec<AnyPort>> {
    let _inside = rig.enter(End::Relay)?;
    if kind == PortKind::Udp {
        if workers != 1 {
            bail!("one UDP socket has one worker");
        }
        let socket = UdpSocket::bind(End::Relay.address()).context("the relay's UDP socket")?;
        return Ok(vec![AnyPort::Udp(Box::new(UdpPort::new(socket, None)?))]);
    }
    let mut ports: Vec<Box<AfXdpPort>> = Vec::new();
    for queue in 0..workers {
        let share = ports.first().map(|port| &**port);
        let mut port = AfXdpPort::open(End::Relay.arena()?, &Rig::socket_config(queue), UDP_PORT, share)?;
        if let Some(steering) = steering.as_deref_mut() {
            port.steer(steering)?;
        }
        ports.push(Box::new(port));
    }
    Ok(ports.into_iter().map(AnyPort::Xdp).collect())
}
