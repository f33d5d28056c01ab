//! Attack 7: do two devices talk with each other?

use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::learn::figure::{self, Scored};
use crate::observe::learn::likeness::{Profile, likeness, together};
use crate::observe::learn::table::Table;
use crate::observe::learn::{features, forest, judge};
use crate::observe::trace::Window;
use rand_chacha::ChaCha8Rng;

/// Two devices, seen at one time.
#[derive(Clone, Copy, Debug)]
pub struct Devices<'a> {
    /// What one sends.
    pub one: Window<'a>,
    /// What the other sends.
    pub other: Window<'a>,
    /// Whether they talk with each other. If not, they should still do what talking devices do, with others: otherwise
    /// activity is found, not conversation.
    pub talking: bool,
    /// What was seen side by side.
    pub block: u32,
}

/// How much more alike two devices are when they talk, and how often a forest that has seen other blocks tells whether
/// they do. Against a perfect defence one half each.
pub fn pairing(seen: &[Devices<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let target = Target::Chance { value: 0.5, half_width: 0.03 };
    let distances: Vec<_> =
        seen.iter().map(|seen| together(&Profile::of(seen.one), &Profile::of(seen.other))).collect();
    let scored: Vec<Scored> = seen
        .iter()
        .zip(likeness(&distances))
        .map(|(seen, score)| Scored { score, positive: seen.talking, block: seen.block })
        .collect();
    let rows = seen.iter().zip(&distances).map(|(seen, distances)| {
        let mut row = features::of(&[seen.one, seen.other]);
        row.extend(distances);
        row
    });
    let labels: Vec<u16> = seen.iter().map(|seen| u16::from(seen.talking)).collect();
    let blocks: Vec<u32> = seen.iter().map(|seen| seen.block).collect();
    let table = Table::new(rows.collect(), &labels, &blocks);
    vec![
        figure::auc(&scored, rng).found(Attack::Pairing, "AUC of likeness", target),
        judge::accuracy(&table, forest::votes, rng).found(Attack::Pairing, "forest accuracy", target),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::traffic::{Shape, activity, cells, relayed};
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::trace::{SECOND, Trace};
    use rand_core::SeedableRng;

    fn run(
        count: u32,
        rng: &mut ChaCha8Rng,
        mut two: impl FnMut(bool, &mut ChaCha8Rng) -> (Trace, Trace),
    ) -> Vec<Finding> {
        let all: Vec<(Trace, Trace, u32)> = (0..count)
            .map(|i| {
                let (one, other) = two(i % 2 == 0, rng);
                (one, other, i)
            })
            .collect();
        let seen: Vec<Devices<'_>> = all
            .iter()
            .map(|(one, other, i)| Devices {
                one: one.window(0, 2 * SECOND),
                other: other.window(0, 2 * SECOND),
                talking: i % 2 == 0,
                block: i / 4,
            })
            .collect();
        pairing(&seen, rng)
    }

    #[test]
    fn a_plain_tunnel_shows_who_talks() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        // Each device answers what it hears: from the other one, or from somebody else.
        let findings = run(80, &mut rng, |talking, rng| {
            let heard = activity(1, 2 * SECOND, rng);
            let one = relayed(&heard, rng);
            let other = if talking { relayed(&one, rng) } else { activity(1, 2 * SECOND, rng) };
            (one, other)
        });
        for finding in findings {
            assert!(finding.value >= 0.9, "{finding:?}");
            assert_eq!(finding.verdict(), Verdict::Missed);
        }
    }

    #[test]
    fn slots_do_not_show_it() {
        for shape in [Shape::Constant, Shape::Jittered] {
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            let findings = run(96, &mut rng, |_, rng| {
                (cells(shape, 100, 2 * SECOND, rng), cells(shape, 100, 2 * SECOND, rng))
            });
            for finding in findings {
                assert!(finding.interval.holds(0.5), "{shape:?} {finding:?}");
            }
        }
    }

    #[test]
    fn nobody_talking_has_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let trace = activity(1, SECOND, &mut rng);
        let window = trace.window(0, SECOND);
        let seen: Vec<Devices<'_>> =
            (0..20).map(|block| Devices { one: window, other: window, talking: false, block }).collect();
        for finding in pairing(&seen, &mut rng) {
            assert_eq!(finding.verdict(), Verdict::NoPower);
        }
    }
}
