//! What the operator may see: totals, over a Unix socket. No address, no payload-against-cover, nothing by client.

use super::links::Rates;
use crate::observe::live::AuditState;
use crate::port::PortMode;
use crate::rates::LedgerSummary;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

/// One node's state and totals since start.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) name: String,
    pub(super) role: &'static str,
    pub(super) ready: bool,
    pub(super) xdp_mode: Option<&'static str>,
    pub(super) bind_mode: &'static str,
    pub(super) queues: Vec<QueueStatus>,
    pub(super) redirected: u64,
    pub(super) kernel_path: u64,
    pub(super) missed_slots: u64,
    /// How often workers slept, and how often of these they woke too late for a slot.
    pub(super) wakes: u64,
    pub(super) late_wakes: u64,
    /// Moments at which cells left, and those of them that a worker came too late to.
    pub(super) ticks: u64,
    pub(super) late_ticks: u64,
    pub(super) cells_sent: u64,
    pub(super) cells_received: u64,
    /// Came by another worker's queue than that of their link's.
    pub(super) cells_handed_over: u64,
    pub(super) drops: BTreeMap<String, u64>,
    pub(super) links: Vec<LinkStatus>,
    pub(super) circuits: u64,
    /// Decoy circuits that a client began; `None` where it has no timetable for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decoys_begun: Option<u64>,
    /// `schedule` where what leaves depends on it alone, `ledger` where classes may follow demand or loss by as much as the
    /// ledger says, `lost` where Maybenot machines add to it.
    pub(super) guarantee: &'static str,
    pub(super) self_audit: SelfAuditStatus,
    pub(super) rates: RatesStatus,
}

/// Whether the node's own emission times tell payload from cover. Nothing here is counted by kind of cell.
#[derive(Debug, Serialize)]
pub(super) struct SelfAuditStatus {
    /// There was a breach since start.
    alarm: bool,
    breaches: u64,
    /// Times that it was looked for.
    epochs: u64,
    /// By what the latest was found, and how large it is at least.
    statistic: Option<&'static str>,
    at_least: Option<f64>,
}

impl From<AuditState> for SelfAuditStatus {
    fn from(state: AuditState) -> Self {
        Self {
            alarm: state.breaches > 0,
            breaches: state.breaches,
            epochs: state.epochs,
            statistic: state.last.map(|(_, breach)| breach.statistic.name()),
            at_least: state.last.map(|(_, breach)| breach.at_least),
        }
    }
}

/// Classes by epoch: what they may have told, and what loss did.
#[derive(Debug, Serialize)]
pub(super) struct RatesStatus {
    /// Of clients' links: `fixed`, `scheduled` or `adaptive`.
    policy: &'static str,
    epoch_seconds: u64,
    /// Links stopped for their loss.
    breaker_trips: u64,
    leakage: LedgerSummary,
}

impl RatesStatus {
    pub(super) fn new(rates: &Rates, policy: &'static str) -> Self {
        Self {
            policy,
            epoch_seconds: rates.epoch_seconds(),
            breaker_trips: rates.trips(),
            leakage: rates.summary(),
        }
    }
}

/// One AF_XDP socket.
#[derive(Debug, Serialize)]
pub(super) struct QueueStatus {
    queue: u32,
    xdp: Option<&'static str>,
    bind: &'static str,
    need_wakeup: bool,
    busy_poll: &'static str,
    memory: &'static str,
}

impl QueueStatus {
    /// What `mode` says of a socket; `None` where there is none.
    pub(super) fn of(mode: &PortMode) -> Option<Self> {
        let socket = mode.socket?;
        Some(Self {
            queue: socket.queue,
            xdp: mode.xdp.map(|mode| mode.name()),
            bind: mode.bind.name(),
            need_wakeup: socket.need_wakeup,
            busy_poll: socket.busy_poll.name(),
            memory: socket.pages.name(),
        })
    }
}

/// The links to a relay of the network document.
#[derive(Debug, Serialize)]
pub(super) struct LinkStatus {
    pub(super) peer: String,
    /// All lanes are up.
    pub(super) up: bool,
    lanes: u16,
    lanes_up: u16,
}

impl LinkStatus {
    pub(super) fn of_first_lane(peer: &str, up: bool) -> Self {
        Self { peer: peer.to_owned(), up, lanes: 1, lanes_up: u16::from(up) }
    }

    pub(super) fn add_lane(&mut self, up: bool) {
        self.up &= up;
        self.lanes += 1;
        self.lanes_up += u16::from(up);
    }
}

/// The status socket; its file goes when this is dropped.
#[derive(Debug)]
pub(super) struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl StatusSocket {
    /// Listens on `path`, readable by the owner only. A socket file that nobody listens on is replaced.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it"));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// A reader's connection.
    pub(super) async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes `status` as one JSON document, within a second.
pub(super) async fn answer(mut stream: tokio::net::UnixStream, status: Status) {
    let Ok(json) = serde_json::to_vec(&status) else { return };
    let write = async {
        stream.write_all(&json).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), write).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::live::{Breach, Statistic};

    #[test]
    fn a_breach_is_told_and_what_it_came_from_is_not() {
        let quiet = serde_json::to_value(SelfAuditStatus::from(AuditState::default())).unwrap();
        assert_eq!(quiet["alarm"], false);
        let last = Some((7, Breach { statistic: Statistic::Auc, at_least: 0.1 }));
        let state = AuditState { epochs: 9, breaches: 2, last };
        let told = serde_json::to_value(SelfAuditStatus::from(state)).unwrap();
        let expected = serde_json::json!({
            "alarm": true, "breaches": 2, "epochs": 9, "statistic": "auc", "at_least": 0.1,
        });
        assert_eq!(told, expected);
    }
}
