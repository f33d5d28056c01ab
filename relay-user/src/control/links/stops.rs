//! Who must not come back before a pause is over. No address is kept: of a source there is a keyed hash, in a row that all
//! sources of its network share, so that nobody pushes out others by coming from many ports.
//!
//! ```text
//! source -> its network (IPv4 /24, IPv6 /48) -> row -> | hash, until | hash, until | hash, until | hash, until |
//! ```

use crate::engine::time::Nanos;
use siphasher::sip::SipHasher24;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

/// Rows of the table.
const ROWS: usize = 1024;
/// Sources that a row remembers, each of 16 bytes.
const ROW: usize = 4;

/// A source that was stopped; free where its time is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stop {
    mark: u64,
    until: Nanos,
}

/// Peers and sources that were stopped.
#[derive(Debug)]
pub(super) struct Stops {
    key: [u8; 16],
    /// Index into the peers, and until when.
    peers: Vec<(usize, Nanos)>,
    rows: Box<[[Stop; ROW]]>,
    /// Places of the rows that are taken.
    taken: usize,
}

impl Stops {
    /// An empty table; `key` is random.
    pub(super) fn new(key: [u8; 16]) -> Self {
        Self { key, peers: Vec::new(), rows: vec![[Stop::default(); ROW]; ROWS].into(), taken: 0 }
    }

    /// Stops a peer.
    pub(super) fn stop_peer(&mut self, at: usize, until: Nanos) {
        self.peers.retain(|&(other, _)| other != at);
        self.peers.push((at, until));
    }

    /// Stops a source. Where its network's row is full, the one goes whose pause ends first.
    pub(super) fn stop_source(&mut self, source: SocketAddr, until: Nanos) {
        let (row, mark) = self.place(source);
        let row = &mut self.rows[row];
        let known = row.iter().position(|stop| stop.until.0 > 0 && stop.mark == mark);
        let first = (0..ROW).min_by_key(|&at| row[at].until).unwrap_or(0);
        let place = &mut row[known.unwrap_or(first)];
        self.taken += usize::from(place.until.0 == 0);
        *place = Stop { mark, until: until.max(Nanos(1)) };
    }

    pub(super) fn has_peer(&self, at: usize, now: Nanos) -> bool {
        self.peers.iter().any(|&(other, until)| other == at && now < until)
    }

    pub(super) fn has_source(&self, source: SocketAddr, now: Nanos) -> bool {
        let (row, mark) = self.place(source);
        self.rows[row].iter().any(|stop| stop.mark == mark && now < stop.until)
    }

    /// Forgets whose pause is over.
    pub(super) fn forget(&mut self, now: Nanos) {
        self.peers.retain(|&(_, until)| now < until);
        if self.taken == 0 {
            return;
        }
        for stop in self.rows.iter_mut().flatten().filter(|stop| stop.until.0 > 0 && now >= stop.until) {
            *stop = Stop::default();
            self.taken -= 1;
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.rows.iter().flatten().all(|stop| *stop == Stop::default())
    }

    /// A source's row, and what it is known by there.
    fn place(&self, source: SocketAddr) -> (usize, u64) {
        let mut network = SipHasher24::new_with_key(&self.key);
        let mut whole = network;
        match source.ip() {
            IpAddr::V4(v4) => {
                network.write(&v4.octets()[..3]);
                whole.write(&v4.octets());
            }
            IpAddr::V6(v6) => {
                network.write(&v6.octets()[..6]);
                whole.write(&v6.octets());
            }
        }
        whole.write(&source.port().to_be_bytes());
        let row = usize::try_from(network.finish() % ROWS as u64).unwrap_or(0);
        (row, whole.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTIL: Nanos = Nanos(60 * Nanos::SECOND.0);

    fn source(network: u16, host: u8, port: u16) -> SocketAddr {
        let [high, low] = network.to_be_bytes();
        SocketAddr::from(([10, high, low, host], port))
    }

    #[test]
    fn a_source_is_stopped_for_its_time_and_no_other() {
        let mut stops = Stops::new([7; 16]);
        let (one, other) = (source(1, 1, 7), source(1, 1, 8));
        stops.stop_source(one, UNTIL);
        stops.stop_peer(3, UNTIL);
        assert!(stops.has_source(one, Nanos(0)) && stops.has_peer(3, Nanos(0)));
        assert!(!stops.has_source(other, Nanos(0)) && !stops.has_peer(2, Nanos(0)));
        assert!(!stops.has_source(one, UNTIL) && !stops.has_peer(3, UNTIL));
        stops.forget(Nanos(UNTIL.0 - 1));
        assert!(stops.has_source(one, Nanos(0)));
        stops.forget(UNTIL);
        assert!(stops.is_empty() && stops.taken == 0, "nothing is kept beyond the pause");
    }

    #[test]
    fn a_network_with_many_addresses_pushes_out_itself_alone() {
        let mut stops = Stops::new([7; 16]);
        let (row, _) = stops.place(source(0, 1, 1));
        let others: Vec<SocketAddr> = (1..200).map(|network| source(network, 9, 9)).collect();
        let beside = others.iter().filter(|&&other| stops.place(other).0 != row);
        let beside: Vec<SocketAddr> = beside.copied().collect();
        beside.iter().for_each(|&other| stops.stop_source(other, UNTIL));
        let kept = |stops: &Stops| beside.iter().filter(|&&other| stops.has_source(other, Nanos(0))).count();
        let before = kept(&stops);
        assert!(before > 190, "of 199, few share a row with four others: {before}");
        for port in 1..5000 {
            stops.stop_source(
                source(0, u8::try_from(port % 250).unwrap(), port),
                Nanos(UNTIL.0 + u64::from(port)),
            );
        }
        assert_eq!(kept(&stops), before);
        assert!(stops.has_source(source(0, 249, 4999), Nanos(0)), "and the latest of its own are known");
        assert!(stops.taken <= ROWS * ROW);
    }

    #[test]
    fn what_is_kept_of_a_source_tells_nothing_without_the_key() {
        let source = SocketAddr::from(([203, 0, 113, 77], 7443));
        let [one, other] = [7, 8].map(|key| {
            let mut stops = Stops::new([key; 16]);
            stops.stop_source(source, UNTIL);
            let kept = |(row, stops): (usize, &[Stop; ROW])| {
                (stops[0].until == UNTIL).then_some((row, stops[0].mark))
            };
            stops.rows.iter().enumerate().find_map(kept).unwrap()
        });
        assert!(one.0 != other.0 && one.1 != other.1, "row and mark depend on it: {one:?}, {other:?}");
    }
}
