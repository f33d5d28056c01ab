//! Which MAC addresses the headers of a link take: what the kernel's routes and neighbour table say.
//!
//! AF_XDP sends past the kernel, so nothing but this module makes the kernel look a neighbour up or keep it fresh. No
//! address is ever part of an error: errors end in logs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr as NetlinkAddress;
use rtnetlink::{Handle, IpVersion, MulticastGroup};
use tokio::task::JoinHandle;

/// A MAC address.
pub type Mac = [u8; 6];

/// Looks at the neighbour table before giving up, and the time between them: the kernel sends its three requests one
/// second apart (`mcast_solicit`, `retrans_time_ms`), so this sees all of them out.
const TRIES: u32 = 35;
const PAUSE: Duration = Duration::from_millis(100);

/// Every so many tries, the kernel is asked to look again.
const POKE_EVERY: u32 = 10;

/// Time for one answer of the kernel. Only a fault makes it take so long.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The addresses between this host and the next one towards a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjacency {
    /// MAC address of our interface.
    pub local_mac: Mac,
    /// MAC address of the next hop: the peer itself, or the gateway towards it.
    pub remote_mac: Mac,
    /// The address that the kernel would send from.
    pub local: IpAddr,
    /// Whose MAC address `remote_mac` is; what a [`Change`] of it names.
    pub next_hop: IpAddr,
    /// VLAN id to tag with: none, since a tagged interface takes no XDP program of its own.
    pub vlan: Option<u16>,
}

/// Why a peer has no MAC address. Peers are not named.
#[derive(Debug, thiserror::Error)]
pub enum NeighbourError {
    /// No such interface.
    #[error("no interface {interface} in this network namespace")]
    NoInterface {
        /// The name looked for.
        interface: String,
    },
    /// Not an Ethernet interface.
    #[error("{interface} has no Ethernet address, so no header can be made for it")]
    NotEthernet {
        /// Name of the interface.
        interface: String,
    },
    /// The route does not exist or does not lead there.
    #[error("no route to the peer leads out of {interface}; add one, or set another interface")]
    NoRoute {
        /// Name of the interface.
        interface: String,
    },
    /// The next hop does not answer.
    #[error("the next hop towards the peer does not answer on {interface}; is it up, and on the same wire?")]
    Unreachable {
        /// Name of the interface.
        interface: String,
    },
    /// The kernel did not answer.
    #[error("no answer from the kernel over netlink to {0}")]
    NoAnswer(&'static str),
    /// The kernel refused.
    #[error("cannot {step} over netlink: {error}")]
    Netlink {
        /// What was asked.
        step: &'static str,
        /// What the kernel said.
        error: rtnetlink::Error,
    },
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[from] std::io::Error),
}

/// Finds next hops out of one interface. Belongs to the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Resolver {
    handle: Handle,
    connection: JoinHandle<()>,
    interface: String,
    index: u32,
    local_mac: Mac,
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Resolver {
    /// A resolver for `interface`. Has to be called within a tokio runtime.
    ///
    /// # Errors
    /// [`NeighbourError`], where netlink fails or the interface is not there or not Ethernet.
    pub async fn new(interface: &str) -> Result<Self, NeighbourError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let mut resolver = Self {
            handle,
            connection: tokio::spawn(connection),
            interface: interface.to_owned(),
            index: 0,
            local_mac: [0; 6],
        };
        let link = resolver.handle.link().get().match_name(interface.to_owned()).execute();
        let link = answered("a question for an interface", link.into_future())
            .await?
            .0
            .and_then(Result::ok)
            .ok_or_else(|| NeighbourError::NoInterface { interface: interface.to_owned() })?;
        resolver.index = link.header.index;
        let mac = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => Mac::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        resolver.local_mac =
            mac.ok_or_else(|| NeighbourError::NotEthernet { interface: interface.to_owned() })?;
        Ok(resolver)
    }

    /// The next hop towards `remote`, asked for on the wire where the kernel does not know it yet. Takes up to 3.5 s when
    /// nobody answers.
    ///
    /// # Errors
    /// [`NeighbourError`], naming the interface and never the peer.
    pub async fn resolve(&self, remote: IpAddr) -> Result<Adjacency, NeighbourError> {
        let remote = remote.to_canonical();
        let (next_hop, local) = self.route(remote).await?;
        for attempt in 0..TRIES {
            let known = self.look_up(next_hop).await?;
            if attempt % POKE_EVERY == 0 && known.is_none_or(|(_, fresh)| !fresh) {
                self.poke(next_hop).await;
            }
            if let Some((remote_mac, _)) = known {
                return Ok(Adjacency { local_mac: self.local_mac, remote_mac, local, next_hop, vlan: None });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(NeighbourError::Unreachable { interface: self.interface.clone() })
    }

    /// Next hop and source address towards `remote` out of our interface.
    async fn route(&self, remote: IpAddr) -> Result<(IpAddr, IpAddr), NeighbourError> {
        let mut question = RouteMessage::default();
        (question.header.address_family, question.header.destination_prefix_length) = match remote {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        question.attributes.push(RouteAttribute::Destination(remote.into()));
        // The interface is left out of the question: with it, IPv4 takes every address without a route for a neighbour.
        let answer = self.handle.route().get(question).execute();
        let answer = answered("a question for a route", answer.into_future()).await?.0.and_then(Result::ok);
        answer
            .filter(|route| route.header.kind == RouteType::Unicast)
            .and_then(|route| read_route(&route, remote, self.index))
            .ok_or_else(|| NeighbourError::NoRoute { interface: self.interface.clone() })
    }

    /// What the neighbour table says of `address`: its MAC address, and whether the kernel heard of it lately.
    async fn look_up(&self, address: IpAddr) -> Result<Option<(Mac, bool)>, NeighbourError> {
        let family = if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        let table = self.handle.neighbours().get().set_family(family).execute();
        let table: Vec<_> = answered("a question for neighbours", table.try_collect())
            .await?
            .map_err(|error| NeighbourError::Netlink { step: "read the neighbour table", error })?;
        let mut entries =
            table.iter().filter(|entry| entry.header.ifindex == self.index).filter_map(read_neighbour);
        Ok(entries.find(|entry| entry.address == address).and_then(|entry| Some((entry.mac?, entry.fresh))))
    }

    /// Asks the kernel to find `address` on the wire. That it could not be asked shows in the next look at the table.
    async fn poke(&self, address: IpAddr) {
        let request = self
            .handle
            .neighbours()
            .add(self.index, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute();
        if let Ok(Err(error)) = answered("a request to look for a neighbour", request).await {
            log::debug!("asking the kernel for a neighbour on {}: {error}", self.interface);
        }
    }

    /// Watches the neighbours of this interface.
    ///
    /// # Errors
    /// [`NeighbourError::Socket`].
    pub fn watch(&self) -> Result<Watch, NeighbourError> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Neigh])?;
        Ok(Watch { connection: tokio::spawn(connection), messages, index: self.index })
    }
}

/// A change in the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub address: IpAddr,
    /// The MAC address it has now. `None` when the kernel forgot it or found nobody: worth another
    /// [`Resolver::resolve`], and no reason to stop sending.
    pub mac: Option<Mac>,
}

/// The changes of the neighbour table of one interface, as they come.
#[derive(Debug)]
pub struct Watch {
    connection: JoinHandle<()>,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, NetlinkAddress)>,
    index: u32,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Watch {
    /// The next change. `None` when the netlink connection broke, after which a new watch is needed. Dropping the future
    /// loses nothing.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            let (message, _) = self.messages.next().await?;
            let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
            let (entry, gone) = match &message {
                RouteNetlinkMessage::NewNeighbour(entry) => (entry, false),
                RouteNetlinkMessage::DelNeighbour(entry) => (entry, true),
                _ => continue,
            };
            if entry.header.ifindex == self.index
                && let Some(entry) = read_neighbour(entry)
            {
                return Some(Change { address: entry.address, mac: entry.mac.filter(|_| !gone) });
            }
        }
    }
}

async fn answered<F: Future>(question: &'static str, answer: F) -> Result<F::Output, NeighbourError> {
    tokio::time::timeout(ANSWER_LIMIT, answer).await.map_err(|_| NeighbourError::NoAnswer(question))
}

/// Next hop and source address of `route`. `None` where it leads out of another interface or does not say.
fn read_route(route: &RouteMessage, remote: IpAddr, index: u32) -> Option<(IpAddr, IpAddr)> {
    let (mut next_hop, mut local, mut out) = (remote, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(gateway) => next_hop = read_address(gateway)?,
            RouteAttribute::Via(RouteVia::Inet(gateway)) => next_hop = (*gateway).into(),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => next_hop = (*gateway).into(),
            RouteAttribute::PrefSource(source) => local = read_address(source),
            RouteAttribute::Oif(interface) => out = Some(*interface),
            _ => {}
        }
    }
    (out == Some(index)).then_some((next_hop, local?))
}

fn read_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// One entry of the neighbour table.
struct Entry {
    address: IpAddr,
    /// `None` while the kernel is looking and after it found nobody.
    mac: Option<Mac>,
    fresh: bool,
}

fn read_neighbour(message: &NeighbourMessage) -> Option<Entry> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(Ipv4Addr::into(*v4))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(Ipv6Addr::into(*v6))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let (usable, fresh) = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp => (true, true),
        NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => (true, false),
        _ => (false, false),
    };
    Some(Entry { address: address?, mac: mac.filter(|_| usable), fresh })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
    const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

    fn route(attributes: &[RouteAttribute]) -> Option<(IpAddr, IpAddr)> {
        let mut message = RouteMessage::default();
        message.attributes = attributes.to_vec();
        read_route(&message, REMOTE, 7)
    }

    #[test]
    fn the_next_hop_is_the_gateway_or_the_peer() {
        let source = RouteAttribute::PrefSource(RouteAddress::Inet(LOCAL));
        let out = RouteAttribute::Oif(7);
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY));
        let via = RouteAttribute::Via(RouteVia::Inet6(Ipv6Addr::LOCALHOST));
        assert_eq!(route(&[out.clone(), source.clone()]), Some((REMOTE, LOCAL.into())));
        assert_eq!(route(&[gateway, out.clone(), source.clone()]), Some((GATEWAY.into(), LOCAL.into())));
        assert_eq!(
            route(&[via, out.clone(), source.clone()]),
            Some((Ipv6Addr::LOCALHOST.into(), LOCAL.into()))
        );
        assert_eq!(route(&[RouteAttribute::Oif(8), source.clone()]), None);
        assert_eq!(route(&[source]), None);
        assert_eq!(route(&[out]), None);
    }

    #[test]
    fn only_a_state_that_vouches_for_the_mac_gives_it() {
        let entry = |state| {
            let mut message = NeighbourMessage::default();
            message.header.state = state;
            message.attributes = vec![
                NeighbourAttribute::Destination(NeighbourAddress::Inet(GATEWAY)),
                NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
            ];
            let entry = read_neighbour(&message).unwrap();
            (entry.address, entry.mac.is_some(), entry.fresh)
        };
        let gateway = IpAddr::from(GATEWAY);
        assert_eq!(entry(NeighbourState::Reachable), (gateway, true, true));
        assert_eq!(entry(NeighbourState::Stale), (gateway, true, false));
        assert_eq!(entry(NeighbourState::Failed), (gateway, false, false));
        assert_eq!(entry(NeighbourState::Incomplete), (gateway, false, false));
        assert!(read_neighbour(&NeighbourMessage::default()).is_none());
    }

    #[test]
    fn errors_name_the_interface() {
        let error = NeighbourError::Unreachable { interface: "wire0".into() };
        assert!(error.to_string().contains("wire0"));
    }
}
