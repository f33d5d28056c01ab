//! Three hosts in a row: client A, hub, client B.
//!
//! ```text
//!  ewp-a            ewp-hub             ewp-b
//!    ewpa ---------- ewpa   ewpb -------- ewpb      WireGuard's datagrams
//!    ewpx ---------- ewpx                           cells
//! ```
//!
//! Cells have a wire of their own, since an XDP program changes how a veth device handles everybody's packets. Its far
//! end plays both neighbours of the relay: a relay's port is one queue of one interface.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use relay_tests::Netns;

/// The namespaces; the hub is the middle one.
const NAMES: [&str; 3] = ["ewp-a", "ewp-hub", "ewp-b"];
/// The wire for cells, at both ends.
pub(super) const CELL_WIRE: &str = "ewpx";
/// MAC addresses of the wire for cells: far end, hub.
pub(super) const CELL_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0xee, 0x71], [2, 0, 0, 0, 0xee, 0x72]];

/// The namespaces with their wires. Dropping it removes them.
#[derive(Debug)]
pub(super) struct Wires {
    netns: Vec<Netns>,
}

impl Wires {
    /// Makes them, after removing what an earlier run left behind.
    ///
    /// # Errors
    /// Without root, or without the program `ip`.
    pub(super) fn new() -> Result<Self> {
        for name in NAMES {
            Netns::delete(name)?;
        }
        let mut wires = Self { netns: Vec::new() };
        for name in NAMES {
            wires.netns.push(Netns::create(name)?);
        }
        for netns in &wires.netns {
            netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
            // A packet that leaves the hub by the TUN it came from is what a hub is for.
            netns.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
            netns.sysctl("net/ipv4/conf/default/send_redirects", "0")?;
        }
        wires.hub().sysctl("net/ipv4/ip_forward", "1")?;
        let [near, far] = CELL_MACS.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        for line in [
            "link add ewpa type veth peer name ewpa netns ewp-hub".to_owned(),
            format!(
                "link add {CELL_WIRE} address {near} type veth peer name {CELL_WIRE} address {far} netns ewp-hub"
            ),
        ] {
            ip(wires.a(), &line)?;
        }
        ip(wires.b(), "link add ewpb type veth peer name ewpb netns ewp-hub")?;
        let [a, hub_a, hub_b, b] = [wire_a(false), wire_a(true), wire_b(true), wire_b(false)];
        for (netns, interface, address) in [
            (wires.a(), "ewpa", Some(a)),
            (wires.hub(), "ewpa", Some(hub_a)),
            (wires.hub(), "ewpb", Some(hub_b)),
            (wires.b(), "ewpb", Some(b)),
            (wires.a(), CELL_WIRE, None),
            (wires.hub(), CELL_WIRE, None),
        ] {
            if let Some(address) = address {
                ip(netns, &format!("address add {address}/24 dev {interface}"))?;
            }
            ip(netns, &format!("link set {interface} up"))?;
        }
        Ok(wires)
    }

    /// Client A's host.
    pub(super) fn a(&self) -> &Netns {
        &self.netns[0]
    }

    /// The hub's host.
    pub(super) fn hub(&self) -> &Netns {
        &self.netns[1]
    }

    /// Client B's host.
    pub(super) fn b(&self) -> &Netns {
        &self.netns[2]
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for netns in &self.netns {
            if let Err(error) = Netns::delete(netns.name()) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// An address between A and the hub: the hub's, or A's.
pub(super) const fn wire_a(hub: bool) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, if hub { 2 } else { 1 })
}

/// An address between the hub and B: the hub's, or B's.
pub(super) const fn wire_b(hub: bool) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, if hub { 2 } else { 3 })
}

/// Calls `ip` with words separated by spaces.
///
/// # Errors
/// What `ip` says.
pub(super) fn ip(netns: &Netns, words: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(words.split(' ')).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output =
        netns.spawn(&mut command).context("install the Debian package iproute2")?.wait_with_output()?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
