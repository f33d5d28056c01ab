//! What goes over a wire in these tests.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::write::{Link, Packet, udp};

pub(crate) const SECOND: u64 = 1_000_000_000;
/// When captures begin, in seconds since 1970.
pub(crate) const START: u64 = 1_790_000_000;

/// Host and port of both ends of a link.
pub(crate) type Ends = [(u8, u16); 2];
pub(crate) const ENDS: Ends = [(1, 40_112), (2, 7443)];
pub(crate) const OTHERS: Ends = [(3, 40_113), (2, 7443)];

/// The payload of a cell: a header that observers read, and bytes that look random.
pub(crate) fn cell(index: u32, counter: u64, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut cell = vec![0; 1360];
    rng.fill_bytes(&mut cell[16..]);
    cell[..4].copy_from_slice(&[1, 0, 0, 0]);
    cell[4..8].copy_from_slice(&index.to_be_bytes());
    cell[8..16].copy_from_slice(&counter.to_be_bytes());
    cell
}

/// A number in [0, 1).
pub(crate) fn unit(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "positive, and within a capture")]
fn nanos(value: f64) -> u64 {
    value as u64
}

/// How cells are laid.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Law {
    /// One in each period, anywhere in it, whatever is going on.
    Jittered,
    /// When there is something to send.
    Plain,
}

/// Both directions of a link over Ethernet: times of cells, in nanoseconds, where `busy` says when the user is.
pub(crate) fn link(
    law: Law,
    ends: Ends,
    seconds: u64,
    rate: u64,
    seed: u64,
    busy: impl Fn(u64) -> bool,
) -> Vec<Packet> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut packets = Vec::new();
    for ([from, to], index) in [ends, [ends[1], ends[0]]].into_iter().zip(70..) {
        let period = SECOND as f64 / rate as f64;
        let (mut at, mut counter) = (0.0, 0);
        loop {
            at = match law {
                Law::Jittered => (counter as f64 + unit(&mut rng)) * period,
                Law::Plain => {
                    let mean = if busy(nanos(at)) { period } else { period * 20.0 };
                    at - mean * (1.0 - unit(&mut rng)).max(1e-9).ln()
                }
            };
            if at >= (seconds * SECOND) as f64 {
                break;
            }
            let payload = cell(index, counter, &mut rng);
            packets.push((START * SECOND + nanos(at), Link::Ethernet.frame(&udp(from, to, false, &payload))));
            counter += 1;
        }
    }
    packets.sort();
    packets
}

/// `count` stretches of 6 s, each behind 6 s of idleness, as a log and as whether one is on after so many nanoseconds.
pub(crate) fn log(count: u64, labels: &[&str]) -> (String, impl Fn(u64) -> bool) {
    let line = |(mark, label): (u64, &&str)| {
        let from = START + mark * 12 + 6;
        format!("{from}.25 {}.25 {label}\n", from + 6)
    };
    let text = (0..count).zip(labels.iter().cycle()).map(line).collect();
    (text, |at| (at + 47 * SECOND / 4) % (12 * SECOND) >= 6 * SECOND)
}
