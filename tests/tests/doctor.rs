//! `relay doctor` on a veth whose queues are known, in a namespace of the test's own. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use relay_tests::Netns;
use relay_tests::privilege::root_or_skip;
use relay_tests::program::relay_program;
use relay_user::steering::{AttachMode, Steering};
use serde_json::Value;

/// The end that a relay would use: two receive queues, and a peer that sends on one.
const NEAR: &str = "ewd-near";
const FAR: &str = "ewd-far";
const ADDRESS: &str = "192.0.2.77";

const DOCUMENT: &str = r#"version = 1
epoch = 1
valid_from = "2026-01-01T00:00:00Z"
valid_until = "2126-01-01T00:00:00Z"
cell_len = 1360
suite = 1
[classes.standard]
rate = 1500
schedule = "jittered"
[[relays]]
id = "00000000000000000000000000000001"
name = "entry"
address = "ADDRESS:7443"
key = "KEY"
roles = ["entry"]
"#;

/// Deletes the namespace when the test is over.
struct Host(Netns);

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = Netns::delete(self.0.name()) {
            eprintln!("{error:#}");
        }
    }
}

impl Host {
    fn new(tag: &str) -> Result<Self> {
        let host = Self(Netns::create(&format!("ewd-{}-{tag}", std::process::id()))?);
        for arguments in [
            format!(
                "link add {NEAR} numrxqueues 2 numtxqueues 2 type veth peer name {FAR} numrxqueues 2 numtxqueues 1"
            ),
            format!("link set {NEAR} up"),
            format!("link set {FAR} up"),
        ] {
            let output = host.call("ip", &arguments.split(' ').collect::<Vec<_>>())?;
            ensure!(output.status.success(), "ip {arguments}: {output:?}");
        }
        Ok(host)
    }

    fn call(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.0.spawn(&mut command)?.wait_with_output()?)
    }

    /// Exit status and report.
    fn doctor(&self, arguments: &[&str]) -> Result<(i32, Value)> {
        let output = self.call(relay_program(), &[&["doctor", "--json"], arguments].concat())?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(!text.contains(ADDRESS), "an address is in the report: {text}");
        let report = serde_json::from_str(&text)
            .with_context(|| format!("{text:?}, {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((output.status.code().context("killed")?, report))
    }

    /// Receive queues in use, as `ethtool` counts them.
    fn queues(&self) -> Result<String> {
        let text = String::from_utf8(self.call("ethtool", &["-l", NEAR])?.stdout)?;
        let now = text.split("Current hardware settings:").nth(1).context("no settings")?;
        let line = now.lines().find(|line| line.starts_with("RX:")).context("no receive queues")?;
        Ok(line.trim_start_matches("RX:").trim().to_owned())
    }
}

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("findings");
    findings
        .iter()
        .find(|finding| finding["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

/// A relay's file, with its key and its network document, in `directory`.
fn relay_file(directory: &Path) -> Result<PathBuf> {
    let relay = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(relay_program()).args(arguments).current_dir(directory).output()?;
        ensure!(output.status.success(), "relay {arguments:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let operator = relay(&["keygen", "--operator", "--out", "operator.key"])?;
    let key = relay(&["keygen", "--relay", "--out", "entry.key"])?;
    let document = DOCUMENT.replace("KEY", &key).replace("ADDRESS", ADDRESS);
    std::fs::write(directory.join("network.toml"), document)?;
    relay(&["network", "sign", "--key", "operator.key", "network.toml"])?;
    let file = directory.join("entry.toml");
    std::fs::write(
        &file,
        format!(
            "name = \"entry\"\nkey = \"entry.key\"\nnetwork = \"network.toml\"\noperator = \"{operator}\"\n\
             [datapath]\ninterface = \"{NEAR}\"\nmode = \"native\"\n[worker]\ncpus = [0]\n\
             [control]\nsocket = \"entry.sock\"\n"
        ),
    )?;
    Ok(file)
}

#[test]
fn a_queue_too_many_is_found_and_left_alone() -> Result<()> {
    if !root_or_skip("a_queue_too_many_is_found_and_left_alone") {
        return Ok(());
    }
    let host = Host::new("look")?;
    let (status, report) = host.doctor(&[NEAR, "--probe"])?;
    assert_eq!(status, 1, "{report:#}");
    let queues = finding(&report, "queues");
    assert_eq!(
        (queues["verdict"].as_str(), queues["part"].as_str()),
        (Some("problem"), Some("interface ewd-near"))
    );
    assert!(queues["what"].as_str().unwrap().starts_with("2 receive, 1 read"), "{queues}");
    assert_eq!(queues["remedy"][0], format!("ethtool -L {NEAR} rx 1 tx 1"));
    assert_eq!(finding(&report, "driver")["what"], "veth 1.0");
    assert_eq!(finding(&report, "tx checksum")["remedy"][0], format!("ethtool -K {NEAR} tx off"));
    assert_eq!(finding(&report, "transmit queue")["verdict"], "warn");
    assert_eq!(finding(&report, "probe: XDP")["what"], "attaches in native mode");
    assert_eq!(finding(&report, "probe: socket")["what"], "queue 0: copy");
    assert_eq!(host.queues()?, "2", "nothing is changed without being asked for");

    // What was tried is gone again: the second look finds nothing attached.
    let (_, again) = host.doctor(&[NEAR])?;
    assert!(!again.to_string().contains("XDP program"), "{again:#}");
    Ok(())
}

#[test]
fn queues_are_set_up_for_the_workers_of_a_file() -> Result<()> {
    if !root_or_skip("queues_are_set_up_for_the_workers_of_a_file") {
        return Ok(());
    }
    let host = Host::new("apply")?;
    let directory = tempfile::tempdir()?;
    let file = relay_file(directory.path())?;
    let file = file.to_str().context("a path")?;

    let attached = host.0.run(|| {
        let steering = Steering::attach(NEAR, AttachMode::Native, 7443)?;
        let refused = host.call(relay_program(), &["doctor", "--config", file, "--apply"])?;
        drop(steering);
        Ok(refused)
    })?;
    assert_eq!(attached.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&attached.stderr).contains("stop the relay"), "{attached:?}");
    assert_eq!(host.queues()?, "2");

    let (status, report) = host.doctor(&["--config", file, "--apply"])?;
    assert_eq!(report["applied"][0]["command"], format!("ethtool -L {NEAR} rx 1 tx 1"));
    assert_eq!(report["applied"][0]["refused"], Value::Null);
    assert_eq!(host.queues()?, "1");
    assert_eq!(finding(&report, "queues")["verdict"], "ok");
    assert_eq!(finding(&report, "CPU")["part"], "worker 0 (queue 0, CPU 0)");
    let problems = report["problems"].as_u64().context("a number")?;
    assert_eq!(status, i32::from(problems > 0), "{report:#}");

    let (_, again) = host.doctor(&["--config", file, "--apply"])?;
    assert_eq!(again["applied"].as_array().map(Vec::len), Some(0), "{again:#}");
    Ok(())
}

#[test]
fn what_is_not_there_is_a_mistake() -> Result<()> {
    if !root_or_skip("what_is_not_there_is_a_mistake") {
        return Ok(());
    }
    let host = Host::new("wrong")?;
    for (arguments, message) in [
        (&["ewd-none"][..], "no interface ewd-none"),
        (&["--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (&[NEAR, "--apply"], "[INTERFACE]"),
        (&[], "--config"),
    ] {
        let output = host.call(relay_program(), &[&["doctor"], arguments].concat())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(message), "{arguments:?}: {said}");
    }
    Ok(())
}
