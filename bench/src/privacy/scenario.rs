//! What people do behind the tunnel, by the programs that they do it with.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use relay_tests::processes::end_child;
use relay_tests::{Host, Lab};

use super::fault::Fault;
use super::servers;

const SCRIPT: &str = include_str!("payload.py");
/// First of the ports that iperf3 listens on; one client at a time each, so they take turns.
const IPERF: u16 = 5201;
const IPERF_SERVERS: u16 = 4;
/// Time for a program to end by itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// One kind of payload, and the state of the client's link meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Nothing at all, and told apart from nothing: shows that the attacks do not cry wolf.
    Idle,
    /// Bursts of one to three messages at random times, each answered; a lively group's rate.
    Chat,
    /// Objects of 2 to 60 kB, one after another, with pauses.
    Web,
    /// One long download.
    Bulk,
    /// 50 packets a second each way.
    Voice,
    /// A segment a second, downloaded as fast as it goes, and silence until the next.
    Video,
    /// UDP at 25 Mbit/s into a class that carries 15.
    Overload,
    /// The long download over a link that loses cells.
    Loss,
    /// The long download over a link narrower than its class.
    Throttle,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Idle,
        Self::Chat,
        Self::Web,
        Self::Bulk,
        Self::Voice,
        Self::Video,
        Self::Overload,
        Self::Loss,
        Self::Throttle,
    ];

    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Chat => "chat",
            Self::Web => "web",
            Self::Bulk => "bulk",
            Self::Voice => "voice",
            Self::Video => "video",
            Self::Overload => "overload",
            Self::Loss => "bulk, loss",
            Self::Throttle => "bulk, throttled",
        }
    }

    /// The fault of the client's link.
    pub(super) const fn fault(self) -> Option<Fault> {
        match self {
            Self::Loss => Some(Fault::Loss),
            Self::Throttle => Some(Fault::Throttle),
            _ => None,
        }
    }

    fn command(self, service: Ipv4Addr, turn: u16) -> Option<Command> {
        let url = |path: &str| format!("http://{service}/{path}");
        let mut command = Command::new(if self == Self::Overload { "iperf3" } else { "curl" });
        if self != Self::Overload {
            command.args(["--silent", "--fail", "--output", "/dev/null"]);
        }
        match self {
            Self::Idle | Self::Chat | Self::Voice => return None,
            // Sizes as they come on a page; curl asks for one after another over one connection.
            Self::Web => command
                .args(["--rate", "20/s"])
                .arg(url("{18000,2400,31000,5200,60000,3300,12000,8100}?[1-40]")),
            Self::Bulk | Self::Loss | Self::Throttle => command.arg(url("1000000000")),
            Self::Video => command.args(["--rate", "1/s"]).arg(url("900000?[1-60]")),
            Self::Overload => {
                let port = (IPERF + turn % IPERF_SERVERS).to_string();
                command.args(["--client", &service.to_string(), "--port", &port, "--udp"]);
                command.args(["--bitrate", "25M", "--length", "1200", "--time", "60"])
            }
        };
        Some(command)
    }
}

/// Makes a scenario's payload while told to. Dropping it ends its programs.
#[derive(Debug)]
pub(super) struct Generator<'a> {
    lab: &'a Lab,
    scenario: Scenario,
    service: Ipv4Addr,
    turns: u16,
    /// A program that runs all the time and is told on its standard input.
    script: Option<(Child, ChildStdin)>,
    /// A program that runs while payload flows.
    running: Option<Child>,
    servers: Vec<Child>,
    /// Times that a program ended by itself.
    pub(super) failures: u32,
}

impl<'a> Generator<'a> {
    /// Starts what has to run all the time.
    ///
    /// # Errors
    /// Where a program cannot be started or reaches nobody.
    pub(super) fn start(lab: &'a Lab, scenario: Scenario) -> Result<Self> {
        let service = Host::Service.address().context("the service has an address")?;
        let mut generator = Self {
            lab,
            scenario,
            service,
            turns: 0,
            script: None,
            running: None,
            servers: Vec::new(),
            failures: 0,
        };
        match scenario {
            Scenario::Chat => generator.script = Some(generator.tell("chat", servers::CHAT)?),
            Scenario::Voice => generator.script = Some(generator.tell("voice", servers::VOICE)?),
            Scenario::Overload => {
                for number in 0..IPERF_SERVERS {
                    let mut iperf = Command::new("iperf3");
                    iperf.args(["--server", "--port", &(IPERF + number).to_string()]);
                    quiet(&mut iperf);
                    generator.servers.push(lab.spawn(Host::Service, &mut iperf)?);
                }
            }
            _ => {}
        }
        Ok(generator)
    }

    fn tell(&self, kind: &str, port: u16) -> Result<(Child, ChildStdin)> {
        let mut python = Command::new("python3");
        python.args(["-I", "-c", SCRIPT, kind]).args([self.service.to_string(), port.to_string()]);
        quiet(&mut python);
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = self.lab.spawn(Host::Client, &mut python)?;
        let input = child.stdin.take().context("no standard input")?;
        let mut ready = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut ready)?;
        ensure!(ready.trim() == "ready", "the program for {kind} did not start: {ready:?}");
        Ok((child, input))
    }

    /// Payload from now on.
    ///
    /// # Errors
    /// Where a program cannot be started.
    pub(super) fn begin(&mut self) -> Result<()> {
        if let Some((_, input)) = &mut self.script {
            writeln!(input, "on").context("the program has ended")?;
        }
        self.turns = self.turns.wrapping_add(1);
        if let Some(mut command) = self.scenario.command(self.service, self.turns) {
            quiet(&mut command);
            self.running = Some(self.lab.spawn(Host::Client, &mut command)?);
        }
        Ok(())
    }

    /// No payload from now on.
    ///
    /// # Errors
    /// Where a program cannot be ended.
    pub(super) fn end(&mut self) -> Result<()> {
        if let Some((_, input)) = &mut self.script {
            writeln!(input, "off").context("the program has ended")?;
        }
        if let Some(mut child) = self.running.take() {
            if child.try_wait()?.is_some() {
                self.failures += 1;
            }
            child.kill().ok();
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Generator<'_> {
    fn drop(&mut self) {
        self.end().ok();
        if let Some((mut child, input)) = self.script.take() {
            drop(input);
            end_child(&mut child, PATIENCE).ok();
        }
        for child in &mut self.servers {
            end_child(child, PATIENCE).ok();
        }
    }
}

/// Without the terminal: the end of every program is decided here.
fn quiet(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
}
