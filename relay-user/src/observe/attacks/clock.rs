//! Attack 7 by the clock: do cells of two devices, or of one device in two sessions, leave at moments of one clock?

use crate::engine::schedule::RATE_OFFSET_PPM;
use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::trace::{SECOND, Window};
use std::f64::consts::TAU;
use std::iter;

/// What is folded of a window, in nanoseconds. A peak is as narrow as a moment's width is of it: 2 ppm.
const FOLDED: u64 = 14 * SECOND;
/// Widths that are looked at, to either side of the nominal one, in ppm: all that are drawn, by clocks that are off by half
/// as much.
const REACH: f64 = 1.5 * RATE_OFFSET_PPM as f64;
/// Shorter mean vectors are no moments: chance gives a peak of 0.04 at most, cells that leave at moments 0.9.
const TOGETHER: f64 = 0.5;
/// Found, where two draws come so close less often.
const FOUND: f64 = 0.001;
/// Narrowings of the peak, by 0.62 each: from 1 ppm to a millionth of it.
const NARROWINGS: usize = 29;

/// How likely two devices that each drew the width of their moments would come as close to each other as these have.
/// `nominal` is the width that they draw around, in nanoseconds. Nothing can be said of cells that lie at no moments.
pub fn clock([one, other]: [Window<'_>; 2], nominal: u64) -> Finding {
    let folds = [one, other].map(|window| fold(window, nominal));
    let [one, other] = folds.each_ref().map(|fold| fold.offset);
    let value = no_further((one - other).abs() / f64::from(RATE_OFFSET_PPM));
    let folded = folds.iter().all(|fold| fold.together >= TOGETHER);
    Finding {
        attack: Attack::Pairing,
        statistic: "p of clocks as like",
        value,
        interval: Interval::exact(value),
        target: Target::AtLeast { bound: FOUND },
        samples: if folded { folds.iter().map(|fold| fold.cells).sum() } else { 0 },
    }
}

/// How often two offsets are no further apart than this, in [`RATE_OFFSET_PPM`]. Each is the sum of a node's own half and one
/// drawn for the session, both uniform, so their difference less its mean has the law of Irwin and Hall for four.
fn no_further(apart: f64) -> f64 {
    let beyond = (2.0 - apart).max(0.0);
    let power = |from: f64| (beyond - from).max(0.0).powi(4);
    1.0 - (power(0.0) - 4.0 * power(1.0)) / 12.0
}

/// Moments at which cells leave, as far as they do.
struct Fold {
    /// How far their width is off the nominal one, in ppm.
    offset: f64,
    /// The length of the mean vector, when each cell is a hand on a clock whose turn is that width: 1 if all leave at
    /// moments.
    together: f64,
    /// Cells that were folded.
    cells: usize,
}

fn fold(window: Window<'_>, nominal: u64) -> Fold {
    let end = window.from().saturating_add(FOLDED);
    let seen = window.sights().iter().map(|sight| sight.at).take_while(|at| *at < end);
    let times: Vec<f64> = seen.map(|at| (at - window.from()) as f64).collect();
    let (Some(first), Some(last)) = (times.first(), times.last()) else {
        return Fold { offset: 0.0, together: 0.0, cells: 0 };
    };
    let together = |offset: f64| {
        let turn = TAU / (nominal as f64 * offset.mul_add(1e-6, 1.0));
        let (sines, cosines) = times.iter().fold((0.0, 0.0), |(sines, cosines), at| {
            let (sine, cosine) = (at * turn).sin_cos();
            (sines + sine, cosines + cosine)
        });
        f64::hypot(sines, cosines) / times.len() as f64
    };
    // Half of what parts a peak from its feet.
    let step = (0.5e6 * nominal as f64 / (last - first).max(1.0)).min(REACH);
    let offsets =
        iter::successors(Some(-REACH), |offset| Some(offset + step)).take_while(|offset| *offset <= REACH);
    let looked = offsets.map(|offset| (together(offset), offset));
    let peak = looked.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(0.0, |(_, offset)| offset);
    let offset = highest(peak - step, peak + step, together);
    Fold { offset, together: together(offset), cells: times.len() }
}

/// Where `height`, which rises and then falls, is highest between the two: by the golden section.
fn highest(mut low: f64, mut high: f64, height: impl Fn(f64) -> f64) -> f64 {
    let golden = (5.0_f64.sqrt() - 1.0) / 2.0;
    for _ in 0..NARROWINGS {
        let part = golden * (high - low);
        if height(high - part) > height(low + part) {
            high = low + part;
        } else {
            low = high - part;
        }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::super::traffic::between;
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::stats::ks_uniform;
    use crate::observe::trace::{Sight, Trace};
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    const WIDTH: u64 = 32_003;

    /// A jittered link of 1000 cells per second, for two seconds: what leaves at moments so many parts in 10^9 off the
    /// nominal width, of which one was at `phase` nanoseconds, a few µs after them.
    fn device(off: i64, phase: u64, rng: &mut ChaCha8Rng) -> Trace {
        // In 10^-9 ns.
        let width = (WIDTH * 1_000_000_000).strict_add_signed(WIDTH.cast_signed() * off);
        let sights = (1..2001).map(|slot| {
            let since = slot * 1_000_000 + between(0, 999_999, rng) - phase;
            let moment = (since * 1_000_000_000).div_ceil(width) * width / 1_000_000_000;
            Sight { at: phase + moment + between(0, 3_000, rng), length: 1360 }
        });
        Trace::new(sights.collect())
    }

    fn whole(trace: &Trace) -> Window<'_> {
        trace.window(0, u64::MAX)
    }

    #[test]
    fn multiples_of_one_width_are_found() {
        for off in [0, -31, 170] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let [one, other] = [0, 20_000].map(|phase| device(i64::from(off) * 1000, phase, &mut rng));
            let found = clock([whole(&one), whole(&other)], WIDTH);
            assert_eq!((found.verdict(), found.samples), (Verdict::Missed, 4000), "{off} ppm: {found:?}");
            let offset = fold(whole(&one), WIDTH).offset;
            assert!((offset - f64::from(off)).abs() < 0.2, "{offset} for {off} ppm");
        }
    }

    #[test]
    fn drawn_widths_come_as_close_as_often_as_it_says() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut drawn = || {
            let reach = i64::from(RATE_OFFSET_PPM) * 1000;
            let halves = [(); 2].map(|()| between(0, reach.cast_unsigned(), &mut rng).cast_signed());
            let off = halves.iter().sum::<i64>() - reach;
            let phase = between(0, WIDTH, &mut rng);
            device(off, phase, &mut rng)
        };
        let values: Vec<f64> = (0..40)
            .map(|_| {
                let [one, other] = [drawn(), drawn()];
                let found = clock([whole(&one), whole(&other)], WIDTH);
                assert!(found.samples > 0, "{found:?}");
                found.value
            })
            .collect();
        // One in a thousand draws of 40 strays further.
        assert!(ks_uniform(&values) < 0.31, "{values:?}");
    }

    #[test]
    fn cells_at_no_moments_have_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut anywhere = || {
            let sights = (0..2000)
                .map(|slot| Sight { at: slot * 1_000_000 + between(0, 999_999, &mut rng), length: 1360 });
            Trace::new(sights.collect())
        };
        let [one, other] = [anywhere(), anywhere()];
        assert_eq!(clock([whole(&one), whole(&other)], WIDTH).verdict(), Verdict::NoPower);
        let nothing = Trace::default();
        assert_eq!(clock([whole(&one), whole(&nothing)], WIDTH).verdict(), Verdict::NoPower);
    }
}
