//! What a user notices: streams, datagrams and single packets arrive whole.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use relay_tests::privilege::root_or_skip;
use relay_tests::processes::end_child;
use relay_tests::{Host, Lab};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Web, lab, running, text};

const SERVICE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
/// Protocol numbers 253 and 254 are for experiments (RFC 3692).
const EXPERIMENT: i32 = 253;
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const INNER_MTU: usize = 1400;
/// Packets on their way at a time.
const BURST: usize = 24;
/// Times that a lost packet is sent: the tunnel is as unreliable as IP, but no size may be lost each time.
const ROUNDS: usize = 4;

#[test]
fn streams_and_datagrams_flow_both_ways() {
    if !root_or_skip("streams_and_datagrams_flow_both_ways") {
        return;
    }
    let lab = lab();
    let mut nodes = running(&lab);
    assert!(Web::start(&lab).fetch(&lab, "20"), "curl");

    let mut server = std::process::Command::new("iperf3");
    server
        .args(["--server"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut server = lab.spawn(Host::Service, &mut server).expect("iperf3 is needed");
    std::thread::sleep(Duration::from_millis(300));
    for reverse in [false, true] {
        let tcp = iperf(&lab, reverse, &[]);
        assert!(tcp["end"]["sum_received"]["bytes"].as_u64() > Some(100_000), "TCP: {}", tcp["end"]);

        let udp = iperf(&lab, reverse, &["--udp", "--bitrate", "5M", "--length", "1200"]);
        let sum = &udp["end"]["sum"];
        assert!(sum["packets"].as_u64() > Some(500), "UDP: {sum}");
        // A machine that stands still for a while overflows queues; a broken path loses far more.
        assert!(sum["lost_percent"].as_f64().is_some_and(|percent| percent < 20.0), "UDP: {sum}");
    }
    end_child(&mut server, Duration::from_secs(3)).expect("end");
    nodes.check_alive().expect("alive");
}

fn iperf(lab: &Lab, reverse: bool, more: &[&str]) -> Value {
    let mut arguments =
        vec!["--client", "198.51.100.80", "--json", "--time", "2", "--connect-timeout", "5000"];
    arguments.extend(more);
    if reverse {
        arguments.push("--reverse");
    }
    serde_json::from_str(&text(lab, Host::Client, "iperf3", &arguments)).expect("JSON")
}

#[test]
fn packets_of_every_size_survive() {
    if !root_or_skip("packets_of_every_size_survive") {
        return;
    }
    let lab = lab();
    let mut nodes = running(&lab);
    echo_experiments(&lab);
    echo_datagrams(&lab);

    let raw = raw_socket(&lab, Host::Client);
    survive(
        IPV4_HEADER,
        |body| raw.send_to(body, &SocketAddrV4::new(SERVICE, 0).into()).map(drop),
        |timeout| {
            raw.set_read_timeout(Some(timeout)).expect("timeout");
            receive_raw(&raw).map(|(body, _)| body)
        },
    );

    let udp = lab.netns(Host::Client).run(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).expect("socket");
    udp.connect((SERVICE, 7007)).expect("connect");
    survive(
        IPV4_HEADER + UDP_HEADER,
        |body| udp.send(body).map(drop),
        |timeout| {
            udp.set_read_timeout(Some(timeout)).expect("timeout");
            let mut buffer = [0; 2048];
            udp.recv(&mut buffer).map(|length| buffer[..length].to_vec())
        },
    );
    nodes.check_alive().expect("alive");
    for host in relay_tests::nodes::RELAYS {
        assert_eq!(nodes.status(host).expect("status").kernel_path, 0, "{}", host.name());
    }
}

/// Has packets of every size from `header` to the MTU echoed, in bursts, so that small ones are packed into cells and
/// large ones are spread over them.
fn survive(
    header: usize,
    mut send: impl FnMut(&[u8]) -> std::io::Result<()>,
    mut receive: impl FnMut(Duration) -> std::io::Result<Vec<u8>>,
) {
    let mut missing: Vec<usize> = (0..=INNER_MTU - header).collect();
    for _ in 0..ROUNDS {
        let mut lost = Vec::new();
        for burst in missing.chunks(BURST) {
            let mut awaited: BTreeMap<usize, Vec<u8>> =
                burst.iter().map(|&length| (length, body(length))).collect();
            for &length in burst {
                send(&body(length)).expect("send");
            }
            let until = Instant::now() + Duration::from_secs(1);
            while let Some(left) = until.checked_duration_since(Instant::now())
                && !awaited.is_empty()
            {
                let Ok(answer) = receive(left.max(Duration::from_millis(1))) else { continue };
                // One of an earlier burst may come late; it must be whole all the same.
                assert!(answer == body(answer.len()), "{} bytes came back changed", answer.len());
                awaited.remove(&answer.len());
            }
            lost.extend(awaited.into_keys());
        }
        if lost.is_empty() {
            return;
        }
        missing = lost;
    }
    panic!("packets with these bytes behind {header} bytes of headers never came back: {missing:?}");
}

/// `length` bytes that no other length shares.
fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + length * 13) % 251).expect("below 251")).collect()
}

fn raw_socket(lab: &Lab, host: Host) -> Socket {
    lab.netns(host)
        .run(|| Ok(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(EXPERIMENT)))?))
        .expect("raw socket")
}

/// What stands behind the IPv4 header, and who sent it.
fn receive_raw(mut socket: &Socket) -> std::io::Result<(Vec<u8>, Ipv4Addr)> {
    let mut buffer = [0; 2048];
    let length = socket.read(&mut buffer)?;
    let packet = buffer.get(IPV4_HEADER..length).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((packet.to_vec(), Ipv4Addr::from([buffer[12], buffer[13], buffer[14], buffer[15]])))
}

/// Sends experimental packets back from the service, for the rest of the process.
fn echo_experiments(lab: &Lab) {
    let socket = raw_socket(lab, Host::Service);
    std::thread::spawn(move || {
        while let Ok((body, source)) = receive_raw(&socket) {
            // What does not go out is missed by the sender.
            let _ = socket.send_to(&body, &SocketAddrV4::new(source, 0).into());
        }
    });
}

/// Sends UDP datagrams back from the service, for the rest of the process.
fn echo_datagrams(lab: &Lab) {
    let socket = lab.netns(Host::Service).run(|| Ok(UdpSocket::bind((SERVICE, 7007))?)).expect("socket");
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, source)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], source);
        }
    });
}
