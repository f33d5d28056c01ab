//! The committed XDP object in the kernel (BPF_PROG_TEST_RUN) against the classifier in userspace: the same frames,
//! the same action, the same counter. Needs root.
//!
//! The kernel refuses frames shorter than an Ethernet header here; the classifier's own tests cover those.

use std::os::fd::{AsRawFd, OwnedFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray, XskMap},
    programs::{TestRun, TestRunOptions, Xdp},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use relay_common::{
    abi::{
        Counter, GLOBAL_LOG, GLOBAL_PORT, GLOBAL_PORTS, MAP_COUNTERS, MAP_SESSIONS, MAP_SOCKETS, MAP_TAGS,
        PROGRAM, SESSION_ENTRY_LEN, SESSION_SLOTS, SOCKET_SLOTS, SessionEntry, TAGS_PER_ROW, session_slot,
        session_tag, tag_place, tag_row,
    },
    classify::{DropReason, Verdict, classify},
    cursor::SliceCursor,
    wire::{CELL_LEN, RETRY_LEN},
};
use relay_user::steering::OBJECT;
use rustix::net::{AddressFamily, SocketType};

const PORT: u16 = 7443;
const PEER_PORT: u16 = 4000;
const INDEX: u32 = 0xabcd_1234;
const V4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 10];
const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ETHERNET_LEN: usize = 14;

/// linux/bpf.h, enum xdp_action.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// The program in the kernel, and beside it what its maps hold.
struct Kernel {
    ebpf: Ebpf,
    sessions: Vec<SessionEntry>,
    socket: Option<OwnedFd>,
}

/// Action and counted frames of one run.
type Outcome = (u32, Vec<Counter>);

impl Kernel {
    fn load(log: bool) -> Self {
        let mut ebpf = EbpfLoader::new()
            .override_global(GLOBAL_PORT, &PORT, true)
            .override_global(GLOBAL_PORTS, &1u16, true)
            .override_global(GLOBAL_LOG, &u8::from(log), true)
            .load(OBJECT)
            .expect("the object loads");
        let program: &mut Xdp = ebpf.program_mut(PROGRAM).expect("program").try_into().expect("XDP");
        program.load().expect("the verifier accepts the program");
        Self { ebpf, sessions: Vec::new(), socket: None }
    }

    fn add_session(&mut self, entry: SessionEntry) {
        let map = self.ebpf.map_mut(MAP_SESSIONS).expect("map");
        let mut map: Array<_, [u8; SESSION_ENTRY_LEN]> = map.try_into().expect("array");
        map.set(session_slot(entry.receiver_index), entry.to_bytes(), 0).expect("session");
        let slot = session_slot(entry.receiver_index);
        let map = self.ebpf.map_mut(MAP_TAGS).expect("map");
        let mut map: Array<_, [u8; TAGS_PER_ROW]> = map.try_into().expect("array");
        let mut tags = map.get(&tag_row(slot), 0).expect("row");
        tags[tag_place(slot)] = session_tag(entry.receiver_index);
        map.set(tag_row(slot), tags, 0).expect("tag");
        self.sessions.push(entry);
    }

    fn bind_socket(&mut self) {
        let socket = rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None).expect("AF_XDP socket");
        rustix::net::sockopt::set_xdp_rx_ring_size(&socket, 64).expect("receive ring");
        let mut map: XskMap<_> = self.ebpf.map_mut(MAP_SOCKETS).expect("map").try_into().expect("socket map");
        map.set(0, socket.as_raw_fd(), 0).expect("a socket with a ring is accepted");
        self.socket = Some(socket);
    }

    fn counters(&self) -> Vec<u64> {
        let map: PerCpuArray<_, u64> =
            self.ebpf.map(MAP_COUNTERS).expect("map").try_into().expect("per-CPU array");
        Counter::all().map(|c| map.get(&c.index(), 0).expect("counter").iter().sum()).collect()
    }

    fn run(&self, frame: &[u8]) -> Outcome {
        let before = self.counters();
        let program: &Xdp = self.ebpf.program(PROGRAM).expect("program").try_into().expect("XDP");
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        let result = program.test_run(options).expect("test run");
        let counted = Counter::all().zip(before.into_iter().zip(self.counters()));
        let counted = counted.flat_map(|(counter, (old, new))| {
            std::iter::repeat_n(counter, usize::try_from(new - old).expect("few"))
        });
        (result.return_value, counted.collect())
    }

    fn predict(&self, frame: &[u8]) -> Outcome {
        let session = |slot, _| {
            let mut entries = self.sessions.iter();
            Some(
                entries.find(|entry| session_slot(entry.receiver_index) == slot).copied().unwrap_or_default(),
            )
        };
        match classify(SliceCursor::new(frame), PORT.into(), session) {
            Verdict::Pass => (XDP_PASS, vec![Counter::Passed]),
            Verdict::Handshake(_) => (XDP_PASS, vec![Counter::Handshake]),
            Verdict::Drop(reason) => (XDP_DROP, vec![Counter::Dropped(reason)]),
            Verdict::Redirect { .. } if self.socket.is_none() => {
                (XDP_DROP, vec![Counter::Dropped(DropReason::NoSocket)])
            }
            Verdict::Redirect { queue: 0, .. } => (XDP_REDIRECT, vec![Counter::Redirected]),
            Verdict::Redirect { .. } => (XDP_REDIRECT, vec![Counter::Redirected, Counter::OtherQueue]),
        }
    }
}

fn privileged(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(
            std::env::var_os("EVENWIRE_REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"),
            "{name} needs root"
        );
        println!("skipped: {name}: not root");
    }
    root
}

fn payload(kind: u8, index: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[0] = kind;
    bytes[4..8].copy_from_slice(&index.to_be_bytes());
    bytes
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len() + 8).expect("short");
    let header = [PEER_PORT, port, len, 0].into_iter().flat_map(u16::to_be_bytes);
    header.chain(payload.iter().copied()).collect()
}

fn ethernet(tags: usize, ethertype: u16, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![2; 12];
    (0..tags).for_each(|_| out.extend([0x81, 0, 0, 9]));
    out.extend(ethertype.to_be_bytes());
    out.extend(rest);
    out
}

fn ipv4(tags: usize, options: usize, fragment: u16, datagram: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 20 + options];
    out[0] = 0x45 + u8::try_from(options / 4).expect("short");
    out[2..4].copy_from_slice(&u16::try_from(20 + options + datagram.len()).expect("short").to_be_bytes());
    out[6..8].copy_from_slice(&fragment.to_be_bytes());
    out[9] = 17;
    out[12..16].copy_from_slice(&V4[12..]);
    out.extend(datagram);
    ethernet(tags, 0x0800, &out)
}

fn ipv6(tags: usize, chain: &[u8], datagram: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 40];
    out[0] = 0x60;
    out[4..6].copy_from_slice(&u16::try_from(chain.len() * 8 + datagram.len()).expect("short").to_be_bytes());
    out[6] = chain.first().copied().unwrap_or(17);
    out[8..24].copy_from_slice(&V6);
    for at in 0..chain.len() {
        out.extend([chain.get(at + 1).copied().unwrap_or(17), 0, 0, 0, 0, 0, 0, 0]);
    }
    out.extend(datagram);
    ethernet(tags, 0x86dd, &out)
}

/// A frame for every verdict and every reason, with what it must come to once a socket is bound.
fn corpus() -> Vec<(Counter, Vec<u8>)> {
    let cell = udp(PORT, &payload(1, INDEX, CELL_LEN));
    let cell6 = udp(PORT, &payload(1, INDEX + 1, CELL_LEN));
    let drop = Counter::Dropped;
    let mut odd_length = ipv4(0, 0, 0, &cell);
    odd_length[17] ^= 1;
    let mut reserved = payload(1, INDEX, CELL_LEN);
    reserved[3] = 1;
    let mut elsewhere = ipv4(0, 0, 0, &cell);
    elsewhere[29] ^= 1;
    let truncated = ipv4(0, 0, 0, &cell)[..600].to_vec();
    vec![
        (Counter::Redirected, ipv4(0, 0, 0x4000, &cell)),
        (Counter::Redirected, ipv6(1, &[], &cell6)),
        (Counter::Redirected, ipv4(2, 0, 0, &cell)),
        (Counter::Passed, ethernet(0, 0x0806, &[0; 46])),
        (Counter::Passed, ipv4(0, 0, 0, &udp(53, &[0; 40]))),
        (Counter::Passed, ipv4(0, 0, 0x2001, &cell)),
        (Counter::Passed, ipv4(3, 0, 0, &cell)),
        (Counter::Passed, ipv6(0, &[60; 6], &cell6)),
        (Counter::Handshake, ipv4(0, 0, 0, &udp(PORT, &payload(2, 0, CELL_LEN)))),
        (Counter::Handshake, ipv6(0, &[], &udp(PORT, &payload(3, 0, CELL_LEN)))),
        (Counter::Handshake, ipv4(1, 0, 0, &udp(PORT, &payload(4, 0, RETRY_LEN)))),
        (drop(DropReason::Truncated), truncated),
        (drop(DropReason::Fragment), ipv4(0, 0, 0x2000, &cell)),
        (drop(DropReason::Fragment), ipv6(0, &[0, 44], &cell6)),
        (drop(DropReason::Ipv4Options), ipv4(0, 40, 0, &cell)),
        (drop(DropReason::ExtensionHeader), ipv6(2, &[0, 60, 43, 60, 60], &cell6)),
        (drop(DropReason::LengthMismatch), odd_length),
        (drop(DropReason::PayloadLength), ipv4(0, 0, 0, &udp(PORT, &[1; 100]))),
        (drop(DropReason::UnknownType), ipv4(0, 0, 0, &udp(PORT, &payload(9, INDEX, CELL_LEN)))),
        (drop(DropReason::TypeLength), ipv4(0, 0, 0, &udp(PORT, &payload(1, INDEX, RETRY_LEN)))),
        (drop(DropReason::ReservedBits), ipv4(0, 0, 0, &udp(PORT, &reserved))),
        (
            drop(DropReason::NoSession),
            ipv4(0, 0, 0, &udp(PORT, &payload(1, INDEX ^ SESSION_SLOTS, CELL_LEN))),
        ),
        (drop(DropReason::NoSession), ipv4(0, 0, 0, &udp(PORT, &payload(1, 7, CELL_LEN)))),
        (drop(DropReason::UnexpectedSource), elsewhere),
    ]
}

fn kernel_with_sessions(log: bool) -> Kernel {
    let mut kernel = Kernel::load(log);
    kernel.add_session(SessionEntry::new(INDEX, V4, PEER_PORT, 0));
    kernel.add_session(SessionEntry::new(INDEX + 1, V6, PEER_PORT, SOCKET_SLOTS - 1));
    kernel
}

#[test]
fn every_verdict_and_reason() {
    if !privileged("every_verdict_and_reason") {
        return;
    }
    for log in [false, true] {
        let mut kernel = kernel_with_sessions(log);
        let mut seen: Vec<Counter> = Vec::new();
        for bound in [false, true] {
            if bound {
                kernel.bind_socket();
            }
            for (expected, frame) in corpus() {
                let (action, counters) = kernel.run(&frame);
                assert_eq!((action, counters.clone()), kernel.predict(&frame), "{expected:?}");
                if bound || expected != Counter::Redirected {
                    assert_eq!(counters[0], expected);
                }
                seen.extend(counters);
            }
        }
        for counter in Counter::all() {
            assert!(seen.contains(&counter), "no frame came to {counter:?}");
        }
    }
}

#[test]
fn changed_frames_meet_the_same_verdict_in_the_kernel_and_in_userspace() {
    if !privileged("changed_frames_meet_the_same_verdict_in_the_kernel_and_in_userspace") {
        return;
    }
    let mut kernel = kernel_with_sessions(false);
    kernel.bind_socket();
    let frames: Vec<Vec<u8>> = corpus().into_iter().map(|(_, frame)| frame).collect();
    let byte = prop_oneof![any::<u8>(), Just(0), Just(17), Just(44), Just(60), Just(0x81), Just(0x45)];
    let strategy = (
        prop::sample::select(frames),
        prop::collection::vec((0usize..110, byte), 0..5),
        prop_oneof![3 => Just(usize::MAX), 1 => ETHERNET_LEN..1500],
    );
    let config = Config { cases: 4096, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&strategy, |(mut frame, changes, cut)| {
            for (at, byte) in changes {
                if let Some(target) = frame.get_mut(at) {
                    *target = byte;
                }
            }
            frame.truncate(cut);
            prop_assert_eq!(kernel.run(&frame), kernel.predict(&frame));
            Ok(())
        })
        .expect("the two agree");
}

#[test]
fn every_cut_meets_the_same_verdict() {
    if !privileged("every_cut_meets_the_same_verdict") {
        return;
    }
    let mut kernel = kernel_with_sessions(false);
    kernel.bind_socket();
    for (_, frame) in corpus().iter().take(2) {
        for len in ETHERNET_LEN..=frame.len() {
            assert_eq!(kernel.run(&frame[..len]), kernel.predict(&frame[..len]), "cut to {len}");
        }
    }
}
