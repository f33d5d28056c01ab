//! WireGuard in userspace: three processes of one implementation, the middle one a hub.
//!
//! A packet from A is decrypted by the hub, written into its TUN, sent back into the same TUN by the kernel's
//! forwarding, read and encrypted for B: what a hub of WireGuard has to do, since it only knows packets.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use relay_tests::Netns;
use relay_tests::processes::end_child;
use relay_user::crypto::StaticKey;

use super::cpu::{CLIENT_CORE, HUB_CORE, Threads, move_to, watch};
use super::install::{Source, cache, last_line, processes};
use super::traffic::Flow;
use super::wires::{Wires, ip, wire_a, wire_b};
use super::{Hub, Outcome};

/// Where the control sockets of every implementation are.
const SOCKETS: &str = "/var/run/wireguard";
/// Bytes of the TUN's MTU: WireGuard's usual one.
const MTU: u32 = 1420;
/// Time for a process to come up, and for the handshakes.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for a process to end.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Time that traffic runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// One implementation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Implementation {
    /// As its figures call it.
    pub(super) name: &'static str,
    /// Where its program comes from.
    pub(super) source: Source,
    /// Arguments before the interface's name. None goes into the background, since its threads are to be watched.
    arguments: &'static [&'static str],
    /// Tells interfaces, addresses and ports of the implementations apart.
    number: u8,
}

/// Those that are compared.
pub(super) const ALL: [Implementation; 3] = [
    Implementation {
        name: "wireguard-go",
        source: Source::Debian { package: "wireguard-go", program: "wireguard-go" },
        arguments: &["-f"],
        number: 1,
    },
    Implementation {
        name: "boringtun-cli",
        source: Source::Crate { name: "boringtun-cli", version: "0.7.1", program: "boringtun-cli" },
        // A thread for the one core that it has; with its usual four, it spends time on their taking turns.
        arguments: &["-f", "-t", "1", "--disable-drop-privileges"],
        number: 2,
    },
    Implementation {
        name: "gotatun-cli",
        source: Source::Crate { name: "gotatun-cli", version: "0.10.2", program: "gotatun" },
        arguments: &["-f", "-v", "error", "--disable-drop-privileges"],
        number: 3,
    },
];

/// A process with its TUN and its control socket.
#[derive(Debug)]
struct Instance {
    child: Child,
    interface: String,
    log: PathBuf,
}

impl Instance {
    fn start(
        program: &Path,
        implementation: Implementation,
        host: char,
        netns: &Netns,
        core: usize,
    ) -> Result<Self> {
        let interface = format!("ewp{}{host}", implementation.number);
        let log = cache().join(format!("{interface}.log"));
        std::fs::create_dir_all(cache())?;
        std::fs::remove_file(socket(&interface)).ok();
        let output =
            std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(implementation.arguments).arg(&interface).stdin(Stdio::null()).current_dir(cache());
        command.stdout(output.try_clone()?).stderr(output);
        let child = netns.run(|| {
            move_to(core)?;
            command.spawn().with_context(|| format!("cannot start {}", program.display()))
        })?;
        let mut instance = Self { child, interface, log };
        processes().add(instance.child.id())?;
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(socket(&instance.interface)).is_err() {
            let ended = instance.child.try_wait()?.is_some();
            ensure!(!ended, "{} ended: {}", program.display(), last_line(&instance.log));
            ensure!(
                Instant::now() < until,
                "{} did not come up: {}",
                program.display(),
                last_line(&instance.log)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(instance)
    }

    /// Sets keys and peers by the configuration protocol that all implementations share.
    fn configure(&self, own: &Key, port: u16, peers: &[(&Key, SocketAddr, String)]) -> Result<()> {
        let mut text = format!("set=1\nprivate_key={}\nlisten_port={port}\n", hex(&own.secret));
        for (key, endpoint, allowed) in peers {
            let public = hex(StaticKey::from_bytes(key.secret.into()).public());
            text += &format!("public_key={public}\nendpoint={endpoint}\nallowed_ip={allowed}\n");
        }
        text += "\n";
        let mut stream = UnixStream::connect(socket(&self.interface))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(text.as_bytes())?;
        let mut answer = Vec::new();
        let mut part = [0; 256];
        while !answer.ends_with(b"\n\n") && answer.len() < 4096 {
            let count = stream.read(&mut part).context("no answer to a configuration")?;
            if count == 0 {
                break;
            }
            answer.extend_from_slice(&part[..count]);
        }
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.contains("errno=0\n"), "{} refused its configuration: {answer:?}", self.interface);
        Ok(())
    }

    fn address(&self, netns: &Netns, address: Ipv4Addr) -> Result<()> {
        ip(netns, &format!("address add {address}/24 dev {}", self.interface))?;
        ip(netns, &format!("link set {} mtu {MTU} up", self.interface))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = end_child(&mut self.child, END_PATIENCE) {
            eprintln!("{error:#}");
        }
        // One that had to be killed leaves it behind.
        std::fs::remove_file(socket(&self.interface)).ok();
    }
}

fn socket(interface: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("{interface}.sock"))
}

struct Key {
    secret: [u8; 32],
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hub with its two clients, configured.
#[derive(Debug)]
pub(super) struct WireGuard<'a> {
    implementation: Implementation,
    wires: &'a Wires,
    hub: Instance,
    _clients: [Instance; 2],
}

impl<'a> WireGuard<'a> {
    /// Starts the three processes and sends packets until they arrive.
    ///
    /// # Errors
    /// Where a process does not come up, or nothing arrives within 5 s.
    pub(super) fn start(implementation: Implementation, program: &Path, wires: &'a Wires) -> Result<Self> {
        let start = |host, netns, core| Instance::start(program, implementation, host, netns, core);
        let hub = start('h', wires.hub(), HUB_CORE)?;
        let a = start('a', wires.a(), CLIENT_CORE)?;
        let b = start('b', wires.b(), CLIENT_CORE)?;
        // Keys that protect nothing: every byte sent is known.
        let [key_a, key_hub, key_b] =
            [1, 2, 3].map(|fill| Key { secret: [16 * implementation.number + fill; 32] });
        let port = 51820 + u16::from(implementation.number);
        let inner = |host| inside(implementation, host);
        let everybody = format!("{}/24", inner(0));
        let at = |address: Ipv4Addr| SocketAddr::from((address, port));
        a.configure(&key_a, port, &[(&key_hub, at(wire_a(true)), everybody.clone())])?;
        b.configure(&key_b, port, &[(&key_hub, at(wire_b(true)), everybody)])?;
        let to_a = (&key_a, at(wire_a(false)), format!("{}/32", inner(1)));
        let to_b = (&key_b, at(wire_b(false)), format!("{}/32", inner(3)));
        hub.configure(&key_hub, port, &[to_a, to_b])?;
        a.address(wires.a(), inner(1))?;
        hub.address(wires.hub(), inner(2))?;
        b.address(wires.b(), inner(3))?;
        let started = Self { implementation, wires, hub, _clients: [a, b] };
        started.handshakes()?;
        Ok(started)
    }

    fn flow(&self, rate: u32) -> Result<Flow> {
        let at = |host| SocketAddr::from((inside(self.implementation, host), 9000));
        Flow::start(self.wires.a(), self.wires.b(), at(1), at(3), rate)
    }

    fn handshakes(&self) -> Result<()> {
        let flow = self.flow(100)?;
        let until = Instant::now() + PATIENCE;
        while flow.received() < 10 {
            ensure!(
                Instant::now() < until,
                "no packet crosses the hub within {} s: {}",
                PATIENCE.as_secs(),
                last_line(&self.hub.log)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Hub for WireGuard<'_> {
    fn name(&self) -> &'static str {
        self.implementation.name
    }

    fn forward(&mut self, rate: u32, span: Duration) -> Result<Outcome> {
        let threads = Threads::of_processes([self.hub.child.id()]);
        let flow = self.flow(rate)?;
        std::thread::sleep(WARM_UP);
        let (used, forwarded) = watch(&threads, || {
            let before = flow.received();
            std::thread::sleep(span);
            flow.received() - before
        })?;
        let tally = flow.finish()?;
        Ok(Outcome { used, forwarded, contradiction: tally.contradiction(), tally })
    }
}

/// An address inside the tunnels: host 1 is A, 2 the hub, 3 B, 0 the network.
const fn inside(implementation: Implementation, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, implementation.number, host)
}
