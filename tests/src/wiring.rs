//! Interfaces, addresses and queues of the lab, over netlink.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::netns::Netns;

/// Bytes of IP packet a lab interface carries: an ordinary Ethernet.
pub(crate) const MTU: u32 = 1500;

/// Silences what IPv6 says by itself (duplicate detection, router solicitation, multicast reports for link-local
/// addresses), so that a frame on the wire is there because some program sent it.
pub(crate) fn quiet_ipv6(netns: &Netns) -> Result<()> {
    for scope in ["all", "default"] {
        for (key, value) in
            [("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0"), ("addr_gen_mode", "1")]
        {
            netns.sysctl(&format!("net/ipv6/conf/{scope}/{key}"), value)?;
        }
    }
    Ok(())
}

/// Takes IPv6 away altogether, where a namespace only bridges.
pub(crate) fn without_ipv6(netns: &Netns) -> Result<()> {
    for scope in ["all", "default"] {
        netns.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
    }
    Ok(())
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up(netns: &Netns) -> Result<()> {
    netns.netlink(|handle| async move { set_up(&handle, index_of(&handle, "lo").await?).await })
}

/// Makes a learning bridge without spanning tree and without multicast snooping, so that it never speaks itself.
pub(crate) fn bridge(netns: &Netns, name: &str) -> Result<()> {
    let message = LinkBridge::new(name).mcast_snooping(false).mtu(MTU).build();
    netns.netlink(|handle| async move {
        handle.link().add(message).execute().await.with_context(|| format!("cannot make bridge {name}"))
    })
}

/// One end of a cable: an interface in a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plug<'a> {
    pub(crate) host: &'a Netns,
    pub(crate) interface: &'a str,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    /// Queues each way, of both ends: a native XDP program is refused on a veth whose peer has more transmit queues than
    /// it has receive queues.
    pub(crate) queues: u32,
}

/// Joins a host to a bridge in `wire` by a veth pair; the end in `wire` is named `port`. Returns the index of that end.
pub(crate) fn cable(wire: &Netns, bridge: &str, port: &str, plug: Plug<'_>) -> Result<u32> {
    let far_end = LinkMessageBuilder::<LinkUnspec>::new()
        .name(plug.interface.to_owned())
        .mtu(MTU)
        .setns_by_fd(plug.host.file().as_raw_fd());
    let far_end = with_queues(far_end, plug.queues).build();
    let pair =
        LinkVeth::new(port, plug.interface).mtu(MTU).set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)));
    let pair = with_queues(pair, plug.queues).build();
    let index = wire.netlink(|handle| async move {
        handle
            .link()
            .add(pair)
            .execute()
            .await
            .with_context(|| format!("cannot make the veth pair {port}"))?;
        let index = index_of(&handle, port).await?;
        let controller = index_of(&handle, bridge).await?;
        let joined = LinkUnspec::new_with_index(index).controller(controller).build();
        handle
            .link()
            .set(joined)
            .execute()
            .await
            .with_context(|| format!("cannot put {port} into {bridge}"))?;
        bounded_queue(&handle, index).await?;
        set_up(&handle, index).await?;
        Ok(index)
    })?;
    plug.host.netlink(|handle| async move {
        let interface = index_of(&handle, plug.interface).await?;
        handle
            .address()
            .add(interface, plug.address.into(), plug.prefix)
            .execute()
            .await
            .with_context(|| format!("cannot give {} the address {}", plug.interface, plug.address))?;
        bounded_queue(&handle, interface).await?;
        set_up(&handle, interface).await
    })?;
    whole_checksums(plug.host, plug.interface)?;
    Ok(index)
}

/// Joins two new interfaces of one namespace by a veth pair, and brings both up. Returns the index of each.
pub(crate) fn patch(netns: &Netns, [near, far]: [&str; 2]) -> Result<[u32; 2]> {
    let far_end = LinkMessageBuilder::<LinkUnspec>::new().name(far.to_owned()).mtu(MTU).build();
    let pair =
        LinkVeth::new(near, far).mtu(MTU).set_info_data(InfoData::Veth(InfoVeth::Peer(far_end))).build();
    netns.netlink(|handle| async move {
        let made = handle.link().add(pair).execute().await;
        made.with_context(|| format!("cannot make the veth pair {near}"))?;
        let ends = [index_of(&handle, near).await?, index_of(&handle, far).await?];
        for end in ends {
            bounded_queue(&handle, end).await?;
            set_up(&handle, end).await?;
        }
        Ok(ends)
    })
}

/// Puts an interface into a bridge of its namespace, or takes it out of the one where it is.
pub(crate) fn set_bridge(netns: &Netns, interface: u32, bridge: Option<&str>) -> Result<()> {
    netns.netlink(|handle| async move {
        let port = LinkUnspec::new_with_index(interface);
        let port = match bridge {
            Some(bridge) => port.controller(index_of(&handle, bridge).await?),
            None => port.nocontroller(),
        };
        let moved = handle.link().set(port.build()).execute().await;
        moved.with_context(|| match bridge {
            Some(bridge) => format!("cannot put interface {interface} into {bridge}"),
            None => format!("cannot take interface {interface} out of its bridge"),
        })
    })
}

/// Removes an interface, and with it the other end of a veth pair.
pub(crate) fn remove(netns: &Netns, interface: u32) -> Result<()> {
    netns.netlink(|handle| async move {
        let removed = handle.link().del(interface).execute().await;
        removed.with_context(|| format!("cannot remove interface {interface}"))
    })
}

/// The index of the interface `name` in this namespace.
pub(crate) async fn index_of(handle: &Handle, name: &str) -> Result<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => bail!("there is no interface {name}"),
        Err(error) => Err(error).with_context(|| format!("cannot look up interface {name}")),
    }
}

fn with_queues<T>(link: LinkMessageBuilder<T>, queues: u32) -> LinkMessageBuilder<T> {
    link.append_extra_attribute(LinkAttribute::NumTxQueues(queues))
        .append_extra_attribute(LinkAttribute::NumRxQueues(queues))
}

pub(crate) async fn set_up(handle: &Handle, index: u32) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(message).execute().await.with_context(|| format!("cannot bring interface {index} up"))
}

/// Gives the interface a pfifo (1000 packets, from the interface's queue length). Without a queueing discipline a veth
/// whose peer's ring of 256 is full drops silently; with one, the sender is told to try again.
pub(crate) async fn bounded_queue(handle: &Handle, index: u32) -> Result<()> {
    let mut message = TcMessage::with_index(i32::try_from(index).context("interface index beyond 2^31")?);
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("pfifo".to_owned()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut handle = handle.clone();
    let mut answers = handle.request(request).context("cannot ask for a pfifo")?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            bail!("interface {index} cannot have a pfifo: {error}");
        }
    }
    Ok(())
}

/// Lets the host compute whole transmit checksums: over a veth the kernel leaves them half done, which an XDP program
/// that redirects the frame would pass on.
pub(crate) fn whole_checksums(host: &Netns, interface: &str) -> Result<()> {
    let output = host
        .spawn(
            Command::new("ethtool")
                .args(["-K", interface, "tx", "off"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )
        .context("the lab needs the program ethtool (Debian package ethtool)")?
        .wait_with_output()?;
    if !output.status.success() {
        bail!("ethtool -K {interface} tx off: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
