//! Two hosts as namespaces, joined by two veth pairs.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use relay_tests::Netns;

/// The pair that the link runs over, and the one that ends at the floor.
pub(super) const LINK: &str = "ewb0";
pub(super) const FLOOR: &str = "ewb1";
/// Queues of each interface.
const QUEUES: u32 = 4;
/// The queue that the link's cells take, and one that they do not.
pub(super) const LINK_QUEUE: u32 = 0;
pub(super) const OTHER_QUEUE: u32 = 2;
/// MAC addresses of the sender's and the relay's ends, the same on both pairs.
pub(super) const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0xeb, 1], [2, 0, 0, 0, 0xeb, 2]];

/// The namespaces; they go with it.
pub(super) struct Wiring {
    sender: Namespace,
    relay: Namespace,
}

struct Namespace(Netns);

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = Netns::delete(self.0.name()) {
            eprintln!("{error:#}");
        }
    }
}

impl Wiring {
    pub(super) fn new() -> Result<Self> {
        let name = |role: &str| format!("ewb-pktgen-{}-{role}", std::process::id());
        let sender = Namespace(Netns::create(&name("sender"))?);
        let relay = Namespace(Netns::create(&name("relay"))?);
        let wiring = Self { sender, relay };
        let [near, far] = MACS.map(text);
        for device in [LINK, FLOOR] {
            let peer = wiring.relay.0.name();
            let queues = format!("numrxqueues {QUEUES} numtxqueues {QUEUES}");
            let pair = format!(
                "{device} address {near} {queues} type veth peer name {device} address {far} {queues}"
            );
            ip(&wiring.sender.0, &format!("link add {pair} netns {peer}"))?;
            for end in [&wiring.sender.0, &wiring.relay.0] {
                end.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
                ip(end, &format!("link set {device} up"))?;
            }
        }
        Ok(wiring)
    }

    /// Rewrites the first four bytes of every UDP payload that leaves `device` through the kernel's network stack: AF_XDP
    /// and pktgen's own direct way do not pass there.
    pub(super) fn rewrite(&self, device: &str, payload: u32) -> Result<()> {
        // Bytes of the IPv4 and UDP headers, from where traffic control counts.
        const OFFSET: u32 = 28;
        tool(&self.sender.0, "tc", &format!("qdisc add dev {device} clsact"))?;
        let action = format!("action pedit munge offset {OFFSET} u32 set {payload:#010x}");
        tool(&self.sender.0, "tc", &format!("filter add dev {device} egress matchall {action}"))
    }

    /// Runs `work` as the sender.
    pub(super) fn sender_side<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.sender.0.run(work)
    }

    /// Runs `work` as the relay.
    pub(super) fn relay_side<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _inside = self.relay.0.enter()?;
        work()
    }

    /// Runs `work` as the sender on the calling thread.
    pub(super) fn as_sender<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _inside = self.sender.0.enter()?;
        work()
    }
}

pub(super) fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(netns: &Netns, arguments: &str) -> Result<()> {
    tool(netns, "ip", arguments)
}

fn tool(netns: &Netns, program: &str, arguments: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace()).stdin(std::process::Stdio::null());
    let status = netns.spawn(&mut command)?.wait().with_context(|| format!("waiting for {program}"))?;
    ensure!(status.success(), "{program} {arguments}: {status}");
    Ok(())
}
