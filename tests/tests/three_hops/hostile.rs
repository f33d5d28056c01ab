//! A stranger on the client's host sends what it likes: each datagram is refused and counted by its reason, the links'
//! timing does not change, and the traffic flows on.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use relay_common::wire::{CELL_LEN, DatagramType, RETRY_LEN};
use relay_tests::nodes::{PORT, RELAYS, Status};
use relay_tests::privilege::root_or_skip;
use relay_tests::{Host, Lab, Nodes, Observer};
use relay_user::config::NetworkDocument;
use relay_user::crypto::datagram::{HsInit, HsResp, Mac1Key, Retry};
use relay_user::crypto::handshake::Prologue;
use relay_user::crypto::{HandshakeRole, Initiator, Suite};
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Web, lab, running};

/// Time between two hostile datagrams: a queue must not fill up, since what is lost there is counted by nobody.
const PACE: Duration = Duration::from_micros(800);
/// Time in which a counter has caught up with what was sent.
const SETTLE: Duration = Duration::from_millis(400);
/// Times that each single datagram of a handshake is sent.
const TIMES: u64 = 40;
/// Bins of the observer in a second.
const BINS_PER_SECOND: u64 = 10;
/// How far slots may lie from what the classes say: status is published each 20 ms, bins are of 100 ms.
const TOLERANCE: f64 = 0.03;
/// Frame bytes before the UDP payload: Ethernet, IPv4, UDP.
const HEADERS: usize = 14 + 20 + 8;
const UDP_HEADER: usize = 14 + 20;
const UDP_CHECKSUM: usize = UDP_HEADER + 6;
/// `ETH_P_ALL` of linux/if_ether.h.
const EVERY_PROTOCOL: u16 = 3;

#[test]
fn hostile_datagrams_are_counted_and_change_nothing() {
    if !root_or_skip("hostile_datagrams_are_counted_and_change_nothing") {
        return;
    }
    let lab = lab();
    let observer = Observer::start(lab.netns(Host::Wire), lab.wire_ports(), &[]).expect("observer");
    let mut nodes = running(&lab);
    let web = Web::start(&lab);
    let start = Tally::of(&nodes);
    let during = Window::of(&observer, || {
        handshakes(&lab, &nodes);
        malformed(&lab, &nodes);
        cells(&lab, &nodes);
    });
    let end = Tally::of(&nodes);
    nodes.check_alive().expect("alive");
    assert!(web.fetch(&lab, "20"), "traffic flows after it all");
    for host in RELAYS {
        assert_eq!(nodes.status(host).expect("status").kernel_path, 0, "{}", host.name());
    }
    // What the client's host itself sends is the attack; what relays send must not show it. A slot is either sent or
    // missed, so their sum does not depend on what else this machine does.
    let seen = observer.snapshot();
    let seconds = end.at.duration_since(start.at).as_secs_f64();
    for (relay, host) in RELAYS.into_iter().enumerate() {
        let sent = (end.slots[relay].0 - start.slots[relay].0) as f64 / seconds;
        let missed = (end.slots[relay].1 - start.slots[relay].1) as f64 / seconds;
        let (mut due, mut wire) = (0.0, 0.0);
        for (from, to, rate) in LINKS.into_iter().filter(|link| link.0 == host) {
            let ends = [from, to].map(|host| IpAddr::from(host.address().expect("address")));
            wire += during.rate(seen.flow(ends[0], ends[1]).expect("a link"));
            due += rate;
        }
        let rates = format!(
            "{}: {due} slots/s due, {sent:.1} sent and {missed:.1} missed, {wire:.1} on the wire",
            host.name()
        );
        println!("{rates}");
        assert!(((sent + missed) / due - 1.0).abs() < TOLERANCE, "{rates}");
        assert!((wire / sent - 1.0).abs() < TOLERANCE, "{rates}");
    }
}

/// The links that relays send on, with their classes' cells per second.
const LINKS: [(Host, Host, f64); 5] = [
    (Host::Entry, Host::Client, 1500.0),
    (Host::Entry, Host::Middle, 2000.0),
    (Host::Middle, Host::Entry, 2000.0),
    (Host::Middle, Host::Exit, 2000.0),
    (Host::Exit, Host::Middle, 2000.0),
];

/// Slots of each relay so far: sent and missed.
struct Tally {
    at: Instant,
    slots: Vec<(u64, u64)>,
}

impl Tally {
    fn of(nodes: &Nodes<'_>) -> Self {
        let status = |host| nodes.status(host).expect("status");
        let at = Instant::now();
        let slots = RELAYS.map(status).map(|status| (status.cells_sent, status.missed_slots)).to_vec();
        Self { at, slots }
    }
}

/// A stretch of time in the observer's bins, `to` not included.
struct Window {
    from: u64,
    to: u64,
}

impl Window {
    fn of(observer: &Observer, work: impl FnOnce()) -> Self {
        let from = observer.bin_now() + 1;
        work();
        Self { from, to: observer.bin_now() }
    }

    /// Datagrams per second.
    fn rate(&self, flow: &relay_tests::Flow) -> f64 {
        let seconds = (self.to - self.from) as f64 / BINS_PER_SECOND as f64;
        flow.datagrams_between(self.from, self.to) as f64 / seconds
    }
}

/// Waits until the entry counted what was sent since `before`, and says how the counter `reason` grew.
fn growth(nodes: &Nodes<'_>, before: &Status, reason: &str) -> u64 {
    std::thread::sleep(SETTLE);
    nodes.status(Host::Entry).expect("status").dropped(reason) - before.dropped(reason)
}

fn entry() -> SocketAddr {
    (Host::Entry.address().expect("address"), PORT).into()
}

fn udp_socket(lab: &Lab) -> UdpSocket {
    let socket = lab.netns(Host::Client).run(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).expect("socket");
    socket.connect(entry()).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    socket
}

fn send_paced(socket: &UdpSocket, datagram: &[u8]) {
    // An ICMP error of an earlier datagram may be reported here; the datagram itself then went nowhere.
    if socket.send(datagram).is_err() {
        socket.send(datagram).expect("send");
    }
    std::thread::sleep(PACE);
}

/// Handshakes with a wrong mac1, without a token, with a broken message, and repeated.
fn handshakes(lab: &Lab, nodes: &Nodes<'_>) {
    let document = lab.dir().join("network.toml");
    let text = std::fs::read_to_string(&document).expect("document");
    let network = NetworkDocument::parse_unverified(Path::new("network.toml"), &text).expect("document");
    let relay = network.relay(Host::Entry.name()).expect("entry");
    let mac1 = Mac1Key::new(&relay.key);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let socket = udp_socket(lab);
    let mut buffer = [0; 2048];
    let role = HandshakeRole::Client;
    let noise = vec![7; role.init_len()];
    let mut init =
        HsInit { role, sender_index: 77, client_nonce: [5; 8], message: &noise, retry_token: [0; 16] };

    let before = nodes.status(Host::Entry).expect("status");
    for _ in 0..TIMES {
        send_paced(&socket, &init.encode(&Mac1Key::new(&[9; 32]), &mut rng));
    }
    assert_eq!(growth(nodes, &before, "handshake_wrong_mac"), TIMES);
    socket.set_nonblocking(true).expect("nonblocking");
    assert!(socket.recv(&mut buffer).is_err(), "a wrong mac1 must meet silence");
    socket.set_nonblocking(false).expect("blocking");

    let mut token = [0; 16];
    for _ in 0..TIMES {
        send_paced(&socket, &init.encode(&mac1, &mut rng));
        let length = socket.recv(&mut buffer).expect("RETRY");
        assert_eq!(length, RETRY_LEN);
        let retry = Retry::decode(&buffer[..length]).expect("RETRY");
        assert_eq!(retry.client_nonce, init.client_nonce);
        token = retry.token;
    }
    assert_eq!(growth(nodes, &before, "handshake_no_token"), TIMES);

    init.retry_token = token;
    for _ in 0..TIMES {
        send_paced(&socket, &init.encode(&mac1, &mut rng));
    }
    assert_eq!(growth(nodes, &before, "handshake_unauthentic"), TIMES);
    // A token is good for the address and port it was made for only.
    let elsewhere = udp_socket(lab);
    send_paced(&elsewhere, &init.encode(&mac1, &mut rng));
    assert_eq!(growth(nodes, &before, "handshake_no_token"), TIMES + 1);

    let prologue = Prologue::new(Suite::Aes256Gcm, role, &relay.id, &token);
    let (initiator, message) = Initiator::start(role, None, &relay.key, &prologue).expect("initiator");
    init.message = &message;
    let datagram = init.encode(&mac1, &mut rng);
    send_paced(&socket, &datagram);
    let length = socket.recv(&mut buffer).expect("HS_RESP");
    let response = HsResp::decode(&buffer[..length]).expect("HS_RESP");
    assert_eq!(response.receiver_index, init.sender_index);
    initiator.finish(response.message).expect("the relay has the key of the document");
    for _ in 0..TIMES {
        send_paced(&socket, &datagram);
    }
    assert_eq!(growth(nodes, &before, "handshake_replayed"), TIMES);

    // An answer that nobody asked for.
    let unasked = HsResp { sender_index: 1, receiver_index: 2, message: response.message }.encode(&mut rng);
    for _ in 0..TIMES {
        send_paced(&socket, &unasked);
    }
    assert_eq!(growth(nodes, &before, "handshake_unexpected"), TIMES);
}

/// Datagrams of all lengths and types: the XDP program drops all that no datagram of the protocol looks like.
fn malformed(lab: &Lab, nodes: &Nodes<'_>) {
    let socket = udp_socket(lab);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut bytes = [0; 1472];
    let before = nodes.status(Host::Entry).expect("status");
    let (mut lengths, mut types, mut type_lengths, mut reserved, mut unknown) = (0, 0, 0, 0, 0);
    let odd = (0..=1472).step_by(7).filter(|length| ![CELL_LEN, RETRY_LEN].contains(length));
    for length in odd.chain([RETRY_LEN - 1, RETRY_LEN + 1, CELL_LEN - 1, CELL_LEN + 1]) {
        rng.fill_bytes(&mut bytes);
        send_paced(&socket, &bytes[..length]);
        lengths += 1;
    }
    for kind in 0..=u8::MAX {
        bytes[0] = kind;
        let expected = match DatagramType::from_byte(kind) {
            None => &mut types,
            Some(DatagramType::Retry) => &mut type_lengths,
            Some(DatagramType::Cell) => {
                bytes[1..4].fill(0);
                &mut unknown
            }
            Some(DatagramType::HsInit | DatagramType::HsResp) => continue,
        };
        send_paced(&socket, &bytes[..CELL_LEN]);
        *expected += 1;
    }
    bytes[0] = DatagramType::Cell as u8;
    for at in 1..4 {
        bytes[1..4].fill(0);
        bytes[at] = 1;
        send_paced(&socket, &bytes[..CELL_LEN]);
        reserved += 1;
    }
    for (reason, expected) in [
        ("xdp_payload_length", lengths),
        ("xdp_unknown_type", types),
        ("xdp_type_length", type_lengths),
        ("xdp_reserved_bits", reserved),
        ("xdp_no_session", unknown),
    ] {
        assert_eq!(growth(nodes, &before, reason), expected, "{reason}");
    }
}

/// The client's own cells, taken from its cable: repeated, sent from elsewhere, and changed in each byte.
fn cells(lab: &Lab, nodes: &Nodes<'_>) {
    let frame = own_cell(&packet_socket(lab));
    let forger = udp_forger(lab);
    let before = nodes.status(Host::Entry).expect("status");
    for _ in 0..TIMES {
        inject(&forger, &frame);
    }
    assert_eq!(growth(nodes, &before, "replayed"), TIMES);

    let elsewhere = udp_socket(lab);
    for _ in 0..TIMES {
        send_paced(&elsewhere, &frame[HEADERS..]);
    }
    assert_eq!(growth(nodes, &before, "xdp_unexpected_source"), TIMES);

    // A counter that the relay has not seen, so that it is the change alone that is refused.
    let mut fresh = frame;
    fresh[HEADERS + 9] ^= 1;
    fresh[UDP_CHECKSUM..HEADERS].fill(0);
    let before = nodes.status(Host::Entry).expect("status");
    for at in 0..CELL_LEN {
        let mut changed = fresh.clone();
        changed[HEADERS + at] ^= 1 << (at % 8);
        inject(&forger, &changed);
    }
    std::thread::sleep(SETTLE);
    let after = nodes.status(Host::Entry).expect("status");
    let grown = |reason: &str| after.dropped(reason) - before.dropped(reason);
    // Byte 0 becomes type 0, bytes 1 to 3 are reserved, bytes 4 to 7 name no session, and the AEAD covers the rest.
    assert_eq!(grown("xdp_unknown_type"), 1);
    assert_eq!(grown("xdp_reserved_bits"), 3);
    assert_eq!(grown("xdp_no_session"), 4);
    assert_eq!(grown("unauthentic"), CELL_LEN as u64 - 8);
    assert_eq!(grown("replayed"), 0, "the genuine cells' counters are still in order");
}

/// Sees what the client's host sends; needs no address, since nothing is sent through it.
fn packet_socket(lab: &Lab) -> Socket {
    let protocol = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
    let socket = lab
        .netns(Host::Client)
        .run(|| Ok(Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?))
        .expect("packet socket");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    socket
}

/// Sends UDP with headers of the caller's, so also from ports that are another's.
fn udp_forger(lab: &Lab) -> Socket {
    lab.netns(Host::Client)
        .run(|| Ok(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?))
        .expect("raw socket")
}

/// The next cell from the client to the entry, as a whole frame.
fn own_cell(mut cable: &Socket) -> Vec<u8> {
    let ends = [Host::Client, Host::Entry].map(|host| host.address().expect("address").octets()).concat();
    let mut buffer = [0; 2048];
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let length = cable.read(&mut buffer).expect("frame");
        let frame = &buffer[..length];
        let is_cell = length == HEADERS + CELL_LEN && frame[HEADERS] == DatagramType::Cell as u8;
        if is_cell && frame[26..34] == ends {
            return frame.to_vec();
        }
    }
    panic!("the client sent no cell for five seconds");
}

fn inject(forger: &Socket, frame: &[u8]) {
    forger.send_to(&frame[UDP_HEADER..], &entry().into()).expect("send");
    std::thread::sleep(PACE);
}
