//! Routes into the tunnel that fail closed.
//!
//! Every prefix gets two routes: one into the TUN device and, at the next worse metric, one that makes the prefix
//! unreachable. When the process dies the device takes the first along and the second stays, so that no packet meant
//! for the tunnel leaves in the clear; the next start or a clean stop removes it.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinHandle;

/// Metric of the route into the TUN device: better than what address configuration daemons give theirs.
const TUNNEL_METRIC: u32 = 1;
/// Metric of the route that keeps packets in when the tunnel is gone.
const GUARD_METRIC: u32 = 2;
/// Marks the routes as this program's; free in the kernel's list of routing protocols (`RTPROT_*`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x76);

/// What went wrong with the routes.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Netlink cannot be reached.
    #[error("cannot open a netlink socket to set routes")]
    Netlink(#[source] io::Error),
    /// The prefix length is longer than the address.
    #[error("route {0}/{1}: the prefix is longer than the address")]
    Prefix(IpAddr, u8),
    /// Someone else's route stands where one has to be.
    #[error("route {0}/{1} with metric {2} exists already; remove it (ip route del {0}/{1} metric {2})")]
    Taken(IpAddr, u8, u32),
    /// The kernel refused a route.
    #[error(
        "route {prefix}/{length}: the kernel refused it; root or CAP_NET_ADMIN and an interface that is up are needed"
    )]
    Refused {
        /// Network of the route.
        prefix: IpAddr,
        /// Its prefix length.
        length: u8,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The routes of a running client.
#[derive(Debug)]
pub struct GuardedRoutes {
    handle: Handle,
    connection: JoinHandle<()>,
    tun: u32,
    prefixes: Vec<(IpAddr, u8)>,
}

impl GuardedRoutes {
    /// Routes `prefixes` into the device of index `tun`, in the network namespace of the calling thread. A default
    /// route is set as its two halves, which win against any other default route.
    ///
    /// # Errors
    /// [`RouteError`]; no route is left behind.
    pub async fn install(tun: u32, prefixes: &[(IpAddr, u8)]) -> Result<Self, RouteError> {
        for &(prefix, length) in prefixes {
            if length > longest(prefix) {
                return Err(RouteError::Prefix(prefix, length));
            }
        }
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(RouteError::Netlink)?;
        let connection = tokio::spawn(connection);
        let prefixes = prefixes.iter().copied().flat_map(halves_of_default).collect();
        let mut routes = Self { handle, connection, tun, prefixes };
        for at in 0..routes.prefixes.len() {
            let (prefix, length) = routes.prefixes[at];
            if let Err(error) = routes.add(prefix, length).await {
                routes.prefixes.truncate(at);
                let _first_error_counts = routes.remove().await;
                return Err(error);
            }
        }
        Ok(routes)
    }

    /// Removes the routes, those of the tunnel first: the clean stop.
    ///
    /// # Errors
    /// The first route that could not be removed; the others are.
    pub async fn remove(self) -> Result<(), RouteError> {
        let mut first_error = Ok(());
        for &(prefix, length) in &self.prefixes {
            for message in [tunnel(prefix, length, self.tun), guard(prefix, length)] {
                let removed = self.delete(message).await;
                if let Err(source) = removed
                    && first_error.is_ok()
                {
                    first_error = Err(RouteError::Refused { prefix, length, source });
                }
            }
        }
        first_error
    }

    /// Sets the guard first, so that there is no moment without it. Leaves neither behind on an error.
    async fn add(&self, prefix: IpAddr, length: u8) -> Result<(), RouteError> {
        let refused = |metric| {
            move |source: io::Error| match source.kind() {
                io::ErrorKind::AlreadyExists => RouteError::Taken(prefix, length, metric),
                _ => RouteError::Refused { prefix, length, source },
            }
        };
        // One left by a run that was killed carries this program's mark; anybody else's does not match and stays.
        self.delete(guard(prefix, length)).await.map_err(refused(GUARD_METRIC))?;
        self.set(guard(prefix, length)).await.map_err(refused(GUARD_METRIC))?;
        if let Err(source) = self.set(tunnel(prefix, length, self.tun)).await {
            let _first_error_counts = self.delete(guard(prefix, length)).await;
            return Err(refused(TUNNEL_METRIC)(source));
        }
        Ok(())
    }

    async fn set(&self, message: RouteMessage) -> io::Result<()> {
        self.handle.route().add(message).execute().await.map_err(to_io)
    }

    /// Deletes a route; one that is not there counts as deleted.
    async fn delete(&self, message: RouteMessage) -> io::Result<()> {
        match self.handle.route().del(message).execute().await.map_err(to_io) {
            Err(error)
                if error.raw_os_error() == Some(libc::ESRCH)
                    || error.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

impl Drop for GuardedRoutes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn tunnel(prefix: IpAddr, length: u8, tun: u32) -> RouteMessage {
    let scope = if prefix.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    route(prefix, length, TUNNEL_METRIC, |builder| builder.output_interface(tun).scope(scope))
}

fn guard(prefix: IpAddr, length: u8) -> RouteMessage {
    route(prefix, length, GUARD_METRIC, |builder| builder.kind(RouteType::Unreachable))
}

fn route(
    prefix: IpAddr,
    length: u8,
    metric: u32,
    finish: impl FnOnce(RouteMessageBuilder<IpAddr>) -> RouteMessageBuilder<IpAddr>,
) -> RouteMessage {
    let builder = RouteMessageBuilder::<IpAddr>::new().protocol(PROTOCOL).priority(metric);
    // The only refusal is a prefix longer than the address, and `install` has looked at that.
    let builder = match builder.clone().destination_prefix(prefix, length) {
        Ok(builder) => builder,
        Err(_) => builder,
    };
    finish(builder).build()
}

fn longest(prefix: IpAddr) -> u8 {
    if prefix.is_ipv4() { 32 } else { 128 }
}

fn halves_of_default((prefix, length): (IpAddr, u8)) -> Vec<(IpAddr, u8)> {
    if length > 0 {
        return vec![(prefix, length)];
    }
    match prefix {
        IpAddr::V4(_) => vec![(IpAddr::from([0; 4]), 1), (IpAddr::from([128, 0, 0, 0]), 1)],
        IpAddr::V6(_) => {
            vec![(IpAddr::from([0_u16; 8]), 1), (IpAddr::from([0x8000, 0, 0, 0, 0, 0, 0, 0]), 1)]
        }
    }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_becomes_its_halves() {
        let halves = |text: &str| halves_of_default((text.parse().unwrap(), 0));
        assert_eq!(halves("0.0.0.0"), [("0.0.0.0".parse().unwrap(), 1), ("128.0.0.0".parse().unwrap(), 1)]);
        assert_eq!(halves("::"), [("::".parse().unwrap(), 1), ("8000::".parse().unwrap(), 1)]);
        let other = ("198.51.100.0".parse().unwrap(), 24);
        assert_eq!(halves_of_default(other), [other]);
    }
}
