//! What a bad network does to the client's link. The kernels of many machines have no netem, so losses are rules of the
//! bridge and delay is a queue in front of a narrow place: more cannot be had without it.

use anyhow::Result;
use relay_tests::nodes::CLIENT_RATE;
use relay_tests::{Host, Lab};

use super::tool::{call, call_with};

/// Bytes of a cell's frame on the wire.
const FRAME: u32 = 1360 + 42;

/// A fault of the client's link for as long as a scenario lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 3 % of all frames get lost, both ways.
    Loss,
    /// Towards the client there is room for four fifths of the class's cells: the others wait up to 25 ms, and then are
    /// lost.
    Throttle,
}

impl Fault {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Loss, Self::Throttle];

    /// Its name in tables and JSON.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Throttle => "throttled",
        }
    }
}

/// Brings the fault about.
///
/// # Errors
/// Where the kernel lacks what it takes.
pub(super) fn apply(lab: &Lab, fault: Fault) -> Result<()> {
    let wire = lab.netns(Host::Wire);
    match fault {
        Fault::Loss => call_with(
            wire,
            "nft -f -",
            "table bridge evenwire_loss {\n chain forward {\n  type filter hook forward priority 0; policy accept;\n  \
             iifname \"w-client\" numgen random mod 100 < 3 counter drop\n  \
             oifname \"w-client\" numgen random mod 100 < 3 counter drop\n }\n}\n",
        ),
        Fault::Throttle => {
            let bits = u64::from(CLIENT_RATE) * u64::from(FRAME) * 8 * 4 / 5;
            call(
                wire,
                &format!("tc qdisc replace dev w-client root tbf rate {bits}bit burst 6000 latency 25ms"),
            )
        }
    }
}

/// Undoes it.
///
/// # Errors
/// Where it was not there.
pub(super) fn lift(lab: &Lab, fault: Fault) -> Result<()> {
    let wire = lab.netns(Host::Wire);
    match fault {
        Fault::Loss => call(wire, "nft delete table bridge evenwire_loss"),
        Fault::Throttle => call(wire, "tc qdisc replace dev w-client root pfifo limit 1000"),
    }
}
