//! What a bad network does to a link. The kernels of many machines have no netem, so losses are rules of the bridge,
//! narrow places are queues of it, and long ways are a box in the cable.
//!
//! All of it lies behind the place where cells are recorded, which is where they leave their host: a fault takes nothing
//! from a recording, and what it changes there is what the nodes make of it.

use std::time::Duration;

use anyhow::Result;
use relay_tests::chance::{STEP, mixed};
use relay_tests::delay_box::{DelayBox, Fate, Passage, Way};
use relay_tests::lab::wire_port;
use relay_tests::nodes::{CLIENT_RATE, TRUNK_RATE};
use relay_tests::{Host, Lab};

use super::tool::{ask, call, call_with};

/// Bytes of a cell's frame on the wire.
const FRAME: u32 = 1360 + 42;
/// How long the way is, one way, and how much longer at most by chance: less than a slot and a half.
const WAY: Duration = Duration::from_millis(40);
const JITTER: u64 = 1_000_000;

/// A fault of a link for as long as a scenario lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 3 % of all frames of the client's link get lost, both ways.
    Loss,
    /// Towards the client there is room for five sixths of the class's cells: the others wait up to 25 ms, and then are
    /// lost. (A link that loses a fifth is stopped.)
    Throttle,
    /// The same from the client.
    ThrottleUp,
    /// The same of the trunk between entry and middle, towards the entry.
    ThrottleTrunk,
    /// The client's link is 40 ms long each way, and up to 1 ms more by chance; no cell overtakes another.
    Delay,
}

impl Fault {
    /// All of them.
    pub(super) const ALL: [Self; 5] =
        [Self::Loss, Self::Throttle, Self::ThrottleUp, Self::ThrottleTrunk, Self::Delay];
    /// Of these, a quick run takes so many where none is named.
    pub(super) const QUICK: usize = 2;

    /// Its name in tables and JSON.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Throttle => "throttled",
            Self::ThrottleUp => "throttled-up",
            Self::ThrottleTrunk => "throttled-trunk",
            Self::Delay => "delay",
        }
    }
}

/// A fault that is there. Dropping it does not undo it, except for a long way.
#[derive(Debug)]
pub(super) struct Applied<'a> {
    lab: &'a Lab,
    fault: Fault,
    delay_box: Option<DelayBox<'a>>,
}

/// Brings the fault about; `seed` decides what is left to chance and not to the kernel.
///
/// # Errors
/// Where the kernel lacks what it takes.
pub(super) fn apply(lab: &Lab, fault: Fault, seed: u64) -> Result<Applied<'_>> {
    let wire = lab.netns(Host::Wire);
    let mut delay_box = None;
    match fault {
        Fault::Loss => call_with(
            wire,
            "nft -f -",
            "table bridge evenwire_loss {\n chain forward {\n  type filter hook forward priority 0; policy accept;\n  \
             iifname \"w-client\" numgen random mod 100 < 3 counter drop\n  \
             oifname \"w-client\" numgen random mod 100 < 3 counter drop\n }\n}\n",
        )?,
        Fault::Throttle => {
            let bits = room(CLIENT_RATE);
            call(
                wire,
                &format!("tc qdisc replace dev w-client root tbf rate {bits}bit burst 6000 latency 25ms"),
            )?;
        }
        Fault::ThrottleUp => narrow(lab, Host::Client, CLIENT_RATE)?,
        Fault::ThrottleTrunk => narrow(lab, Host::Middle, TRUNK_RATE)?,
        Fault::Delay => {
            let way = move |at, way| Fate::After(WAY + Duration::from_nanos(drawn(seed, at, way) % JITTER));
            delay_box = Some(DelayBox::insert(lab, Host::Client, way)?);
        }
    }
    Ok(Applied { lab, fault, delay_box })
}

/// Bits per second of five sixths of a class's cells.
fn room(rate: u32) -> u64 {
    u64::from(rate) * u64::from(FRAME) * 8 * 5 / 6
}

/// Makes the entry's port narrow for what comes from `source`, and for nothing else.
fn narrow(lab: &Lab, source: Host, rate: u32) -> Result<()> {
    let (wire, port, bits) = (lab.netns(Host::Wire), wire_port(Host::Entry), room(rate));
    let waiting = bits / 8 / 40;
    let address = source.address().map_or_else(String::new, |address| address.to_string());
    for line in [
        // What belongs to no class is not held up.
        format!("qdisc replace dev {port} root handle 1: htb"),
        format!(
            "class add dev {port} parent 1: classid 1:1 htb rate {bits}bit burst 6000 cburst 6000 quantum 1500"
        ),
        format!("qdisc add dev {port} parent 1:1 handle 2: bfifo limit {waiting}"),
        format!("filter add dev {port} parent 1: protocol ip u32 match ip src {address}/32 flowid 1:1"),
    ] {
        call(wire, &format!("tc {line}"))?;
    }
    Ok(())
}

/// A number by chance for a frame.
fn drawn(seed: u64, at: u64, way: Way) -> u64 {
    mixed((seed ^ at).wrapping_add((way as u64 + 1).wrapping_mul(STEP)))
}

impl Applied<'_> {
    /// How many frames have felt it so far: lost, or come out of the box.
    ///
    /// # Errors
    /// Where nobody can say.
    pub(super) fn felt(&self) -> Result<u64> {
        let wire = self.lab.netns(Host::Wire);
        let dropped = |port: &str| {
            ask(wire, &format!("tc -s qdisc show dev {port}")).map(|text| sum_behind(&text, "dropped"))
        };
        match self.fault {
            Fault::Loss => {
                ask(wire, "nft list table bridge evenwire_loss").map(|text| sum_behind(&text, "packets"))
            }
            Fault::Throttle => dropped("w-client"),
            Fault::ThrottleUp | Fault::ThrottleTrunk => dropped(&wire_port(Host::Entry)),
            Fault::Delay => {
                let counts = self.delay_box.as_ref().map(DelayBox::counts).unwrap_or_default();
                Ok(counts.iter().map(|way| way.passed).min().unwrap_or(0))
            }
        }
    }

    /// Undoes it, and says how many frames got lost that should not have been.
    ///
    /// # Errors
    /// Where it was not there any more.
    pub(super) fn lift(self) -> Result<u64> {
        let wire = self.lab.netns(Host::Wire);
        let widen = |port: &str| call(wire, &format!("tc qdisc replace dev {port} root pfifo limit 1000"));
        match self.fault {
            Fault::Loss => call(wire, "nft delete table bridge evenwire_loss")?,
            Fault::Throttle => widen("w-client")?,
            Fault::ThrottleUp | Fault::ThrottleTrunk => widen(&wire_port(Host::Entry))?,
            Fault::Delay => {
                let counts = self.delay_box.map(DelayBox::remove).transpose()?.unwrap_or_default();
                return Ok(counts.into_iter().map(Passage::unwanted).sum());
            }
        }
        Ok(0)
    }
}

/// The sum of all numbers that follow this word.
fn sum_behind(text: &str, word: &str) -> u64 {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.windows(2).filter(|pair| pair[0] == word).filter_map(|pair| pair[1].parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::path::PathBuf;

    use relay_tests::privilege::root_or_skip;

    use super::*;

    #[test]
    fn what_tools_print_is_read() {
        let tc = "qdisc htb 1: root refcnt 2 r2q 10 default 0 direct_packets_stat 7\n Sent 9 bytes 3 pkt \
                  (dropped 41, overlimits 5 requeues 0)\n";
        assert_eq!(sum_behind(tc, "dropped"), 41);
        assert_eq!(
            sum_behind("counter packets 3 bytes 100 drop\n counter packets 4 bytes 9 drop", "packets"),
            7
        );
        assert_eq!(sum_behind("nothing dropped", "dropped"), 0);
    }

    #[test]
    fn chance_is_of_the_seed_and_spreads() {
        let of =
            |seed, way| (0..1000_u64).map(|at| drawn(seed, at * 667_000, way) % JITTER).collect::<Vec<_>>();
        assert_eq!(of(1, Way::Out), of(1, Way::Out));
        assert_ne!(of(1, Way::Out), of(2, Way::Out));
        assert_ne!(of(1, Way::Out), of(1, Way::Home));
        let mean = of(1, Way::Out).iter().sum::<u64>() / 1000;
        assert!((450_000..550_000).contains(&mean), "{mean}");
    }

    /// Sends `count` datagrams as long as cells in one burst, and says how many arrived.
    fn arrive(lab: &Lab, from: Host, to: Host, count: usize) -> usize {
        let bound = [from, to].map(|host| {
            let address = host.address().expect("an address");
            lab.netns(host).run(|| Ok(UdpSocket::bind((address, 0))?)).expect("a socket")
        });
        let to = bound[1].local_addr().expect("an address");
        bound[1].set_read_timeout(Some(Duration::from_millis(500))).expect("a limit");
        // Until the first has come, neighbours may not know each other.
        let first = (0..20).any(|_| {
            bound[0].send_to(&[0], to).expect("send");
            bound[1].recv_from(&mut [0; 2048]).is_ok()
        });
        assert!(first, "nothing comes through at all");
        for _ in 0..count {
            bound[0].send_to(&[0; 1360], to).expect("send");
        }
        let received = || bound[1].recv_from(&mut [0; 2048]).ok();
        std::iter::from_fn(received).filter(|(length, _)| *length == 1360).take(count).count()
    }

    #[test]
    fn each_fault_is_felt_where_it_is_and_nowhere_else_and_is_undone() {
        if !root_or_skip("each_fault_is_felt_where_it_is_and_nowhere_else_and_is_undone") {
            return;
        }
        const BURST: usize = 70;
        let prefix = format!("ewt-{}-fault", std::process::id());
        let lab = Lab::build(&prefix, &PathBuf::from("/run").join(&prefix)).expect("lab");
        let ways = [(Host::Client, Host::Entry), (Host::Entry, Host::Client), (Host::Middle, Host::Entry)];
        let all = |lab: &Lab| ways.map(|(from, to)| arrive(lab, from, to, BURST));
        assert_eq!(all(&lab), [BURST; 3], "nothing is wrong yet");
        for (fault, struck) in [(Fault::ThrottleUp, 0), (Fault::Throttle, 1), (Fault::ThrottleTrunk, 2)] {
            let applied = apply(&lab, fault, 1).expect("applied");
            let arrived = all(&lab);
            for (way, arrived) in arrived.into_iter().enumerate() {
                assert_eq!(arrived < BURST, way == struck, "{fault:?}: {arrived} of {BURST} on way {way}");
            }
            assert!(applied.felt().expect("felt") >= (BURST - arrived[struck]) as u64, "{fault:?}");
            assert_eq!(applied.lift().expect("lifted"), 0);
            assert_eq!(all(&lab), [BURST; 3], "{fault:?} is undone");
        }
        for fault in [Fault::Loss, Fault::Delay] {
            let applied = apply(&lab, fault, 1).expect("applied");
            for _ in 0..5 {
                all(&lab);
            }
            assert!(applied.felt().expect("felt") > 0, "{fault:?}");
            assert_eq!(applied.lift().expect("lifted"), 0);
            assert_eq!(all(&lab), [BURST; 3], "{fault:?} is undone");
        }
    }
}
