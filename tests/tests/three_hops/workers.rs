//! Relays with two workers, on two queues, over trunks of two lanes.

use relay_tests::privilege::root_or_skip;
use relay_tests::{Host, Lab, Nodes};

use crate::support::{READY, Web, relay_program, wide_lab};

const WORKERS: u16 = 2;
const RELAYS: [Host; 3] = [Host::Entry, Host::Middle, Host::Exit];

#[test]
fn two_workers_share_lanes_and_queues_and_carry_a_download() {
    if !root_or_skip("two_workers_share_lanes_and_queues_and_carry_a_download") {
        return;
    }
    let lab: Lab = wide_lab(WORKERS.into());
    let web = Web::start(&lab);
    let mut nodes = Nodes::prepare_wide(&lab, relay_program(), WORKERS).expect("nodes");
    nodes.start_all(READY).expect("ready");
    for _ in 0..3 {
        assert!(web.fetch(&lab, "60"), "{}", nodes.log_tail(Host::Client));
    }
    for host in RELAYS {
        let status = nodes.status(host).expect("status");
        assert!(
            status.links.iter().all(|link| link.up && link.lanes == WORKERS),
            "{host:?}: {:?}",
            status.links
        );
        assert_eq!(status.queues.len(), usize::from(WORKERS), "{host:?}");
        for queue in &status.queues {
            assert_eq!(queue.xdp.as_deref(), Some("native"), "{host:?}");
        }
        // Two lanes to each neighbour give a worker cells of its own, wherever the client's link went.
        assert!(status.cells_sent > 0 && status.cells_received > 0, "{host:?}");
        assert_eq!(status.kernel_path, 0, "{host:?}: cells of a lane's port went past XDP");
        for reason in ["handover_full", "xdp_no_socket", "xdp_no_session", "unknown_session", "wrong_source"]
        {
            assert_eq!(status.dropped(reason), 0, "{host:?}: {reason}");
        }
    }
    // The flow hash of a veth decides the queues: with eight flows into each relay, some come to the other worker's.
    let crossed: u64 = RELAYS.iter().map(|&host| nodes.status(host).expect("status").cells_handed_over).sum();
    println!("cells handed over between workers: {crossed}");
    for host in RELAYS.into_iter().chain([Host::Client]) {
        let ended = nodes.stop(host).expect("stop");
        assert!(ended.success(), "{host:?}: {ended}; {}", nodes.log_tail(host));
    }
}
