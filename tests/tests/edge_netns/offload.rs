//! Segments in one piece, several queues, and kernels without the former.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use rand_core::Rng;
use relay_common::wire::DATA_LEN;
use relay_user::edge::{Reassembler, TunCounters};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::*;

const CIRCUIT: u32 = 3;
/// `linux/if_tun.h`: `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: u64 = 0x4004_54D0;

/// One direction between the edges: packets into cells and out of them again.
struct Way {
    packer: Packer,
    reassembler: Reassembler,
    next: u64,
}

impl Way {
    fn new() -> Self {
        Self { packer: Packer::new(1 << 16), reassembler: Reassembler::new(64), next: 0 }
    }

    fn carry(&mut self, sink: &mut dyn FnMut(BlockKind, &[u8])) {
        let mut data = [0; DATA_LEN];
        while !self.packer.is_empty() {
            let fill = self.packer.fill(&mut data, 0);
            self.reassembler.accept(self.next, &data, fill.block_offset, &mut |kind, packet| {
                sink(kind, packet);
            });
            self.next += 1;
        }
    }
}

/// Moves packets both ways until `done`.
fn join(client: &mut ClientEdge, exit: &mut ExitEdge, done: &AtomicBool) {
    let (mut up, mut down) = (Way::new(), Way::new());
    while !done.load(Ordering::Relaxed) {
        let mut moved = client.pump(&mut up.packer, 0, 32);
        up.carry(&mut |kind, packet| exit.deliver(CIRCUIT, kind, packet));
        exit.flush();
        let mut budget = 32;
        while let Some((circuit, kind, packet)) = exit.read(&mut budget) {
            assert_eq!(circuit, CIRCUIT);
            down.packer.push(kind, packet, 0).unwrap();
            moved += 1;
        }
        down.carry(&mut |kind, packet| client.deliver(kind, packet));
        client.flush();
        if moved == 0 {
            thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A client's edge in a namespace of its own, with all its traffic going there.
fn client(name: &'static str) -> (ClientEdge, File) {
    let opened = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let edge = ClientEdge::open(name, Offload::Auto).unwrap();
        let index = edge.tun().index();
        with_netlink(async |handle| {
            let v4 = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).build();
            let v6 = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).build();
            for route in [v4, v6] {
                handle.route().add(route).execute().await.unwrap();
            }
        });
        (edge, File::open("/proc/thread-self/ns/net").unwrap())
    });
    opened.join().unwrap()
}

fn networks(prefix: u8) -> PoolNetworks {
    PoolNetworks::new((Ipv4Addr::new(100, 96, 0, 0), prefix), ("fd6e:7765::".parse().unwrap(), 64)).unwrap()
}

/// Writes `data` from one end and expects it at the other.
fn transfer(from: &TcpStream, to: &TcpStream, data: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut from = from;
            from.write_all(data).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        let mut to = to;
        to.read_to_end(&mut got).unwrap();
        assert!(got == data, "{} of {} bytes arrived, or other ones", got.len(), data.len());
    });
}

/// Sends `count` datagrams of `length` bytes in one call.
fn send_in_one_call(socket: &UdpSocket, count: usize, length: usize, to: SocketAddr) {
    setsockopt(socket, sockopt::UdpGsoSegment, &i32::try_from(length).unwrap()).unwrap();
    let payload: Vec<u8> = (0..count).flat_map(|at| vec![u8::try_from(at).unwrap(); length]).collect();
    assert_eq!(socket.send_to(&payload, to).unwrap(), payload.len());
}

#[test]
fn bulk_transfers_cross_both_edges_in_pieces_and_arrive_intact() {
    cross_both_edges("bulk_transfers_cross_both_edges_in_pieces_and_arrive_intact", false);
}

#[test]
fn porters_carry_what_edges_read_and_write_themselves() {
    cross_both_edges("porters_carry_what_edges_read_and_write_themselves", true);
}

#[test]
fn a_porter_tells_of_a_device_that_is_gone_and_goes_with_its_edge() {
    in_own_namespace("a_porter_tells_of_a_device_that_is_gone_and_goes_with_its_edge", || {
        let _world = world();
        let removed = || !fs::exists("/proc/sys/net/ipv4/conf/ew-exit").unwrap();
        let open = || ExitEdge::open("ew-exit", "out0", networks(16), 8, Offload::Auto).unwrap();
        drop(open().with_porter().unwrap());
        assert!(removed(), "nobody holds it any more");

        let mut exit = open().with_porter().unwrap();
        exit.open_circuit(CIRCUIT, 0, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        assert!(Command::new("ip").args(["link", "del", "ew-exit"]).status().unwrap().success());
        let packet = udp(CLIENT_V4.into(), SERVICE_V4.into(), ECHO_PORT, &[1; 100]);
        let failed = |exit: &ExitEdge| exit.drops().get(EdgeDrop::TunFailed);
        let until = Instant::now() + Duration::from_secs(10);
        // One reads and the other writes: both are told.
        while failed(&exit) == 0 {
            assert!(exit.read(&mut 32).is_none());
            assert!(Instant::now() < until, "no read was said to fail");
        }
        let before = failed(&exit);
        exit.deliver(CIRCUIT, BlockKind::Ipv4, &packet);
        while failed(&exit) == before {
            exit.flush();
            assert!(Instant::now() < until, "a packet was lost silently");
        }
    });
}

fn cross_both_edges(test: &str, porters: bool) {
    in_own_namespace(test, move || {
        let world = world();
        let datagrams = service(&world);
        let (mut client, client_side) = client("ew-client");
        let mut exit = ExitEdge::open("ew-exit", "out0", networks(16), 8, Offload::Auto).unwrap();
        if porters {
            (client, exit) = (client.with_porter().unwrap(), exit.with_porter().unwrap());
        }
        exit.open_circuit(CIRCUIT, 0, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        assert!(client.tun().has_offload() && exit.tun().has_offload());

        let mut data = vec![0; 3 << 20];
        ChaCha8Rng::seed_from_u64(2).fill_bytes(&mut data);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let joined = scope.spawn(|| join(&mut client, &mut exit, &done));
            for address in [IpAddr::from(SERVICE_V4), SERVICE_V6.into()] {
                let listener = inside(&world, || TcpListener::bind((address, 0)).unwrap());
                let target = listener.local_addr().unwrap();
                let near = inside(&client_side, || {
                    TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap()
                });
                let (far, _) = listener.accept().unwrap();
                for stream in [&near, &far] {
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                }
                transfer(&near, &far, &data);
                transfer(&far, &near, &data);
            }
            for (socket, any) in
                datagrams.iter().zip([IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()])
            {
                let target = socket.local_addr().unwrap();
                inside(&client_side, || {
                    send_in_one_call(&UdpSocket::bind((any, 0)).unwrap(), 20, 1200, target);
                });
                for at in 0..20_u8 {
                    let mut buffer = [0; 2048];
                    let (length, _) = socket.recv_from(&mut buffer).unwrap();
                    assert_eq!(buffer[..length], [at; 1200]);
                }
            }
            done.store(true, Ordering::Relaxed);
            joined.join().unwrap();
        });

        for (name, tun, drops) in
            [("client", client.tun(), client.drops()), ("exit", exit.tun(), exit.drops())]
        {
            let TunCounters { reads, super_reads, packets_read, writes, super_writes, packets_written } =
                *tun.counters();
            println!(
                "{name}: {packets_read} packets in {reads} reads, {super_reads} of them in pieces; \
                 {packets_written} in {writes} writes, {super_writes} of them in pieces"
            );
            assert!(super_reads > 0 && packets_read > reads, "{name} read no piece");
            assert!(super_writes > 0 && packets_written > writes, "{name} wrote no piece");
            for reason in [EdgeDrop::TunFailed, EdgeDrop::TooLong, EdgeDrop::Length, EdgeDrop::QueueFull] {
                assert_eq!(drops.get(reason), 0, "{name}: {}", reason.name());
            }
        }
    });
}

#[test]
fn what_a_turn_leaves_of_a_piece_stays_for_the_next() {
    in_own_namespace("what_a_turn_leaves_of_a_piece_stays_for_the_next", || {
        let (mut edge, namespace) = client("ew-client");
        // Whatever the kernel says of itself when a link comes up is gone after this.
        let mut packer = Packer::new(1 << 16);
        while edge.pump(&mut packer, 0, 32) > 0 {}
        inside(&namespace, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            send_in_one_call(&socket, 10, 1000, (SERVICE_V4, ECHO_PORT).into());
        });
        let before = *edge.tun().counters();
        let mut packer = Packer::new(1 << 16);
        let turns: Vec<usize> = std::iter::from_fn(|| match edge.pump(&mut packer, 0, 3) {
            0 => None,
            moved => Some(moved),
        })
        .collect();
        assert_eq!(turns, [3, 3, 3, 1]);
        assert_eq!(packer.len_bytes(), 10 * 1028);
        let after = edge.tun().counters();
        assert_eq!((after.reads - before.reads, after.super_reads - before.super_reads), (1, 1));
    });
}

/// Reads both edges until nothing has come for a while; counts packets by edge and circuit.
fn read_all(edges: &mut [ExitEdge]) -> Vec<[usize; 2]> {
    let mut got = vec![[0; 2]; edges.len()];
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        for (edge, got) in edges.iter_mut().zip(&mut got) {
            let mut budget = 64;
            while let Some((circuit, kind, packet)) = edge.read(&mut budget) {
                let client = if kind == BlockKind::Ipv4 { CLIENT_V4.into() } else { IpAddr::from(CLIENT_V6) };
                assert_eq!(Inner::parse(packet).unwrap().destination, client);
                assert_sound(packet, UDP);
                got[circuit as usize] += 1;
                last = Instant::now();
            }
        }
    }
    got
}

#[test]
fn packets_at_the_wrong_queue_are_handed_to_the_worker_that_has_their_circuit() {
    in_own_namespace("packets_at_the_wrong_queue_are_handed_to_the_worker_that_has_their_circuit", || {
        let service = service(&world());
        // The smallest pool gives out four addresses: two for each worker.
        let mut edges = ExitEdge::open_many("ew-exit", "out0", networks(29), 2, 2, Offload::Auto).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for edge in &mut edges {
            edge.open_circuit(0, 0, &mut rng).unwrap();
            edge.open_circuit(1, 0, &mut rng).unwrap();
        }

        // Answers come to the queue that their flow was written to.
        for at in [0, 1, 0, 1] {
            let client = IpAddr::from(CLIENT_V4);
            let edge = &mut edges[at];
            edge.deliver(1, BlockKind::Ipv4, &udp(client, SERVICE_V4.into(), ECHO_PORT, &[7; 100]));
            edge.flush();
            let mut buffer = [0; 2048];
            let (length, source) = service[0].recv_from(&mut buffer).unwrap();
            service[0].send_to(&buffer[..length], source).unwrap();
            let (circuit, _, answer) = read(edge);
            assert_eq!((circuit, &answer[28..]), (1, &[7; 100][..]));
        }
        assert!(edges.iter().all(|edge| edge.crossed().given == 0), "the kernel knew the queue");

        // Nothing was ever written for these flows, so the kernel spreads them by their hash.
        let sockets: Vec<_> = (0..16).map(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()).collect();
        for socket in &sockets {
            let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            for host in 3..7 {
                socket.send_to(&[9; 200], (Ipv4Addr::new(100, 96, 0, host), 4000)).unwrap();
                let address = Ipv6Addr::new(0xfd6e, 0x7765, 0, 0, 0, 0, 0, host.into());
                six.send_to(&[9; 201], (address, 4000)).unwrap();
            }
        }
        assert_eq!(read_all(&mut edges), [[32; 2]; 2]);
        let crossed = |edges: &[ExitEdge], at: usize| (edges[at].crossed().given, edges[at].crossed().taken);
        assert!(edges.iter().all(|edge| edge.crossed().given > 0), "128 flows all went to the right queue");
        assert_eq!(crossed(&edges, 0).0, crossed(&edges, 1).1);
        assert_eq!(crossed(&edges, 1).0, crossed(&edges, 0).1);

        // A worker that takes nothing out of its inbox costs the others no memory and no time.
        let given = edges[0].crossed().given;
        let mut offered = 0;
        for _ in 0..100 {
            for socket in &sockets {
                for host in 3..7 {
                    socket.send_to(&[9; 20], (Ipv4Addr::new(100, 96, 0, host), 4000)).unwrap();
                    offered += 1;
                }
            }
            // Those that are handed over use the budget up too.
            loop {
                let mut budget = 32;
                while edges[0].read(&mut budget).is_some() {}
                if budget > 0 {
                    break;
                }
            }
        }
        let passed = edges[0].crossed().given - given;
        let refused = edges[0].drops().get(EdgeDrop::HandoverFull);
        println!("of {offered} packets {passed} were handed over and {refused} refused");
        assert_eq!((passed, refused > 0), (256, true));

        // Rules and device go with the last edge.
        let last = edges.pop().unwrap();
        for edge in edges {
            edge.close().unwrap();
        }
        assert!(nft_tables().contains("table inet evenwire_ew_2dexit"));
        assert!(nix::net::if_::if_nametoindex("ew-exit").is_ok());
        last.close().unwrap();
        assert_eq!(nft_tables(), "");
        assert!(nix::net::if_::if_nametoindex("ew-exit").is_err());

        let error = ExitEdge::open_many("ew-exit", "out0", networks(29), 2, 5, Offload::Auto).err();
        assert!(error.is_some_and(|error| error.to_string().contains("pool4")));
    });
}

/// What was logged, of all tests in this process.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Keep;

impl log::Log for Keep {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// From here on the kernel refuses to switch offload on for this thread, as one without it does.
fn refuse_offload() {
    let condition =
        |argument, length, operator, value| SeccompCondition::new(argument, length, operator, value).unwrap();
    let refused = SeccompRule::new(vec![
        condition(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, TUNSETOFFLOAD),
        condition(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0),
    ])
    .unwrap();
    let filter = SeccompFilter::new(
        [(libc::SYS_ioctl, vec![refused])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EINVAL.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn a_kernel_without_offload_is_worked_with_and_named() {
    in_own_namespace("a_kernel_without_offload_is_worked_with_and_named", || {
        log::set_logger(&Keep).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        refuse_offload();
        let service = service(&world());
        let mut edges = ExitEdge::open_many("ew-plain", "out0", networks(16), 8, 2, Offload::Auto).unwrap();
        assert!(edges.iter().all(|edge| !edge.tun().has_offload()));
        let logged = LOGGED.lock().unwrap().join("\n");
        assert!(logged.contains("WARN TUN ew-plain: this kernel has no segmentation offload"), "{logged}");

        let edge = &mut edges[1];
        edge.open_circuit(2, 0, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        edge.deliver(2, BlockKind::Ipv4, &udp(CLIENT_V4.into(), SERVICE_V4.into(), ECHO_PORT, &[7; 1300]));
        edge.flush();
        let mut buffer = [0; 2048];
        let (length, source) = service[0].recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..length], [7; 1300]);
        service[0].send_to(&buffer[..length], source).unwrap();
        let (circuit, _, answer) = read(edge);
        assert_eq!((circuit, answer.len()), (2, 1328));
        assert_sound(&answer, UDP);
        assert_eq!((edge.tun().counters().super_reads, edge.tun().counters().super_writes), (0, 0));
    });
}
