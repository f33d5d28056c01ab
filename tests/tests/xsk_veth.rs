//! The AF_XDP port on both ends of a veth pair: XDP program, sockets and rings of a real kernel, no network stack.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use relay_common::abi::{Counter, SessionEntry};
use relay_common::wire::{CELL_LEN, LINK_HEADER_LEN, LinkHeader};
use relay_tests::Netns;
use relay_tests::privilege::root_or_skip;
use relay_user::port::{AfXdpPort, BindMode, Peer, Port, PortCounters, Received, XdpMode};
use relay_user::steering::{AttachMode, Steering};
use relay_user::xsk::{
    Arena, BindRequest, BusyPoll, Frame, FramePool, HugePages, SocketConfig, SocketError, XskSocket,
};

const UDP_PORT: u16 = 7443;
const RING: u32 = 1024;
const QUEUES: u32 = 2;
const LINK: u32 = 5;
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0xee, 1], [2, 0, 0, 0, 0xee, 2]];
const INDICES: [u32; 2] = [0x1234_5678, 0x8765_4321];

/// Two namespaces joined by a veth pair with two queues each way.
struct Pair {
    netns: [Netns; 2],
}

impl Pair {
    fn new(label: &str) -> Result<Self> {
        let name = |end: char| format!("ewt-{}-{label}-{end}", std::process::id());
        let pair = Self { netns: [Netns::create(&name('a'))?, Netns::create(&name('b'))?] };
        let queues = QUEUES.to_string();
        let far = pair.netns[1].name();
        let [near_mac, far_mac] = MACS.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        pair.ip(
            0,
            &[
                "link",
                "add",
                "ewt0",
                "address",
                &near_mac,
                "numrxqueues",
                &queues,
                "numtxqueues",
                &queues,
                "type",
                "veth",
                "peer",
                "name",
                "ewt0",
                "address",
                &far_mac,
                "numrxqueues",
                &queues,
                "numtxqueues",
                &queues,
                "netns",
                far,
            ],
        )?;
        for end in 0..2 {
            pair.netns[end].sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
            pair.ip(end, &["link", "set", "ewt0", "up"])?;
        }
        Ok(pair)
    }

    fn ip(&self, end: usize, arguments: &[&str]) -> Result<()> {
        let status = self.netns[end].spawn(Command::new("ip").args(arguments))?.wait()?;
        ensure!(status.success(), "ip {}: {status}", arguments.join(" "));
        Ok(())
    }

    fn inside<T>(&self, end: usize, work: impl FnOnce() -> T) -> Result<T> {
        let _inside = self.netns[end].enter()?;
        Ok(work())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for netns in &self.netns {
            if let Err(error) = Netns::delete(netns.name()) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn address(end: usize, version: u8) -> SocketAddr {
    let text = match (version, end) {
        (4, 0) => "192.0.2.1:7443",
        (4, _) => "192.0.2.2:7443",
        (_, 0) => "[2001:db8::1]:7443",
        _ => "[2001:db8::2]:7443",
    };
    text.parse().unwrap()
}

fn mapped(address: SocketAddr) -> [u8; 16] {
    match address.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    }
}

fn config(queue: u32, bind: BindRequest) -> SocketConfig {
    SocketConfig { interface: "ewt0".into(), queue, ring: RING, bind }
}

/// One end: its program, and a port for each of its queues over one UMEM.
struct End {
    // Detached before the sockets are closed.
    steering: Steering,
    ports: Vec<AfXdpPort>,
    pool: FramePool,
    out: Vec<Received>,
}

impl End {
    fn open(pair: &Pair, end: usize, arena: &'static Arena, version: u8, mode: AttachMode) -> Result<Self> {
        pair.inside(end, || {
            let mut steering = Steering::attach("ewt0", mode, UDP_PORT)?;
            let mut ports: Vec<AfXdpPort> = Vec::new();
            for queue in 0..QUEUES {
                let share = ports.first();
                let mut port = AfXdpPort::open(arena, &config(queue, BindRequest::Auto), UDP_PORT, share)?;
                port.steer(&mut steering)?;
                ports.push(port);
            }
            let source = address(1 - end, version);
            steering.set_session(&SessionEntry::new(INDICES[end], mapped(source), source.port(), 0))?;
            for port in &mut ports {
                port.set_peer(LINK, Some(peer(end, version)));
            }
            Ok(Self { steering, ports, pool: FramePool::new(arena, 256), out: Vec::with_capacity(64) })
        })?
    }

    fn counters(&self) -> PortCounters {
        self.ports.iter().map(Port::counters).fold(PortCounters::default(), |sum, port| PortCounters {
            rx: sum.rx + port.rx,
            tx: sum.tx + port.tx,
            tx_lost: sum.tx_lost + port.tx_lost,
            invalid: sum.invalid + port.invalid,
            rx_ring_full: sum.rx_ring_full + port.rx_ring_full,
            rx_no_frame: sum.rx_no_frame + port.rx_no_frame,
            rx_dropped: sum.rx_dropped + port.rx_dropped,
            ..sum
        })
    }
}

fn peer(end: usize, version: u8) -> Peer {
    Peer {
        local: address(end, version),
        remote: address(1 - end, version),
        macs: Some((MACS[end], MACS[1 - end])),
        vlan: None,
    }
}

/// A cell whose every byte behind the header tells its number and direction.
fn write_cell(frame: &mut Frame, to: usize, number: u64) {
    let cell = frame.cell_mut().expect("a fresh frame is placed for a cell");
    cell[..LINK_HEADER_LEN]
        .copy_from_slice(&LinkHeader { receiver_index: INDICES[to], counter: number }.encode());
    for (place, byte) in (0u64..).zip(&mut cell[LINK_HEADER_LEN..]) {
        *byte = (number * 31 + place * 7 + to as u64).to_le_bytes()[0];
    }
}

fn check_cell(received: &mut Received, to: usize, arena: &'static Arena) -> Result<u64> {
    let cell = *received.frame.cell().context("a datagram of another length")?;
    let header = LinkHeader::decode(cell.first_chunk().unwrap()).context("not a cell")?;
    let mut expected = arena.take().context("no frame to compare with")?;
    write_cell(&mut expected, to, header.counter);
    ensure!(expected.cell() == Some(&cell), "cell {} arrived changed", header.counter);
    Ok(header.counter)
}

/// Sends `cells` each way, a batch at a time on both queues by turns, and counts what arrives.
fn exchange(ends: &mut [End; 2], arena: &'static Arena, cells: u64) -> Result<[u64; 2]> {
    let mut arrived = [0u64; 2];
    let mut next = [0u64; 2];
    let mut idle = 0;
    // Both ends are driven by this thread and veth delivers within the kick, so an idle turn means that a softirq was
    // put off; a bounded number of short waits gives it time.
    while idle < 100 && (arrived[0] < cells || arrived[1] < cells) {
        let mut moved = false;
        for (from, sent) in next.iter_mut().enumerate() {
            let End { ports, pool, .. } = &mut ends[from];
            for port in ports.iter_mut() {
                for _ in 0..32 {
                    if *sent == cells {
                        break;
                    }
                    let mut frame = pool.take().context("out of frames")?;
                    write_cell(&mut frame, 1 - from, *sent);
                    port.transmit(LINK, frame).context("transmit")?;
                    *sent += 1;
                }
                port.flush(pool);
            }
        }
        for (end, count) in arrived.iter_mut().enumerate() {
            let End { ports, pool, out, .. } = &mut ends[end];
            for port in ports.iter_mut() {
                port.receive(pool, out, 64);
                for mut received in out.drain(..) {
                    check_cell(&mut received, end, arena)?;
                    pool.put(received.frame);
                    *count += 1;
                    moved = true;
                }
            }
        }
        idle = if moved { 0 } else { idle + 1 };
        if !moved {
            ends[0].ports[0].wait(Duration::from_millis(5))?;
        }
    }
    Ok(arrived)
}

fn cells_cross(label: &str, version: u8, mode: AttachMode, expected: XdpMode) -> Result<()> {
    const CELLS: u64 = 5000;
    let pair = Pair::new(label)?;
    let arena = Arena::in_pages(8192, HugePages::Auto)?;
    println!("{label}: frames in {}", arena.pages().name());
    let mut ends = [End::open(&pair, 0, arena, version, mode)?, End::open(&pair, 1, arena, version, mode)?];
    for port in ends.iter().flat_map(|end| &end.ports) {
        assert_eq!(port.mode().xdp, Some(expected));
        assert_eq!(port.mode().bind, BindMode::Copy, "veth has no zero-copy");
        let socket = port.mode().socket.context("an AF_XDP port has a socket")?;
        assert!(socket.need_wakeup);
        assert_eq!((socket.busy_poll, socket.pages), (BusyPoll::Off, arena.pages()));
    }

    let arrived = exchange(&mut ends, arena, CELLS)?;
    for (end, arrived) in arrived.into_iter().enumerate() {
        let (ours, theirs) = (ends[end].counters(), ends[1 - end].counters());
        println!("{label}: end {end}: {arrived} of {CELLS} cells; {ours:?}");
        assert_eq!(ours.rx, arrived);
        assert_eq!(theirs.tx, CELLS);
        assert_eq!(ours.invalid, 0);
        // Every cell is accounted for: it arrived, or a counter says where it went.
        let lost = theirs.tx_lost + ours.rx_ring_full + ours.rx_dropped;
        assert_eq!(arrived + lost, CELLS);
        assert!(arrived >= CELLS / 2, "most cells were lost: {ours:?} {theirs:?}");
        let steering = ends[end].steering.counters()?;
        assert_eq!(steering.get(Counter::Redirected), CELLS - theirs.tx_lost);
    }

    // Detaching and closing gives every frame back: nothing was leaked, nothing came back twice.
    let [near, far] = ends;
    for End { steering, mut ports, mut pool, .. } in [near, far] {
        for port in &mut ports {
            port.flush(&mut pool);
        }
        steering.detach();
    }
    assert_eq!(arena.free_frames(), 8192);
    Ok(())
}

#[test]
fn cells_cross_a_veth_both_ways_natively() -> Result<()> {
    if !root_or_skip("cells_cross_a_veth_both_ways_natively") {
        return Ok(());
    }
    cells_cross("v4", 4, AttachMode::Native, XdpMode::Native)
}

#[test]
fn cells_cross_over_ipv6() -> Result<()> {
    if !root_or_skip("cells_cross_over_ipv6") {
        return Ok(());
    }
    cells_cross("v6", 6, AttachMode::Native, XdpMode::Native)
}

#[test]
fn cells_cross_in_generic_mode() -> Result<()> {
    if !root_or_skip("cells_cross_in_generic_mode") {
        return Ok(());
    }
    cells_cross("gen", 4, AttachMode::Generic, XdpMode::Generic)
}

#[test]
fn a_taken_queue_is_named_and_can_be_bound_again_after_its_owner_left() -> Result<()> {
    if !root_or_skip("a_taken_queue_is_named_and_can_be_bound_again_after_its_owner_left") {
        return Ok(());
    }
    let pair = Pair::new("busy")?;
    let arena = Arena::anonymous(4096)?;
    pair.inside(0, || -> Result<()> {
        let owner = XskSocket::open(arena, &config(1, BindRequest::Auto), None)?;
        let busy = XskSocket::open(arena, &config(1, BindRequest::Auto), None)
            .err()
            .context("a queue bound twice")?;
        assert!(
            matches!(&busy, SocketError::QueueBusy { interface, queue: 1 } if interface == "ewt0"),
            "{busy}"
        );
        assert!(busy.to_string().contains("queue 1 of ewt0"), "{busy}");
        drop(owner);
        for _ in 0..5 {
            let port = AfXdpPort::open(arena, &config(1, BindRequest::Copy), UDP_PORT, None)?;
            assert_eq!(arena.free_frames(), 4096 - RING as usize);
            drop(port);
            assert_eq!(arena.free_frames(), 4096);
        }

        let error =
            |queue, bind| XskSocket::open(arena, &config(queue, bind), None).err().context("was bound");
        let absent = error(QUEUES, BindRequest::Auto)?;
        assert!(matches!(&absent, SocketError::NoQueue { queue: QUEUES, .. }), "{absent}");
        let no_zero_copy = error(0, BindRequest::ZeroCopy)?;
        assert!(matches!(&no_zero_copy, SocketError::NoZeroCopy { .. }), "{no_zero_copy}");
        let missing = SocketConfig { interface: "ewt9".into(), ..config(0, BindRequest::Auto) };
        let missing = XskSocket::open(arena, &missing, None).err().context("was bound")?;
        assert!(missing.to_string().contains("ewt9"), "{missing}");
        Ok(())
    })?
}

#[test]
fn a_port_sends_nothing_before_it_knows_where() -> Result<()> {
    if !root_or_skip("a_port_sends_nothing_before_it_knows_where") {
        return Ok(());
    }
    let pair = Pair::new("peer")?;
    let arena = Arena::anonymous(2048)?;
    pair.inside(0, || -> Result<()> {
        let mut port = AfXdpPort::open(arena, &config(0, BindRequest::Auto), UDP_PORT, None)?;
        // Without zero-copy the driver's loop stays the kernel's, and a turn makes no call for it.
        port.prefer_busy_poll();
        let mut pool = FramePool::new(arena, 8);
        assert_eq!(port.receive(&mut pool, &mut Vec::with_capacity(4), 4), 0);
        assert_eq!(
            (port.mode().socket.map(|socket| socket.busy_poll), port.counters().kicks),
            (Some(BusyPoll::Off), 0)
        );
        let frame = pool.take().context("out of frames")?;
        let refused = port.transmit(LINK, frame).unwrap_err();
        port.set_peer(LINK, Some(Peer { macs: None, ..peer(0, 4) }));
        let refused = port.transmit(LINK, refused.frame).unwrap_err();
        assert_eq!(refused.frame.offset(), Frame::CELL_OFFSET);
        assert_eq!(usize::from(refused.frame.len()), CELL_LEN);
        port.flush(&mut pool);
        let counters = port.counters();
        assert_eq!((counters.tx_unresolved, counters.tx, counters.kicks), (2, 0, 0));
        Ok(())
    })?
}

#[test]
fn a_peer_that_does_not_read_costs_counted_cells_and_no_frames() -> Result<()> {
    if !root_or_skip("a_peer_that_does_not_read_costs_counted_cells_and_no_frames") {
        return Ok(());
    }
    let pair = Pair::new("full")?;
    let arena = Arena::anonymous(8192)?;
    let mut near = End::open(&pair, 0, arena, 4, AttachMode::Native)?;
    let far = End::open(&pair, 1, arena, 4, AttachMode::Native)?;
    let mut refused = 0;
    for number in 0..4 * u64::from(RING) {
        let mut frame = near.pool.take().context("out of frames")?;
        write_cell(&mut frame, 1, number);
        if near.ports[0].transmit(LINK, frame).is_err() {
            refused += 1;
        }
        near.ports[0].flush(&mut near.pool);
    }
    let (sent, seen) = (near.counters(), far.ports[0].counters());
    println!("refused {refused}; {sent:?}; {seen:?}");
    assert_eq!(sent.tx + refused, 4 * u64::from(RING));
    // The far end held as many as it had lent frames for. Every other cell was dropped and counted, once.
    assert_eq!(seen.rx_dropped + seen.rx_ring_full + sent.tx_lost, sent.tx - u64::from(RING));
    drop((near, far));
    assert_eq!(arena.free_frames(), 8192);
    Ok(())
}
