//! `relay plan` as a program: what it prints and how it ends. Needs no rights.

use std::path::Path;
use std::process::{Command, Output};

const DOCUMENT: &str = r#"version = 1
epoch = 1
valid_from = "2026-01-01T00:00:00Z"
valid_until = "2126-01-01T00:00:00Z"
cell_len = 1360
suite = 1
[classes.standard]
rate = 1500
schedule = "jittered"
[classes.trunk]
rate = TRUNK
schedule = "pattern"
pattern = [1, 2, 1, 4]
[[relays]]
id = "00000000000000000000000000000001"
name = "entry"
address = "192.0.2.1:7443"
key = "1111111111111111111111111111111111111111111111111111111111111111"
roles = ["entry"]
[[relays]]
id = "00000000000000000000000000000002"
name = "middle"
address = "192.0.2.2:7443"
key = "2222222222222222222222222222222222222222222222222222222222222222"
roles = ["middle"]
[[relays]]
id = "00000000000000000000000000000003"
name = "exit"
address = "192.0.2.3:7443"
key = "3333333333333333333333333333333333333333333333333333333333333333"
roles = ["exit"]
[[trunks]]
between = ["entry", "middle"]
class = "trunk"
[[trunks]]
between = ["middle", "exit"]
class = "trunk"
"#;

fn relay(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_relay")).args(arguments).current_dir(directory).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A signed document whose trunks have this rate, a relay's file and a client's. The relay has no key file: a plan needs
/// none.
fn write_files(directory: &Path, trunk: &str) {
    let made = relay(directory, &["keygen", "--operator", "--out", "operator.key"]);
    let operator = text(&made.stdout).trim().to_owned();
    std::fs::write(directory.join("network.toml"), DOCUMENT.replace("TRUNK", trunk)).unwrap();
    let signed = relay(directory, &["network", "sign", "--key", "operator.key", "network.toml"]);
    assert!(signed.status.success(), "{signed:?}");
    let common = format!("network = \"network.toml\"\noperator = \"{operator}\"\n");
    std::fs::write(
        directory.join("entry.toml"),
        format!(
            "name = \"entry\"\nkey = \"entry.key\"\n{common}[datapath]\ninterface = \"eth0\"\n\
             [control]\nsocket = \"entry.sock\"\n"
        ),
    )
    .unwrap();
    std::fs::write(
        directory.join("client.toml"),
        format!(
            "{common}class = \"standard\"\ncover = \"circuit\"\n[control]\nsocket = \"client.sock\"\n\
             [tun]\nname = \"ew0\"\n"
        ),
    )
    .unwrap();
}

#[test]
fn plans_are_printed_for_people_and_for_machines() {
    let directory = tempfile::tempdir().unwrap();
    write_files(directory.path(), "2000");
    for (file, first) in
        [("entry.toml", "relay entry, document epoch 1"), ("client.toml", "client of class standard")]
    {
        let plan = relay(directory.path(), &["plan", "--config", file]);
        assert_eq!(plan.status.code(), Some(0), "{plan:?}");
        assert!(text(&plan.stdout).starts_with(first), "{}", text(&plan.stdout));
        let plan = relay(directory.path(), &["plan", "--json", "--config", file]);
        assert_eq!(plan.status.code(), Some(0), "{plan:?}");
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        assert_eq!(plan["leakage"]["bits_per_day"], 0.0);
        assert!(plan["links"][0]["mbit_per_second_each_way"].as_f64().unwrap() > 17.0);
    }
    let shown = relay(directory.path(), &["network", "show", "network.toml"]);
    let shown = text(&shown.stdout);
    assert!(
        shown.contains("2000 cells/s, pattern 1:2:1:4") && shown.contains("1500 cells/s, jittered"),
        "{shown}"
    );
}

#[test]
fn what_cannot_work_and_what_is_wrong_end_differently() {
    let directory = tempfile::tempdir().unwrap();
    write_files(directory.path(), "1400");
    let plan = relay(directory.path(), &["plan", "--config", "entry.toml"]);
    assert_eq!(plan.status.code(), Some(1), "{plan:?}");
    assert!(text(&plan.stdout).contains("problem  a lane of the trunk of entry and middle has 1394 cells/s"));

    let help = relay(directory.path(), &["plan", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--json"));

    let signed = std::fs::read_to_string(directory.path().join("network.toml")).unwrap();
    std::fs::write(directory.path().join("network.toml"), signed.replace("1400", "1500")).unwrap();
    for (arguments, said) in [
        (&["plan", "--config", "entry.toml"][..], "network.toml:1: is not signed by this operator"),
        (&["plan", "--config", "none.toml"], "none.toml: cannot be read"),
        (&["plan", "--config", "network.toml"], "network.toml: is neither a relay's nor a client's file"),
        (&["plan"], "--config <FILE>"),
    ] {
        let plan = relay(directory.path(), arguments);
        assert_eq!(plan.status.code(), Some(2), "{plan:?}");
        assert!(text(&plan.stderr).contains(said), "{}", text(&plan.stderr));
        assert!(plan.stdout.is_empty());
    }
}
