//! Both edges on real TUN devices, routes and NAT, in network namespaces without names: they vanish with their threads
//! and descriptors, also when a test fails.

#[path = "edge_netns/offload.rs"]
mod offload;

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use relay_user::edge::ip::{CLIENT_V4, CLIENT_V6, Inner};
use relay_user::edge::pool::PoolNetworks;
use relay_user::edge::routes::{GuardedRoutes, RouteError};
use relay_user::edge::{BlockKind, ClientEdge, EdgeDrop, ExitEdge, Offload, Packer};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

const EXIT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
const EXIT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x80);
const ECHO_PORT: u16 = 7007;
const CLOSED_PORT: u16 = 7008;
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// Runs `body` on a thread with an empty network namespace of its own.
fn in_own_namespace(test: &str, body: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("EVENWIRE_REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"),
            "{test}: needs root"
        );
        println!("skipped: {test}: needs root");
        return;
    }
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        body();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `body` with netlink in the namespace of the calling thread.
fn with_netlink<T>(body: impl AsyncFnOnce(Handle) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, handle, _messages) = rtnetlink::new_connection().unwrap();
        let connection = tokio::spawn(connection);
        let out = body(handle).await;
        connection.abort();
        out
    })
}

/// Brings `name` of this namespace up with the given addresses.
fn configure(name: &str, addresses: &[(IpAddr, u8)]) {
    // Duplicate address detection would keep an IPv6 address from use for a second or more.
    fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0").unwrap();
    let index = nix::net::if_::if_nametoindex(name).unwrap();
    with_netlink(async |handle| {
        for &(address, prefix) in addresses {
            handle.address().add(index, address, prefix).execute().await.unwrap();
        }
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.unwrap();
    });
}

/// A namespace joined to the calling thread's by a veth pair `out0` - `out0`.
fn world() -> File {
    let namespace = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let namespace = namespace.join().unwrap();
    with_netlink(async |handle| {
        handle.link().add(LinkVeth::new("out0", "peer0").build()).execute().await.unwrap();
        let peer = nix::net::if_::if_nametoindex("peer0").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&namespace);
        let moved = LinkUnspec::new_with_index(peer).name("out0".to_owned()).setns_by_fd(fd).build();
        handle.link().set(moved).execute().await.unwrap();
    });
    configure("out0", &[(EXIT_V4.into(), 24), (EXIT_V6.into(), 64)]);
    inside(&namespace, || {
        configure("out0", &[(SERVICE_V4.into(), 24), (SERVICE_V6.into(), 64)]);
        bind_when_usable((SERVICE_V6, 0).into());
    });
    bind_when_usable((EXIT_V6, 0).into());
    namespace
}

/// Runs `body` in `namespace`, on a thread of its own.
fn inside<T: Send>(namespace: &File, body: impl FnOnce() -> T + Send) -> T {
    let run = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        body()
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// The sockets in `namespace` that receive UDP to [`ECHO_PORT`], IPv4 first.
fn service(namespace: &File) -> [UdpSocket; 2] {
    inside(namespace, || {
        [IpAddr::from(SERVICE_V4), SERVICE_V6.into()].map(|address| {
            let socket = UdpSocket::bind((address, ECHO_PORT)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        })
    })
}

/// The kernel makes an IPv6 address usable a moment after it was added and the link has a carrier.
fn bind_when_usable(address: SocketAddr) -> UdpSocket {
    for _ in 0..1000 {
        match UdpSocket::bind(address) {
            Ok(socket) => return socket,
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                thread::sleep(Duration::from_millis(5))
            }
            Err(error) => panic!("{address}: {error}"),
        }
    }
    panic!("{address} does not become usable");
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The sum that a checksum is made of: that of the transport part and, but for ICMP, the pseudo header.
fn transport_sum(packet: &[u8], protocol: u8) -> u16 {
    let (addresses, start) = if packet[0] >> 4 == 4 { (&packet[12..20], 20) } else { (&packet[8..40], 40) };
    let length = u32::try_from(packet.len() - start).unwrap();
    let pseudo = if protocol == ICMP { 0 } else { sum(addresses) + u32::from(protocol) + length };
    fold(pseudo + sum(&packet[start..]))
}

fn packet(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    let mut out = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend([0x45, 0]);
            out.extend((length + 20).to_be_bytes());
            out.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
            out.extend(from.octets());
            out.extend(to.octets());
            let checksum = !fold(sum(&out));
            out[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.extend([0x60, 0, 0, 0]);
            out.extend(length.to_be_bytes());
            out.extend([protocol, 64]);
            out.extend(from.octets());
            out.extend(to.octets());
        }
        _ => panic!("two families"),
    }
    let start = out.len();
    out.extend(body);
    let at = start + if protocol == UDP { 6 } else { 2 };
    let checksum = !transport_sum(&out, protocol);
    out[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    out
}

fn udp(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = 4000_u16.to_be_bytes().to_vec();
    body.extend(port.to_be_bytes());
    body.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    packet(from, to, UDP, &body)
}

/// Waits, within bounds, for a packet to a circuit.
fn read(edge: &mut ExitEdge) -> (u32, BlockKind, Vec<u8>) {
    for _ in 0..1000 {
        if let Some((circuit, kind, packet)) = edge.read(&mut 32) {
            return (circuit, kind, packet.to_vec());
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("nothing came back; drops: {:?}", edge.drops());
}

fn assert_sound(packet: &[u8], protocol: u8) {
    assert_eq!(transport_sum(packet, protocol), 0xFFFF, "transport checksum");
    if packet[0] >> 4 == 4 {
        assert_eq!(fold(sum(&packet[..20])), 0xFFFF, "header checksum");
    }
}

fn nft_tables() -> String {
    let output = Command::new("nft").args(["list", "tables"]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn switches() -> Vec<String> {
    ["ipv4/conf/out0/forwarding", "ipv6/conf/all/forwarding"]
        .map(|switch| fs::read_to_string(format!("/proc/sys/net/{switch}")).unwrap())
        .to_vec()
}

#[test]
fn packets_of_circuits_reach_the_world_and_answers_come_back() {
    in_own_namespace("packets_of_circuits_reach_the_world_and_answers_come_back", || {
        let service = service(&world());
        let before = switches();
        // A table that a killed run would leave is no obstacle.
        let stale =
            Command::new("nft").args(["add", "table", "inet", "evenwire_ew_2dexit"]).status().unwrap();
        assert!(stale.success());

        let networks =
            PoolNetworks::new((Ipv4Addr::new(100, 96, 0, 0), 16), ("fd6e:7765::".parse().unwrap(), 64))
                .unwrap();
        let mut edge = ExitEdge::open("ew-exit", "out0", networks, 8, Offload::Auto).unwrap();
        assert_eq!(switches(), ["1\n", "1\n"]);
        assert!(nft_tables().contains("table inet evenwire_ew_2dexit"));
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        edge.open_circuit(3, 0, &mut rng).unwrap();
        edge.open_circuit(5, 0, &mut rng).unwrap();

        let families: [(BlockKind, IpAddr, IpAddr, IpAddr); 2] = [
            (BlockKind::Ipv4, CLIENT_V4.into(), SERVICE_V4.into(), EXIT_V4.into()),
            (BlockKind::Ipv6, CLIENT_V6.into(), SERVICE_V6.into(), EXIT_V6.into()),
        ];
        for ((kind, client, server, outside), socket) in families.into_iter().zip(&service) {
            // Both circuits use the same inner address and port; NAT tells them apart.
            for circuit in [3, 5] {
                let payload = [u8::try_from(circuit).unwrap(); 333];
                edge.deliver(circuit, kind, &udp(client, server, ECHO_PORT, &payload));
                edge.flush();
                let mut buffer = [0; 2048];
                let (length, source) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], source.ip()), (&payload[..], outside));
                socket.send_to(&buffer[..length], source).unwrap();

                let (to, got_kind, answer) = read(&mut edge);
                assert_eq!((to, got_kind), (circuit, kind));
                let inner = Inner::parse(&answer).unwrap();
                assert_eq!((inner.source, inner.destination), (server, client));
                assert!(answer.ends_with(&payload));
                assert_sound(&answer, UDP);
            }
        }

        // The error quotes the packet as the client sent it.
        let client = IpAddr::from(CLIENT_V4);
        let refused = udp(client, SERVICE_V4.into(), CLOSED_PORT, &[1; 64]);
        edge.deliver(5, BlockKind::Ipv4, &refused);
        edge.flush();
        let (to, _, error) = read(&mut edge);
        assert_eq!((to, error[20], error[21]), (5, 3, 3));
        assert_sound(&error, ICMP);
        assert_eq!(error[28 + 12..], refused[12..]);

        let echo = packet(client, SERVICE_V4.into(), ICMP, &[8, 0, 0, 0, 0, 9, 0, 1, 42, 42]);
        edge.deliver(3, BlockKind::Ipv4, &echo);
        edge.flush();
        let (to, _, answer) = read(&mut edge);
        assert_eq!((to, &answer[20..22], &answer[24..]), (3, &[0, 0][..], &[0, 9, 0, 1, 42, 42][..]));
        assert_sound(&answer, ICMP);

        // The exit itself is no destination, not even at an address that the pool check cannot know.
        let own = UdpSocket::bind((EXIT_V4, ECHO_PORT)).unwrap();
        own.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        edge.deliver(3, BlockKind::Ipv4, &udp(client, EXIT_V4.into(), ECHO_PORT, &[1]));
        edge.flush();
        assert!(own.recv_from(&mut [0; 64]).is_err());
        edge.deliver(3, BlockKind::Ipv4, &udp(client, Ipv4Addr::new(100, 96, 0, 1).into(), ECHO_PORT, &[1]));
        edge.flush();
        assert_eq!(edge.drops().get(EdgeDrop::DestinationPool), 1);
        assert_eq!(edge.drops().get(EdgeDrop::Source), 0);

        edge.close().unwrap();
        assert_eq!(nft_tables(), "");
        assert_eq!(switches(), before);
        assert!(nix::net::if_::if_nametoindex("ew-exit").is_err());
    });
}

#[test]
fn an_exit_that_cannot_open_leaves_nothing() {
    in_own_namespace("an_exit_that_cannot_open_leaves_nothing", || {
        let networks =
            PoolNetworks::new((Ipv4Addr::new(100, 96, 0, 0), 16), ("fd6e:7765::".parse().unwrap(), 64))
                .unwrap();
        let error = ExitEdge::open("ew-exit", "nowhere0", networks, 8, Offload::Auto)
            .err()
            .map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("nowhere0")));
        assert_eq!(nft_tables(), "");
        assert!(nix::net::if_::if_nametoindex("ew-exit").is_err());
    });
}

#[test]
fn the_client_sends_into_the_tunnel_or_nowhere() {
    in_own_namespace("the_client_sends_into_the_tunnel_or_nowhere", || {
        let _world = world();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let prefixes = [(Ipv4Addr::new(203, 0, 113, 0).into(), 24), ("2001:db8:2::".parse().unwrap(), 64)];
        let targets: [SocketAddr; 2] = [
            ([203, 0, 113, 9], ECHO_PORT).into(),
            ("2001:db8:2::9".parse::<IpAddr>().unwrap(), ECHO_PORT).into(),
        ];
        // The way in the clear that must not be taken.
        with_netlink(async |handle| {
            let v4 = RouteMessageBuilder::<Ipv4Addr>::new().gateway(SERVICE_V4).build();
            let v6 = RouteMessageBuilder::<Ipv6Addr>::new().gateway(SERVICE_V6).build();
            for route in [v4, v6] {
                handle.route().add(route).execute().await.unwrap();
            }
        });
        let send = |target: SocketAddr| -> io::Result<usize> {
            let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            UdpSocket::bind((any, 0))?.send_to(&[5; 100], target)
        };
        let outside_sent = || {
            let path = "/proc/thread-self/net/dev";
            let text = fs::read_to_string(path).unwrap();
            let line = text.lines().find(|line| line.trim_start().starts_with("out0:")).unwrap().to_owned();
            line.split_whitespace().nth(10).unwrap().parse::<u64>().unwrap()
        };

        for stale_guard in [false, true] {
            let mut edge = ClientEdge::open("ew0", Offload::Auto).unwrap();
            let routes = runtime.block_on(GuardedRoutes::install(edge.tun().index(), &prefixes)).unwrap();
            let mut packer = Packer::new(1 << 16);
            for target in targets {
                send(target).unwrap();
            }
            edge.pump(&mut packer, 0, 32);
            assert_eq!(packer.len_bytes(), 128 + 148, "{:?}", edge.drops());

            drop(edge);
            let sent_before = outside_sent();
            for target in targets {
                assert!(send(target).is_err(), "left in the clear, stale guard: {stale_guard}");
            }
            assert_eq!(outside_sent(), sent_before);
            if stale_guard {
                runtime.block_on(routes.remove()).unwrap();
            }
        }
        for target in targets {
            send(target).unwrap();
        }

        // Somebody else's route is named, and kept.
        let edge = ClientEdge::open("ew0", Offload::Auto).unwrap();
        let index = nix::net::if_::if_nametoindex("out0").unwrap();
        with_netlink(async |handle| {
            let other = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::new(203, 0, 113, 0), 24)
                .priority(2)
                .output_interface(index)
                .build();
            handle.route().add(other).execute().await.unwrap();
        });
        let error = runtime.block_on(GuardedRoutes::install(edge.tun().index(), &prefixes)).map(|_| ());
        assert!(matches!(error, Err(RouteError::Taken(_, 24, 2))), "{error:?}");
    });
}
