//! The lab itself, on real namespaces. Needs root.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use relay_tests::privilege::root_or_skip;
use relay_tests::{Host, Lab, Netns, Observer, Snapshot};

fn names(test: &str) -> (String, PathBuf) {
    let prefix = format!("ewt-{}-{test}", std::process::id());
    let dir = PathBuf::from("/run").join(&prefix);
    (prefix, dir)
}

fn address(host: Host) -> Ipv4Addr {
    host.address().expect("a host with an address")
}

fn own_netns() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").expect("own namespace")
}

fn pings(lab: &Lab, from: Host, to: Ipv4Addr) -> bool {
    let mut ping = Command::new("ping");
    ping.args(["-c", "1", "-W", "2"]).arg(to.to_string()).stdout(Stdio::null());
    lab.spawn(from, &mut ping).expect("ping").wait().expect("wait").success()
}

fn wait_for(observer: &Observer, done: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let snapshot = observer.snapshot();
        if done(&snapshot) || Instant::now() > until {
            return snapshot;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn hosts_reach_their_neighbours_and_nothing_else() {
    if !root_or_skip("hosts_reach_their_neighbours_and_nothing_else") {
        return;
    }
    let (prefix, dir) = names("topo");
    let lab = Lab::build(&prefix, &dir).expect("lab");
    for from in Host::ON_WIRE {
        for to in Host::ON_WIRE {
            assert!(pings(&lab, from, address(to)), "{from:?} reaches {to:?}");
        }
    }
    assert!(pings(&lab, Host::Exit, address(Host::Service)));
    let unroutable = lab.netns(Host::Client).run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        Ok(socket.connect((address(Host::Service), 80)).is_err())
    });
    assert!(unroutable.expect("run"), "the client reaches the service only through a tunnel");
    drop(lab);
    assert!(Host::ALL.iter().all(|host| !Netns::exists(&format!("{prefix}-{}", host.name()))));
    assert!(!dir.exists() && !dir.with_extension("lock").exists());
}

#[test]
fn a_guard_brings_the_thread_back() {
    if !root_or_skip("a_guard_brings_the_thread_back") {
        return;
    }
    let (name, _) = names("guard");
    let before = own_netns();
    let netns = Netns::create(&name).expect("create");
    assert_eq!(own_netns(), before, "making a namespace doesn't move the maker");
    {
        let _inside = netns.enter().expect("enter");
        assert_ne!(own_netns(), before);
    }
    assert_eq!(own_netns(), before);
    let unwound = std::panic::catch_unwind(|| {
        let _inside = netns.enter().expect("enter");
        panic!("inside");
    });
    assert!(unwound.is_err());
    assert_eq!(own_netns(), before, "also when the stack unwinds");
    assert!(Netns::create(&name).is_err(), "the name is taken");
    drop(netns);
    Netns::delete(&name).expect("delete");
    Netns::delete(&name).expect("deleting twice is no error");
}

#[test]
fn a_crashed_lab_is_cleared_away_by_the_next() {
    if !root_or_skip("a_crashed_lab_is_cleared_away_by_the_next") {
        return;
    }
    let (prefix, dir) = names("crash");
    let lab = Lab::build(&prefix, &dir).expect("first lab");
    assert!(Lab::build(&prefix, &dir).is_err(), "two labs of one name exclude each other");
    let mut orphan = lab.spawn(Host::Entry, Command::new("sleep").arg("600")).expect("sleep");
    let leftover = dir.join("entry.key");
    fs::write(&leftover, "secret").expect("write");
    // A killed process leaves everything behind but its lock. This process lives on and would keep holding it, so the
    // name goes instead.
    std::mem::forget(lab);
    fs::remove_file(dir.with_extension("lock")).expect("release the lock");

    let second = Lab::build(&prefix, &dir).expect("second lab");
    let status = orphan.wait().expect("wait");
    assert!(!status.success(), "the orphan was ended: {status}");
    assert!(!leftover.exists());
    assert!(pings(&second, Host::Entry, address(Host::Middle)));
}

#[test]
fn the_observer_counts_exactly_and_sees_a_canary() {
    if !root_or_skip("the_observer_counts_exactly_and_sees_a_canary") {
        return;
    }
    const DATAGRAMS: u64 = 500;
    let (prefix, dir) = names("watch");
    let lab = Lab::build(&prefix, &dir).expect("lab");
    let canary = b"yellow bird in a coal mine".to_vec();
    let observer = Observer::start(lab.netns(Host::Wire), lab.wire_ports(), std::slice::from_ref(&canary))
        .expect("observer");
    let (entry, middle) = (address(Host::Entry), address(Host::Middle));
    // Keeps the receiver from answering with port unreachable.
    let receiver = lab.netns(Host::Middle).run(|| Ok(UdpSocket::bind((middle, 7443))?)).expect("receiver");
    let sender = lab.netns(Host::Entry).run(|| Ok(UdpSocket::bind((entry, 7443))?)).expect("sender");
    for _ in 0..DATAGRAMS {
        sender.send_to(&[0x5a; 1360], (middle, 7443)).expect("send");
    }
    let seen =
        wait_for(&observer, |seen| seen.flow(entry, middle).is_some_and(|flow| flow.datagrams >= DATAGRAMS));
    let flow = seen.flow(entry, middle).expect("flow");
    assert_eq!((flow.datagrams, flow.lengths_since(0)), (DATAGRAMS, vec![1360]));
    assert_eq!(flow.datagrams_between(0, observer.bin_now() + 1), DATAGRAMS);
    assert_eq!((seen.in_the_clear(), seen.lost, seen.flows.len()), (0, 0, 1));
    assert!(seen.arp > 0, "address resolution is counted by itself");

    let mut telling = vec![0; 1200];
    telling.extend(&canary);
    sender.send_to(&telling, (middle, 7443)).expect("send");
    let seen = wait_for(&observer, |seen| seen.canaries > 0);
    assert_eq!((seen.canaries, seen.inner_addresses), (1, 0));
    assert_eq!(seen.flow(entry, middle).expect("flow").lengths_since(0), [1226, 1360]);
    drop(receiver);
}

#[test]
fn the_observer_sees_inner_addresses_outside_the_tunnel() {
    if !root_or_skip("the_observer_sees_inner_addresses_outside_the_tunnel") {
        return;
    }
    let (prefix, dir) = names("inner");
    let lab = Lab::build(&prefix, &dir).expect("lab");
    let observer = Observer::start(lab.netns(Host::Wire), lab.wire_ports(), &[]).expect("observer");
    // The exit answers for its outside address on the wire as well: an inner address in an outer header.
    let exit_outside = relay_tests::lab::EXIT_OUTSIDE;
    let sender = lab.netns(Host::Exit).run(|| Ok(UdpSocket::bind((exit_outside, 0))?)).expect("sender");
    sender.send_to(b"leak", (address(Host::Client), 9)).expect("send");
    let seen = wait_for(&observer, |seen| seen.inner_addresses > 0);
    assert_eq!(seen.inner_addresses, 1);
}
