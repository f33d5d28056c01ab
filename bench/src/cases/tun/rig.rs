//! A client, an exit and a service, each in a network namespace of its own; the two edges are joined in memory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand_core::Rng;
use relay_tests::Netns;
use relay_user::edge::pool::PoolNetworks;
use relay_user::edge::{ClientEdge, ExitEdge, Offload};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

/// The only circuit.
pub(super) const CIRCUIT: u32 = 0;

const EXIT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SERVICE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
const OUTSIDE: &str = "out0";
const CLIENT_TUN: &str = "ewu0";
const EXIT_TUN: &str = "ewu-exit";
/// How long a connection may take, or stand still.
const PATIENCE: Duration = Duration::from_secs(10);

/// A namespace that goes with the value.
struct Place(Netns);

impl Place {
    fn make(name: &str) -> Result<Self> {
        // One that a killed run left would be in the way.
        Netns::delete(name)?;
        Netns::create(name).map(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = Netns::delete(self.0.name()) {
            eprintln!("{error:#}");
        }
    }
}

/// The three namespaces.
pub(super) struct Rig {
    client: Place,
    exit: Place,
    service: Place,
}

/// Both edges, open.
pub(super) struct Edges {
    pub(super) client: ClientEdge,
    pub(super) exit: ExitEdge,
}

impl Rig {
    /// Makes the namespaces and the cable between exit and service.
    pub(super) fn build() -> Result<Self> {
        let rig = Self {
            client: Place::make("ewu-client")?,
            exit: Place::make("ewu-exit")?,
            service: Place::make("ewu-service")?,
        };
        let path = format!("{}/{}", relay_tests::netns::NETNS_DIR, rig.service.0.name());
        let far = std::fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
        rig.exit.0.netlink(|handle| async move {
            let far_end = LinkUnspec::new_with_name(OUTSIDE).setns_by_fd(far.as_raw_fd()).build();
            let pair = LinkVeth::new(OUTSIDE, OUTSIDE)
                .set_info_data(netlink_packet_route::link::InfoData::Veth(
                    netlink_packet_route::link::InfoVeth::Peer(far_end),
                ))
                .build();
            handle.link().add(pair).execute().await.context("cannot make a veth pair")
        })?;
        for (place, address) in [(&rig.exit, EXIT), (&rig.service, SERVICE)] {
            let index = place.0.run(|| index_of(OUTSIDE))?;
            place.0.netlink(|handle| async move {
                handle.address().add(index, address.into(), 24).execute().await?;
                handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
                Ok(())
            })?;
        }
        Ok(rig)
    }

    /// Opens both edges and sends all of the client's traffic through them.
    pub(super) fn open(&self, offload: Offload, rng: &mut (dyn Rng + Send)) -> Result<Edges> {
        let pool6: Ipv6Addr = "fd6e:7765::".parse()?;
        let networks = PoolNetworks::new((Ipv4Addr::new(100, 96, 0, 0), 16), (pool6, 64))?;
        let client = self.client.0.run(|| Ok(ClientEdge::open(CLIENT_TUN, offload)?))?;
        let index = client.tun().index();
        self.client.0.netlink(|handle| async move {
            let default = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).build();
            handle.route().add(default).execute().await.context("cannot set the client's route")
        })?;
        let mut exit = self.exit.0.run(|| Ok(ExitEdge::open(EXIT_TUN, OUTSIDE, networks, 1, offload)?))?;
        exit.open_circuit(CIRCUIT, 0, rng)?;
        Ok(Edges { client, exit })
    }

    /// Takes both edges away again.
    pub(super) fn close(&self, edges: Edges) -> Result<()> {
        drop(edges.client);
        // NAT is taken back in the namespace of the calling thread.
        self.exit.0.run(|| Ok(edges.exit.close()?))
    }

    /// A listener of the service.
    pub(super) fn listen(&self) -> Result<TcpListener> {
        self.service.0.run(|| TcpListener::bind((IpAddr::from(SERVICE), 0)).context("the service's port"))
    }

    /// A connection from client to service, the client's end first; needs somebody who moves packets.
    pub(super) fn connect(&self, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
        let target: SocketAddr = listener.local_addr()?;
        let near = self.client.0.run(|| {
            TcpStream::connect_timeout(&target, PATIENCE).context("no connection through both edges")
        })?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        Ok((near, far))
    }
}

fn index_of(name: &str) -> Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    rustix::net::netdevice::name_to_index(&socket, name).with_context(|| format!("no interface {name}"))
}
