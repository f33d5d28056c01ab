//! Gaps that no law explains, on whichever link: the machine stood still there, or a worker's processor did.
//!
//! Programs stand still with the machine that they share with the workers, and those that wait for answers do so behind each
//! such gap: payload then follows the wire. Attacks that look at moments would find that the other way round, and those that
//! take what flows in a window for its truth would choose windows by what the wire did. So what lies around such gaps is left
//! out of them, whatever flows; whether there are more such gaps when something flows is a question of its own
//! ([`relay_user::observe::attacks::long_gaps`]).

use relay_user::observe::trace::Trace;

use super::links::LINKS;
use super::network::Defence;
use super::record::Wires;

/// What is left out before and behind it, in nanoseconds: until programs that wait for answers are at their pace again.
const BEFORE: u64 = 20_000_000;
const BEHIND: u64 = 100_000_000;

/// A gap of a link of that many cells per second that its law does not have, in nanoseconds; nothing where it has gaps of any
/// length. Less than the engine counts as a missed slot.
fn too_long(defence: Defence, rate: u32) -> Option<f64> {
    let periods = match defence.schedule? {
        "constant" => 1.5,
        "jittered" => 2.1,
        _ => return None,
    };
    Some(periods * 1e9 / f64::from(rate))
}

/// When the gaps of a direction began and ended that its law does not have.
fn long(trace: &Trace, most: f64) -> impl Iterator<Item = (u64, u64)> {
    let gaps = trace.sights().windows(2).map(|pair| (pair[0].at, pair[1].at));
    gaps.filter(move |(from, to)| (to - from) as f64 > most)
}

/// Where the gaps are that no law explains, and what lies close by: in order, without overlaps.
pub(super) fn stalls(wires: &Wires, defence: Defence) -> Vec<(u64, u64)> {
    let mut stalls = Vec::new();
    for (directions, rate) in LINKS {
        let Some(most) = too_long(defence, rate) else { continue };
        for trace in directions.iter().filter_map(|direction| wires.get(direction)) {
            stalls.extend(long(trace, most).map(|(from, to)| (from.saturating_sub(BEFORE), to + BEHIND)));
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

/// How many such gaps each direction that was seen had a second, in each of these stretches; nothing where its law has gaps of
/// any length.
pub(super) fn per_second(wires: &Wires, defence: Defence, stretches: &[(u64, u64)]) -> Option<Vec<Vec<f64>>> {
    let mut counts = vec![Vec::new(); stretches.len()];
    for (directions, rate) in LINKS {
        let most = too_long(defence, rate)?;
        for trace in directions.iter().filter_map(|direction| wires.get(direction)) {
            let ends: Vec<u64> = long(trace, most).map(|(_, to)| to).collect();
            for (counts, (from, to)) in counts.iter_mut().zip(stretches) {
                let within = ends.partition_point(|end| end < to) - ends.partition_point(|end| end < from);
                counts.push(within as f64 * 1e9 / (to - from).max(1) as f64);
            }
        }
    }
    Some(counts)
}

/// Whether any of `stalls`, in order and without overlaps, has a part between `from` and `to`.
pub(super) fn meets(stalls: &[(u64, u64)], from: u64, to: u64) -> bool {
    let next = stalls.partition_point(|stall| stall.1 <= from);
    stalls.get(next).is_some_and(|stall| stall.0 < to)
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
    use super::super::links::{CLIENT, TRUNKS};
    use super::*;
    use relay_user::observe::trace::{Sight, Trace};

    const MS: u64 = 1_000_000;

    #[test]
    fn what_lies_around_a_long_gap_of_any_link_is_left_out() {
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
        for (from, to, is) in
            [(0, 250, false), (250, 280, true), (300, 301, true), (412, 420, true), (413, 420, false)]
        {
            assert_eq!(meets(&both, from * MS, to * MS), is, "{from} to {to} ms");
        }
        let stretches = [(0, 300 * MS), (300 * MS, 400 * MS)];
        let rates = per_second(&wires, constant, &stretches).unwrap();
        assert_eq!(rates, [[0.0; 3], [10.0, 10.0, 0.0]]);
        assert_eq!(per_second(&wires, Defence::PLAIN, &stretches), None);
        let counted = [(0, 250 * MS), (260 * MS, 300 * MS), (400 * MS, 410 * MS), (410 * MS, 500 * MS)];
        let left = [(0, 250 * MS), (260 * MS, both[0].0), (both[0].1, 500 * MS)];
        assert_eq!(without(&counted, &both), left);
        assert_eq!(without(&counted, &[]), counted);
        assert_eq!(without(&counted, &[(0, 600 * MS)]), []);
        assert_eq!(without(&counted[..1], &[(10, 20), (30, 40)]), [(0, 10), (20, 30), (40, 250 * MS)]);
    }
}
