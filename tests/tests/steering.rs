//! Attaching the XDP program for real, in a network namespace of the test's own. Needs root.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use relay_common::{
    abi::{Counter, SOCKET_SLOTS, SessionEntry},
    wire::{CELL_LEN, DatagramType},
};
use relay_user::steering::{AttachMode, Steering, SteeringError, XdpMode};
use rtnetlink::LinkVeth;
use rustix::net::{AddressFamily, SocketType};

const PORT: u16 = 7443;
const NEAR: &str = "ewt-near";
const FAR: &str = "ewt-far";

/// Runs `test` with a veth pair in a namespace that ends with its thread.
fn in_namespace(name: &str, test: fn()) {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("EVENWIRE_REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"),
            "{name} needs root"
        );
        println!("skipped: {name}: not root");
        return;
    }
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
            tokio::spawn(connection);
            handle.link().add(LinkVeth::new(NEAR, FAR).up().build()).execute().await.expect("veth pair");
        });
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn attach(interface: &str, mode: AttachMode) -> Result<Steering, SteeringError> {
    Steering::attach(interface, mode, PORT)
}

#[test]
fn the_mode_is_the_wanted_one_or_what_the_driver_has() {
    in_namespace("the_mode_is_the_wanted_one_or_what_the_driver_has", || {
        for (interface, wanted, expected) in [
            (NEAR, AttachMode::Auto, XdpMode::Native),
            (NEAR, AttachMode::Native, XdpMode::Native),
            (NEAR, AttachMode::Generic, XdpMode::Generic),
            ("lo", AttachMode::Auto, XdpMode::Generic),
        ] {
            let steering = attach(interface, wanted).expect("attaches");
            assert_eq!(steering.mode(), expected);
            steering.detach();
        }
        let error = attach("lo", AttachMode::Native).err().expect("the loopback has no native XDP");
        assert!(matches!(error, SteeringError::Attach { mode: XdpMode::Native, .. }), "{error}");
        let error = attach("ewt-none", AttachMode::Auto).err().expect("no such interface");
        assert!(error.to_string().contains("ewt-none"), "{error}");
    });
}

#[test]
fn somebody_elses_program_stays() {
    in_namespace("somebody_elses_program_stays", || {
        let first = attach(NEAR, AttachMode::Native).expect("attaches");
        for mode in [AttachMode::Auto, AttachMode::Native, AttachMode::Generic] {
            let error = attach(NEAR, mode).err().expect("taken");
            assert!(matches!(error, SteeringError::AlreadyAttached { .. }), "{error}");
            assert!(error.to_string().contains(NEAR), "{error}");
        }
        assert!(first.counters().is_ok());
        drop(first);
        attach(NEAR, AttachMode::Generic).expect("free again");
    });
}

#[test]
fn only_af_xdp_sockets_can_be_bound() {
    in_namespace("only_af_xdp_sockets_can_be_bound", || {
        let mut steering = attach(NEAR, AttachMode::Auto).expect("attaches");
        let socket = rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None).expect("AF_XDP socket");
        rustix::net::sockopt::set_xdp_rx_ring_size(&socket, 64).expect("receive ring");
        steering.bind_socket(0, &socket).expect("bound");
        let error = steering.bind_socket(SOCKET_SLOTS, &socket).expect_err("beyond the map");
        assert!(matches!(error, SteeringError::Queue { queue: SOCKET_SLOTS }), "{error}");
        let other = UdpSocket::bind(("::", 0)).expect("UDP socket");
        assert!(steering.bind_socket(1, &other).is_err(), "not an AF_XDP socket");
    });
}

/// What the program counted of one datagram that `sender` sends to it over the loopback.
fn counted(steering: &Steering, sender: &UdpSocket, payload: &[u8]) -> Vec<&'static str> {
    let before = steering.counters().expect("counters");
    sender.send_to(payload, ("127.0.0.1", PORT)).expect("sent");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let after = steering.counters().expect("counters");
        let changed: Vec<_> = Counter::all()
            .filter(|counter| after.get(*counter) != before.get(*counter))
            .map(Counter::name)
            .collect();
        // A loaded processor leaves the loopback's backlog to ksoftirqd, which comes after the send has returned.
        if !changed.is_empty() || Instant::now() > deadline {
            return changed;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn sessions_let_cells_through_until_they_are_cleared() {
    in_namespace("sessions_let_cells_through_until_they_are_cleared", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
            tokio::spawn(connection);
            let up = rtnetlink::LinkUnspec::new_with_name("lo").up().build();
            handle.link().change(up).execute().await.expect("loopback up");
        });
        let mut steering =
            Steering::attach_with_log("lo", AttachMode::Auto, PORT.into(), true).expect("attaches");
        let sender = UdpSocket::bind(("127.0.0.1", 0)).expect("UDP socket");
        let index = 0x0001_0005_u32;
        let mut cell = [0; CELL_LEN];
        cell[0] = DatagramType::Cell as u8;
        cell[4..8].copy_from_slice(&index.to_be_bytes());

        assert_eq!(counted(&steering, &sender, &cell[..100]), ["payload_length"]);
        assert_eq!(counted(&steering, &sender, &cell), ["no_session"]);
        let source = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        let port = sender.local_addr().expect("bound").port();
        steering.set_session(&SessionEntry::new(index, source, port.wrapping_add(1), 0)).expect("set");
        assert_eq!(counted(&steering, &sender, &cell), ["unexpected_source"]);
        steering.set_session(&SessionEntry::new(index, source, port, 0)).expect("set");
        assert_eq!(counted(&steering, &sender, &cell), ["no_socket"]);
        let socket = rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None).expect("AF_XDP socket");
        rustix::net::sockopt::set_xdp_rx_ring_size(&socket, 64).expect("receive ring");
        steering.bind_socket(0, &socket).expect("bound");
        assert_eq!(counted(&steering, &sender, &cell), ["redirected"]);
        steering.clear_session(index ^ 0x0100_0000).expect("a session that has lost its slot is no concern");
        assert_eq!(counted(&steering, &sender, &cell), ["redirected"]);
        steering.clear_session(index).expect("cleared");
        assert_eq!(counted(&steering, &sender, &cell), ["no_session"]);
        drop(socket);
        steering.flush_log();
    });
}
