//! A private tor network: three relays, the first of them the directory authority too, and a client, on the loopback
//! of a namespace of their own. What its relays use for a download through all three is counted as the hubs' is.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use relay_tests::Netns;
use relay_tests::processes::end_child;

use super::cpu::{CLIENT_CORE, HUB_CORE, Threads, move_to, watch};
use super::install::{self, Source, cache, last_line};
use super::wires::ip;
use crate::session::Session;

const NETNS: &str = "ewp-tor";
const RELAYS: usize = 3;
/// Time for the client to know the network and to have built circuits.
const PATIENCE: Duration = Duration::from_secs(90);
/// Time for a circuit that carries a stream: at first some lack a hop, and tor builds others.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// Time in which a stream must bring something.
const STALL: Duration = Duration::from_secs(20);
const END_PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of one download.
const DOWNLOAD: u64 = 64 << 20;
const ROUNDS: usize = 3;
const SOCKS: SocketAddr = loopback(9150);
const SERVER: SocketAddr = loopback(8099);
const DIRECTORY: SocketAddr = loopback(7101);

/// What every tor here is told. Shorter intervals than these are refused.
const COMMON: &str = "TestingTorNetwork 1\nAssumeReachable 1\nShutdownWaitLength 0\nSafeLogging 0\n";
const RELAY: &str = "Address 127.0.0.1\nSocksPort 0\nExitRelay 1\nExitPolicy accept *:*\nExitPolicyRejectPrivate 0\n\
    DoSConnectionEnabled 0\nDoSCircuitCreationEnabled 0\nNumCPUs 1\n";
const AUTHORITY: &str = "AuthoritativeDirectory 1\nV3AuthoritativeDirectory 1\nContactInfo nobody@example.net\n\
    V3AuthVotingInterval 10\nV3AuthVoteDelay 2\nV3AuthDistDelay 2\nTestingV3AuthInitialVotingInterval 5\n\
    TestingV3AuthInitialVoteDelay 2\nTestingV3AuthInitialDistDelay 2\nTestingDirAuthVoteExit *\n\
    TestingDirAuthVoteGuard *\nTestingMinExitFlagThreshold 0\nTestingAuthDirTimeToLearnReachability 0\n";

/// CPU seconds that the three relays of a tor network use for a GiB, the median of some downloads.
///
/// # Errors
/// Why there is no figure, and what to do.
#[expect(clippy::cast_precision_loss, reason = "64 MiB")]
pub(super) fn seconds_per_gib(session: &mut Session) -> Result<f64> {
    let find = |program| {
        let source = Source::Debian { package: "tor", program };
        source.get(false).map_err(anyhow::Error::msg)
    };
    let (program, gencert) = (find("tor")?, find("tor-gencert")?);
    let network = Network::start(&program, &gencert, session)?;
    let relays = network.processes[..RELAYS].iter().map(|process| process.child.id());
    let threads = Threads::of_processes(relays);
    let mut seconds = Vec::new();
    // The first download waits for a circuit and fills caches.
    for round in 0..=ROUNDS {
        session.progress(&format!("tor: download {round} of {ROUNDS}"));
        let stream = network.connect()?;
        let (used, result) = watch(&threads, || download(stream))?;
        result?;
        if round > 0 {
            seconds.push(used.cpu.as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[ROUNDS / 2] * (1u64 << 30) as f64 / DOWNLOAD as f64)
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Takes the rest of a response, which must be whole.
fn download(mut stream: TcpStream) -> Result<()> {
    write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
    let mut part = vec![0; 1 << 16];
    let mut total = 0u64;
    loop {
        let count = stream.read(&mut part).context("a download through tor stalled")?;
        if count == 0 {
            break;
        }
        total += count as u64;
    }
    let expected = DOWNLOAD + response_header().len() as u64;
    ensure!(total == expected, "a download through tor ended after {total} of {expected} bytes");
    Ok(())
}

fn response_header() -> String {
    format!("HTTP/1.0 200 OK\r\nContent-Length: {DOWNLOAD}\r\n\r\n")
}

/// A tor process.
struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = end_child(&mut self.child, END_PATIENCE) {
            eprintln!("{error:#}");
        }
    }
}

/// The network, its client and the server. Dropping it ends and removes them.
struct Network {
    /// Relays first, then the client.
    processes: Vec<Process>,
    _server: Server,
    place: Place,
}

impl Network {
    fn start(program: &Path, gencert: &Path, session: &mut Session) -> Result<Self> {
        session.progress("tor: making keys");
        let place = Place::new()?;
        let keys = place.node("relay0").join("keys");
        private_dir(&keys)?;
        let identity = certificate(gencert, &keys)?;
        let torrc = |name: &str, rest: &str| -> Result<PathBuf> {
            let (path, dir) = (place.node(name).join("torrc"), place.node(name));
            private_dir(&dir)?;
            let dir = dir.display();
            let log = place.log(name);
            let own = format!("Nickname {name}\nDataDirectory {dir}\nLog notice file {}\n", log.display());
            std::fs::write(&path, format!("{COMMON}{own}{rest}"))?;
            Ok(path)
        };
        let onion = |number: usize| format!("OrPort 127.0.0.1:{}\n", 5100 + number);
        let authority = format!("{RELAY}{AUTHORITY}{}DirPort {DIRECTORY}\n", onion(0));
        // The authority's fingerprint is made from the key that this first start writes, and every node needs it.
        let line = |fingerprint: &str| {
            format!("DirAuthority relay0 orport=5100 no-v2 v3ident={identity} {DIRECTORY} {fingerprint}\n")
        };
        let first = torrc("relay0", &format!("{authority}{}", line(&"0".repeat(40))))?;
        let line = line(&fingerprint(program, &first)?);
        let mut nodes =
            vec![("relay0".to_owned(), HUB_CORE, torrc("relay0", &format!("{authority}{line}"))?)];
        for number in 1..RELAYS {
            let name = format!("relay{number}");
            let torrc = torrc(&name, &format!("{RELAY}{}{line}", onion(number)))?;
            nodes.push((name, HUB_CORE, torrc));
        }
        let client = torrc("client", &format!("ClientOnly 1\nSocksPort {SOCKS}\n{line}"))?;
        nodes.push(("client".to_owned(), CLIENT_CORE, client));

        let mut processes = Vec::new();
        for (name, core, torrc) in nodes {
            let mut command = Command::new(program);
            command.arg("-f").arg(torrc).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = place.netns.run(|| {
                move_to(core)?;
                command.spawn().with_context(|| format!("cannot start {}", program.display()))
            })?;
            let process = Process { log: place.log(&name), name, child };
            install::processes().add(process.child.id())?;
            processes.push(process);
        }
        let server = Server::start(&place.netns)?;
        let mut network = Self { processes, _server: server, place };
        network.bootstrap(session)?;
        Ok(network)
    }

    fn bootstrap(&mut self, session: &mut Session) -> Result<()> {
        let start = Instant::now();
        loop {
            for Process { name, log, child } in &mut self.processes {
                let ended = child.try_wait()?.is_some();
                ensure!(!ended, "tor's {name} ended: {}", last_line(log));
            }
            let client = self.processes.last().context("no client")?;
            let log = std::fs::read_to_string(&client.log).unwrap_or_default();
            if log.contains("Bootstrapped 100%") {
                return Ok(());
            }
            let (waited, limit) = (start.elapsed(), PATIENCE.as_secs());
            let step =
                log.lines().rev().find_map(|line| line.split_once("Bootstrapped ")).unwrap_or(("", "0%")).1;
            ensure!(
                waited < PATIENCE,
                "the private tor network did not come up within {limit} s: it got to {step}"
            );
            session.progress(&format!("tor: {} of at most {limit} s: {step}", waited.as_secs()));
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// A stream to the server through three relays.
    fn connect(&self) -> Result<TcpStream> {
        let until = Instant::now() + CONNECT_PATIENCE;
        loop {
            match self.place.netns.run(socks) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() >= until => {
                    return Err(error.context(format!("no stream within {} s", CONNECT_PATIENCE.as_secs())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }
}

/// Asks the client for a stream to the server (RFC 1928).
fn socks() -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&SOCKS, STALL)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    ensure!(method == [5, 0], "tor's SOCKS port wants to know who we are");
    let SocketAddr::V4(server) = SERVER else { bail!("the server's address is not IPv4") };
    let mut request = vec![5, 1, 0, 1];
    request.extend(server.ip().octets());
    request.extend(server.port().to_be_bytes());
    stream.write_all(&request)?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    ensure!(reply[1] == 0, "tor's SOCKS port answers {}", reply[1]);
    Ok(stream)
}

/// Makes the authority's keys and returns its identity's fingerprint.
fn certificate(gencert: &Path, keys: &Path) -> Result<String> {
    let certificate = keys.join("authority_certificate");
    let mut command = Command::new(gencert);
    command
        .arg("--create-identity-key")
        .args(["-m", "12", "--passphrase-fd", "0", "-a"])
        .arg(DIRECTORY.to_string());
    command.arg("-i").arg(keys.join("authority_identity_key"));
    command.arg("-s").arg(keys.join("authority_signing_key")).arg("-c").arg(&certificate);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("tor-gencert")?;
    // A key that is thrown away with the network needs no secret passphrase, but the program wants one.
    child.stdin.take().context("tor-gencert's standard input")?.write_all(b"evenwire\n")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "tor-gencert: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = std::fs::read_to_string(&certificate)?;
    let identity = text.lines().find_map(|line| line.strip_prefix("fingerprint "));
    Ok(identity.context("the authority's certificate has no fingerprint")?.to_owned())
}

/// The fingerprint of a relay's identity key, which is made where there is none.
fn fingerprint(program: &Path, torrc: &Path) -> Result<String> {
    let mut command = Command::new(program);
    command.args(["--list-fingerprint", "--quiet", "-f"]).arg(torrc).stdin(Stdio::null());
    let output = command.output().context("tor --list-fingerprint")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("relay0 "));
    let fingerprint: String = line.unwrap_or_default().split_whitespace().collect();
    ensure!(fingerprint.len() == 40, "tor --list-fingerprint says {:?}", text.trim());
    Ok(fingerprint)
}

fn private_dir(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot create {}", path.display()))
}

/// Namespace and files. Dropping it removes them.
struct Place {
    netns: Netns,
    dir: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        Netns::delete(NETNS)?;
        let dir = cache().join("tor");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        let place = Self { netns: Netns::create(NETNS)?, dir };
        ip(&place.netns, "link set lo up")?;
        private_dir(&place.dir)?;
        Ok(place)
    }

    fn node(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = Netns::delete(NETNS) {
            eprintln!("{error:#}");
        }
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// Serves [`DOWNLOAD`] bytes to whoever asks, one after the other.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(netns: &Netns) -> Result<Self> {
        let listener =
            netns.run(|| TcpListener::bind(SERVER).with_context(|| format!("cannot bind {SERVER}")))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("server".into()).spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Who went away in the middle is noticed at the other end.
                    Ok((stream, _)) => drop(serve(stream)),
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let mut request = Vec::new();
    let mut part = [0; 256];
    while !request.ends_with(b"\r\n\r\n") && request.len() < 4096 {
        let count = stream.read(&mut part)?;
        if count == 0 {
            return Ok(());
        }
        request.extend_from_slice(&part[..count]);
    }
    stream.write_all(response_header().as_bytes())?;
    std::io::copy(&mut std::io::repeat(0x5a).take(DOWNLOAD), &mut stream)?;
    Ok(())
}
