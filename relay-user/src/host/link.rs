//! What the kernel itself knows of an interface, whichever driver it has.

use std::path::PathBuf;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use super::netlink::{NetlinkError, ask};
use super::{number, text};

/// `NETLINK_ROUTE` of uapi/linux/netlink.h.
const ROUTE: isize = 0;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its index.
    pub(crate) index: u32,
    /// Whether it was brought up.
    pub(crate) up: bool,
    /// Bytes of IP packet that it carries.
    pub(crate) mtu: u32,
    /// Receive queues that it was made with.
    pub(crate) rx_queues: u32,
    /// What kind it is, where it is no hardware: `veth`, `bond`.
    pub(crate) kind: Option<String>,
    /// Its queueing discipline.
    pub(crate) qdisc: Option<String>,
    /// Where an XDP program is attached to it: `native`, `generic` or `offloaded`.
    pub(crate) xdp: Option<&'static str>,
}

/// Asks for `interface` in the calling thread's network namespace. `None` when there is none of this name.
///
/// # Errors
/// [`NetlinkError`].
pub(crate) fn find(interface: &str) -> Result<Option<Link>, NetlinkError> {
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::IfName(interface.to_owned()));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(question));
    message.header.flags = NLM_F_REQUEST;
    match ask(ROUTE, message)? {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(read(&link))),
        NetlinkPayload::Error(error) if error.raw_code() == -libc::ENODEV => Ok(None),
        other => Err(NetlinkError::of(&other)),
    }
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Qdisc(name) => link.qdisc = Some(name.clone()),
            LinkAttribute::NumRxQueues(queues) => link.rx_queues = *queues,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(xdp) => {
                link.xdp = xdp.iter().find_map(|xdp| match xdp {
                    LinkXdp::Attached(XdpAttached::Driver) => Some("native"),
                    LinkXdp::Attached(XdpAttached::SocketBuffer) => Some("generic"),
                    LinkXdp::Attached(XdpAttached::Hardware) => Some("offloaded"),
                    LinkXdp::Attached(XdpAttached::Multiple) => Some("native and offloaded"),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// The interface's device in /sys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// Its directory, with all links resolved.
    At(PathBuf),
    /// It has none: there is no hardware behind the interface.
    None,
    /// /sys shows the interfaces of another network namespace.
    Hidden,
}

impl Device {
    /// Finds the device of `interface`, whose index is `index`.
    pub(crate) fn of(interface: &str, index: u32) -> Self {
        let place = PathBuf::from("/sys/class/net").join(interface);
        if number(place.join("ifindex")) != Some(index) {
            return Self::Hidden;
        }
        std::fs::canonicalize(place.join("device")).map_or(Self::None, Self::At)
    }

    /// The NUMA node that the device hangs on. `None` where there is one node only, or it is not known.
    pub(crate) fn node(&self) -> Option<u32> {
        let Self::At(device) = self else { return None };
        // The device behind a virtio device has the attribute.
        let near = device.ancestors().take(2).find_map(|place| text(place.join("numa_node")));
        near?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_and_others_are_not() {
        let lo = find("lo").expect("netlink answers").expect("every namespace has one");
        assert!(lo.index >= 1 && lo.rx_queues >= 1 && lo.mtu > 0, "{lo:?}");
        assert_eq!(Device::of("lo", lo.index), Device::None);
        assert_eq!(Device::of("lo", lo.index + 1000), Device::Hidden);
        assert_eq!(find("ewd-none").expect("netlink answers"), None);
    }
}
