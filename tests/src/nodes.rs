//! The relays and the client of a lab: their files, their processes, and what they say of themselves.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::lab::{Host, Lab};
use crate::processes::end_child;

/// The lab's relays in the order of the client's path.
pub const RELAYS: [Host; 3] = [Host::Entry, Host::Middle, Host::Exit];
/// UDP port of the relays.
pub const PORT: u16 = 7443;
/// Cells per second of a client's link.
pub const CLIENT_RATE: u32 = 1500;
/// Cells per second of a link between relays.
pub const TRUNK_RATE: u32 = 2000;

/// A class of the network document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class<'a> {
    /// Cells per second.
    pub rate: u32,
    /// The word after `schedule =`.
    pub schedule: &'a str,
    /// What stands after `pattern =`, where the schedule is one.
    pub pattern: Option<&'a str>,
}

impl Class<'_> {
    fn text(&self, name: &str) -> String {
        let pattern = self.pattern.map_or_else(String::new, |pattern| format!("pattern = {pattern}\n"));
        format!("[classes.{name}]\nrate = {}\nschedule = \"{}\"\n{pattern}\n", self.rate, self.schedule)
    }
}

/// How the lab's network is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout<'a> {
    /// Workers on each relay, and lanes of each trunk. The lab must have as many queues.
    pub workers: u16,
    /// The class of the client's link.
    pub client: Class<'a>,
    /// The class of the trunks.
    pub trunk: Class<'a>,
    /// The word after `cover =` in the client's configuration.
    pub cover: &'a str,
    /// Tables at the end of the client's configuration.
    pub client_tables: &'a str,
    /// Processors for the only worker of each node, dealt out in turn. Without any, the kernel chooses.
    pub cpus: &'a [usize],
    /// The nodes whose workers get one; for all others the kernel chooses.
    pub pinned: &'a [Host],
}

/// In which order nodes get processors: where there is one too few, two clients share it, and not two relays.
const DEALT: [Host; 5] = [Host::Client, Host::Entry, Host::Middle, Host::Exit, Host::Second];

impl Layout<'_> {
    fn cpus(&self, host: Host) -> String {
        let place = DEALT.into_iter().filter(|node| self.pinned.contains(node)).position(|node| node == host);
        let cpu = place.and_then(|place| self.cpus.iter().cycle().nth(place));
        cpu.map_or_else(String::new, |cpu| format!("cpus = [{cpu}]\n"))
    }
}

impl Default for Layout<'_> {
    fn default() -> Self {
        Self {
            workers: 1,
            client: Class { rate: CLIENT_RATE, schedule: "jittered", pattern: None },
            trunk: Class { rate: TRUNK_RATE, schedule: "constant", pattern: None },
            cover: "circuit",
            client_tables: "",
            cpus: &[],
            pinned: &DEALT,
        }
    }
}

/// How long before now the document is valid: clocks differ.
const VALID_BEFORE: u64 = 3600;
/// How long the document is valid, in seconds.
const VALID_FOR: u64 = 24 * 3600;
/// Time a node gets to stop by itself: it has to say goodbye, detach and close.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often a wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Lines of a failing node's log that are shown.
const LOG_TAIL: usize = 20;

/// What `relay status --json` says, as far as the lab judges it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// A relay's links are all up; a client has a working circuit.
    pub ready: bool,
    /// How the XDP program is attached; `None` without one.
    pub xdp_mode: Option<String>,
    /// How the data plane's socket is bound.
    pub bind_mode: String,
    /// Cells that the XDP program redirected.
    pub redirected: u64,
    /// Cells that came through the kernel's socket instead.
    pub kernel_path: u64,
    /// Slots that the worker came too late for.
    pub missed_slots: u64,
    /// Moments at which cells left.
    pub ticks: u64,
    /// Those of them that a worker came more than 1 µs late to.
    pub late_ticks: u64,
    /// Cells handed to the port.
    pub cells_sent: u64,
    /// Cells that a link AEAD authenticated.
    pub cells_received: u64,
    /// What was dropped or refused, by reason; reasons that did not occur are left out.
    pub drops: BTreeMap<String, u64>,
    /// Links to relays of the network document.
    pub links: Vec<LinkStatus>,
    /// The AF_XDP sockets, by queue.
    pub queues: Vec<QueueStatus>,
    /// Cells that came by another worker's queue than their link's.
    pub cells_handed_over: u64,
    /// Circuits that the node takes part in.
    pub circuits: u64,
}

impl Status {
    /// Drops for `reason` so far.
    pub fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or(0)
    }
}

/// A socket in [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct QueueStatus {
    /// The queue.
    pub queue: u32,
    /// How XDP is attached.
    pub xdp: Option<String>,
}

/// A link in [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LinkStatus {
    /// The relay at the other end.
    pub peer: String,
    /// Whether cells pass on all lanes.
    pub up: bool,
    /// Lanes that it has.
    pub lanes: u16,
}

/// The nodes of a lab. Dropping the value ends those that run, the client first.
#[derive(Debug)]
pub struct Nodes<'a> {
    lab: &'a Lab,
    relay: PathBuf,
    running: BTreeMap<Host, Child>,
}

impl<'a> Nodes<'a> {
    /// Writes keys, a signed network document and configurations into the lab's directory, by means of the program
    /// `relay`. Nothing is started.
    ///
    /// # Errors
    /// When the program fails or a file cannot be written.
    pub fn prepare(lab: &'a Lab, relay: &Path) -> Result<Self> {
        Self::prepare_as(lab, relay, Layout::default())
    }

    /// As [`Nodes::prepare`], with so many workers on each relay, and as many lanes of each trunk. The lab must have as
    /// many queues.
    ///
    /// # Errors
    /// As [`Nodes::prepare`].
    pub fn prepare_wide(lab: &'a Lab, relay: &Path, workers: u16) -> Result<Self> {
        Self::prepare_as(lab, relay, Layout { workers, ..Layout::default() })
    }

    /// As [`Nodes::prepare`], with this layout.
    ///
    /// # Errors
    /// As [`Nodes::prepare`].
    pub fn prepare_as(lab: &'a Lab, relay: &Path, layout: Layout<'_>) -> Result<Self> {
        let nodes = Self { lab, relay: relay.to_owned(), running: BTreeMap::new() };
        let operator = nodes.keygen("--operator", &lab.dir().join("operator.key"))?;
        let mut relays = Vec::with_capacity(RELAYS.len());
        for host in RELAYS {
            relays.push((host, nodes.keygen("--relay", &nodes.file(host, "key"))?));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
        let valid = (now.as_secs() - VALID_BEFORE, now.as_secs() + VALID_FOR);
        nodes.publish(&network(&relays, valid, layout)?)?;
        for host in RELAYS {
            nodes.write(&nodes.file(host, "toml"), &nodes.relay_config(host, &operator, &layout))?;
        }
        for host in [Host::Client, Host::Second] {
            nodes.write(&nodes.file(host, "toml"), &nodes.client_config(host, &operator, &layout))?;
        }
        Ok(nodes)
    }

    /// Signs `document` (the text of a network document) and puts it in place.
    ///
    /// # Errors
    /// As [`Nodes::prepare`].
    pub fn publish(&self, document: &str) -> Result<()> {
        let file = self.lab.dir().join("network.toml");
        self.write(&file, document)?;
        let key = self.lab.dir().join("operator.key");
        self.call(&["network".as_ref(), "sign".as_ref(), "--key".as_ref(), key.as_ref(), file.as_ref()])?;
        Ok(())
    }

    /// Starts a relay or the client; its output goes to `HOST.log`, after that of an earlier start.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, host: Host) -> Result<()> {
        self.start_by(host, self.command(host))
    }

    /// As [`Nodes::start`], by another program that does what the relay's does.
    ///
    /// # Errors
    /// As [`Nodes::start`].
    pub fn start_by(&mut self, host: Host, mut command: Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.file(host, "log"))?;
        // A process group of its own keeps the terminal's ctrl-C away: the lab decides about the order of the end.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = self.lab.spawn(host, &mut command)?;
        if self.running.insert(host, child).is_some() {
            bail!("{} runs already", host.name());
        }
        Ok(())
    }

    /// The command that runs a relay or the client.
    pub fn command(&self, host: Host) -> Command {
        let mut command = Command::new(&self.relay);
        let task = if RELAYS.contains(&host) { "run" } else { "client" };
        command.args([task, "--config"]).arg(self.file(host, "toml"));
        command
    }

    /// Starts the relays and the client and waits until they are ready.
    ///
    /// # Errors
    /// As [`Nodes::start`] and [`Nodes::wait_ready`].
    pub fn start_all(&mut self, limit: Duration) -> Result<()> {
        for host in RELAYS.into_iter().chain([Host::Client]) {
            self.start(host)?;
        }
        self.wait_ready(limit)
    }

    /// Waits until every running node is ready.
    ///
    /// # Errors
    /// When a node stops by itself, or is not ready in time; with the end of its log.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        loop {
            self.check_alive()?;
            let late = self
                .running
                .keys()
                .copied()
                .find(|&host| !self.status(host).is_ok_and(|status| status.ready));
            let Some(late) = late else { return Ok(()) };
            if Instant::now() > until {
                bail!("{} was not ready within {limit:?}\n{}", late.name(), self.log_tail(late));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Fails, with the end of its log, when a node has stopped by itself.
    ///
    /// # Errors
    /// Then.
    pub fn check_alive(&mut self) -> Result<()> {
        let mut ended = None;
        for (&host, child) in &mut self.running {
            if let Some(status) = child.try_wait()? {
                ended = Some((host, status));
            }
        }
        match ended {
            Some((host, status)) => {
                bail!("{} stopped by itself ({status})\n{}", host.name(), self.log_tail(host))
            }
            None => Ok(()),
        }
    }

    /// Asks a node how it is.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self, host: Host) -> Result<Status> {
        let socket = self.file(host, "sock");
        let answer =
            self.call(&["status".as_ref(), "--json".as_ref(), "--socket".as_ref(), socket.as_ref()])?;
        serde_json::from_str(&answer)
            .with_context(|| format!("relay status of {} answered oddly", host.name()))
    }

    /// SIGTERM, and the exit status; SIGKILL after 5 s.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn stop(&mut self, host: Host) -> Result<ExitStatus> {
        let mut child =
            self.running.remove(&host).with_context(|| format!("{} is not running", host.name()))?;
        end_child(&mut child, STOP_LIMIT)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn kill(&mut self, host: Host) -> Result<()> {
        let mut child =
            self.running.remove(&host).with_context(|| format!("{} is not running", host.name()))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// A node's file: its `toml`, `key`, `sock` or `log`.
    pub fn file(&self, host: Host, kind: &str) -> PathBuf {
        self.lab.dir().join(format!("{}.{kind}", host.name()))
    }

    /// The last lines that a node wrote.
    pub fn log_tail(&self, host: Host) -> String {
        let path = self.file(host, "log");
        let text =
            fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n  ");
        format!("end of {}:\n  {tail}", path.display())
    }

    /// Makes a key file and returns the public key, in hexadecimal digits.
    fn keygen(&self, kind: &str, file: &Path) -> Result<String> {
        let output = self.call(&["keygen".as_ref(), kind.as_ref(), "--out".as_ref(), file.as_ref()])?;
        let is_key = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let public = output.split_whitespace().find(is_key);
        public
            .map(str::to_owned)
            .with_context(|| format!("relay keygen printed no public key but {output:?}"))
    }

    fn call(&self, args: &[&OsStr]) -> Result<String> {
        let mut command = Command::new(&self.relay);
        command.args(args).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        if !output.status.success() {
            bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn relay_config(&self, host: Host, operator: &str, layout: &Layout<'_>) -> String {
        let name = host.name();
        let mut text = format!(
            "name = \"{name}\"\nkey = \"{name}.key\"\nnetwork = \"network.toml\"\noperator = \"{operator}\"\n\n\
             [datapath]\ninterface = \"wire0\"\nmode = \"native\"\nbind = \"auto\"\nring = 4096\n\n\
             [worker]\ncount = {}\n{}poll = \"adaptive\"\n\n[control]\nsocket = \"{}\"\n",
            layout.workers,
            layout.cpus(host),
            self.file(host, "sock").display()
        );
        if host == Host::Exit {
            text.push_str(
                "\n[exit]\ntun = \"ew-exit\"\noutside = \"out0\"\npool4 = \"100.96.0.0/16\"\n\
                 pool6 = \"fd6e:7765::/64\"\n",
            );
        }
        text
    }

    fn client_config(&self, host: Host, operator: &str, layout: &Layout<'_>) -> String {
        let Layout { cover, client_tables, .. } = layout;
        format!(
            "network = \"network.toml\"\noperator = \"{operator}\"\nclass = \"standard\"\ncover = \"{cover}\"\n\
             path = [\"entry\", \"middle\", \"exit\"]\n\n\
             [datapath]\nmode = \"udp\"\nlisten = \"0.0.0.0:0\"\n\n[worker]\n{}poll = \"adaptive\"\n\n\
             [control]\nsocket = \"{}\"\n\n\
             [tun]\nname = \"ew0\"\nmtu = 1400\nroutes = [\"198.51.100.0/24\"]\n{client_tables}",
            layout.cpus(host),
            self.file(host, "sock").display()
        )
    }
}

impl Drop for Nodes<'_> {
    fn drop(&mut self) {
        let mut running = std::mem::take(&mut self.running);
        // Clients end first, and the first of them is the first host anyway.
        let second = running.remove(&Host::Second).map(|child| (Host::Second, child));
        for (host, mut child) in second.into_iter().chain(running) {
            if let Err(error) = end_child(&mut child, STOP_LIMIT) {
                eprintln!("{} could not be stopped: {error:#}", host.name());
            }
        }
    }
}

/// The 32 digits of a relay's id in the network document.
pub fn relay_id(host: Host) -> String {
    format!("{:032x}", host as u8 + 1)
}

/// A network document, unsigned, of relays with these public keys that holds in these seconds since 1970.
fn network(relays: &[(Host, String)], (from, until): (u64, u64), layout: Layout<'_>) -> Result<String> {
    let (client, trunk, lanes) = (layout.client, layout.trunk, layout.workers);
    let mut text = format!(
        "version = 1\nepoch = 1\nvalid_from = \"{}\"\nvalid_until = \"{}\"\ncell_len = 1360\nsuite = 1\n\n\
         {}{}",
        rfc3339(from),
        rfc3339(until),
        client.text("standard"),
        trunk.text("trunk").trim_end(),
    );
    text.push('\n');
    for (host, key) in relays {
        let address = host.address().context("a relay has an address")?;
        let (id, name) = (relay_id(*host), host.name());
        writeln!(
            text,
            "\n[[relays]]\nid = \"{id}\"\nname = \"{name}\"\naddress = \"{address}:{PORT}\"\nkey = \"{key}\"\n\
             roles = [\"{name}\"]"
        )?;
    }
    for pair in relays.windows(2) {
        let (one, other) = (pair[0].0.name(), pair[1].0.name());
        writeln!(
            text,
            "\n[[trunks]]\nbetween = [\"{one}\", \"{other}\"]\nclass = \"trunk\"\nlanes = {lanes}"
        )?;
    }
    Ok(text)
}

/// A moment as RFC 3339 writes it, in UTC, from seconds since 1970.
pub fn rfc3339(seconds: u64) -> String {
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let day = days + 1;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_dealt_out_in_turn() {
        let of = |cpus: &[usize], pinned: &[Host]| {
            let layout = Layout { cpus, pinned, ..Layout::default() };
            DEALT.map(|host| layout.cpus(host))
        };
        let line = |cpu: usize| format!("cpus = [{cpu}]\n");
        assert_eq!(of(&[], &DEALT), [const { String::new() }; 5]);
        assert_eq!(of(&[7], &DEALT), [7, 7, 7, 7, 7].map(line), "all share the only one");
        assert_eq!(of(&[4, 5, 6, 7], &DEALT), [4, 5, 6, 7, 4].map(line), "clients share, and relays do not");
        let [client, entry, middle, ..] = of(&[6, 7], &[Host::Middle, Host::Entry]);
        assert_eq!((client, entry, middle), (String::new(), line(6), line(7)));
    }

    #[test]
    fn moments_are_written_as_rfc_3339_does() {
        // The expected texts come from `date -u -d @N +%FT%TZ`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_798_761_600, "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn the_document_joins_every_relay_to_the_next() {
        let keys: Vec<(Host, String)> = RELAYS.map(|host| (host, "ab".repeat(32))).into();
        let text = network(&keys, (0, 1), Layout::default()).expect("network");
        assert_eq!(text.matches("[[relays]]").count(), 3);
        assert_eq!(text.matches("between").count(), 2);
        assert!(text.contains(&relay_id(Host::Middle)));
    }
}
