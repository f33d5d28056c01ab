//! The middle relay dies without a word and comes back.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use relay_tests::privilege::root_or_skip;
use relay_tests::processes::end_child;
use relay_tests::{Host, Observer, Snapshot};

use crate::support::{CANARY, Web, lab, running};

/// Time from the restart to a working circuit.
const RECOVERY: Duration = Duration::from_secs(10);
/// Time that the relay stays away: long enough for its neighbours to notice.
const ABSENCE: Duration = Duration::from_secs(3);
/// Payload lengths allowed on the wire: cells and handshakes, and RETRY while links come back.
const CELL: u16 = 1360;
const RETRY: u16 = 64;

#[test]
fn a_killed_middle_relay_is_missed_for_ten_seconds_at_most() {
    if !root_or_skip("a_killed_middle_relay_is_missed_for_ten_seconds_at_most") {
        return;
    }
    let lab = lab();
    let inner = [[100, 64, 0, 2, 198, 51, 100, 80], [198, 51, 100, 80, 100, 64, 0, 2]];
    let canaries: Vec<Vec<u8>> =
        inner.iter().map(|pair| pair.to_vec()).chain([CANARY.to_vec(), vec![0xe7; 24]]).collect();
    let observer = Observer::start(lab.netns(Host::Wire), lab.wire_ports(), &canaries).expect("observer");
    let mut nodes = running(&lab);
    let web = Web::start(&lab);
    assert!(web.fetch(&lab, "20"), "before");
    let mut ping = Command::new("ping");
    ping.args(["-q", "-i", "0.1", "-p", "e7", "198.51.100.80"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut ping = lab.spawn(Host::Client, &mut ping).expect("ping is needed");
    std::thread::sleep(Duration::from_secs(1));
    let link_up = observer.bin_now();

    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(lengths(&observer.snapshot(), link_up), BTreeSet::from([CELL]));
    nodes.kill(Host::Middle).expect("kill");
    std::thread::sleep(ABSENCE);
    assert!(!web.fetch(&lab, "1"), "without the middle relay there is no way");
    nodes.start(Host::Middle).expect("restart");
    let restarted = Instant::now();
    let mut ready = None;
    // A fetch can only come through a new circuit: the keys of the old one died with the relay.
    while !(ready.is_some() && web.fetch(&lab, "2")) {
        if ready.is_none() && nodes.status(Host::Client).is_ok_and(|status| status.ready) {
            ready = Some(restarted.elapsed());
        }
        assert!(
            restarted.elapsed() < RECOVERY,
            "no circuit {RECOVERY:?} after the restart\n{}\n{}",
            nodes.log_tail(Host::Client),
            nodes.log_tail(Host::Middle)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("ready {ready:?} and fetched {:?} after the restart", restarted.elapsed());
    assert!(ping.try_wait().expect("ping").is_none(), "ping ended early");
    end_child(&mut ping, Duration::from_secs(1)).expect("end");

    let seen = observer.snapshot();
    assert_eq!(seen.in_the_clear(), 0, "packets showed something of the inside");
    assert_eq!((seen.lost, seen.unlisted), (0, 0), "the observer missed frames");
    let lengths = lengths(&seen, link_up);
    assert!(lengths.is_subset(&BTreeSet::from([CELL, RETRY])), "payload lengths {lengths:?}");
    nodes.check_alive().expect("alive");
}

fn lengths(seen: &Snapshot, from: u64) -> BTreeSet<u16> {
    seen.flows.values().flat_map(|flow| flow.lengths_since(from)).collect()
}
