//! Attack 11: does a mark that is put on a flow where it goes in come out again?
//!
//! The adversary of [`Watermark`] delays or drops cells by a secret code, one bit a second. Each second (a chip) has two
//! halves, of which the code's bit names the one that is disturbed, so that the flow's own rate cancels out. What a
//! filter then asks of each chip ([`super::filter`]) is how its halves differ.

use super::filter::{Filter, bits_per_minute};
use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::learn::figure::{self, Figure, Scored};
use crate::observe::stats::mean;
use crate::observe::trace::{SECOND, Sight, Trace, Window};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// What is done to the cells of the disturbed half of a chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Held back by this many nanoseconds, but not beyond the end of the half, so that none overtakes another.
    Delay(u64),
    /// Dropped during its first so many nanoseconds.
    Drop(u64),
}

/// What becomes of one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It goes on.
    Pass,
    /// It goes on so many nanoseconds later.
    Delay(u64),
    /// It does not go on.
    Drop,
}

/// A coded mark. The seed decides everything.
#[derive(Clone, Debug)]
pub struct Watermark {
    mark: Mark,
    chip: u64,
    from: u64,
    code: Vec<bool>,
}

impl Watermark {
    /// A mark of `bits` bits, one a second, that begins at `from` (nanoseconds of the traces' time).
    pub fn new(mark: Mark, seed: u64, from: u64, bits: usize) -> Self {
        Self { mark, chip: SECOND, from, code: code(&mut ChaCha8Rng::seed_from_u64(seed), bits) }
    }

    /// What becomes of a cell that comes at `at`: nothing before the mark and after it.
    pub fn act(&self, at: u64) -> Act {
        let Some(since) = at.checked_sub(self.from) else { return Act::Pass };
        let half = self.chip / 2;
        let chip = usize::try_from(since / self.chip).unwrap_or(usize::MAX);
        let (second, into) = (since % self.chip / half, since % self.chip % half);
        match self.code.get(chip) {
            Some(bit) if u64::from(*bit) == second => match self.mark {
                Mark::Delay(delay) => Act::Delay(delay.min(half - into)),
                Mark::Drop(length) if into < length => Act::Drop,
                Mark::Drop(_) => Act::Pass,
            },
            _ => Act::Pass,
        }
    }

    /// The flow as it goes on.
    pub fn put(&self, trace: &Trace) -> Trace {
        let acted = trace.sights().iter().filter_map(|sight| match self.act(sight.at) {
            Act::Pass => Some(*sight),
            Act::Delay(delay) => Some(Sight { at: sight.at + delay, length: sight.length }),
            Act::Drop => None,
        });
        Trace::new(acted.collect())
    }

    /// The code, for the filter.
    pub fn code(&self) -> &[bool] {
        &self.code
    }
}

/// Random bits.
pub(super) fn code(rng: &mut ChaCha8Rng, bits: usize) -> Vec<bool> {
    (0..bits).map(|_| rng.next_u64() & 1 == 1).collect()
}

/// What is seen further on.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// From the instant at which the mark begins (or would) where it is put; as long as the code. What comes later is
    /// looked at up to [`super::filter::LATEST`], so the code's last bit may be cut short.
    pub window: Window<'a>,
    /// The code that is looked for.
    pub code: &'a [bool],
    /// Whether the flow was marked with it.
    pub marked: bool,
    /// What was seen side by side.
    pub block: u32,
}

/// How much more of the code a filter finds in marked flows than in others; its z over all marked ones; and the bits a
/// minute that the mark carries so far, chip by chip.
///
/// Against a perfect defence the AUC is one half and z outside of ±1.96 once in 20 times. An AUC whose interval is
/// wider than ±0.1 has no power.
pub fn watermark(heard: &[Heard<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let filters: Vec<Filter> = heard.iter().map(|heard| Filter::of(heard.window, heard.code.len())).collect();
    let z: Vec<f64> = filters.iter().zip(heard).map(|(filter, heard)| filter.z(heard.code, rng)).collect();
    let scored: Vec<Scored> = z
        .iter()
        .zip(heard)
        .map(|(score, heard)| Scored { score: *score, positive: heard.marked, block: heard.block })
        .collect();
    let mut auc = figure::auc(&scored, rng);
    if auc.interval.half_width() > 0.1 {
        auc.samples = 0;
    }
    let of_marked: Vec<f64> = scored.iter().filter(|one| one.positive).map(|one| one.score).collect();
    let mut sure = pooled(&of_marked);
    if auc.samples == 0 {
        sure.samples = 0;
    }
    let within = Target::Between { low: -1.96, high: 1.96 };
    vec![
        auc.found(Attack::Watermark, "AUC", Target::AtMost { bound: 0.55 }),
        sure.found(Attack::Watermark, "z", within),
        bits_per_minute(heard, &filters, rng).found(Attack::Watermark, "bits per minute", Target::None),
    ]
}

/// The sum of independent z over its deviation (Stouffer's).
fn pooled(z: &[f64]) -> Figure {
    let value = mean(z) * (z.len() as f64).sqrt();
    let interval = Interval { low: value - 1.96, high: value + 1.96 };
    Figure { value, interval, samples: z.len() }
}

#[cfg(test)]
mod tests {
    use super::super::traffic::{Shape, cells};
    use super::*;
    use crate::observe::finding::Verdict;

    const BITS: usize = 16;
    const LENGTH: u64 = BITS as u64 * SECOND;

    #[test]
    fn only_the_half_that_the_code_names_is_disturbed() {
        for mark in [Mark::Delay(50_000_000), Mark::Drop(100_000_000)] {
            let watermark = Watermark::new(mark, 7, SECOND, 64);
            assert!(watermark.code().contains(&true) && watermark.code().contains(&false));
            assert_eq!(watermark.act(SECOND - 1), Act::Pass);
            assert_eq!(watermark.act(65 * SECOND), Act::Pass);
            for (chip, bit) in (1..).zip(watermark.code()) {
                let (first, second) = (watermark.act(chip * SECOND), watermark.act(chip * SECOND + SECOND / 2));
                assert_eq!([first, second].map(|act| act != Act::Pass), [!*bit, *bit]);
            }
        }
    }

    #[test]
    fn delayed_cells_keep_their_order() {
        let watermark = Watermark::new(Mark::Delay(80_000_000), 7, 0, 8);
        let at = (0..8000_u64).map(|k| k * 1_000_000);
        let later: Vec<u64> = at
            .map(|at| match watermark.act(at) {
                Act::Delay(delay) => at + delay,
                _ => at,
            })
            .collect();
        assert!(later.is_sorted());
    }

    #[test]
    fn a_dropping_mark_drops() {
        let trace = cells(Shape::Jittered, 100, LENGTH, &mut ChaCha8Rng::seed_from_u64(1));
        let left = Watermark::new(Mark::Drop(SECOND / 4), 3, 0, BITS).put(&trace);
        let share = left.sights().len() as f64 / trace.sights().len() as f64;
        assert!((0.7..0.8).contains(&share), "{share}");
    }

    /// Flows, every second one of which is marked, as `relay` passes them on.
    fn run(
        flows: u32,
        mark: Mark,
        rng: &mut ChaCha8Rng,
        mut relay: impl FnMut(&Trace, &mut ChaCha8Rng) -> Trace,
    ) -> Vec<Finding> {
        let flows: Vec<(Trace, Watermark, u32)> = (0..flows)
            .map(|i| {
                let flow = cells(Shape::Jittered, 100, LENGTH, rng);
                let watermark = Watermark::new(mark, u64::from(i), 0, BITS);
                let entered = if i % 2 == 0 { watermark.put(&flow) } else { flow };
                (relay(&entered, rng), watermark, i)
            })
            .collect();
        let heard: Vec<Heard<'_>> = flows
            .iter()
            .map(|(trace, watermark, i)| Heard {
                window: trace.window(0, LENGTH),
                code: watermark.code(),
                marked: i % 2 == 0,
                block: i / 2,
            })
            .collect();
        watermark(&heard, rng)
    }

    #[test]
    fn a_relay_without_slots_passes_the_mark_on() {
        for mark in [Mark::Delay(100_000_000), Mark::Drop(100_000_000)] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let findings = run(40, mark, &mut rng, super::super::traffic::relayed);
            assert!(findings[0].value > 0.95, "{findings:?}");
            assert_eq!(findings[0].verdict(), Verdict::Missed);
            assert!(findings[1].value > 5.0, "{findings:?}");
            assert!(findings[2].value > 20.0 && findings[2].interval.low > 10.0, "{findings:?}");
        }
    }

    #[test]
    fn slots_pass_nothing_on() {
        for shape in [Shape::Constant, Shape::Jittered] {
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            let (mut lost, mut strayed, mut bits) = (0, 0, 0);
            for _ in 0..20 {
                let findings =
                    run(24, Mark::Drop(100_000_000), &mut rng, |_, rng| cells(shape, 50, LENGTH, rng));
                lost += u32::from(!findings[0].interval.holds(0.5));
                strayed += u32::from(findings[1].value.abs() > 1.96);
                bits += u32::from(findings[2].interval.low > 0.0);
            }
            assert!(lost <= 4 && strayed <= 4 && bits <= 4, "{shape:?}: {lost} {strayed} {bits} of 20");
        }
    }

    #[test]
    fn a_few_flows_have_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let findings = run(14, Mark::Drop(1), &mut rng, |_, rng| cells(Shape::Jittered, 50, LENGTH, rng));
        assert_eq!(findings[0].verdict(), Verdict::NoPower);
        assert_eq!(findings[1].verdict(), Verdict::NoPower);
    }
}
