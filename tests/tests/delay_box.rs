//! The delay box, on real namespaces. Needs root.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use relay_tests::delay_box::{DelayBox, Fate, Passage, Way};
use relay_tests::privilege::root_or_skip;
use relay_tests::recorder::Seen;
use relay_tests::{Host, Lab, Recorder};

/// As a delay in milliseconds: the frame is lost instead.
const LOSE: u64 = u64::MAX;
/// Longer than anything takes that arrives at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than recorders and the box wait before they look again.
const SETTLE: Duration = Duration::from_millis(100);

fn lab(test: &str) -> Lab {
    let prefix = format!("ewt-{}-{test}", std::process::id());
    Lab::build(&prefix, &PathBuf::from("/run").join(&prefix)).expect("lab")
}

fn address(host: Host) -> Ipv4Addr {
    host.address().expect("a host with an address")
}

fn socket(lab: &Lab, host: Host) -> UdpSocket {
    let bound = lab.netns(host).run(|| Ok(UdpSocket::bind((address(host), 9999))?));
    let socket = bound.expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
    socket
}

/// Sends datagrams that differ; the kernel of the receiver looks at their checksums.
fn send(from: &UdpSocket, to: Host, bytes: usize, count: u8) {
    for number in 0..count {
        let to = SocketAddr::from((address(to), 9999));
        assert_eq!(from.send_to(&vec![number; bytes], to).expect("send"), bytes);
    }
}

fn received(at: &UdpSocket, bytes: usize, count: u8) {
    let mut datagram = [0; 2048];
    for number in 0..count {
        let (length, _) = at.recv_from(&mut datagram).expect("a datagram");
        assert_eq!(&datagram[..length], vec![number; bytes], "in order, as it was sent");
    }
}

fn pings(lab: &Lab, from: Host, to: Host, bytes: &str) -> bool {
    let mut ping = Command::new("ping");
    ping.args(["-c", "1", "-W", "2", "-s", bytes]).arg(address(to).to_string()).stdout(Stdio::null());
    lab.spawn(from, &mut ping).expect("ping").wait().expect("wait").success()
}

fn interfaces(lab: &Lab) -> String {
    let mut ip = Command::new("ip");
    let child = lab
        .netns(Host::Wire)
        .spawn(ip.args(["-o", "link", "show", "master", "wire0"]).stdout(Stdio::piped()));
    let output = child.expect("ip").wait_with_output().expect("ip");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.split([':', '@']).nth(1));
    let mut names: Vec<&str> = names.map(str::trim).collect();
    names.sort_unstable();
    names.join(" ")
}

fn times(seen: &[Seen], from: Host) -> Vec<u64> {
    seen.iter().filter(|seen| seen.source == address(from)).map(|seen| seen.at).collect()
}

const WHOLE: &str = "w-client w-entry w-exit w-middle";
const BOXED: &str = "b-client w-entry w-exit w-middle";

#[test]
fn frames_wait_as_long_as_was_asked_and_drops_are_counted() {
    if !root_or_skip("frames_wait_as_long_as_was_asked_and_drops_are_counted") {
        return;
    }
    let lab = lab("box");
    let [client, entry] = [Host::Client, Host::Entry].map(|host| socket(&lab, host));
    let wanted = Arc::new([AtomicU64::new(30), AtomicU64::new(20)]);
    let fate = {
        let wanted = Arc::clone(&wanted);
        move |_at: u64, way: Way| match wanted[usize::from(way == Way::Home)].load(Ordering::Relaxed) {
            LOSE => Fate::Lost,
            wait => Fate::After(Duration::from_millis(wait)),
        }
    };
    assert_eq!(interfaces(&lab), WHOLE);
    let delay_box = DelayBox::insert(&lab, Host::Client, fate).expect("box");
    assert_eq!(interfaces(&lab), BOXED);
    assert!(pings(&lab, Host::Client, Host::Entry, "1472"), "the longest frame passes");
    let host = Recorder::on_wire(lab.netns(Host::Wire), lab.wire_ports()).expect("recorder");
    let behind = Recorder::on_wire(lab.netns(Host::Wire), &[delay_box.behind()]).expect("recorder");

    let before = delay_box.counts();
    send(&client, Host::Entry, 1360, 50);
    received(&entry, 1360, 50);
    send(&entry, Host::Client, 40, 50);
    received(&client, 40, 50);
    sleep(SETTLE);
    let [out, home] = [0, 1].map(|way| delay_box.counts()[way].passed - before[way].passed);
    assert!(out >= 50 && home >= 50, "{out} and {home} frames are counted");
    assert_eq!(delay_box.counts().map(Passage::unwanted), [0, 0]);
    let (sent, left) = (host.take(), behind.take());
    let (sent_out, left_out) = (times(&sent.seen, Host::Client), times(&left.seen, Host::Client));
    assert_eq!((sent_out.len(), left_out.len()), (50, 50), "each frame once on each side");
    let shortest = sent_out.iter().zip(&left_out).map(|(sent, left)| left - sent).min();
    assert!(shortest >= Some(30_000_000), "{shortest:?} ns is less than was asked");
    assert_eq!(times(&sent.seen, Host::Entry).len(), 50, "what goes home is seen where it was sent");
    assert!(times(&left.seen, Host::Entry).is_empty());

    wanted[0].store(LOSE, Ordering::Relaxed);
    let before = delay_box.counts()[0];
    send(&client, Host::Entry, 1360, 20);
    sleep(SETTLE);
    let after = delay_box.counts()[0];
    assert!(after.lost >= before.lost + 20, "{before:?}, {after:?}");
    assert_eq!(after.passed, before.passed);
    wanted[0].store(0, Ordering::Relaxed);
    send(&client, Host::Entry, 7, 1);
    received(&entry, 7, 1);

    delay_box.remove().expect("remove");
    assert_eq!(interfaces(&lab), WHOLE);
    assert!(pings(&lab, Host::Client, Host::Entry, "56") && pings(&lab, Host::Exit, Host::Client, "56"));
}

#[test]
fn a_box_that_is_dropped_leaves_nothing() {
    if !root_or_skip("a_box_that_is_dropped_leaves_nothing") {
        return;
    }
    let lab = lab("boxes");
    let pass = |_: u64, _: Way| Fate::After(Duration::ZERO);
    let unwound = std::panic::catch_unwind(|| {
        let _boxes = [Host::Client, Host::Exit].map(|host| DelayBox::insert(&lab, host, pass).expect("box"));
        assert_eq!(interfaces(&lab), "b-client b-exit w-entry w-middle");
        assert!(pings(&lab, Host::Client, Host::Exit, "56"), "two boxes at once");
        assert!(DelayBox::insert(&lab, Host::Exit, pass).is_err(), "one cable has one box");
        assert!(pings(&lab, Host::Client, Host::Exit, "56"), "and it stays");
        panic!("inside");
    });
    let message = unwound.expect_err("it panicked");
    assert_eq!(message.downcast_ref(), Some(&"inside"));
    assert_eq!(interfaces(&lab), WHOLE);
    assert!(pings(&lab, Host::Client, Host::Exit, "56"));
    assert!(DelayBox::insert(&lab, Host::Service, pass).is_err(), "a host that is not on the wire");
    assert_eq!(interfaces(&lab), WHOLE);
}
