//! Totals that a worker publishes and the control plane reads.

use super::{CrossingCounters, Ticks, Wakes};
use crate::engine::Counters;
use crate::engine::time::Nanos;
use crate::observe::live::AuditState;
use crate::port::{PortCounters, PortMode};
use std::sync::Mutex;

/// A worker's totals since start; none of them tells payload from cover or one peer from another.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// The engine's.
    pub engine: Counters,
    /// The port's.
    pub port: PortCounters,
    /// How the port is attached and bound; `None` before the worker first told.
    pub mode: Option<PortMode>,
    /// Cells that came by another worker's queue.
    pub crossing: CrossingCounters,
    /// How often it slept, and woke late.
    pub wakes: Wakes,
    /// How often cells left, and late.
    pub ticks: Ticks,
    /// Circuits known now.
    pub circuits: u64,
    /// The edge's drops by reason.
    pub edge: Vec<(&'static str, u64)>,
    /// Bytes of packets that a client's own programs sent and got; for the choice of a class, and never shown.
    pub payload: [u64; 2],
    /// When a cell last came to a client's circuit; zero before.
    pub last_delivery: Nanos,
    /// When a cell last came to one of its decoys; zero before.
    pub last_of_decoys: Nanos,
    /// What the worker found of its own emission times.
    pub audit: AuditState,
}

/// The last published [`Totals`]. The worker never waits for a reader: it skips a turn instead.
#[derive(Debug, Default)]
pub struct Snapshot(Mutex<Totals>);

impl Snapshot {
    /// Replaces the totals, or leaves them where a reader holds them.
    pub fn publish(&self, totals: &Totals) {
        if let Ok(mut held) = self.0.try_lock() {
            held.clone_from(totals);
        }
    }

    /// The totals last published.
    pub fn read(&self) -> Totals {
        self.0.lock().map(|totals| totals.clone()).unwrap_or_default()
    }
}
