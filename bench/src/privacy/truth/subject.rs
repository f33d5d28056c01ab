//! The relay that is measured: links and circuits are there before its worker starts.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crossbeam::channel::{Receiver, bounded};
use relay_user::engine::time::Nanos;
use relay_user::engine::{Command, DropReason, Engine, Event, Limits, NoEdge, blank_cell};
use relay_user::port::{AfXdpPort, Port as _};
use relay_user::steering::Steering;
use relay_user::worker::{Clock, Totals, Worker};
use relay_user::xsk::FramePool;

use super::neighbours::first_cell;
use super::port::{Leak, Note, Noting};
use super::{HEAD_START, Plan, WARM_UP};
use crate::cells::{Downstream, Pair};
use crate::rig::{End, Rig, UDP_PORT, seat};

/// Frames that the worker's pool keeps at hand.
const STOCK: usize = 1024;
/// Longest time that the notes may take to come.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running relay.
pub(super) struct Subject {
    worker: Worker,
    // Detached after the worker has closed its socket, which only drops what is then still on its way.
    _steering: Steering,
    clock: Clock,
    window: (Nanos, Nanos),
    notes: Receiver<Vec<Note>>,
}

impl Subject {
    /// Starts the relay on `cpu`. Its slots begin within a period of the window's first instant.
    ///
    /// # Errors
    /// Where the kernel refuses program or socket, or a circuit does not come up.
    pub(super) fn start(rig: &Rig, plan: &Plan, cpu: usize) -> Result<Self> {
        let clock = Clock::start();
        let arena = End::Relay.arena()?;
        let mut pool = FramePool::new(arena, STOCK);
        let mut steering = rig.steering(End::Relay)?;
        let mut port = {
            let _inside = rig.enter(End::Relay)?;
            let mut port = AfXdpPort::open(arena, &Rig::socket_config(0), UDP_PORT, None)?;
            port.steer(&mut steering)?;
            port
        };
        let limits = Limits { links: 2 * plan.links, circuits: plan.links, ..Limits::default() };
        let mut engine = Engine::new(limits);
        let source = SocketAddr::V4(End::Loader.address());
        // Setting a circuit up takes less than a tenth of a millisecond.
        let now = clock.now();
        let start = now + HEAD_START + Nanos(u64::from(plan.links) * 100 * Nanos::MICROSECOND.0);
        for pair in (0..plan.links).map(Pair) {
            for link in pair.links() {
                steering.set_session(&End::Relay.session(Pair::index_at_relay(link), 0))?;
                port.set_peer(link, Some(End::Relay.peer()));
            }
            for command in pair.commands_with(plan.law, plan.rate, source, start, now) {
                engine.apply(command, &mut NoEdge, now);
            }
            build(&mut engine, pair, source, &mut pool, now)?;
        }
        let leak = (!plan.planted.is_zero()).then(|| Leak {
            keys: (0..plan.links).map(|pair| Downstream::new(Pair(pair))).collect(),
            delay: Nanos(u64::try_from(plan.planted.as_nanos()).unwrap_or(u64::MAX)),
        });
        let until = start + WARM_UP + plan.span();
        let each_second = u64::from(plan.rate) * u64::from(plan.links);
        let room = each_second * (until.since(start) + WARM_UP).0 / Nanos::SECOND.0;
        let (handover, notes) = bounded(1);
        let port = Noting::new(port, clock, leak, usize::try_from(room)?, handover);
        let worker = Worker::start(seat(engine, port, cpu), pool, clock, plan.poll)
            .context("the worker does not start")?;
        ensure!(clock.now() < start, "the machine is too busy to set {} circuits up", plan.links);
        Ok(Self { worker, _steering: steering, clock, window: (start, until), notes })
    }

    /// Its clock.
    pub(super) const fn clock(&self) -> Clock {
        self.clock
    }

    /// When slots begin, and when cells count no longer.
    pub(super) const fn window(&self) -> (Nanos, Nanos) {
        self.window
    }

    /// Ends the worker: what it sent, and its totals.
    ///
    /// # Errors
    /// Where it keeps its notes, or dropped cells that it did not understand.
    pub(super) fn finish(mut self) -> Result<(Vec<Note>, Totals)> {
        let totals = self.worker.totals();
        self.worker.stop();
        let notes = self.notes.recv_timeout(PATIENCE).context("the worker kept its notes")?;
        // A queue that overflows after an interruption is to be expected; that a cell was not understood is not.
        let expected = [DropReason::QueueFull, DropReason::NoFrame, DropReason::PortRefused];
        for reason in DropReason::ALL.iter().filter(|reason| !expected.contains(reason)) {
            let dropped = totals.engine.dropped(*reason);
            ensure!(dropped == 0, "the relay dropped {dropped} cells: {}", reason.name());
        }
        Ok((notes, totals))
    }
}

/// Brings a pair's circuit up, as the first cell of its client would.
fn build(
    engine: &mut Engine,
    pair: Pair,
    source: SocketAddr,
    pool: &mut FramePool,
    now: Nanos,
) -> Result<()> {
    let mut frame = pool.take().context("no frame for a circuit's first cell")?;
    first_cell(pair, blank_cell(&mut frame).context("a frame without room for a cell")?);
    engine.receive(frame, source, &mut NoEdge, now);
    while let Some(event) = engine.pop_event() {
        if let Event::Extend { circuit, frame, .. } = event {
            engine.apply(Command::Extend { circuit, ahead: pair.ahead(), frame }, &mut NoEdge, now);
            return Ok(());
        }
    }
    anyhow::bail!("circuit {} did not ask to be extended", pair.circuit())
}
