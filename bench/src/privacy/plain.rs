//! The tunnel without shaping, which every attack must see through: the kernel's VXLAN over the same hops. Each packet
//! leaves as a datagram of its own, when it comes and as long as it is.

use anyhow::{Context as _, Result};
use relay_tests::lab::{EXIT_OUTSIDE, OUTSIDE};
use relay_tests::nodes::RELAYS;
use relay_tests::{Host, Lab};

use super::tool::call;

/// The client's interface into the tunnel.
pub(super) const INTERFACE: &str = "vx1";
/// The second client's.
pub(super) const SECOND_INTERFACE: &str = "vx4";

/// The tunnel's joints, from the clients on.
const JOINTS: [(u8, Host, Host); 4] = [
    (1, Host::Client, Host::Entry),
    (2, Host::Entry, Host::Middle),
    (3, Host::Middle, Host::Exit),
    (4, Host::Second, Host::Entry),
];

/// Lays the tunnel from `clients` through the relays' hosts of `lab`. It goes with the lab's namespaces.
///
/// # Errors
/// Where the kernel lacks VXLAN, or refuses a step.
pub(super) fn lay(lab: &Lab, clients: &[Host]) -> Result<()> {
    let there = |host: &Host| RELAYS.contains(host) || clients.contains(host);
    for (number, near, far) in JOINTS.into_iter().filter(|(_, near, _)| there(near)) {
        end(lab, number, (near, 1), far)?;
        end(lab, number, (far, 2), near)?;
    }
    for host in [Host::Entry, Host::Middle, Host::Exit] {
        lab.netns(host).sysctl("net/ipv4/ip_forward", "1")?;
        // A forwarded packet would be announced a better way to now and then, which no payload asked for.
        lab.netns(host).sysctl("net/ipv4/conf/all/send_redirects", "0")?;
    }
    let routes = [
        (Host::Client, "198.51.100.0/24 via 10.77.1.2".to_owned()),
        (Host::Second, "198.51.100.0/24 via 10.77.4.2".to_owned()),
        (Host::Entry, "198.51.100.0/24 via 10.77.2.2".to_owned()),
        (Host::Middle, "198.51.100.0/24 via 10.77.3.2".to_owned()),
        (Host::Service, format!("10.77.0.0/16 via {EXIT_OUTSIDE}")),
        (Host::Exit, "10.77.1.0/24 via 10.77.3.1".to_owned()),
        (Host::Exit, "10.77.4.0/24 via 10.77.3.1".to_owned()),
        (Host::Middle, "10.77.1.0/24 via 10.77.2.1".to_owned()),
        (Host::Middle, "10.77.4.0/24 via 10.77.2.1".to_owned()),
    ];
    for (host, route) in routes.into_iter().filter(|(host, _)| *host != Host::Second || there(host)) {
        call(lab.netns(host), &format!("ip route add {route}"))?;
    }
    // As fast as a class is, which is also as fast as a line to a home: without a bound a download would run at the
    // memory's speed.
    for (host, interface) in [(Host::Client, INTERFACE), (Host::Service, OUTSIDE)] {
        call(
            lab.netns(host),
            &format!("tc qdisc replace dev {interface} root tbf rate 16mbit burst 16kb latency 50ms"),
        )?;
    }
    Ok(())
}

fn end(lab: &Lab, number: u8, (host, place): (Host, u8), other: Host) -> Result<()> {
    let netns = lab.netns(host);
    let local = host.address().context("a host on the wire has an address")?;
    let remote = other.address().context("a host on the wire has an address")?;
    for line in [
        format!(
            "ip link add vx{number} type vxlan id {number} local {local} remote {remote} dev wire0 dstport 4789"
        ),
        format!("ip address add 10.77.{number}.{place}/24 dev vx{number}"),
        format!("ip link set vx{number} mtu 1400 up"),
        // Segments of one packet's size, as a wire carries them.
        format!("ethtool -K vx{number} gso off tso off gro off"),
    ] {
        call(netns, &line)?;
    }
    Ok(())
}
