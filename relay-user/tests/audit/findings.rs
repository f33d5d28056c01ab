//! What the binary finds, and what it does not.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::wire::{ENDS, Law, OTHERS, link, log};
use crate::write::{Bytes, Packet, pcap, pcapng};

pub(crate) fn audit(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_relay"))
        .arg("audit")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the relay program")
}

/// Exit status, words and report on a capture with or without marks.
fn report(packets: &[Packet], marks: Option<&str>) -> (Option<i32>, String, Value) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("wire.pcap"), pcap(Bytes { big: false }, true, 1, packets)).unwrap();
    let mut arguments = vec!["wire.pcap", "--json", "wire.json", "--svg", "wire.svg", "--png", "wire.png"];
    if let Some(marks) = marks {
        std::fs::write(at("marks"), marks).unwrap();
        arguments.extend(["--marks", "marks"]);
    }
    let output = audit(directory.path(), &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "", "{text}");
    let json = std::fs::read_to_string(at("wire.json")).unwrap();
    let svg = std::fs::read_to_string(at("wire.svg")).unwrap();
    assert!(svg.contains("cells") && svg.contains("A1"), "{svg}");
    assert!(std::fs::read(at("wire.png")).unwrap().starts_with(b"\x89PNG"));
    for (place, shown) in [("words", &text), ("JSON", &json), ("picture", &svg)] {
        assert!(!shown.contains("192.0.2"), "an address is in the {place}: {shown}");
    }
    (output.status.code(), text, serde_json::from_str(&json).unwrap())
}

/// What the figures of an attack say, of all that it is about.
fn says(report: &Value, attack: u64) -> Vec<&str> {
    let rows = report["rows"].as_array().unwrap().iter();
    rows.filter(|row| row["number"] == attack).map(|row| row["says"].as_str().unwrap()).collect()
}

#[test]
fn a_jittered_link_tells_nothing_of_its_user() {
    let (marks, busy) = log(20, &["web"]);
    let packets = link(Law::Jittered, ENDS, 245, 60, 1, busy);
    let (status, text, report) = report(&packets, Some(&marks));
    assert_eq!(status, Some(0), "{text}");
    assert_ne!(report["verdict"], "found");
    for attack in [1, 2, 3, 6, 8, 9, 13] {
        let says = says(&report, attack);
        assert!(!says.is_empty() && says.iter().all(|says| *says != "found"), "{attack}: {says:?}\n{text}");
    }
    for attack in [1, 2, 3, 8] {
        assert!(says(&report, attack).contains(&"not-found"), "no power: {text}");
    }
    for direction in report["directions"].as_array().unwrap() {
        assert_eq!(direction["law"]["name"], "jittered", "{text}");
        assert_eq!(direction["lost"], 0);
        assert!((direction["rate"].as_f64().unwrap() - 60.0).abs() < 0.5, "{text}");
    }
    assert!(text.contains("smaller ones would not have been seen"), "{text}");
    assert!(text.contains("11 watermark: needs"), "{text}");
    assert!(!text.contains("fine"), "{text}");
}

#[test]
fn a_plain_tunnel_is_found() {
    let (marks, busy) = log(20, &["web"]);
    let packets = link(Law::Plain, ENDS, 245, 60, 2, busy);
    let (status, text, report) = report(&packets, Some(&marks));
    assert_eq!((status, &report["verdict"]), (Some(1), &Value::from("found")), "{text}");
    for attack in [1, 2, 3, 6, 8] {
        assert!(says(&report, attack).contains(&"found"), "{attack}: {text}");
    }
    let activity = report["rows"].as_array().unwrap().iter().find(|row| row["number"] == 1).unwrap();
    assert!(activity["value"].as_f64().unwrap() >= 0.9, "{activity}");
    assert!(text.contains("FOUND"), "{text}");
}

#[test]
fn two_links_and_two_activities_are_held_against_each_other() {
    let (marks, busy) = log(20, &["web", "call"]);
    let mut packets = link(Law::Plain, ENDS, 245, 50, 3, &busy);
    packets.extend(link(Law::Plain, OTHERS, 245, 50, 4, &busy));
    packets.sort();
    let (_, text, report) = report(&packets, Some(&marks));
    assert!(says(&report, 7).contains(&"found"), "{text}");
    assert!(says(&report, 4).contains(&"found"), "{text}");
    // Both activities send alike: there is nothing to tell apart.
    let fingerprints = says(&report, 5);
    assert!(!fingerprints.is_empty() && fingerprints.iter().all(|says| *says != "found"), "{text}");
    assert!(text.contains("A1 and B1"), "{text}");
}

#[test]
fn without_marks_it_says_what_was_not_tested() {
    let packets = link(Law::Jittered, ENDS, 60, 60, 5, |_| true);
    let (status, text, report) = report(&packets, None);
    assert_eq!(status, Some(0), "{text}");
    let untested: Vec<u64> = report["untested"]
        .as_array()
        .unwrap()
        .iter()
        .map(|untested| untested["number"].as_u64().unwrap())
        .collect();
    assert_eq!(untested, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 14], "{text}");
    assert!(text.contains("Whether it tells when you are active was not tested"), "{text}");
}

#[test]
fn bytes_that_are_not_random_and_other_lengths_are_found() {
    let mut packets = link(Law::Jittered, ENDS, 60, 60, 6, |_| true);
    for (_, frame) in packets.iter_mut().step_by(4) {
        frame[700] = 0x20;
    }
    let (status, text, odd) = report(&packets, None);
    assert_eq!(status, Some(1), "{text}");
    assert!(says(&odd, 9).contains(&"found"), "{text}");

    let mut packets = link(Law::Jittered, ENDS, 60, 60, 6, |_| true);
    // One that is shorter by ten bytes: its lengths are corrected, as a sender's would be.
    let frame = &mut packets[500].1;
    frame.truncate(frame.len() - 10);
    let (ip, udp) = (u16::try_from(frame.len() - 14).unwrap(), u16::try_from(frame.len() - 34).unwrap());
    frame[16..18].copy_from_slice(&ip.to_be_bytes());
    frame[38..40].copy_from_slice(&udp.to_be_bytes());
    let (status, text, _) = report(&packets, None);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("1350 (1)"), "{text}");
}

#[test]
fn a_link_that_stops_is_found() {
    let mut packets = link(Law::Jittered, ENDS, 60, 60, 7, |_| true);
    packets.retain(|(at, _)| !(30..40).contains(&(at / crate::wire::SECOND - crate::wire::START)));
    let (status, text, report) = report(&packets, None);
    assert_eq!(status, Some(1), "{text}");
    assert!(says(&report, 13).contains(&"found"), "{text}");
    assert!(report["directions"][0]["lost"].as_u64().unwrap() > 550, "{text}");
}

/// tcpdump reads what the tests write, and `relay audit` what tcpdump writes.
#[test]
fn tcpdump_agrees_about_the_format() {
    let directory = tempfile::tempdir().unwrap();
    let packets = link(Law::Jittered, ENDS, 60, 60, 8, |_| true);
    std::fs::write(directory.path().join("a.pcapng"), pcapng(Bytes { big: false }, 9, 0, 1, &packets))
        .unwrap();
    // To its standard output: started by root, it gives its rights up before it opens a file to write.
    let arguments = ["-r", "a.pcapng", "-w", "-", "--time-stamp-precision=nano"];
    let Ok(copied) = Command::new("tcpdump").args(arguments).current_dir(directory.path()).output() else {
        assert!(std::env::var_os("EVENWIRE_REQUIRE_PRIVILEGED").is_none(), "tcpdump is not installed");
        println!("skipped: tcpdump_agrees_about_the_format: tcpdump is not installed");
        return;
    };
    assert!(copied.status.success(), "{copied:?}");
    std::fs::write(directory.path().join("b.pcap"), &copied.stdout).unwrap();
    let [ours, theirs] = ["a.pcapng", "b.pcap"].map(|file| audit(directory.path(), &[file]));
    assert!(matches!(ours.status.code(), Some(0 | 1)), "{ours:?}");
    assert_eq!(ours.status.code(), theirs.status.code());
    assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&theirs.stdout));
}
