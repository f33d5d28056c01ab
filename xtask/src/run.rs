//! `cargo xtask run`: the relay network over three hops on this machine, watched on its wire.

mod files;
mod nodes;
mod phases;
mod report;
pub(crate) mod serve;
mod table;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use relay_tests::interrupt::Interrupt;
use relay_tests::tools::LAB;
use relay_tests::{Host, Lab, Observer};

use self::files::RELAYS;
use self::nodes::{Nodes, Status};
use self::phases::Phases;
use self::report::Report;
use self::table::{Second, Table};
use crate::tools;

/// Seconds watched before `--hold` leaves the lab to its visitor.
const HOLD_AFTER: u64 = 30;
/// Time that the first download and burst get beyond `--seconds`.
const GRACE: Duration = Duration::from_secs(90);
/// Time after link-up before the wire counts: the observer's bins of the handshakes have passed.
const SETTLE: Duration = Duration::from_millis(500);
/// How often the phases are looked after.
const TURN: Duration = Duration::from_millis(100);

/// Arguments of `cargo xtask run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// End after so many seconds of watching; otherwise ctrl-C ends it
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Write what was seen to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave everything up afterwards, for looking around, until ctrl-C
    #[arg(long)]
    hold: bool,
}

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    if !relay_tests::privilege::is_root() {
        bail!(
            "cargo xtask run needs root: it makes network namespaces, loads an XDP program and opens raw sockets"
        );
    }
    tools::install(&LAB)?;
    let relay = build()?;
    let interrupt = Interrupt::listen()?;
    let lab = Lab::three_hops()?;
    files::write_all(&relay, lab.dir())?;
    let observer = Observer::start(lab.netns(Host::Wire), lab.wire_ports(), &canaries())?;
    let mut nodes = Nodes::start(&lab, &relay)?;
    nodes.wait_ready(&interrupt)?;
    std::thread::sleep(SETTLE);
    let report = watch(args, &lab, &observer, &mut nodes, &interrupt)?;
    print_closing(&report);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.hold && !interrupt.is_set() {
        hold(&relay, &lab, &mut nodes, &interrupt)?;
    }
    drop(nodes);
    drop(lab);
    if !report.ok {
        bail!("the run did not show what it must: {}", report.failures.join("; "));
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    println!("building relay");
    let status = tools::cargo()
        .args(["build", "--release", "--locked", "--package", "relay-user", "--bin", "relay"])
        .status()
        .context("cannot run cargo build")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(tools::target_dir().join("release").join("relay"))
}

/// Byte strings that would betray the payload: the content itself, and inner headers' addresses side by side.
fn canaries() -> Vec<Vec<u8>> {
    let client = [100, 64, 0, 2];
    let service = Host::Service.address().map(|address| address.octets()).unwrap_or_default();
    vec![serve::CANARY.to_vec(), [client, service].concat(), [service, client].concat()]
}

fn watch(
    args: &RunArgs,
    lab: &Lab,
    observer: &Observer,
    nodes: &mut Nodes,
    interrupt: &Interrupt,
) -> Result<Report> {
    let started = Instant::now();
    // Until now a relay that had not started yet may have been answered for with "port unreachable".
    let (before, link_up) = (observer.snapshot(), observer.bin_now());
    let seconds = args.seconds.or_else(|| args.hold.then_some(HOLD_AFTER)).map(Duration::from_secs);
    let mut phases = Phases::new(lab, link_up);
    let mut table = Table::new();
    let mut payload = payload(lab);
    let mut statuses = statuses(nodes);
    let mut drawn = 0;
    loop {
        std::thread::sleep(TURN);
        nodes.check_alive()?;
        if !observer.is_watching() {
            bail!("the observer stopped");
        }
        phases.step(observer.bin_now())?;
        let elapsed = started.elapsed();
        if elapsed.as_secs() > drawn {
            drawn = elapsed.as_secs();
            let now = self::payload(lab);
            let rate = (now.0.saturating_sub(payload.0), now.1.saturating_sub(payload.1));
            payload = now;
            statuses = self::statuses(nodes);
            let (snapshot, bin) = (observer.snapshot(), observer.bin_now());
            let phase = phases.current();
            table.draw(&Second {
                number: drawn,
                phase,
                snapshot: &snapshot,
                bin,
                payload: rate,
                statuses: &statuses,
            });
        }
        let over = seconds
            .is_some_and(|limit| elapsed >= limit && (phases.has_seen_all() || elapsed >= limit + GRACE));
        if over || interrupt.is_set() {
            break;
        }
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let relays: Vec<(Host, Status)> =
        statuses.into_iter().filter(|(host, _)| RELAYS.contains(host)).collect();
    let download = phases.download.clone();
    Ok(Report::new(&relays, (&before, &observer.snapshot()), phases.windows(), link_up, download, kernel))
}

/// Bytes that left and entered the client through its tunnel interface.
fn payload(lab: &Lab) -> (u64, u64) {
    lab.interface_bytes(Host::Client, "ew0").map_or((0, 0), |bytes| (bytes.sent, bytes.received))
}

/// What the relays and the client say; a node that doesn't answer is left out and missed when judged.
fn statuses(nodes: &Nodes) -> Vec<(Host, Status)> {
    RELAYS
        .into_iter()
        .chain([Host::Client])
        .filter_map(|host| nodes.status(host).ok().map(|status| (host, status)))
        .collect()
}

fn print_closing(report: &Report) {
    println!("\nfrom    to       idle cells/s   downloading   payload lengths");
    for wire in &report.wire {
        let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        println!(
            "{:<8}{:<8}{:>13}{:>14}   {:?}",
            wire.a,
            wire.b,
            rate(wire.idle_cps),
            rate(wire.busy_cps),
            wire.lengths
        );
    }
    println!("\nrelay   XDP      redirected   kernel path   missed slots   left late   drops");
    for relay in &report.relays {
        println!(
            "{:<8}{:<9}{:>10}{:>14}{:>15}{:>10.2} %   {}",
            relay.name,
            relay.xdp_mode.as_deref().unwrap_or("-"),
            relay.redirected,
            relay.kernel_path,
            relay.missed_slots,
            100.0 * relay.late_ticks as f64 / relay.ticks.max(1) as f64,
            relay.drops.values().sum::<u64>()
        );
    }
    let download = &report.download;
    println!(
        "\ndownload: {} bytes, SHA-256 {}, {:.2} Mbit/s; packets in the clear: {}; kernel {}",
        download.bytes,
        if download.sha256_ok { "equal" } else { "NOT equal" },
        download.mbit_per_s,
        report.in_the_clear,
        report.kernel
    );
    for failure in &report.failures {
        println!("not shown: {failure}");
    }
}

fn hold(relay: &Path, lab: &Lab, nodes: &mut Nodes, interrupt: &Interrupt) -> Result<()> {
    let relay = relay.display();
    let dir = lab.dir().display();
    println!(
        "\nEverything stays up until ctrl-C. To try, as root:\n  \
         ip netns exec relay-client curl -s http://198.51.100.80/small | head -c 200\n  \
         ip netns exec relay-client ping -c 3 198.51.100.80\n  \
         ip netns exec relay-wire tcpdump -c 20 -ni any udp port 7443\n  \
         {relay} status --socket {dir}/entry.sock\n  \
         less {dir}/middle.log"
    );
    while !interrupt.is_set() {
        nodes.check_alive()?;
        std::thread::sleep(TURN);
    }
    Ok(())
}
