//! One node's control plane: events, datagrams, timers and readers come in here and nowhere else.

use super::action::{Action, Outbox, Refusal};
use super::builder::Builder;
use super::circuits::Circuits;
use super::decoys::Decoys;
use super::links::Links;
use super::path::{Neighbours, Path};
use super::status::{LinkStatus, QueueStatus, RatesStatus, Status, StatusSocket, answer};
use crate::engine::time::Nanos;
use crate::engine::{DropReason, Event};
use crate::observe::live::{AuditState, Breach};
use crate::port::PortMode;
use crate::steering::Steering;
use crate::worker::{Clock, Report, ToWorker, Totals, Workers};
use anyhow::{Context, Result};
use rand_chacha::ChaCha20Rng;
use relay_common::abi::{Counter, SessionEntry};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often timers are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How long a clean stop waits for DESTROY to leave.
const FAREWELL: Duration = Duration::from_millis(100);

/// What a node is besides its links.
pub(super) enum Part {
    /// Carries circuits for others.
    Relay(Circuits),
    /// Keeps one circuit of its own.
    Client(Box<Own>),
}

/// The circuits that a client keeps.
pub(super) struct Own {
    pub(super) builder: Builder,
    pub(super) decoys: Option<Decoys>,
}

impl Own {
    /// Every circuit under way; each knows which events are its own.
    fn builders(&mut self) -> impl Iterator<Item = &mut Builder> {
        let decoy = self.decoys.as_mut().and_then(Decoys::builder);
        std::iter::once(&mut self.builder).chain(decoy)
    }
}

/// SIGTERM and SIGINT. Listened for before a node makes anything that it must take back: one that comes while it starts
/// waits for [`Node::run`].
pub(super) struct StopRequests {
    terminate: Signal,
    interrupt: Signal,
}

impl StopRequests {
    pub(super) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Everything that a running node owns.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) clock: Clock,
    pub(super) rng: ChaCha20Rng,
    pub(super) links: Links,
    pub(super) part: Part,
    pub(super) out: Outbox,
    pub(super) workers: Workers,
    pub(super) mode: PortMode,
    pub(super) steering: Option<Steering>,
    pub(super) path: Path,
    pub(super) neighbours: Option<Neighbours>,
    pub(super) status: StatusSocket,
    /// How clients' links come by their classes.
    pub(super) policy: &'static str,
    /// Cells that came to the kernel's socket instead of the worker.
    pub(super) kernel_path: u64,
    /// Breaches of the self-audit that the log has.
    pub(super) breaches_logged: u64,
}

impl Node {
    /// Runs until SIGTERM or SIGINT, or until the worker ends by itself.
    pub(super) async fn run(mut self, mut requests: StopRequests) -> Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ended = loop {
            tokio::select! {
                report = self.workers.report() => match report {
                    Report::Engine(event) => self.on_event(event),
                    Report::Unowned { receive_index, worker } => {
                        self.links.on_unowned(receive_index, worker, &mut self.rng, &mut self.out);
                    }
                },
                datagram = self.path.receive() => self.on_datagram(datagram),
                news = Path::news(&mut self.neighbours) => {
                    self.path.on_news(news, self.neighbours.as_ref(), &self.workers);
                }
                stream = self.status.accept() => {
                    if let Ok(stream) = stream {
                        tokio::spawn(answer(stream, self.report()));
                    }
                }
                _ = tick.tick() => {
                    self.on_tick();
                    if !self.workers.are_alive() {
                        break Err(anyhow::anyhow!("a worker ended by itself; see the log above"));
                    }
                }
                () = requests.next() => break Ok(()),
            }
            self.act();
        };
        self.stop().await;
        ended
    }

    async fn stop(&mut self) {
        log::info!("stopping");
        match &mut self.part {
            Part::Relay(circuits) => circuits.close_all(&mut self.out),
            Part::Client(own) => own.builders().for_each(|builder| builder.close(&mut self.out)),
        }
        self.act();
        tokio::time::sleep(FAREWELL).await;
        self.links.close_all(&mut self.out);
        self.act();
        // In this order: a program without a socket behind it would drop what the kernel still answers for.
        if let Some(steering) = self.steering.take() {
            steering.detach();
        }
        self.workers.stop();
    }

    fn on_tick(&mut self) {
        let now = self.clock.now();
        self.links.rates.on_clock(SystemTime::now().into(), now);
        self.links.on_tick(now, &mut self.rng, &mut self.out);
        match &mut self.part {
            Part::Relay(circuits) => circuits.on_tick(now, &mut self.out),
            Part::Client(own) => {
                let (mut last, mut last_of_decoys) = (Nanos(0), Nanos(0));
                for totals in self.workers.totals() {
                    last = last.max(totals.last_delivery);
                    last_of_decoys = last_of_decoys.max(totals.last_of_decoys);
                    self.links.rates.on_payload(totals.payload, now);
                }
                own.builder.on_tick(now, last, &self.links, &mut self.rng, &mut self.out);
                if let Some(decoys) = &mut own.decoys {
                    decoys.on_tick(now, last_of_decoys, &self.links, &mut self.rng, &mut self.out);
                }
            }
        }
        if let Some(steering) = &mut self.steering {
            steering.flush_log();
        }
        self.log_breaches();
    }

    fn audit(&self) -> AuditState {
        self.workers.totals().fold(AuditState::default(), |all, totals| all.join(totals.audit))
    }

    fn log_breaches(&mut self) {
        let AuditState { breaches, last, .. } = self.audit();
        if breaches > self.breaches_logged
            && let Some((_, Breach { statistic, at_least })) = last
        {
            self.breaches_logged = breaches;
            log::error!(
                "self-audit: the times at which cells leave tell payload from cover ({} of {at_least} or more, {breaches} \
                 times since start): an observer could tell when this node is used; look for what delays one kind of \
                 cell, such as a device's driver or another program on the worker's processor",
                statistic.name()
            );
        }
    }

    fn on_datagram(&mut self, (bytes, source, lane): (Vec<u8>, SocketAddr, u16)) {
        if bytes.first() == Some(&(relay_common::wire::DatagramType::Cell as u8)) {
            self.kernel_path += 1;
            return;
        }
        let now = self.clock.now();
        self.links.on_datagram(&bytes, source, lane, now, &mut self.rng, &mut self.out);
    }

    fn on_event(&mut self, event: Event) {
        let now = self.clock.now();
        let (links, rng, out) = (&mut self.links, &mut self.rng, &mut self.out);
        match (event, &mut self.part) {
            (Event::SessionConfirmed { link, receive_index }, _) => {
                links.on_confirmed(link, receive_index, now, out);
            }
            (Event::LinkSilent { link }, _) => links.on_silent(link, now, out),
            (Event::LinkControl { link, command, frame }, _) => {
                links.on_link_control(link, command, frame, now, rng, out);
            }
            (Event::Create { back, seq, frame }, Part::Relay(circuits)) => match links.identity() {
                Some(identity) => circuits.on_create(back, seq, frame, &identity.key, links, out),
                None => out.refuse(Refusal::Unexpected),
            },
            (Event::Extend { circuit, length, frame }, Part::Relay(circuits)) => {
                circuits.on_extend(circuit, length, frame, now, links, rng, out);
            }
            (Event::Created { ahead, frame }, Part::Relay(circuits)) => {
                circuits.on_created(ahead, frame, out);
            }
            (Event::CreateRefused { ahead, reason }, Part::Relay(circuits)) => {
                circuits.on_create_refused(ahead, reason, links, out);
            }
            (Event::CircuitClosed { circuit, .. }, Part::Relay(circuits)) => {
                circuits.on_closed(circuit, links);
            }
            (Event::Created { ahead, frame }, Part::Client(own)) => {
                match own.builders().find(|builder| builder.is_created_by(ahead)) {
                    Some(builder) => builder.on_created(ahead, frame, now, rng, out),
                    None => out.refuse(Refusal::Unexpected),
                }
            }
            (Event::Extended { circuit, depth, command, frame, .. }, Part::Client(own)) => {
                match own.builders().find(|builder| builder.is_of(circuit)) {
                    Some(builder) => builder.on_extended(circuit, depth, command, frame, now, rng, out),
                    None => out.refuse(Refusal::Unexpected),
                }
            }
            (Event::CircuitClosed { circuit, reason }, Part::Client(own)) => {
                own.builders().for_each(|builder| builder.on_closed(circuit, reason, now));
            }
            (Event::CreateRefused { ahead, reason }, Part::Client(own)) => {
                own.builders().for_each(|builder| builder.on_create_refused(ahead, reason, now));
            }
            (Event::Create { back, .. }, Part::Client(_)) => {
                super::circuits::destroy(back, relay_common::wire::DestroyReason::NoSuchRelay, out);
            }
            (Event::Extend { .. }, Part::Client(_)) | (Event::Extended { .. }, Part::Relay(_)) => {
                out.refuse(Refusal::Unexpected);
            }
        }
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.out.actions) {
            match action {
                Action::Datagram { lane, to, bytes } => self.path.send(&bytes, to, lane),
                Action::Worker(command) => {
                    if self.workers.tell(ToWorker::Engine(command)).is_err() {
                        self.out.refuse(Refusal::WorkerBusy);
                    }
                }
                Action::AdmitSession { receive_index, source, link } => {
                    self.admit(receive_index, source, link);
                }
                Action::DropSession { receive_index } => {
                    self.workers.owners().set(receive_index, None);
                    if let Some(steering) = &mut self.steering
                        && let Err(error) = steering.clear_session(receive_index)
                    {
                        log::error!("{error}");
                    }
                }
                Action::Aim { link, lane, remote } => {
                    self.path.aim(link, lane, remote, self.neighbours.as_ref(), &self.workers);
                }
                Action::Forget { link } => self.path.forget(link, &self.workers),
            }
        }
    }

    fn admit(&mut self, receive_index: u32, source: SocketAddr, link: Option<u32>) {
        let worker = link.map(|link| self.workers.home(link));
        self.workers.owners().set(receive_index, worker);
        let Some(steering) = &mut self.steering else { return };
        let address = match source.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let entry = SessionEntry::new(receive_index, address, source.port(), worker.unwrap_or(0).into());
        if let Err(error) = steering.set_session(&entry) {
            log::error!("{error}");
        }
    }

    fn report(&self) -> Status {
        let each: Vec<Totals> = self.workers.totals().collect();
        let mut drops: BTreeMap<String, u64> = BTreeMap::new();
        let mut count = |name: &str, value: u64| *drops.entry(name.to_owned()).or_default() += value;
        for reason in Refusal::ALL {
            count(reason.name(), self.out.refusals[reason as usize]);
        }
        for totals in &each {
            for reason in DropReason::ALL {
                count(reason.name(), totals.engine.dropped(reason));
            }
            for (name, value) in &totals.edge {
                count(name, *value);
            }
            let port = totals.port;
            for (name, value) in [
                ("port_tx_lost", port.tx_lost),
                ("port_tx_full", port.tx_full),
                ("port_unresolved", port.tx_unresolved),
                ("port_invalid", port.invalid),
                ("port_rx_ring_full", port.rx_ring_full),
                ("port_rx_no_frame", port.rx_no_frame),
                ("port_rx_dropped", port.rx_dropped),
                ("port_handshakes_dropped", port.handshakes_dropped),
                ("port_handshakes_unsent", port.handshakes_unsent),
                ("handover_full", totals.crossing.full),
                ("session_unowned", totals.crossing.unowned),
            ] {
                count(name, value);
            }
        }
        let sum = |value: fn(&Totals) -> u64| each.iter().map(value).sum::<u64>();
        let mut redirected = 0;
        if let Some(counters) = self.steering.as_ref().and_then(|steering| steering.counters().ok()) {
            redirected = counters.get(Counter::Redirected);
            for (name, count) in counters.iter() {
                drops.insert(format!("xdp_{name}"), count);
            }
        }
        drops.retain(|name, count| {
            *count > 0 && !matches!(name.as_str(), "xdp_passed" | "xdp_handshake" | "xdp_redirected")
        });
        let mut links: Vec<LinkStatus> = Vec::new();
        for (peer, up) in self.links.states() {
            match links.iter_mut().find(|link| link.peer == peer) {
                Some(link) => link.add_lane(up),
                None => links.push(LinkStatus::of_first_lane(peer, up)),
            }
        }
        let (role, ready) = match &self.part {
            Part::Relay(_) => ("relay", links.iter().all(|link| link.up)),
            Part::Client(own) => ("client", own.builder.is_open()),
        };
        Status {
            name: self.name.clone(),
            role,
            ready,
            xdp_mode: self.mode.xdp.map(|mode| mode.name()),
            bind_mode: self.mode.bind.name(),
            queues: each.iter().filter_map(|totals| QueueStatus::of(totals.mode.as_ref()?)).collect(),
            redirected,
            kernel_path: self.kernel_path,
            missed_slots: sum(|totals| totals.engine.missed_slots),
            wakes: sum(|totals| totals.wakes.all),
            late_wakes: sum(|totals| totals.wakes.late),
            ticks: sum(|totals| totals.ticks.all),
            late_ticks: sum(|totals| totals.ticks.late),
            cells_sent: sum(|totals| totals.engine.sent),
            cells_received: sum(|totals| totals.engine.received),
            cells_handed_over: sum(|totals| totals.crossing.given),
            drops,
            links,
            circuits: sum(|totals| totals.circuits),
            decoys_begun: match &self.part {
                Part::Client(own) => own.decoys.as_ref().map(Decoys::begun),
                Part::Relay(_) => None,
            },
            guarantee: self.links.guarantee(),
            self_audit: self.audit().into(),
            rates: RatesStatus::new(&self.links.rates, self.policy),
        }
    }
}

/// Starts the runtime that control planes run on: one thread, since the worker is the one that needs a core.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("the async runtime")
}
