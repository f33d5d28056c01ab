//! The frames.

use relay_common::abi::{Counter, SessionEntry};
use relay_common::classify::DropReason;
use relay_common::wire::{CELL_LEN, DatagramType};

/// Our UDP port.
pub(super) const PORT: u16 = 7443;
const PEER_PORT: u16 = 4000;
const INDEX: u32 = 0xabcd_1234;
const SOURCE: [u8; 4] = [192, 0, 2, 10];
const OURS: [u8; 4] = [192, 0, 2, 1];
/// Bytes of a datagram that no type has.
const WRONG_LEN: usize = 100;
/// A byte that names no type.
const UNKNOWN_TYPE: u8 = 9;
/// DNS, as an example of what is none of ours.
const FOREIGN_PORT: u16 = 53;

/// What a frame is to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A cell of a session we have, from its peer.
    Cell,
    /// A cell whose receiver index no session has.
    UnknownIndex,
    /// For our port, of a length that no datagram has.
    WrongLength,
    /// For our port, of a cell's length, of no known type.
    UnknownType,
    /// The first handshake message.
    Handshake,
    /// A datagram for another port.
    Foreign,
}

impl Kind {
    /// Every kind.
    pub(super) const ALL: [Self; 6] = [
        Self::Cell,
        Self::UnknownIndex,
        Self::WrongLength,
        Self::UnknownType,
        Self::Handshake,
        Self::Foreign,
    ];

    /// The row in the report.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cell => "accepted cell",
            Self::UnknownIndex => "unknown index",
            Self::WrongLength => "junk of a wrong length",
            Self::UnknownType => "junk of an unknown type",
            Self::Handshake => "handshake",
            Self::Foreign => "foreign traffic",
        }
    }

    /// What the program counts it as.
    pub(super) const fn counter(self) -> Counter {
        match self {
            Self::Cell => Counter::Redirected,
            Self::UnknownIndex => Counter::Dropped(DropReason::NoSession),
            Self::WrongLength => Counter::Dropped(DropReason::PayloadLength),
            Self::UnknownType => Counter::Dropped(DropReason::UnknownType),
            Self::Handshake => Counter::Handshake,
            Self::Foreign => Counter::Passed,
        }
    }

    /// A whole frame, from its Ethernet header on.
    pub(super) fn frame(self) -> Vec<u8> {
        let cell = DatagramType::Cell as u8;
        match self {
            Self::Cell => frame(PORT, cell, INDEX, CELL_LEN),
            Self::UnknownIndex => frame(PORT, cell, !INDEX, CELL_LEN),
            Self::WrongLength => frame(PORT, cell, INDEX, WRONG_LEN),
            Self::UnknownType => frame(PORT, UNKNOWN_TYPE, INDEX, CELL_LEN),
            Self::Handshake => frame(PORT, DatagramType::HsInit as u8, 0, CELL_LEN),
            Self::Foreign => frame(FOREIGN_PORT, 0, 0, WRONG_LEN),
        }
    }
}

/// The session of [`Kind::Cell`].
pub(super) fn session() -> SessionEntry {
    let source = std::net::Ipv4Addr::from(SOURCE).to_ipv6_mapped().octets();
    SessionEntry::new(INDEX, source, PEER_PORT, 0)
}

fn frame(port: u16, kind: u8, index: u32, len: usize) -> Vec<u8> {
    let udp_len = u16::try_from(8 + len).expect("below 1500");
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0]);
    frame.extend((20 + udp_len).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(SOURCE);
    frame.extend(OURS);
    frame.extend([PEER_PORT, port, udp_len, 0].into_iter().flat_map(u16::to_be_bytes));
    frame.extend([kind, 0, 0, 0]);
    frame.extend(index.to_be_bytes());
    frame.resize(42 + len, 0);
    frame
}

#[cfg(test)]
mod tests {
    use relay_common::classify::{Verdict, classify};
    use relay_common::cursor::SliceCursor;

    use super::*;

    #[test]
    fn each_kind_is_what_the_classifier_takes_it_for() {
        for kind in Kind::ALL {
            let verdict = classify(SliceCursor::new(&kind.frame()), PORT.into(), |_, _| Some(session()));
            let counter = match verdict {
                Verdict::Pass => Counter::Passed,
                Verdict::Handshake(_) => Counter::Handshake,
                Verdict::Redirect { .. } => Counter::Redirected,
                Verdict::Drop(reason) => Counter::Dropped(reason),
            };
            assert_eq!(counter, kind.counter(), "{kind:?}");
        }
    }
}
