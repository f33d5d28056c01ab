//! What people do behind the tunnel, by the programs that they do it with.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use relay_tests::processes::end_child;
use relay_tests::{Host, Lab};

use super::{seed, servers};

const SCRIPT: &str = include_str!("payload.py");
/// First of the ports that iperf3 listens on; one client at a time each, so they take turns.
const IPERF: u16 = 5201;
const IPERF_SERVERS: u16 = 4;
/// What overload is, beside 15 Mbit/s that a class carries.
const OVERLOAD: &str = "25M";
/// Time for servers to listen.
const LISTENING: Duration = Duration::from_millis(300);
/// Time for a program to end by itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// One kind of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Nothing at all, held against nothing: shows that the attacks do not cry wolf.
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
    /// The same from the service. It has a name of its own, since its queue is another's: of two loads under one name,
    /// the one that shows less would hide the other.
    OverloadDown,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Chat,
        Self::Web,
        Self::Bulk,
        Self::Voice,
        Self::Video,
        Self::Overload,
        Self::OverloadDown,
    ];
    /// Of these, a quick run takes so many where none is named.
    pub(super) const QUICK: usize = 7;

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
            Self::OverloadDown => "overload-down",
        }
    }

    /// How long a stretch of it is: a segment a second has to have a second.
    pub(super) const fn block(self) -> Duration {
        Duration::from_millis(if matches!(self, Self::Video) { 1600 } else { 800 })
    }

    fn command(self, service: Ipv4Addr, turn: u16) -> Option<Command> {
        let url = |path: &str| format!("http://{service}/{path}");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--output", "/dev/null"]);
        match self {
            Self::Idle | Self::Chat | Self::Voice => return None,
            // Sizes as they come on a page; curl asks for one after another over one connection.
            Self::Web => {
                curl.args(["--rate", "20/s"])
                    .arg(url("{18000,2400,31000,5200,60000,3300,12000,8100}?[1-40]"));
            }
            Self::Bulk => {
                curl.arg(url("1000000000"));
            }
            Self::Video => {
                curl.args(["--rate", "1/s"]).arg(url("900000?[1-60]"));
            }
            Self::Overload | Self::OverloadDown => {
                let port = IPERF + turn % IPERF_SERVERS;
                return Some(datagrams(service, port, OVERLOAD, self == Self::OverloadDown));
            }
        }
        Some(curl)
    }
}

/// iperf3 that sends datagrams of 1200 bytes for as long as it runs, or has them sent where it is to be `down`.
fn datagrams(service: Ipv4Addr, port: u16, bitrate: &str, down: bool) -> Command {
    let mut iperf = Command::new("iperf3");
    iperf.args(["--client", &service.to_string(), "--port", &port.to_string(), "--udp"]);
    iperf.args(["--bitrate", bitrate, "--length", "1200", "--time", "86400"]);
    if down {
        iperf.arg("--reverse");
    }
    iperf
}

fn serve_iperf(lab: &Lab, servers: &mut Vec<Child>) -> Result<()> {
    for number in 0..IPERF_SERVERS {
        let mut iperf = Command::new("iperf3");
        iperf.args(["--server", "--port", &(IPERF + number).to_string()]);
        quiet(&mut iperf);
        servers.push(lab.spawn(Host::Service, &mut iperf)?);
    }
    Ok(())
}

/// A steady stream each way between a client and the service. Dropping it ends its programs.
#[derive(Debug)]
pub(super) struct Streams {
    servers: Vec<Child>,
    clients: Vec<Child>,
}

impl Streams {
    /// Packets per second that the client sends, and as many that it gets: half of what a class carries.
    pub(super) const RATE: u32 = 833;
    const BITRATE: &str = "8M";

    /// Starts both, through a tunnel that is up.
    ///
    /// # Errors
    /// Where a program cannot be started.
    pub(super) fn start(lab: &Lab, client: Host) -> Result<Self> {
        let service = Host::Service.address().context("the service has an address")?;
        let mut streams = Self { servers: Vec::new(), clients: Vec::new() };
        serve_iperf(lab, &mut streams.servers)?;
        std::thread::sleep(LISTENING);
        for (port, down) in [(IPERF, false), (IPERF + 1, true)] {
            let mut iperf = datagrams(service, port, Self::BITRATE, down);
            quiet(&mut iperf);
            streams.clients.push(lab.spawn(client, &mut iperf)?);
        }
        Ok(streams)
    }

    /// # Errors
    /// Where one has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        for child in &mut self.clients {
            if let Some(status) = child.try_wait()? {
                bail!("a program that makes the payload ended by itself ({status})");
            }
        }
        Ok(())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for child in self.clients.iter_mut().chain(&mut self.servers) {
            end_child(child, PATIENCE).ok();
        }
    }
}

/// Makes payload while told to. Dropping it ends its programs.
#[derive(Debug)]
pub(super) struct Programs<'a> {
    lab: &'a Lab,
    client: Host,
    service: Ipv4Addr,
    /// Decides what people say and when.
    seed: u64,
    turns: u16,
    /// Those that run all the time and are told on their standard input.
    told: Vec<(Scenario, Child, ChildStdin)>,
    servers: Vec<Child>,
    speaking: Option<Scenario>,
    /// One that runs while payload flows.
    running: Option<Child>,
    /// Times that a program ended by itself.
    pub(super) failures: u32,
}

impl<'a> Programs<'a> {
    /// Starts what has to run all the time for `scenarios` of a client; `seed` decides what they say.
    ///
    /// # Errors
    /// Where a program cannot be started or reaches nobody.
    pub(super) fn start(lab: &'a Lab, client: Host, scenarios: &[Scenario], seed: u64) -> Result<Self> {
        let service = Host::Service.address().context("the service has an address")?;
        let mut programs = Self {
            lab,
            client,
            service,
            seed,
            turns: 0,
            told: Vec::new(),
            servers: Vec::new(),
            speaking: None,
            running: None,
            failures: 0,
        };
        for &scenario in scenarios {
            match scenario {
                Scenario::Chat => programs.tell(scenario, servers::CHAT)?,
                Scenario::Voice => programs.tell(scenario, servers::VOICE)?,
                Scenario::Overload | Scenario::OverloadDown if programs.servers.is_empty() => {
                    serve_iperf(lab, &mut programs.servers)?;
                }
                _ => {}
            }
        }
        Ok(programs)
    }

    fn tell(&mut self, scenario: Scenario, port: u16) -> Result<()> {
        let mut python = Command::new("python3");
        python.args(["-I", "-c", SCRIPT, scenario.name(), &self.service.to_string(), &port.to_string()]);
        python.arg(seed::of(self.seed, &[scenario.name()]).to_string());
        quiet(&mut python);
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = self.lab.spawn(self.client, &mut python)?;
        let input = child.stdin.take().context("no standard input")?;
        let mut ready = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut ready)?;
        self.told.push((scenario, child, input));
        ensure!(ready.trim() == "ready", "the program for {} did not start", scenario.name());
        Ok(())
    }

    /// Payload from now on.
    ///
    /// # Errors
    /// Where a program cannot be started.
    pub(super) fn begin(&mut self, scenario: Scenario) -> Result<()> {
        self.speaking = Some(scenario);
        self.say("on")?;
        self.turns = self.turns.wrapping_add(1);
        if let Some(mut command) = scenario.command(self.service, self.turns) {
            quiet(&mut command);
            self.running = Some(self.lab.spawn(self.client, &mut command)?);
        }
        Ok(())
    }

    /// No payload from now on.
    ///
    /// # Errors
    /// Where a program cannot be ended.
    pub(super) fn end(&mut self) -> Result<()> {
        // One that has ended cannot be told, and is counted below.
        let told = self.say("off");
        let spoke = self.speaking.take();
        if let Some((_, child, _)) = self.told.iter_mut().find(|(scenario, ..)| Some(*scenario) == spoke)
            && child.try_wait()?.is_some()
        {
            self.failures += 1;
        } else {
            told?;
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

    fn say(&mut self, word: &str) -> Result<()> {
        let spoken_to = self.told.iter_mut().find(|(scenario, ..)| Some(*scenario) == self.speaking);
        if let Some((scenario, _, input)) = spoken_to {
            writeln!(input, "{word}")
                .with_context(|| format!("the program for {} ended", scenario.name()))?;
        }
        Ok(())
    }
}

impl Drop for Programs<'_> {
    fn drop(&mut self) {
        self.end().ok();
        for (_, mut child, input) in self.told.drain(..) {
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
