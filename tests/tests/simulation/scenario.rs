//! What users do while the observer watches.

use crate::edge::packet;
use crate::net::{CIRCUIT, CLIENT, EXIT, MS, Net};
use relay_user::engine::time::Nanos;

/// A user's behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Nothing at all.
    Idle,
    /// Short bursts with long pauses.
    Chat,
    /// A steady flow at about two thirds of the class's rate.
    Bulk,
    /// Three times what the class carries.
    Overload,
}

/// Which packets went in at which end.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) up: Vec<u64>,
    pub(crate) down: Vec<u64>,
}

impl Traffic {
    /// Packets and their size that begin in millisecond `at`.
    pub(crate) fn packets(self, at: u64) -> (u64, usize) {
        match self {
            Self::Idle => (0, 0),
            Self::Chat if at % 90 < 3 => (2, 20 + usize::try_from(at * 37 % 500).unwrap()),
            Self::Chat => (0, 0),
            Self::Bulk => (1, 1200),
            Self::Overload => (4, 1400),
        }
    }

    /// Runs for `duration` nanoseconds with this traffic in both directions, and half a second more to let it arrive.
    pub(crate) fn run(self, net: &mut Net, duration: u64) -> Sent {
        let mut sent = Sent::default();
        for at in 0..duration / MS {
            let (count, len) = self.packets(at);
            for _ in 0..count {
                let id = 1 + 2 * sent.up.len() as u64;
                sent.up.push(id);
                sent.down.push(id + 1);
                send_both(net, id, len);
            }
            net.run(MS);
        }
        net.run(500 * MS);
        sent
    }
}

/// Sends packet `id` from the client and `id + 1` from the exit.
pub(crate) fn send_both(net: &mut Net, id: u64, len: usize) {
    let now = Nanos(net.now);
    net.nodes[CLIENT].send_packet(CIRCUIT, &packet(id, len), now);
    let ends = net.nodes[EXIT].edge.open_circuits();
    net.nodes[EXIT].send_packet(ends[0], &packet(id + 1, len), now);
}
