//! What a run has shown, and whether that is what it must show.

use std::collections::BTreeMap;

use relay_tests::{Host, Snapshot};
use serde::Serialize;

use super::files::RELAYS;
use super::nodes::Status;
use super::phases::{Download, Phase, Window};

/// The only UDP payload length allowed on the wire, in bytes.
const CELL_LEN: u16 = 1360;
/// How far the rates of an idle and a busy link may lie apart.
const RATE_TOLERANCE: f64 = 0.01;
/// Seconds per bin of the observer.
const BIN_S: f64 = 0.1;
/// Bins left out at each end of a window: the phase began and ended somewhere inside them.
const EDGE_BINS: u64 = 1;
/// Bins without which a rate says nothing: two seconds.
const BINS_NEEDED: u64 = 20;

/// The file that `--json` writes.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) relays: Vec<RelayReport>,
    pub(super) wire: Vec<WireReport>,
    pub(super) download: Download,
    pub(super) in_the_clear: u64,
    /// Frames the observer missed; its rates are then too low.
    pub(super) observer_lost: u64,
    pub(super) kernel: String,
    pub(super) failures: Vec<String>,
    pub(super) ok: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct RelayReport {
    pub(super) name: &'static str,
    pub(super) xdp_mode: Option<String>,
    pub(super) bind_mode: Option<String>,
    pub(super) redirected: u64,
    pub(super) kernel_path: u64,
    pub(super) missed_slots: u64,
    pub(super) ticks: u64,
    pub(super) late_ticks: u64,
    pub(super) drops: BTreeMap<String, u64>,
}

/// One direction between two hosts: `a` sends, `b` receives. Rates in cells per second.
#[derive(Debug, Serialize)]
pub(super) struct WireReport {
    pub(super) a: String,
    pub(super) b: String,
    pub(super) lengths: Vec<u16>,
    pub(super) idle_cps: Option<f64>,
    pub(super) busy_cps: Option<f64>,
}

impl Report {
    /// Judges a run whose links were all up at bin `link_up`, when the observer had seen `before`.
    pub(super) fn new(
        statuses: &[(Host, Status)],
        (before, snapshot): (&Snapshot, &Snapshot),
        windows: &[Window],
        link_up: u64,
        download: Download,
        kernel: String,
    ) -> Self {
        let relays = statuses.iter().map(|(host, status)| relay_report(*host, status)).collect();
        let wire = wire_reports(snapshot, windows, link_up);
        let mut report = Self {
            relays,
            wire,
            download,
            in_the_clear: snapshot.in_the_clear(),
            observer_lost: snapshot.lost,
            kernel,
            failures: Vec::new(),
            ok: false,
        };
        report.failures = report.judge(strange_packets(snapshot) - strange_packets(before));
        report.ok = report.failures.is_empty();
        report
    }

    fn judge(&self, strange_packets: u64) -> Vec<String> {
        let mut failures = Vec::new();
        let mut must = |holds: bool, complaint: String| {
            if !holds {
                failures.push(complaint);
            }
        };
        for host in RELAYS {
            let name = host.name();
            let Some(relay) = self.relays.iter().find(|relay| relay.name == name) else {
                must(false, format!("{name}: gave no status"));
                continue;
            };
            must(
                relay.xdp_mode.as_deref() == Some("native"),
                format!("{name}: XDP mode is {:?}", relay.xdp_mode),
            );
            must(relay.redirected > 0, format!("{name}: no cell was redirected into AF_XDP"));
            must(relay.kernel_path == 0, format!("{name}: {} cells took the kernel path", relay.kernel_path));
        }
        for pair in [Host::Client, Host::Entry, Host::Middle, Host::Exit].windows(2) {
            for (a, b) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                let there = self.wire.iter().any(|wire| wire.a == a.name() && wire.b == b.name());
                must(there, format!("{} to {}: nothing on the wire", a.name(), b.name()));
            }
        }
        for WireReport { a, b, lengths, idle_cps, busy_cps } in &self.wire {
            must(lengths == &[CELL_LEN], format!("{a} to {b}: payload lengths {lengths:?}"));
            match (idle_cps, busy_cps) {
                (Some(idle), Some(busy)) => {
                    let apart = (idle - busy).abs() / idle.max(1.0);
                    must(
                        apart < RATE_TOLERANCE,
                        format!("{a} to {b}: {idle:.1} cells/s idle, {busy:.1} downloading"),
                    );
                }
                _ => must(false, format!("{a} to {b}: watched too briefly to tell a rate")),
            }
        }
        must(self.in_the_clear == 0, format!("{} packets showed something in the clear", self.in_the_clear));
        must(strange_packets == 0, format!("{strange_packets} packets on the wire were no cells at all"));
        must(self.observer_lost == 0, format!("the observer missed {} frames", self.observer_lost));
        let whole = self.download.bytes == super::serve::FILE_BYTES as u64 && self.download.sha256_ok;
        must(whole, "the download did not arrive whole".to_owned());
        failures
    }
}

/// IP packets that are no datagrams of a known flow.
fn strange_packets(snapshot: &Snapshot) -> u64 {
    snapshot.other + snapshot.unlisted
}

/// The host's name, or the address of somebody who doesn't belong there.
fn name_of(address: std::net::IpAddr) -> String {
    let host = match address {
        std::net::IpAddr::V4(address) => Host::by_address(address),
        std::net::IpAddr::V6(_) => None,
    };
    host.map_or_else(|| address.to_string(), |host| host.name().to_owned())
}

fn relay_report(host: Host, status: &Status) -> RelayReport {
    let status = status.clone();
    RelayReport {
        name: host.name(),
        xdp_mode: status.xdp_mode,
        bind_mode: status.bind_mode,
        redirected: status.redirected,
        kernel_path: status.kernel_path,
        missed_slots: status.missed_slots,
        ticks: status.ticks,
        late_ticks: status.late_ticks,
        drops: status.drops,
    }
}

fn wire_reports(snapshot: &Snapshot, windows: &[Window], link_up: u64) -> Vec<WireReport> {
    snapshot
        .flows
        .iter()
        .map(|(&(source, destination), flow)| {
            let rate = |phase| {
                let (mut cells, mut bins) = (0, 0);
                for window in windows.iter().filter(|window| window.phase == phase) {
                    let (from, to) = (window.from + EDGE_BINS, window.to.saturating_sub(EDGE_BINS));
                    cells += flow.datagrams_between(from, to);
                    bins += to.saturating_sub(from);
                }
                (bins >= BINS_NEEDED).then(|| cells as f64 / (bins as f64 * BIN_S))
            };
            WireReport {
                a: name_of(source),
                b: name_of(destination),
                lengths: flow.lengths_since(link_up),
                idle_cps: rate(Phase::Idle),
                busy_cps: rate(Phase::Download),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Report {
        let relays = RELAYS.map(|host| {
            let status = Status { xdp_mode: Some("native".to_owned()), redirected: 9, ..Status::default() };
            relay_report(host, &status)
        });
        let hosts = ["client", "entry", "middle", "exit"];
        let wire = hosts.windows(2).flat_map(|pair| [(pair[0], pair[1]), (pair[1], pair[0])]);
        let wire = wire.map(|(a, b)| WireReport {
            a: a.to_owned(),
            b: b.to_owned(),
            lengths: vec![CELL_LEN],
            idle_cps: Some(1500.0),
            busy_cps: Some(1499.0),
        });
        Report {
            relays: relays.into(),
            wire: wire.collect(),
            download: Download { bytes: 16 << 20, sha256_ok: true, mbit_per_s: 14.0, failures: 0 },
            in_the_clear: 0,
            observer_lost: 0,
            kernel: "6.18".to_owned(),
            failures: Vec::new(),
            ok: true,
        }
    }

    #[test]
    fn a_sound_run_has_nothing_to_complain_of() {
        assert_eq!(sound().judge(0), Vec::<String>::new());
    }

    #[test]
    fn each_shortcoming_is_named() {
        let spoil: [fn(&mut Report); 10] = [
            |report| report.relays[1].xdp_mode = Some("generic".to_owned()),
            |report| report.relays[0].redirected = 0,
            |report| report.relays[2].kernel_path = 1,
            |report| drop(report.relays.pop()),
            |report| drop(report.wire.pop()),
            |report| report.wire[0].lengths.push(64),
            |report| report.wire[3].busy_cps = Some(1515.1),
            |report| report.wire[3].idle_cps = None,
            |report| report.in_the_clear = 1,
            |report| report.download.sha256_ok = false,
        ];
        for (nth, spoil) in spoil.into_iter().enumerate() {
            let mut report = sound();
            spoil(&mut report);
            assert_eq!(report.judge(0).len(), 1, "spoiling number {nth}");
        }
        assert_eq!(sound().judge(1).len(), 1);
    }
}
