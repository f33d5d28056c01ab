//! The control plane's way to the wire: the kernel's UDP socket for handshakes, and what the worker's port must know of
//! where cells go.

use crate::neighbour::{Adjacency, Change, Resolver, Watch};
use crate::port::{ControlDatagram, Peer};
use crate::worker::{ToWorker, Workers};
use crossbeam::channel::{Receiver, Sender};
use relay_common::wire::CELL_LEN;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often datagrams that the worker's own socket passed on are looked for.
const POLL: Duration = Duration::from_millis(2);
/// Pause before a next hop that did not answer is asked for again.
const RESOLVE_AGAIN: Duration = Duration::from_secs(1);
/// Resolved next hops that may wait to be passed to the worker.
const RESOLVED: usize = 256;

/// Where handshake datagrams come from.
pub(super) enum Socket {
    /// Sockets of the control plane's own, one for each lane's port; XDP takes the cells away before them.
    Own(Vec<tokio::net::UdpSocket>),
    /// The worker's socket, which passes on what is not a cell, and sends for the control plane.
    Shared { arrived: Receiver<ControlDatagram>, leaving: Sender<ControlDatagram> },
}

/// News of the way to a peer.
pub(super) enum News {
    /// The next hop of a link's peer is known.
    Resolved { link: u32, remote: SocketAddr, adjacency: Adjacency },
    /// The neighbour table changed.
    Changed(Change),
}

/// Next hops, found and kept current for an AF_XDP port.
pub(super) struct Neighbours {
    resolver: Arc<Resolver>,
    watch: Option<Watch>,
    found: mpsc::Sender<News>,
    news: mpsc::Receiver<News>,
}

impl Neighbours {
    pub(super) async fn new(interface: &str) -> Result<Self, crate::neighbour::NeighbourError> {
        let resolver = Arc::new(Resolver::new(interface).await?);
        let watch = Some(resolver.watch()?);
        let (found, news) = mpsc::channel(RESOLVED);
        Ok(Self { resolver, watch, found, news })
    }

    async fn next(&mut self) -> News {
        loop {
            let Some(watch) = &mut self.watch else {
                tokio::time::sleep(RESOLVE_AGAIN).await;
                self.watch = self.resolver.watch().inspect_err(|error| log::warn!("{error}")).ok();
                continue;
            };
            tokio::select! {
                Some(news) = self.news.recv() => return news,
                change = watch.next() => match change {
                    Some(change) => return News::Changed(change),
                    None => self.watch = None,
                },
            }
        }
    }

    /// Looks for the next hop in the background until it is known or the link is gone.
    fn look_for(&self, link: u32, remote: SocketAddr) {
        let (resolver, found) = (Arc::clone(&self.resolver), self.found.downgrade());
        tokio::spawn(async move {
            // The sender is weak, so that this ends with the node at the latest.
            while let Some(found) = found.upgrade() {
                match resolver.resolve(remote.ip()).await {
                    Ok(adjacency) => {
                        let _ = found.send(News::Resolved { link, remote, adjacency }).await;
                        return;
                    }
                    Err(error) => log::warn!("{error}"),
                }
                drop(found);
                tokio::time::sleep(RESOLVE_AGAIN).await;
            }
        });
    }
}

struct Aim {
    lane: u16,
    remote: SocketAddr,
    adjacency: Option<Adjacency>,
}

/// Socket, peers' addresses and, for AF_XDP, their MAC addresses.
pub(super) struct Path {
    socket: Socket,
    local: SocketAddr,
    aims: HashMap<u32, Aim>,
}

impl Path {
    /// `local` is the address that cells of lane 0 are sent from.
    pub(super) fn new(socket: Socket, local: SocketAddr) -> Self {
        Self { socket, local, aims: HashMap::new() }
    }

    /// The next datagram for the control plane, who it is from, and the lane whose port it came to.
    pub(super) async fn receive(&self) -> (Vec<u8>, SocketAddr, u16) {
        match &self.socket {
            Socket::Own(sockets) => {
                let waits = sockets.iter().map(|socket| Box::pin(receive_from(socket)));
                let ((bytes, source), lane, _) = futures::future::select_all(waits).await;
                (bytes, source, u16::try_from(lane).unwrap_or(0))
            }
            Socket::Shared { arrived, .. } => loop {
                if let Ok(datagram) = arrived.try_recv() {
                    return (datagram.data().to_vec(), datagram.remote, 0);
                }
                tokio::time::sleep(POLL).await;
            },
        }
    }

    /// Sends a handshake datagram from a lane's port. One that the kernel does not take is lost, as on the wire.
    pub(super) fn send(&self, bytes: &[u8], to: SocketAddr, lane: u16) {
        let result = match &self.socket {
            Socket::Own(sockets) => match sockets.get(usize::from(lane)) {
                Some(socket) => socket.try_send_to(bytes, to).map(drop),
                None => Err(std::io::ErrorKind::AddrNotAvailable.into()),
            },
            Socket::Shared { leaving, .. } => ControlDatagram::new(bytes, to)
                .ok_or(std::io::ErrorKind::InvalidInput)
                .and_then(|datagram| leaving.try_send(datagram).or(Err(std::io::ErrorKind::WouldBlock)))
                .map_err(Into::into),
        };
        if let Err(error) = result {
            log::warn!("a handshake datagram could not be sent: {error}");
        }
    }

    /// News of the way to peers; never, without an AF_XDP port.
    pub(super) async fn news(neighbours: &mut Option<Neighbours>) -> News {
        match neighbours {
            Some(neighbours) => neighbours.next().await,
            None => std::future::pending().await,
        }
    }

    /// Passes news on to the worker's port.
    pub(super) fn on_news(&mut self, news: News, neighbours: Option<&Neighbours>, workers: &Workers) {
        match news {
            News::Resolved { link, remote, adjacency } => {
                if let Some(aim) = self.aims.get_mut(&link).filter(|aim| aim.remote == remote) {
                    aim.adjacency = Some(adjacency);
                    self.point(link, workers);
                }
            }
            News::Changed(change) => {
                let concerned: Vec<u32> = self
                    .aims
                    .iter()
                    .filter(|(_, aim)| aim.adjacency.is_some_and(|known| known.next_hop == change.address))
                    .map(|(&link, _)| link)
                    .collect();
                for link in concerned {
                    self.follow(link, change, neighbours, workers);
                }
            }
        }
    }

    fn follow(&mut self, link: u32, change: Change, neighbours: Option<&Neighbours>, workers: &Workers) {
        let Some(aim) = self.aims.get_mut(&link) else { return };
        let Some(known) = &mut aim.adjacency else { return };
        match change.mac {
            Some(mac) if mac == known.remote_mac => {}
            Some(mac) => {
                known.remote_mac = mac;
                self.point(link, workers);
            }
            // Sending goes on to the address known last; an empty slot would be seen.
            None => {
                if let Some(neighbours) = neighbours {
                    neighbours.look_for(link, aim.remote);
                }
            }
        }
    }

    /// A link's cells go to `remote` from here on.
    pub(super) fn aim(
        &mut self,
        link: u32,
        lane: u16,
        remote: SocketAddr,
        neighbours: Option<&Neighbours>,
        workers: &Workers,
    ) {
        self.aims.insert(link, Aim { lane, remote, adjacency: None });
        match neighbours {
            Some(neighbours) => neighbours.look_for(link, remote),
            None => self.point(link, workers),
        }
    }

    /// A link is gone.
    pub(super) fn forget(&mut self, link: u32, workers: &Workers) {
        self.aims.remove(&link);
        tell(workers, link, None);
    }

    fn point(&self, link: u32, workers: &Workers) {
        let Some(aim) = self.aims.get(&link) else { return };
        let (macs, vlan) = aim
            .adjacency
            .map_or((None, None), |known| (Some((known.local_mac, known.remote_mac)), known.vlan));
        let mut local = self.local;
        local.set_port(local.port() + aim.lane);
        let peer = Peer { local, remote: aim.remote, macs, vlan };
        tell(workers, link, Some(peer));
    }
}

async fn receive_from(socket: &tokio::net::UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; CELL_LEN + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((len, source)) => {
                buffer.truncate(len);
                return (buffer, source);
            }
            // An ICMP error of an earlier datagram; the handshake's own timer sends again.
            Err(error) => {
                log::debug!("handshake socket: {error}");
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

fn tell(workers: &Workers, link: u32, peer: Option<Peer>) {
    if let Err(error) = workers.tell(ToWorker::SetPeer { link, peer }) {
        log::error!("{error}");
    }
}
