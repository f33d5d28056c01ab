//! Attack 3: do cells follow the payload?

use super::shape::mean_unevenness;
use super::{NO_CHANCE, against_chance};
use crate::observe::finding::{Attack, Finding};
use crate::observe::stats::{below, circular_products, jackknife, mean, permutation, variance};
use crate::observe::trace::Window;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// What went in and what was seen of it, over the same stretch of time.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The packets of the payload, before the tunnel: the truth.
    pub payload: Window<'a>,
    /// What the observer sees.
    pub wire: Window<'a>,
    /// Stretches that count, by their first nanosecond and the one after their last, as if nothing lay between; `None`
    /// where all does.
    pub counted: Option<&'a [(u64, u64)]>,
    /// Runs of one number, such as two directions at the same time, are rotated alike.
    pub turned_with: u32,
    /// Which direction it is of: each is looked at by itself, and all of them together.
    pub direction: u32,
}

impl Run<'_> {
    /// Payload's bytes in each bin of `bin` nanoseconds that counts.
    pub(super) fn truth(self, bin: u64) -> Vec<f64> {
        let bytes = self.payload.bytes(bin).into_iter().map(|bytes| bytes as f64).collect();
        self.counted(bin, bytes)
    }

    /// What an observer may follow, each a value a bin that counts: cells, bytes, and how uneven gaps are (microseconds; 0
    /// where none ends).
    pub(super) fn seen(self, bin: u64) -> [Vec<f64>; SEEN] {
        let counts: Vec<f64> = self.wire.counts(bin).into_iter().map(f64::from).collect();
        let bytes = self.wire.bytes(bin).into_iter().map(|bytes| bytes as f64).collect();
        let uneven = mean_unevenness(self.wire, bin);
        [counts, bytes, uneven].map(|series| self.counted(bin, series))
    }

    /// Those of the values, each of a bin, whose bins begin in a stretch that counts.
    fn counted(self, bin: u64, values: Vec<f64>) -> Vec<f64> {
        let Some(stretches) = self.counted else { return values };
        let begins = (0..).map(|number| self.payload.from() + number * bin);
        let counts = |at: u64| {
            let next = stretches.partition_point(|(from, _)| *from <= at);
            next.checked_sub(1).and_then(|last| stretches.get(last)).is_some_and(|(_, to)| at < *to)
        };
        values.into_iter().zip(begins).filter(|(_, at)| counts(*at)).map(|(value, _)| value).collect()
    }
}

/// How many series [`Run::seen`] gives.
pub(super) const SEEN: usize = 3;
/// What they are.
pub(super) const NAMES: [&str; SEEN] = ["cells", "bytes", "unevenness"];

/// The greatest correlation, of either sign and over `lags` bins to either side, of the payload's bytes with the wire's
/// cells, bytes or unevenness, in bins of `bin` nanoseconds: against the same with the wire rotated in time, each run by
/// an amount of its own, which keeps both sides' rhythms and cuts what links them.
///
/// Each direction is looked at by itself, and all of them together: two that follow the payload with other signs cancel in
/// the sum, and one of four that does is a quarter of it. So that neither has it easier to be the greatest, the correlation of
/// a direction counts as what is as rare among all bins: times the root of the share of bins that it has.
///
/// A run should hold many stretches with payload and without, in no order. Within one stretch, whose payload begins
/// where the run does, a rotation is no equal of the truth: two schedules beat, so the wire goes up or down over seconds,
/// and meets a payload that steps up once better as it was than rotated.
///
/// A rotation may be a small one, or none. It then finds what the true one does, and p is no less than about
/// (2 `lags` + 1) / bins for a single run. Were these left out, p would be too small: of n bins the greatest correlation lies
/// within the lags that are looked at, by chance, in (2 `lags` + 1) / n of all runs, and no distant rotation would reach it.
///
/// A run needs more than 8 times `lags` bins, or is left out. Payload that is strictly periodic is as well matched by a
/// rotation of a period: then only several runs together tell. The interval is that of the correlation at the lag found,
/// over runs, and says nothing below three.
///
/// Beside the findings: where the value was found; nowhere if no run is long enough.
pub fn correlation(
    runs: &[Run<'_>],
    bin: u64,
    lags: usize,
    rng: &mut ChaCha8Rng,
) -> (Vec<Finding>, Option<Place>) {
    let runs = products(runs, bin, lags);
    let bins = runs.iter().map(|run| run.bins).sum();
    let rotations: f64 = runs.iter().map(|run| run.bins as f64).product();
    let still = vec![0; runs.len()];
    let (value, found) = greatest(&runs, &still, lags);
    let chance = if rotations >= LEAST_ROTATIONS {
        permutation(value, SHUFFLES, || {
            let turned = turned(runs.iter().map(|run| (run.turned_with, run.bins)), rng);
            greatest(&runs, &turned, lags).0
        })
    } else {
        NO_CHANCE
    };
    let sign = found.of(runs.iter()).signum();
    let mut interval = jackknife(runs.len(), |left_out| {
        let kept = runs.iter().enumerate().filter(|(run, _)| Some(*run) != left_out);
        sign * found.of(kept.map(|(_, run)| run))
    });
    interval.low = interval.low.max(0.0);
    let findings =
        against_chance(Attack::Correlation, ["max |rho|", "p of max |rho|"], value, interval, chance, bins);
    (findings, found.place(&runs))
}

/// By how much each run is rotated, of its number and its bins.
pub(super) fn turned(runs: impl Iterator<Item = (u32, usize)>, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut turns: BTreeMap<u32, usize> = BTreeMap::new();
    runs.map(|(number, bins)| *turns.entry(number).or_insert_with(|| below(rng, bins)) % bins.max(1))
        .collect()
}

/// Where [`correlation`] finds its value, for who looks for the mechanism: what holds programs and cells up at once shows
/// below 0 at lag 0, a worker's own work above 0 there or shortly after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// What follows the payload: `cells`, `bytes` or `unevenness`.
    pub seen: &'static str,
    /// How many bins later it does; below 0 where it is ahead.
    pub lag: isize,
    /// The correlation there, with its sign.
    pub rho: f64,
    /// The direction that it is of; `None` for all of them together.
    pub direction: Option<u32>,
}

/// Permutations of each p-value.
pub const SHUFFLES: usize = 999;
/// Fewer rotations than this, and none is rare.
const LEAST_ROTATIONS: f64 = 100.0;

/// Of one run: bins times the correlation, for each series seen and each rotation.
struct Products {
    bins: usize,
    turned_with: u32,
    direction: u32,
    of: [Vec<f64>; SEEN],
}

/// Runs of one direction follow each other.
fn products(runs: &[Run<'_>], bin: u64, lags: usize) -> Vec<Products> {
    let mut products: Vec<Products> = runs.iter().filter_map(|&run| Products::of(run, bin, lags)).collect();
    products.sort_by_key(|run| run.direction);
    products
}

impl Products {
    /// None where the run is too short, or its payload never changes and so cannot be followed.
    fn of(run: Run<'_>, bin: u64, lags: usize) -> Option<Self> {
        let truth = standard(run.truth(bin))?;
        let bins = truth.len();
        let of = run.seen(bin).map(|seen| {
            let seen = standard(seen).unwrap_or_else(|| vec![0.0; bins]);
            circular_products(&truth, &seen)
        });
        let (turned_with, direction) = (run.turned_with, run.direction);
        (bins > 8 * lags.max(1)).then_some(Self { bins, turned_with, direction, of })
    }

    /// Bins times the correlation of the payload with what is seen `lag` bins later, where the wire is `turned`.
    fn sum_at(&self, seen: usize, turned: usize, lag: isize) -> f64 {
        let place =
            if lag < 0 { turned + self.bins - lag.unsigned_abs() } else { turned + lag.unsigned_abs() };
        self.of.get(seen).and_then(|products| products.get(place % self.bins)).copied().unwrap_or(0.0)
    }
}

/// Mean 0, variance 1; none where the values do not vary.
fn standard(values: Vec<f64>) -> Option<Vec<f64>> {
    let (center, spread) = (mean(&values), variance(&values).sqrt());
    (spread > 0.0).then(|| values.into_iter().map(|value| (value - center) / spread).collect())
}

/// Where a correlation is.
#[derive(Clone, Copy, Debug)]
struct Found {
    seen: usize,
    lag: isize,
    direction: Option<u32>,
}

impl Found {
    fn is_of(self, run: &Products) -> bool {
        self.direction.is_none_or(|direction| direction == run.direction)
    }

    /// The correlation of these runs there, as it counts among all of them.
    fn of<'a>(self, runs: impl Iterator<Item = &'a Products>) -> f64 {
        let (mut sum, mut bins, mut all) = (0.0, 0.0, 0.0);
        for run in runs {
            all += run.bins as f64;
            if self.is_of(run) {
                sum += run.sum_at(self.seen, 0, self.lag);
                bins += run.bins as f64;
            }
        }
        weighed(sum, bins, all)
    }

    fn place(self, runs: &[Products]) -> Option<Place> {
        let seen = NAMES.get(self.seen)?;
        let of = runs.iter().filter(|run| self.is_of(run));
        let (sum, bins) =
            of.fold((0.0, 0), |(sum, bins), run| (sum + run.sum_at(self.seen, 0, self.lag), bins + run.bins));
        let (lag, direction) = (self.lag, self.direction);
        (bins > 0).then(|| Place { seen, lag, rho: sum / bins as f64, direction })
    }
}

/// The correlation of `bins` bins whose products sum up to `sum`, as it counts among `all` bins.
fn weighed(sum: f64, bins: f64, all: f64) -> f64 {
    sum / (bins * all).sqrt()
}

/// The greatest correlation, its sign dropped, when each run's wire is `turned`; not a number without runs.
fn greatest(runs: &[Products], turned: &[usize], lags: usize) -> (f64, Found) {
    let bins = |runs: &[Products]| runs.iter().map(|run| run.bins as f64).sum::<f64>();
    let directions: Vec<(&[Products], f64)> =
        runs.chunk_by(|a, b| a.direction == b.direction).map(|of| (of, bins(of))).collect();
    let all = bins(runs);
    let reach = isize::try_from(lags).unwrap_or(0);
    let mut best = (f64::NAN, Found { seen: 0, lag: 0, direction: None });
    let mut look = |rho: f64, found: Found| {
        if rho > best.0 || best.0.is_nan() {
            best = (rho, found);
        }
    };
    for seen in 0..SEEN {
        for lag in -reach..=reach {
            let mut turns = turned.iter();
            let mut together = 0.0;
            for (of, bins) in &directions {
                let sum: f64 =
                    of.iter().zip(turns.by_ref()).map(|(run, &turn)| run.sum_at(seen, turn, lag)).sum();
                together += sum;
                let direction = of.first().map(|run| run.direction).filter(|_| directions.len() > 1);
                look(weighed(sum, *bins, all).abs(), Found { seen, lag, direction });
            }
            look(weighed(together, all, all).abs(), Found { seen, lag, direction: None });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::planted::{BLOCK, Link, MILLI, Planted, runs};
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::stats::shuffle;
    use crate::observe::trace::{Sight, Trace};
    use rand_core::SeedableRng;

    fn attacked(link: Link, blocks: u32, seed: u64) -> Vec<Finding> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let planted: Vec<Planted> =
            (0..blocks).map(|block| link.block(block, 1, |_, _| true, &mut rng)).collect();
        correlation(&runs(&planted), 5 * MILLI, 4, &mut rng).0
    }

    #[test]
    fn a_plain_tunnel_follows_its_payload() {
        let findings = attacked(Link::Plain, 4, 1);
        assert!(findings[0].value >= 0.9, "{findings:?}");
        assert_eq!(findings[0].verdict(), Verdict::Missed);
        assert!(findings[1].value <= 0.001 && findings[0].interval.low > 0.8, "{findings:?}");
    }

    #[test]
    fn timers_that_work_perturbs_follow_it_too() {
        let findings = attacked(Link::Perturbed, 4, 2);
        assert_eq!(findings[0].verdict(), Verdict::Missed, "{findings:?}");
        assert!(findings[1].value <= 0.001, "{findings:?}");
    }

    #[test]
    fn the_place_says_what_follows_the_payload_and_when() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let planted: Vec<Planted> =
            (0..4).map(|block| Link::Perturbed.block(block, 1, |_, _| true, &mut rng)).collect();
        let place = correlation(&runs(&planted), 5 * MILLI, 4, &mut rng).1.unwrap();
        // A cell that is held up ends its gap within this bin or the next.
        assert!(place.seen == "unevenness" && [0, 1].contains(&place.lag), "{place:?}");
        assert!(place.rho > 0.1, "{place:?}");
        assert_eq!(correlation(&[], 5 * MILLI, 4, &mut rng).1, None);
    }

    #[test]
    fn schedules_that_know_nothing_exceed_chance_as_often_as_they_say() {
        for link in [Link::Constant, Link::Jittered] {
            let tries = 40;
            let wrong = (0..tries)
                .filter(|seed| attacked(link, 3, 300 + seed)[0].verdict() == Verdict::Missed)
                .count();
            assert!(wrong <= 6, "{link:?}: {wrong} of {tries} exceed 95 % of chance");
        }
    }

    #[test]
    fn p_values_of_one_run_are_no_smaller_than_they_may_be() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut trace = || {
            let at = (0..6000).map(|_| below(&mut rng, 6_000_000) as u64 * 1000);
            Trace::new(at.map(|at| Sight { at, length: 9 }).collect())
        };
        let tries = 150;
        let traces: Vec<(Trace, Trace)> = (0..tries).map(|_| (trace(), trace())).collect();
        let (mut small, mut usual) = (0, 0);
        for (one, other) in &traces {
            let (payload, wire) = (one.window(0, 6 * BLOCK), other.window(0, 6 * BLOCK));
            let run = Run { payload, wire, counted: None, turned_with: 0, direction: 0 };
            let p = correlation(&[run], 20 * MILLI, 10, &mut rng).0[1].value;
            small += u32::from(p <= 0.02);
            usual += u32::from(p <= 0.2);
        }
        assert!(small <= 3, "{small} of {tries} at 2 %, of 300 bins and 21 lags");
        assert!((15..=48).contains(&usual), "{usual} of {tries} at 20 %");
    }

    #[test]
    fn a_wire_that_never_varies_tells_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut planted = Link::Constant.block(0, 1, |_, _| true, &mut rng);
        let slots = (0..500).map(|slot| Sight { at: slot * 2 * MILLI, length: 1360 });
        planted.wire = Trace::new(slots.collect());
        let (findings, _) = correlation(&runs(&[planted]), 4 * MILLI, 4, &mut rng);
        assert_eq!((findings[0].value, findings[0].verdict()), (0.0, Verdict::Met));
    }

    /// 40 s, 15 stretches of a second with payload and 25 without, in an order by chance, over a wire whose lateness rises
    /// for 2.1 s and falls at once, as that of two workers does whose schedules beat.
    fn beating(rng: &mut ChaCha8Rng) -> [Trace; 2] {
        let mut busy: Vec<bool> = (0..40).map(|stretch| stretch < 15).collect();
        shuffle(&mut busy, rng);
        let mut payload = Vec::new();
        for (stretch, _) in busy.iter().enumerate().filter(|(_, busy)| **busy) {
            payload.extend(
                (20..100).map(|bin| Sight { at: stretch as u64 * BLOCK + bin * 10 * MILLI, length: 1200 }),
            );
        }
        let phase = below(rng, 2100) as u64;
        let slots = (0..20_000).map(|slot| {
            let due = slot * 2 * MILLI;
            let late = (due / MILLI + phase) % 2100 * below(rng, 100) as u64;
            Sight { at: due + late, length: 1360 }
        });
        [Trace::new(payload), Trace::new(slots.collect())]
    }

    #[test]
    fn a_wire_that_beats_is_not_taken_for_one_that_follows() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let tries = 60;
        let wrong = (0..tries).filter(|_| {
            let [payload, wire] = beating(&mut rng);
            let parts = (0..4).map(|part| {
                let (from, to) = (u64::from(part) * 10 * BLOCK, u64::from(part + 1) * 10 * BLOCK);
                let (payload, wire) = (payload.window(from, to), wire.window(from, to));
                Run { payload, wire, counted: None, turned_with: part, direction: 0 }
            });
            let runs: Vec<Run<'_>> = parts.collect();
            correlation(&runs, 10 * MILLI, 8, &mut rng).0[1].value <= 0.05
        });
        let wrong = wrong.count();
        assert!(wrong <= 6, "{wrong} of {tries} at 5 %");
    }

    #[test]
    fn what_does_not_count_is_not_looked_at() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let planted = Link::Plain.block(0, 1, |_, _| true, &mut rng);
        let whole = Run {
            payload: planted.payload.window(0, BLOCK),
            wire: planted.wire.window(0, BLOCK),
            counted: None,
            turned_with: 0,
            direction: 0,
        };
        let mut rho = |counted| {
            let (_, place) = correlation(&[Run { counted, ..whole }], 5 * MILLI, 2, &mut rng);
            place.map(|place| place.rho)
        };
        let counted = [(0, BLOCK / 4), (BLOCK / 2, BLOCK * 3 / 4)];
        assert!(rho(Some(&counted)).is_some_and(|rho| rho > 0.9));
        assert_eq!(rho(Some(&[])).filter(|rho| rho.is_finite()), None, "nothing counts");
        let [all, some] = [None, Some(&counted[..])].map(|counted| Run { counted, ..whole }.truth(5 * MILLI));
        assert_eq!(some, [&all[..50], &all[100..150]].concat());
    }

    #[test]
    fn runs_of_one_number_are_turned_alike() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let turns = turned([(0, 1000), (1, 1000), (0, 1000), (1, 1000)].into_iter(), &mut rng);
        assert!(turns[0] == turns[2] && turns[1] == turns[3] && turns[0] != turns[1], "{turns:?}");
    }

    /// Payload in some bins, and two wires: in each bin, gaps stray by as many microseconds as `strays` says of one without
    /// payload and of one with some.
    fn followed(strays: [[u64; 2]; 2], rng: &mut ChaCha8Rng) -> (Trace, [Trace; 2]) {
        let busy: Vec<bool> = (0..2000).map(|_| below(rng, 2) == 1).collect();
        let payload = (0..).zip(&busy).filter(|(_, busy)| **busy);
        let payload = payload.map(|(bin, _)| Sight { at: bin * 10 * MILLI + MILLI, length: 1200 }).collect();
        let wires = strays.map(|strays| {
            let slots = (0_u64..10_000).map(|slot| {
                let stray = strays[usize::from(busy[usize::try_from(slot / 5).unwrap()])];
                let late = below(rng, usize::try_from(stray).unwrap()) as u64 * 1000;
                Sight { at: slot * 2 * MILLI + late, length: 1360 }
            });
            Trace::new(slots.collect())
        });
        (Trace::new(payload), wires)
    }

    #[test]
    fn directions_do_not_cancel_each_other() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for (strays, of) in [([[100, 110], [110, 100]], None), ([[100, 100], [100, 120]], Some(1))] {
            let (payload, wires) = followed(strays, &mut rng);
            let parts = (0..4).flat_map(|part| {
                let (from, to) = (u64::from(part) * 5 * BLOCK, u64::from(part + 1) * 5 * BLOCK);
                let payload = payload.window(from, to);
                (0..).zip(&wires).map(move |(direction, wire)| Run {
                    payload,
                    wire: wire.window(from, to),
                    counted: None,
                    turned_with: part,
                    direction,
                })
            });
            let runs: Vec<Run<'_>> = parts.collect();
            let (found, place) = correlation(&runs, 10 * MILLI, 4, &mut rng);
            let place = place.unwrap();
            assert!(found[1].value <= 0.01 && found[0].interval.holds(found[0].value), "{found:?} {place:?}");
            assert!(
                place.direction.is_some() && of.is_none_or(|of| place.direction == Some(of)),
                "{place:?}"
            );
            // What the value is scaled by: half of the bins are of this direction.
            assert!((place.rho.abs() / 2_f64.sqrt() - found[0].value).abs() < 1e-9, "{found:?} {place:?}");
        }
    }

    #[test]
    fn too_little_is_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let planted = [Link::Plain.block(0, 1, |_, _| true, &mut rng)];
        for (bin, lags) in [(5 * MILLI, 30), (BLOCK, 0)] {
            assert_eq!(correlation(&runs(&planted), bin, lags, &mut rng).0[0].verdict(), Verdict::NoPower);
        }
        let idle = [Link::Constant.block(0, 0, |_, _| false, &mut rng)];
        assert_eq!(correlation(&runs(&idle), 5 * MILLI, 4, &mut rng).0[0].verdict(), Verdict::NoPower);
        assert_eq!(correlation(&[], 5 * MILLI, 4, &mut rng).0[0].verdict(), Verdict::NoPower);
    }
}
