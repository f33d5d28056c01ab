//! The processes of the lab: relays, client and service, and what they say of themselves.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use relay_tests::interrupt::Interrupt;
use relay_tests::processes::end_child;
use relay_tests::{Host, Lab};
use serde::Deserialize;

use super::files::{config_file, socket_file};

/// Time for all nodes to become ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Time a node gets to stop by itself: it has to say goodbye, detach and close.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Lines of a failing node's log that are shown.
const LOG_TAIL: usize = 20;

/// The part of `relay status --json` that is shown or judged.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) ready: bool,
    pub(super) xdp_mode: Option<String>,
    pub(super) bind_mode: Option<String>,
    pub(super) redirected: u64,
    pub(super) kernel_path: u64,
    pub(super) missed_slots: u64,
    pub(super) ticks: u64,
    pub(super) late_ticks: u64,
    pub(super) drops: BTreeMap<String, u64>,
    pub(super) links: Vec<LinkStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct LinkStatus {
    peer: String,
    up: bool,
}

/// Everything that runs in the lab; dropping it stops them, the client first.
#[derive(Debug)]
pub(super) struct Nodes {
    relay: PathBuf,
    dir: PathBuf,
    running: Vec<(Host, Child)>,
}

impl Nodes {
    /// Starts the service, the relays and the client, in this order.
    pub(super) fn start(lab: &Lab, relay: &Path) -> Result<Self> {
        let mut nodes =
            Self { relay: relay.to_owned(), dir: lab.dir().to_owned(), running: Vec::with_capacity(5) };
        let service = Host::Service.address().context("the service has an address")?;
        let mut serve = Command::new(std::env::current_exe().context("cannot find this program")?);
        serve.args(["serve", "--listen", &format!("{service}:80")]);
        nodes.spawn(lab, Host::Service, serve)?;
        for (host, task) in
            [(Host::Entry, "run"), (Host::Middle, "run"), (Host::Exit, "run"), (Host::Client, "client")]
        {
            let mut command = Command::new(relay);
            command.args([task, "--config"]).arg(config_file(lab.dir(), host));
            nodes.spawn(lab, host, command)?;
        }
        Ok(nodes)
    }

    fn spawn(&mut self, lab: &Lab, host: Host, mut command: Command) -> Result<()> {
        let log = File::create(self.log_file(host)).context("cannot create a log file")?;
        // A process group of its own keeps the terminal's ctrl-C away: the lab decides about the order of the end.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.running.push((host, lab.spawn(host, &mut command)?));
        Ok(())
    }

    /// Waits until every node says that it is ready, telling what is awaited.
    pub(super) fn wait_ready(&mut self, interrupt: &Interrupt) -> Result<()> {
        let until = Instant::now() + READY_LIMIT;
        let mut told = String::new();
        loop {
            self.check_alive()?;
            let Some(awaited) = self.awaited() else { return Ok(()) };
            if awaited != told {
                println!("waiting for {awaited}");
                told.clone_from(&awaited);
            }
            if interrupt.is_set() {
                bail!("interrupted while waiting for {awaited}");
            }
            if Instant::now() > until {
                let tails: Vec<String> = self.running.iter().map(|&(host, _)| self.log_tail(host)).collect();
                bail!("not ready after {} s: {awaited}\n{}", READY_LIMIT.as_secs(), tails.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    fn awaited(&self) -> Option<String> {
        let parts: Vec<String> = self
            .running
            .iter()
            .filter(|(host, _)| *host != Host::Service)
            .filter_map(|&(host, _)| match self.status(host) {
                Err(_) => Some(format!("{} (no status yet)", host.name())),
                Ok(status) if status.ready => None,
                Ok(status) => {
                    let down: Vec<&str> =
                        status.links.iter().filter(|link| !link.up).map(|link| link.peer.as_str()).collect();
                    Some(format!("{} (links down: [{}])", host.name(), down.join(", ")))
                }
            })
            .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// Fails, with the end of its log, when a node has stopped by itself.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        for at in 0..self.running.len() {
            let (host, child) = &mut self.running[at];
            let host = *host;
            if let Some(status) = child.try_wait()? {
                bail!("{} stopped by itself ({status})\n{}", host.name(), self.log_tail(host));
            }
        }
        Ok(())
    }

    /// Asks a node how it is.
    pub(super) fn status(&self, host: Host) -> Result<Status> {
        let output = Command::new(&self.relay)
            .args(["status", "--json", "--socket"])
            .arg(socket_file(&self.dir, host))
            .stdin(Stdio::null())
            .output()
            .context("cannot run relay status")?;
        if !output.status.success() {
            bail!("relay status of {}: {}", host.name(), String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("relay status of {} answered oddly", host.name()))
    }

    fn log_file(&self, host: Host) -> PathBuf {
        self.dir.join(format!("{}.log", host.name()))
    }

    fn log_tail(&self, host: Host) -> String {
        let path = self.log_file(host);
        let text =
            fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n  ");
        format!("end of {}:\n  {tail}", path.display())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        while let Some((host, mut child)) = self.running.pop() {
            if let Err(error) = end_child(&mut child, STOP_LIMIT) {
                eprintln!("{} could not be stopped: {error:#}", host.name());
            }
        }
    }
}
