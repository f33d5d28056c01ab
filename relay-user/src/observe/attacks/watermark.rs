//! Attack 11: does a mark that is put on a flow where it goes in come out again?
//!
//! The adversary of [`Watermark`] delays or drops cells by a secret code, one bit a second. Each second (a chip) has two
//! halves, of which the code's bit names the one that is disturbed, so that the flow's own rate cancels out. What a
//! filter then asks of each chip ([`super::filter`]) is how its halves differ.

use super::filter::{Filter, Match, bits_per_minute};
use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::learn::figure::{self, Figure};
use crate::observe::stats::Blocks;
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

/// A marked flow, seen further on.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// From the instant at which the mark begins where it is put, and as long as the code; [`super::filter::LATEST`]
    /// longer, and the last bit is not cut short.
    pub window: Window<'a>,
    /// The code that it was marked with.
    pub code: &'a [bool],
    /// What was seen side by side.
    pub block: u32,
}

/// How often a filter finds more of the code that a flow was marked with than of one that nobody used; the z of all
/// flows together; and the bits a minute that the mark carries so far, chip by chip.
///
/// Against a perfect defence the AUC is one half, and z outside of ±1.96 once in 20 times, as it is for flows that were
/// not marked at all. An AUC whose interval is wider than ±0.06 could exceed its bound of 0.55 by chance more often than
/// that, and has no power, nor has z: some 90 flows are needed.
pub fn watermark(heard: &[Heard<'_>], rng: &mut ChaCha8Rng) -> Vec<Finding> {
    let filters: Vec<Filter> = heard.iter().map(|heard| Filter::of(heard.window, heard.code.len())).collect();
    let matches: Vec<Match> =
        filters.iter().zip(heard).map(|(filter, heard)| filter.look_for(heard.code, rng)).collect();
    let blocks = Blocks::of(heard.iter().map(|heard| heard.block));
    let ranks: Vec<(f64, f64)> = blocks
        .iter()
        .map(|members| (members.iter().map(|member| matches[*member].rank).sum(), members.len() as f64))
        .collect();
    let mut auc = figure::ratio(&ranks, heard.len(), rng);
    if auc.interval.half_width() > 0.06 {
        auc.samples = 0;
    }
    // Stouffer's: the sum of independent z over its deviation.
    let z = matches.iter().map(|found| found.z).sum::<f64>() / (heard.len() as f64).sqrt();
    let z = Figure { value: z, interval: Interval { low: z - 1.96, high: z + 1.96 }, samples: auc.samples };
    vec![
        auc.found(Attack::Watermark, "AUC", Target::AtMost { bound: 0.55 }),
        z.found(Attack::Watermark, "z", Target::Between { low: -1.96, high: 1.96 }),
        bits_per_minute(heard, &filters, rng).found(Attack::Watermark, "bits per minute", Target::None),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::traffic::{Shape, cells, relayed};
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
                let (first, second) =
                    (watermark.act(chip * SECOND), watermark.act(chip * SECOND + SECOND / 2));
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

    /// Flows, marked or not, as `relay` passes them on, two in a block.
    fn run(
        flows: u32,
        mark: Option<Mark>,
        rng: &mut ChaCha8Rng,
        mut relay: impl FnMut(&Trace, &mut ChaCha8Rng) -> Trace,
    ) -> Vec<Finding> {
        let flows: Vec<(Trace, Watermark)> = (0..flows)
            .map(|i| {
                let flow = cells(Shape::Jittered, 100, LENGTH, rng);
                let watermark = Watermark::new(mark.unwrap_or(Mark::Drop(1)), u64::from(i), 0, BITS);
                let entered = if mark.is_some() { watermark.put(&flow) } else { flow };
                (relay(&entered, rng), watermark)
            })
            .collect();
        let heard: Vec<Heard<'_>> = flows
            .iter()
            .zip(0..)
            .map(|((trace, watermark), i)| Heard {
                window: trace.window(0, LENGTH),
                code: watermark.code(),
                block: i / 2,
            })
            .collect();
        watermark(&heard, rng)
    }

    #[test]
    fn a_relay_without_slots_passes_the_mark_on() {
        for mark in [Mark::Delay(100_000_000), Mark::Drop(100_000_000)] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let findings = run(20, Some(mark), &mut rng, relayed);
            assert!(findings[0].value > 0.95, "{findings:?}");
            assert_eq!(findings[0].verdict(), Verdict::Missed);
            assert_eq!(findings[1].verdict(), Verdict::Missed);
            assert!(findings[2].value > 50.0 && findings[2].interval.low > 30.0, "{findings:?}");
        }
    }

    #[test]
    fn slots_pass_nothing_on() {
        for shape in [Shape::Constant, Shape::Jittered] {
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            let mark = Some(Mark::Drop(100_000_000));
            let runs = (0..20).map(|_| run(24, mark, &mut rng, |_, rng| cells(shape, 50, LENGTH, rng)));
            assert_at_chance(&runs.collect::<Vec<_>>(), shape);
        }
    }

    #[test]
    fn there_is_no_code_in_flows_that_were_not_marked() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let runs = (0..20).map(|_| run(24, None, &mut rng, relayed));
        assert_at_chance(&runs.collect::<Vec<_>>(), Shape::Jittered);
    }

    /// In 20 runs, one of each figure strays by chance; more than four do once in 400 times.
    fn assert_at_chance(runs: &[Vec<Finding>], shape: Shape) {
        let stray = |strays: fn(&[Finding]) -> bool| runs.iter().filter(|run| strays(run)).count();
        let strays = [
            stray(|run| !run[0].interval.holds(0.5)),
            stray(|run| run[1].value.abs() > 1.96),
            stray(|run| run[2].interval.low > 0.0),
        ];
        assert!(strays.iter().all(|count| *count <= 4), "{shape:?}: {strays:?} of {}", runs.len());
    }

    #[test]
    fn a_few_flows_have_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let findings = run(14, None, &mut rng, |_, rng| cells(Shape::Jittered, 50, LENGTH, rng));
        assert_eq!(findings[0].verdict(), Verdict::NoPower);
        assert_eq!(findings[1].verdict(), Verdict::NoPower);
    }
}
