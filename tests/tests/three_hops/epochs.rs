//! Classes by epoch on real hosts: a client that chooses by its demand, trunks that go by the hour.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use relay_tests::nodes::{CLIENT_RATE, TRUNK_RATE};
use relay_tests::observer::BIN;
use relay_tests::privilege::root_or_skip;
use relay_tests::{Host, Lab, Nodes, Observer};

use crate::support::{READY, Web, lab, relay_program};

/// Seconds of an epoch, the shortest there are.
const EPOCH: u64 = 10;
const LIGHT_RATE: u32 = 400;
/// Above the client's fastest class, so that circuits fit on the trunk at night.
const NIGHT_RATE: u32 = 1600;
/// Time that the lab needs to come up.
const START: u64 = 25;
/// Shares of a class's rate that a busy host may stay below it, and that bins cut off at their ends.
const TOLERANCE: f64 = 0.1;

#[test]
fn classes_change_at_boundaries_by_demand_and_by_the_hour() {
    if !root_or_skip("classes_change_at_boundaries_by_demand_and_by_the_hour") {
        return;
    }
    let lab = lab();
    let observer = Observer::start(lab.netns(Host::Wire), lab.wire_ports(), &[]).expect("observer");
    let mut nodes = Nodes::prepare(&lab, relay_program()).expect("nodes");
    let night = (now() + START).next_multiple_of(60);
    change_files(&lab, &nodes, night);
    nodes.start_all(READY).expect("ready");
    let web = Web::start(&lab);

    // Nothing to do: at an ε of 16 the client takes the light class at the first boundary that it could choose for.
    let begun = (now() + EPOCH / 2).next_multiple_of(EPOCH);
    sleep_to(begun + 4);
    assert_rate(&observer, Host::Client, begun, LIGHT_RATE);
    // Much to do, well before the next choice: the faster one at the next, whatever of it came through.
    let stop = Arc::new(AtomicBool::new(false));
    let flood = flood(&lab, Arc::clone(&stop));
    sleep_to(begun + EPOCH + 4);
    assert_rate(&observer, Host::Client, begun + EPOCH, CLIENT_RATE);
    stop.store(true, Ordering::Relaxed);
    flood.join().expect("flood");
    assert!(web.fetch(&lab, "30"), "{}", nodes.log_tail(Host::Client));

    sleep_to(night + 4);
    for host in [Host::Entry, Host::Middle, Host::Exit] {
        println!("{}\n{}", nodes.log_tail(host), status(&nodes, host));
    }
    assert_rate(&observer, Host::Middle, night - 4, TRUNK_RATE);
    assert_rate(&observer, Host::Middle, night, NIGHT_RATE);
    nodes.check_alive().expect("alive");

    let client = status(&nodes, Host::Client);
    println!("{}", client["rates"]);
    let leakage = &client["rates"]["leakage"];
    assert_eq!(client["rates"]["policy"], "adaptive");
    let choices = leakage["opportunities"].as_u64().expect("a number");
    assert!(choices >= 2);
    assert_eq!(leakage["bits_since_start"].as_f64(), Some(choices as f64), "one bit for each of two classes");
    let middle = status(&nodes, Host::Middle);
    println!("{}", middle["rates"]);
    assert_eq!(middle["rates"]["leakage"]["bits_since_start"].as_f64(), Some(0.0));
    assert!(middle["rates"]["leakage"]["changes"].as_u64() >= Some(2));
    assert_eq!(middle["rates"]["breaker_trips"], 0);
}

/// Adds classes and policies to what the lab wrote.
fn change_files(lab: &Lab, nodes: &Nodes<'_>, night: u64) {
    let document = std::fs::read_to_string(lab.dir().join("network.toml")).expect("document");
    let hour = |second: u64| format!("{:02}:{:02}", second / 3600 % 24, second / 60 % 60);
    let tables = format!(
        "[classes.light]\nrate = {LIGHT_RATE}\nschedule = \"jittered\"\n\n\
         [classes.trunk-night]\nrate = {NIGHT_RATE}\nschedule = \"constant\"\n\n\
         [epochs]\nseconds = {EPOCH}\n\n\
         [clients]\nclass = \"standard\"\n\
         adaptive = {{ classes = [\"light\", \"standard\"], epsilon = 16.0 }}\n\n\
         [classes.trunk]\n"
    );
    let hours = format!(
        "class = \"trunk\"\nhours = [{{ at = \"{}\", class = \"trunk\" }}, {{ at = \"{}\", class = \"trunk-night\" }}]\n",
        hour(night - 3600),
        hour(night)
    );
    let document = document.replace("[classes.trunk]\n", &tables).replace("class = \"trunk\"\n", &hours);
    nodes.publish(&document).expect("document");
    let file = nodes.file(Host::Client, "toml");
    let client = std::fs::read_to_string(&file).expect("client's file");
    std::fs::write(&file, client.replace("cover =", "policy = \"adaptive\"\ncover ="))
        .expect("client's file");
}

/// Asserts that a host sends its class's cells to each neighbour in the three seconds behind `second` and a bit.
fn assert_rate(observer: &Observer, host: Host, second: u64, rate: u32) {
    let bin = u64::try_from(BIN.as_millis()).expect("a bin");
    let (bins, since) = (1000 / bin, UNIX_EPOCH + Duration::from_secs(second));
    let ago = SystemTime::now().duration_since(since).expect("in the past").as_millis();
    let from = observer.bin_now() - u64::try_from(ago).expect("not long ago") / bin + 2;
    let neighbours: &[Host] = if host == Host::Client { &[Host::Entry] } else { &[Host::Entry, Host::Exit] };
    for &other in neighbours {
        for (one, two) in [(host, other), (other, host)] {
            let ends = [one, two].map(|end| end.address().expect("an address"));
            let to = from + 3 * bins;
            let cells = cells_between(observer, ends, from, to) as f64 / 3.0;
            println!("{} to {} from second {second}: {cells:.0} of {rate}", one.name(), two.name());
            assert!(
                (cells / f64::from(rate) - 1.0).abs() < TOLERANCE,
                "{} to {}: {cells} cells per second, not {rate}",
                one.name(),
                two.name()
            );
        }
    }
}

/// Datagrams of a flow in the bins from `from` to `to`, once the observer, who may be late, has seen what came behind.
fn cells_between(observer: &Observer, ends: [Ipv4Addr; 2], from: u64, to: u64) -> u64 {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let seen = observer.snapshot();
        let flow = seen.flow(ends[0], ends[1]).expect("a flow");
        if flow.datagrams_between(to, observer.bin_now()) > 0 || Instant::now() > patience {
            assert_eq!(seen.lost, 0, "the observer missed frames");
            return flow.datagrams_between(from, to);
        }
        std::thread::sleep(BIN);
    }
}

/// Sends far more than any class carries into the tunnel, until told to stop.
fn flood(lab: &Lab, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let socket = lab.netns(Host::Client).run(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).expect("socket");
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..8 {
                // What finds no room is demand all the same.
                let _ = socket.send_to(&[0; 1200], "198.51.100.80:9");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    })
}

fn status(nodes: &Nodes<'_>, host: Host) -> serde_json::Value {
    let mut command = Command::new(relay_program());
    command.args(["status", "--json", "--socket"]).arg(nodes.file(host, "sock"));
    serde_json::from_slice(&command.output().expect("status").stdout).expect("JSON")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

fn sleep_to(second: u64) {
    let until = UNIX_EPOCH + Duration::from_secs(second);
    if let Ok(left) = until.duration_since(SystemTime::now()) {
        std::thread::sleep(left);
    }
}
