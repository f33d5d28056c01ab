//! Where slots were missed, on whichever link: the machine stood still there, or a worker's processor did.
//!
//! Programs stand still with the machine that they share with the workers, and those that wait for answers do so behind each
//! slot that is missed: payload then follows the wire. Attacks on how the wire follows the payload, bin by bin, would find
//! that the other way round. Whether slots are missed when there is payload is for those that compare stretches.

use super::attack::LINKS;
use super::network::Defence;
use super::record::Wires;

/// What is left out before and behind it, in nanoseconds: until programs that wait for answers are at their pace again.
const BEFORE: u64 = 20_000_000;
const BEHIND: u64 = 100_000_000;

/// The gap between two cells of a link that no slot without a cell explains away, in periods; `None` where gaps of any
/// length are the law's.
fn longest_gap(defence: Defence) -> Option<f64> {
    match defence.schedule? {
        "constant" => Some(1.5),
        "jittered" => Some(2.1),
        _ => None,
    }
}

/// Where slots were missed, and what lies close by: in order, without overlaps.
pub(super) fn stalls(wires: &Wires, defence: Defence) -> Vec<(u64, u64)> {
    let Some(periods) = longest_gap(defence) else { return Vec::new() };
    let mut stalls = Vec::new();
    for (directions, rate) in LINKS {
        let most = periods * 1e9 / f64::from(rate);
        for trace in directions.iter().filter_map(|direction| wires.get(direction)) {
            let gaps = trace.sights().windows(2).filter(|pair| (pair[1].at - pair[0].at) as f64 > most);
            stalls.extend(gaps.map(|pair| (pair[0].at.saturating_sub(BEFORE), pair[1].at + BEHIND)));
        }
    }
    stalls.sort_unstable();
    stalls.dedup_by(|next, last| {
        let meets = next.0 <= last.1;
        if meets {
            last.1 = last.1.max(next.1);
        }
        meets
    });
    stalls
}

/// What of `counted` lies outside of `stalls`; both in order and without overlaps.
pub(super) fn without(counted: &[(u64, u64)], stalls: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    let mut next = 0;
    for &(mut from, to) in counted {
        while stalls.get(next).is_some_and(|stall| stall.1 <= from) {
            next += 1;
        }
        let within = stalls[next..].iter().take_while(|stall| stall.0 < to);
        for &(begin, end) in within {
            if from < begin {
                left.push((from, begin));
            }
            from = from.max(end);
        }
        if from < to {
            left.push((from, to));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::super::attack::{CLIENT, TRUNKS};
    use super::*;
    use relay_user::observe::trace::{Sight, Trace};

    const MS: u64 = 1_000_000;

    #[test]
    fn what_lies_around_a_missed_slot_of_any_link_is_left_out() {
        // A cell each 0.6 ms, but for one.
        let trace = |missing: u64| {
            let slots = (0..2000).filter(|slot| *slot != missing);
            Trace::new(slots.map(|slot| Sight { at: slot * 600_000, length: 1360 }).collect())
        };
        let wires = Wires::from([(CLIENT[0], trace(500)), (CLIENT[1], trace(520)), (TRUNKS[0], trace(5000))]);
        let constant = Defence::schedule("constant");
        // 299.4 to 300.6 ms, and 311.4 to 312.6.
        let both = [(299_400_000 - 20 * MS, 312_600_000 + 100 * MS)];
        assert_eq!(stalls(&wires, constant), both);
        for defence in [Defence::PLAIN, Defence::schedule("poisson"), Defence::schedule("jittered")] {
            assert_eq!(stalls(&wires, defence), [], "{}", defence.name);
        }
        let counted = [(0, 250 * MS), (260 * MS, 300 * MS), (400 * MS, 410 * MS), (410 * MS, 500 * MS)];
        let left = [(0, 250 * MS), (260 * MS, both[0].0), (both[0].1, 500 * MS)];
        assert_eq!(without(&counted, &both), left);
        assert_eq!(without(&counted, &[]), counted);
        assert_eq!(without(&counted, &[(0, 600 * MS)]), []);
        assert_eq!(without(&counted[..1], &[(10, 20), (30, 40)]), [(0, 10), (20, 30), (40, 250 * MS)]);
    }
}
