//! Veth pairs with several queues, for what measures or drives ports without the lab's bridge.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use netlink_packet_route::neighbour::NeighbourState;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::netns::Netns;
use crate::wiring::{self, MTU, index_of};

/// One end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Where the end is.
    pub netns: &'a Netns,
    /// Its name there.
    pub interface: &'a str,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IPv4 address, with 24 bits of prefix.
    pub address: Ipv4Addr,
}

/// Joins two namespaces by a veth pair with `queues` receive and transmit queues at both ends, without IPv6. Both ends
/// have a bounded transmit queue and compute their checksums, and each knows the other's MAC address, so nothing but
/// what a program sends is on the wire.
///
/// # Errors
/// When the kernel refuses a step, or the program `ethtool` is missing.
pub fn veth(near: VethEnd<'_>, far: VethEnd<'_>, queues: u32) -> Result<()> {
    for end in [near, far] {
        wiring::without_ipv6(end.netns)?;
    }
    let far_end = LinkMessageBuilder::<LinkUnspec>::new()
        .name(far.interface.to_owned())
        .mtu(MTU)
        .address(far.mac.to_vec())
        .append_extra_attribute(LinkAttribute::NumTxQueues(queues))
        .append_extra_attribute(LinkAttribute::NumRxQueues(queues))
        .setns_by_fd(far.netns.file().as_raw_fd())
        .build();
    let pair = LinkVeth::new(near.interface, far.interface)
        .mtu(MTU)
        .address(near.mac.to_vec())
        .append_extra_attribute(LinkAttribute::NumTxQueues(queues))
        .append_extra_attribute(LinkAttribute::NumRxQueues(queues))
        .set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)))
        .build();
    near.netns.netlink(|handle| async move {
        let made = handle.link().add(pair).execute().await;
        made.with_context(|| format!("cannot make the veth pair {}", near.interface))
    })?;
    for (end, other) in [(near, far), (far, near)] {
        end.netns.netlink(|handle| async move {
            let interface = index_of(&handle, end.interface).await?;
            let added = handle.address().add(interface, end.address.into(), 24).execute().await;
            added.with_context(|| format!("cannot give {} the address {}", end.interface, end.address))?;
            wiring::bounded_queue(&handle, interface).await?;
            wiring::set_up(&handle, interface).await?;
            let known = handle
                .neighbours()
                .add(interface, other.address.into())
                .link_layer_address(&other.mac)
                .state(NeighbourState::Permanent)
                .execute()
                .await;
            known.with_context(|| format!("cannot tell {} its neighbour {}", end.interface, other.address))
        })?;
        wiring::whole_checksums(end.netns, end.interface)?;
    }
    Ok(())
}

/// What an interface counted since it was made, in packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InterfacePackets {
    /// Received.
    pub received: u64,
    /// Sent.
    pub sent: u64,
    /// Dropped on receipt.
    pub receive_dropped: u64,
    /// Dropped instead of sent.
    pub send_dropped: u64,
}

/// Reads the counters of `interface` in `netns`.
///
/// # Errors
/// When there is no such interface.
pub fn interface_packets(netns: &Netns, interface: &str) -> Result<InterfacePackets> {
    let name = interface.to_owned();
    netns.netlink(|handle| async move {
        let link = handle.link().get().match_name(name.clone()).execute().try_next().await;
        let link = link.ok().flatten().with_context(|| format!("there is no interface {name}"))?;
        let counters = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(InterfacePackets {
                received: stats.rx_packets,
                sent: stats.tx_packets,
                receive_dropped: stats.rx_dropped,
                send_dropped: stats.tx_dropped,
            }),
            _ => None,
        });
        counters.with_context(|| format!("interface {name} has no counters"))
    })
}
