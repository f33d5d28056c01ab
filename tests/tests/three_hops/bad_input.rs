//! Mistakes and conflicts: one clear message, the right exit status, nothing left behind.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use relay_tests::nodes::{PORT, relay_id, rfc3339};
use relay_tests::privilege::root_or_skip;
use relay_tests::{Host, Lab, Nodes};

use crate::stop::Traces;
use crate::support::{READY, lab, relay_program};

/// Exit status of a mistake in a file or on the command line.
const MISTAKE: i32 = 2;
/// Exit status of what fails while starting.
const FAILURE: i32 = 1;
/// Time in which a node that cannot start must have ended.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn mistakes_are_named_and_leave_nothing_behind() {
    if !root_or_skip("mistakes_are_named_and_leave_nothing_behind") {
        return;
    }
    let lab = lab();
    let nodes = Nodes::prepare(&lab, relay_program()).expect("nodes");
    let bench = Bench { lab: &lab, nodes: &nodes };
    let document = fs::read_to_string(lab.dir().join("network.toml")).expect("document");
    let read = |host, kind| fs::read_to_string(nodes.file(host, kind)).expect("file");

    // The files themselves.
    bench.edited(
        Host::Entry,
        ("[worker]", "[worker]\ncolour = \"red\""),
        MISTAKE,
        &["entry.toml:13", "colour"],
    );
    bench.edited(Host::Client, ("mtu = 1400", "mtu = 1400\nrouts = []"), MISTAKE, &["client.toml", "routs"]);
    bench.edited(
        Host::Entry,
        ("name = \"entry\"", "name = \"nobody\""),
        MISTAKE,
        &["entry.toml:1", "nobody"],
    );
    bench.edited(Host::Client, ("\"standard\"", "\"trunk\""), MISTAKE, &["client.toml:3", "class", "trunk"]);
    bench.edited(Host::Client, ("\"entry\", \"middle\"", "\"middle\", \"entry\""), MISTAKE, &["path"]);
    bench.edited(Host::Entry, ("\"entry.key\"", "\"middle.key\""), MISTAKE, &["entry.toml:2", "key"]);
    bench.edited(Host::Entry, ("\"network.toml\"", "\"missing.toml\""), MISTAKE, &["missing.toml", "read"]);

    let key = nodes.file(Host::Entry, "key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("mode");
    bench.refused(Host::Entry, MISTAKE, &["entry.key", "600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("mode");

    // The document: of another operator, changed after signing, without signature, and out of date.
    let operator = read(Host::Entry, "toml")
        .lines()
        .find_map(|line| line.strip_prefix("operator = \"").map(|rest| rest.trim_end_matches('"').to_owned()))
        .expect("operator");
    let id = relay_id(Host::Entry).repeat(2);
    for host in [Host::Entry, Host::Client] {
        bench.edited(host, (&operator, &id), MISTAKE, &["network.toml"]);
    }
    let network = lab.dir().join("network.toml");
    let (_, body) = document.split_once('\n').expect("signature line");
    for changed in [document.replace("rate = 1500", "rate = 1501"), body.to_owned()] {
        fs::write(&network, changed).expect("document");
        for host in [Host::Entry, Host::Client] {
            bench.refused(host, MISTAKE, &["network.toml", "sign"]);
        }
    }
    let line = body.lines().find(|line| line.starts_with("valid_until")).expect("valid_until");
    let from = body.lines().find(|line| line.starts_with("valid_from")).expect("valid_from");
    let expired = body
        .replace(line, &format!("valid_until = \"{}\"", rfc3339(1_600_000_000)))
        .replace(from, &format!("valid_from = \"{}\"", rfc3339(1_500_000_000)));
    nodes.publish(&expired).expect("publish");
    for host in [Host::Entry, Host::Client] {
        bench.refused(host, MISTAKE, &["network.toml", "2020-09-13"]);
    }
    fs::write(&network, &document).expect("document");

    // What the host does not have.
    bench.edited(Host::Entry, ("\"wire0\"", "\"wire9\""), FAILURE, &["wire9"]);
    bench.edited(Host::Exit, ("\"out0\"", "\"out9\""), FAILURE, &["out9"]);
    let mut without = Command::new("setpriv");
    without.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(relay_program()).args(["run", "--config"]);
    without.arg(nodes.file(Host::Entry, "toml"));
    bench.judge(Host::Entry, &mut without, FAILURE, &["CAP_NET_ADMIN", "CAP_BPF"]);
}

#[test]
fn what_others_hold_is_named_and_left_alone() {
    if !root_or_skip("what_others_hold_is_named_and_left_alone") {
        return;
    }
    let lab = lab();
    let mut nodes = Nodes::prepare(&lab, relay_program()).expect("nodes");
    {
        let bench = Bench { lab: &lab, nodes: &nodes };
        let address = Host::Entry.address().expect("address");
        let busy = lab.netns(Host::Entry).run(|| Ok(UdpSocket::bind((address, PORT))?)).expect("bind");
        bench.refused(Host::Entry, FAILURE, &["7443"]);
        drop(busy);

        let path = nodes.file(Host::Entry, "sock");
        let busy = UnixListener::bind(&path).expect("bind");
        bench.refused(Host::Entry, FAILURE, &["entry.sock", "running already"]);
        assert!(path.exists(), "somebody else's socket was removed");
        drop(busy);
        fs::remove_file(&path).expect("remove");
    }

    nodes.start(Host::Entry).expect("start");
    nodes.start(Host::Middle).expect("start");
    let until = Instant::now() + READY;
    let is_up = |nodes: &Nodes<'_>| {
        nodes.status(Host::Entry).is_ok_and(|status| status.links.iter().all(|link| link.up))
    };
    while !is_up(&nodes) {
        assert!(Instant::now() < until, "{}", nodes.log_tail(Host::Entry));
        std::thread::sleep(Duration::from_millis(50));
    }
    let bench = Bench { lab: &lab, nodes: &nodes };
    bench.edited(Host::Entry, ("entry.sock", "second.sock"), FAILURE, &["wire0", "already attached"]);
    assert!(!lab.dir().join("second.sock").exists(), "the refused relay's status socket is left");
    bench.refused(Host::Entry, FAILURE, &["entry.sock", "running already"]);
    let before = nodes.status(Host::Entry).expect("status").redirected;
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_up(&nodes), "the first relay goes on");
    assert!(
        nodes.status(Host::Entry).expect("status").redirected > before,
        "cells still reach the first relay"
    );
    nodes.check_alive().expect("alive");
}

struct Bench<'a> {
    lab: &'a Lab,
    nodes: &'a Nodes<'a>,
}

impl Bench<'_> {
    /// Starts `host` with `from` replaced by `to` in its file, which must be refused.
    fn edited(&self, host: Host, (from, to): (&str, &str), status: i32, words: &[&str]) {
        let file = self.nodes.file(host, "toml");
        let text = fs::read_to_string(&file).expect("file");
        assert!(text.contains(from), "{from} is not in {}", file.display());
        fs::write(&file, text.replace(from, to)).expect("file");
        self.refused(host, status, words);
        fs::write(&file, text).expect("file");
    }

    /// Starts `host`, which must be refused with this exit status and one line that has all the words.
    fn refused(&self, host: Host, status: i32, words: &[&str]) {
        self.judge(host, &mut self.nodes.command(host), status, words);
    }

    fn judge(&self, host: Host, command: &mut Command, status: i32, words: &[&str]) {
        let socket = self.nodes.file(host, "sock");
        let (traces, had_socket) = (Traces::of(self.lab, host), socket.exists());
        let output = self.run(host, command);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{}: {words:?}: {error}", host.name());
        let complaints: Vec<&str> = error.lines().filter(|line| line.starts_with("relay: ")).collect();
        assert!(matches!(complaints[..], [_]), "{}: {words:?}: not one message: {error}", host.name());
        for word in words {
            assert!(complaints[0].contains(word), "{}: {word:?} is not in {error}", host.name());
        }
        assert_eq!(Traces::of(self.lab, host), traces, "{}: {words:?}", host.name());
        assert_eq!(socket.exists(), had_socket, "{}: {words:?}: status socket", host.name());
    }

    fn run(&self, host: Host, command: &mut Command) -> Output {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.lab.spawn(host, command).expect("start");
        let until = Instant::now() + PATIENCE;
        while child.try_wait().expect("wait").is_none() {
            if Instant::now() > until {
                child.kill().expect("kill");
                let output = child.wait_with_output().expect("output");
                panic!("{} goes on: {}", host.name(), String::from_utf8_lossy(&output.stderr));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.wait_with_output().expect("output")
    }
}
