//! Gaps that no law explains, on whichever link: the machine stood still there, or a worker's processor did.
//!
//! Programs stand still with the machine that they share with the workers, and those that wait for answers do so behind each
//! such gap: payload then follows the wire. Attacks that look at moments would find that the other way round, and those that
//! take what flows in a window for its truth would choose windows by what the wire did. So what lies around such gaps is left
//! out of them, whatever flows; whether there are more such gaps when something flows is a question of its own
//! ([`relay_user::observe::attacks::long_gaps`]).

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

/// The gaps of a run that no law explains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// When they began and ended, direction by direction; nothing where the law has gaps of any length.
    gaps: Vec<Vec<(u64, u64)>>,
    /// What lies close by any of them: in order, without overlaps.
    around: Vec<(u64, u64)>,
}

impl Stalls {
    /// In each direction that was seen.
    pub(super) fn of(wires: &Wires, defence: Defence) -> Self {
        let mut gaps = Vec::new();
        for (directions, rate) in LINKS {
            let Some(most) = too_long(defence, rate) else { continue };
            for trace in directions.iter().filter_map(|direction| wires.get(direction)) {
                let all = trace.sights().windows(2).map(|pair| (pair[0].at, pair[1].at));
                gaps.push(all.filter(|(from, to)| (to - from) as f64 > most).collect());
            }
        }
        let around = around(&gaps);
        Self { gaps, around }
    }

    #[cfg(test)]
    pub(super) const fn close_by(around: Vec<(u64, u64)>) -> Self {
        Self { gaps: Vec::new(), around }
    }

    /// How many such gaps each direction had a second, in each of these stretches; nothing where its law has gaps of any
    /// length.
    pub(super) fn per_second(&self, stretches: &[(u64, u64)]) -> Option<Vec<Vec<f64>>> {
        let in_stretch = |&(from, to): &(u64, u64)| {
            let ended = |gaps: &Vec<(u64, u64)>, by| gaps.partition_point(|(_, end)| *end < by);
            let within = self.gaps.iter().map(|gaps| ended(gaps, to) - ended(gaps, from));
            within.map(|count| count as f64 * 1e9 / (to - from).max(1) as f64).collect()
        };
        (!self.gaps.is_empty()).then(|| stretches.iter().map(in_stretch).collect())
    }

    /// Whether any part between `from` and `to` lies close by one.
    pub(super) fn meet(&self, from: u64, to: u64) -> bool {
        let next = self.around.partition_point(|stall| stall.1 <= from);
        self.around.get(next).is_some_and(|stall| stall.0 < to)
    }

    /// What of `counted` does not; in order and without overlaps, as it is given.
    pub(super) fn outside(&self, counted: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let stalls = &self.around;
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
}

fn around(gaps: &[Vec<(u64, u64)>]) -> Vec<(u64, u64)> {
    let mut around: Vec<(u64, u64)> =
        gaps.iter().flatten().map(|(from, to)| (from.saturating_sub(BEFORE), to + BEHIND)).collect();
    around.sort_unstable();
    around.dedup_by(|next, last| {
        let meets = next.0 <= last.1;
        if meets {
            last.1 = last.1.max(next.1);
        }
        meets
    });
    around
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
        let found = Stalls::of(&wires, constant);
        assert_eq!(found.around, both);
        for defence in [Defence::PLAIN, Defence::schedule("poisson"), Defence::schedule("jittered")] {
            assert_eq!(Stalls::of(&wires, defence).around, [], "{}", defence.name);
        }
        for (from, to, is) in
            [(0, 250, false), (250, 280, true), (300, 301, true), (412, 420, true), (413, 420, false)]
        {
            assert_eq!(found.meet(from * MS, to * MS), is, "{from} to {to} ms");
        }
        let stretches = [(0, 300 * MS), (300 * MS, 400 * MS)];
        let rates = found.per_second(&stretches).unwrap();
        assert_eq!(rates, [[0.0; 3], [10.0, 10.0, 0.0]]);
        assert_eq!(Stalls::of(&wires, Defence::PLAIN).per_second(&stretches), None);
        let counted = [(0, 250 * MS), (260 * MS, 300 * MS), (400 * MS, 410 * MS), (410 * MS, 500 * MS)];
        let left = [(0, 250 * MS), (260 * MS, both[0].0), (both[0].1, 500 * MS)];
        let outside = |counted: &[(u64, u64)], around: &[(u64, u64)]| {
            Stalls::close_by(around.to_vec()).outside(counted)
        };
        assert_eq!(outside(&counted, &both), left);
        assert_eq!(outside(&counted, &[]), counted);
        assert_eq!(outside(&counted, &[(0, 600 * MS)]), []);
        assert_eq!(outside(&counted[..1], &[(10, 20), (30, 40)]), [(0, 10), (20, 30), (40, 250 * MS)]);
    }
}
