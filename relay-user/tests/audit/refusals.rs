//! Captures and logs of which nothing can be said: each is told why, with status 2 and without a verdict.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use crate::findings::audit;
use crate::wire::{ENDS, Law, SECOND, START, cell, link};
use crate::write::{Bytes, Link, pcap, pcapng, udp};

const ORDER: Bytes = Bytes { big: false };

/// Runs on `file` and `marks`, and holds what is said against every one of `expected`.
fn refused(file: &[u8], marks: Option<&str>, expected: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("wire.pcap"), file).unwrap();
    let mut arguments = vec!["wire.pcap"];
    if let Some(marks) = marks {
        std::fs::write(directory.path().join("marks"), marks).unwrap();
        arguments.extend(["--marks", "marks"]);
    }
    let output = audit(directory.path(), &arguments);
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*out), (Some(2), ""), "{said}");
    for part in expected {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    assert!(!said.contains("192.0.2") && !said.contains("fine"), "{said}");
}

#[test]
fn files_that_are_no_captures() {
    refused(b"", None, &["wire.pcap is empty", "tcpdump"]);
    refused(b"no", None, &["neither pcap nor pcapng"]);
    refused(b"\x1f\x8b\x08\x00 gzip", None, &["neither pcap nor pcapng", "uncompressed"]);
    let output = audit(std::path::Path::new("/"), &["/nonexistent/wire.pcap"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cannot open /nonexistent/wire.pcap"),
        "{output:?}"
    );
    let output = audit(std::path::Path::new("/"), &["/"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read /"), "{output:?}");
}

#[test]
fn captures_that_are_not_whole() {
    let packets = link(Law::Jittered, ENDS, 60, 50, 1, |_| true);
    let whole = pcap(ORDER, true, 1, &packets);
    let cut = &whole[..whole.len() - 100];
    refused(
        cut,
        None,
        &[&format!("breaks off at byte {}", cut.len()), &format!("after {} whole", packets.len() - 1)],
    );
    let whole = pcapng(ORDER, 9, 0, 1, &packets[..10]);
    refused(&whole[..whole.len() - 2], None, &["breaks off", "after 10 whole packets"]);
    let mut damaged = pcapng(ORDER, 9, 0, 1, &packets[..10]);
    let length = damaged.len();
    damaged[length - 4] ^= 1;
    refused(&damaged, None, &["is damaged", "two lengths differ"]);
}

#[test]
fn captures_without_an_evenwire_link() {
    refused(
        &pcap(ORDER, true, 1, &[]),
        None,
        &["holds no Evenwire link", "capture where the link's packets pass"],
    );
    let other = Link::Ethernet.frame(&udp(ENDS[0], ENDS[1], false, &[0x45; 1360]));
    refused(&pcap(ORDER, true, 1, &[(SECOND, other)]), None, &["none of its 1 UDP datagrams is a cell"]);
    let packets = link(Law::Jittered, ENDS, 60, 50, 1, |_| true);
    refused(&pcap(ORDER, true, 105, &packets), None, &["link type 105", "capture on an Ethernet"]);
    let headers = packets.iter().map(|(at, frame)| (*at, frame[..50].to_vec())).collect::<Vec<_>>();
    refused(&pcap(ORDER, true, 1, &headers), None, &["6000 datagrams of a cell's length", "tcpdump -s 0"]);
    let mut init = vec![7; 1360];
    init[..4].copy_from_slice(&[2, 1, 0, 0]);
    let init = Link::Ethernet.frame(&udp(ENDS[0], ENDS[1], false, &init));
    refused(&pcap(ORDER, true, 1, &[(SECOND, init)]), None, &["handshakes (1 datagrams) but no cell"]);
}

#[test]
fn captures_with_too_few_cells() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let packets: Vec<_> = (0..1999)
        .map(|counter| {
            let cell = cell(1, counter, &mut rng);
            (START * SECOND + counter * 1_000_000, Link::Ethernet.frame(&udp(ENDS[0], ENDS[1], false, &cell)))
        })
        .collect();
    refused(
        &pcap(ORDER, true, 1, &packets),
        None,
        &["holds 1999 cells", "too few for any power", "2000 are the fewest"],
    );
}

#[test]
fn logs_that_say_nothing_of_the_capture() {
    let file = pcap(ORDER, true, 1, &link(Law::Jittered, ENDS, 60, 50, 1, |_| true));
    refused(&file, Some("1 2 web\n"), &["none of the 1 marks lies within the capture", &START.to_string()]);
    refused(&file, Some("yesterday 2 web\n"), &["marks, line 1", "date +%s"]);
    refused(&file, Some("# nothing\n"), &["names no activity"]);
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("wire.pcap"), &file).unwrap();
    let output = audit(directory.path(), &["wire.pcap", "--marks", "none"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let output = audit(directory.path(), &["wire.pcap", "--png", "/nonexistent/wire.png"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cannot write /nonexistent/wire.png"),
        "{output:?}"
    );
}
