//! Attack 11 on virtual time: cells between client and entry are delayed or dropped by a secret code.

use crate::net::{CLIENT, EXIT, Egress, MS, Net};
use crate::scenario::Traffic;
use relay_user::engine::schedule::Law;
use relay_user::observe::attacks::watermark::{Mark, Watermark};

const BITS: usize = 6;
const SECOND: u64 = 1000 * MS;

fn marked(law: Law, cover: bool, mark: Option<Mark>) -> (Egress, Net, u64) {
    let mut net = Net::with_circuit(41, law, cover);
    let from = net.now;
    net.egress.clear();
    net.watch = true;
    net.mark = mark.map(|mark| Watermark::new(mark, 7, from, BITS));
    Traffic::Bulk.run(&mut net, BITS as u64 * SECOND);
    (std::mem::take(&mut net.egress), net, from)
}

/// Cells that ended at the exit in the two halves of each second since `from`, a wire's latency later.
fn halves_at_exit(net: &Net, from: u64) -> Vec<[u64; 2]> {
    let ended = |until: u64| {
        let log = &net.knows[&EXIT];
        let place = log.partition_point(|known| known.at < until);
        place.checked_sub(1).map_or(0, |last| log[last].ended)
    };
    let half = |number: u64| {
        let begin = from + 30 * MS + number * SECOND / 2;
        ended(begin + SECOND / 2) - ended(begin)
    };
    (0..BITS as u64).map(|bit| [half(2 * bit), half(2 * bit + 1)]).collect()
}

#[test]
fn no_wire_behind_the_entry_shows_a_mark() {
    for law in [Law::Constant, Law::Jittered] {
        for cover in [true, false] {
            let (plain, ..) = marked(law, cover, None);
            assert!(plain.keys().any(|&(node, _)| node != CLIENT && node != EXIT), "trunks are watched");
            for mark in [Mark::Delay(120 * MS), Mark::Drop(150 * MS)] {
                let (egress, ..) = marked(law, cover, Some(mark));
                assert!(egress == plain, "{law:?}, cover {cover}, {mark:?}: the observer can tell");
            }
        }
    }
}

/// What remains: who holds a relay of the circuit counts its cells, and reads a bit a second, sixty a minute.
#[test]
fn a_relay_at_the_end_reads_what_is_dropped() {
    let (_, net, from) = marked(Law::Jittered, true, Some(Mark::Drop(150 * MS)));
    let code = net.mark.as_ref().unwrap().code().to_vec();
    let read: Vec<bool> = halves_at_exit(&net, from).iter().map(|[first, second]| second < first).collect();
    assert_eq!(read, code);
    let (_, net, from) = marked(Law::Jittered, true, None);
    for [first, second] in halves_at_exit(&net, from) {
        assert!(first.abs_diff(second) < 30, "without a mark: {first} and {second}");
    }
}
