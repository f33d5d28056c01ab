//! By which law a direction's cells follow each other, as far as gaps alone can tell.

use crate::observe::stats::{autocorrelation, kolmogorov_p, mean, quantile, variance};

/// Gaps below which nothing is said about their law.
pub(crate) const FEWEST: usize = 500;
/// Distance from a law up to which it is named. Timers and batches move a few percent of gaps on any machine.
const NEAR: f64 = 0.08;
/// Spread, in periods, up to which cells count as one period apart.
const STEADY: f64 = 0.1;
/// Gaps that are summed to see whether a period is kept in the long run.
const RUN: usize = 50;
/// Variance of a sum of as many gaps, in squared periods and per gap, of what keeps a period. `jittered` has 1/300,
/// `poisson` 1.
const KEPT: f64 = 0.02;
/// Cells of a pattern, at most, and how alike its rounds must be.
const CYCLE: usize = 64;
const ALIKE: f64 = 0.8;

/// What gaps look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Law {
    /// A period apart.
    Constant,
    /// Uniform inside its period each: gaps follow the triangular law on 0 to 2 periods.
    Jittered,
    /// Gaps follow the exponential law.
    Poisson,
    /// Gaps repeat after so many cells.
    Pattern(usize),
    /// None of these, yet a period is kept in the long run.
    Paced,
    /// None of these.
    None,
}

impl Law {
    /// As reports call it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Constant => "constant".to_owned(),
            Self::Jittered => "jittered".to_owned(),
            Self::Poisson => "poisson".to_owned(),
            Self::Pattern(cells) => format!("pattern of {cells} cells"),
            Self::Paced => "paced, by no known law".to_owned(),
            Self::None => "no known law".to_owned(),
        }
    }
}

/// Gaps in figures, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gaps {
    pub(crate) count: usize,
    pub(crate) mean: f64,
    pub(crate) deviation: f64,
    pub(crate) least: f64,
    pub(crate) p1: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
}

/// The law that fits, and how well each does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fit {
    pub(crate) law: Law,
    /// Microseconds: the median gap, or the mean for `poisson`.
    pub(crate) period: f64,
    /// Robust standard deviation of gaps, in periods.
    pub(crate) spread: f64,
    /// Kolmogorov and Smirnov's distance from the triangular law of `jittered`, and how likely it would be.
    pub(crate) jittered: (f64, f64),
    /// The same from the exponential law.
    pub(crate) poisson: (f64, f64),
    /// Gaps that no schedule of one cell a period has: a slot stayed empty, or a cell was lost.
    pub(crate) missed: Option<u64>,
}

/// Sums gaps (microseconds, at least one) up.
pub(crate) fn gaps(gaps: &[f64]) -> Gaps {
    let mut sorted = gaps.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = |share| quantile(&sorted, share);
    Gaps {
        count: gaps.len(),
        mean: mean(gaps),
        deviation: variance(gaps).sqrt(),
        least: at(0.0),
        p1: at(0.01),
        median: at(0.5),
        p99: at(0.99),
        most: at(1.0),
    }
}

/// Fits each law to gaps (microseconds, in order); `None` below [`FEWEST`].
pub(crate) fn fit(gaps: &[f64]) -> Option<Fit> {
    if gaps.len() < FEWEST {
        return None;
    }
    let mut all = gaps.to_vec();
    all.sort_unstable_by(f64::total_cmp);
    let median = quantile(&all, 0.5).max(1e-3);
    let average = mean(gaps).max(1e-3);
    let spread = robust(&all) / median;
    // Neighbouring gaps of `jittered` share a cell's place; every other gap is independent under each law.
    let mut sorted: Vec<f64> = gaps.iter().copied().step_by(2).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let distance = |law: &dyn Fn(f64) -> f64| {
        let d = ks(&sorted, law);
        (d, kolmogorov_p(d, sorted.len() as f64))
    };
    let jittered = distance(&|gap| triangular(gap / median));
    let poisson = distance(&|gap| 1.0 - (-gap / average).exp());
    let mut runs: Vec<f64> = gaps.chunks_exact(RUN).map(|run| run.iter().sum()).collect();
    runs.sort_unstable_by(f64::total_cmp);
    let wander = (robust(&runs) / median).powi(2) / RUN as f64;
    let law = if spread < STEADY {
        Law::Constant
    } else if jittered.0 <= NEAR && jittered.0 < poisson.0 {
        Law::Jittered
    } else if poisson.0 <= NEAR && wander > 0.5 {
        Law::Poisson
    } else if let Some(cells) = cycle(gaps) {
        Law::Pattern(cells)
    } else if wander < KEPT {
        Law::Paced
    } else {
        Law::None
    };
    let missed = match law {
        Law::Constant => Some(beyond(gaps, median, 1.5)),
        Law::Jittered => Some(beyond(gaps, median, 2.0)),
        _ => None,
    };
    let period = if law == Law::Poisson { average } else { median };
    Some(Fit { law, period, spread, jittered, poisson, missed })
}

/// How many gaps are longer than `periods` allow. Under `jittered` an empty slot need not make one: a lower bound.
fn beyond(gaps: &[f64], period: f64, periods: f64) -> u64 {
    // A timer's lateness is no missed slot.
    let bound = period * periods + period * 0.05;
    gaps.iter().filter(|gap| **gap > bound).count() as u64
}

/// The standard deviation of a normal law with the same quartiles.
fn robust(sorted: &[f64]) -> f64 {
    (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / 1.349
}

/// The greatest distance between the empirical distribution of `sorted` and a law.
fn ks(sorted: &[f64], law: &dyn Fn(f64) -> f64) -> f64 {
    let n = sorted.len() as f64;
    let distance = |(place, &value): (usize, &f64)| {
        let expected = law(value);
        (expected - place as f64 / n).abs().max((expected - (place + 1) as f64 / n).abs())
    };
    sorted.iter().enumerate().map(distance).fold(0.0, f64::max)
}

/// The distribution of the difference of two cells' places in neighbouring periods, in periods.
fn triangular(gap: f64) -> f64 {
    match gap {
        ..=0.0 => 0.0,
        ..=1.0 => gap * gap / 2.0,
        ..=2.0 => 1.0 - (2.0 - gap).powi(2) / 2.0,
        _ => 1.0,
    }
}

/// After how many cells gaps repeat.
fn cycle(gaps: &[f64]) -> Option<usize> {
    let some = gaps.get(..gaps.len().min(100 * CYCLE))?;
    (2..=CYCLE).find(|&lag| autocorrelation(some, lag) > ALIKE)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::observe::stats::{normal, unit};

    fn law_of(next: impl FnMut(usize) -> f64) -> Fit {
        let gaps: Vec<f64> = (0..20_000).map(next).collect();
        fit(&gaps).unwrap()
    }

    #[test]
    fn each_law_is_told_from_the_others() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let places: Vec<f64> = (0..20_001).map(|_| unit(&mut rng)).collect();
        let jittered = law_of(|k| 667.0 * (1.0 + places[k + 1] - places[k]));
        assert_eq!((jittered.law, jittered.missed), (Law::Jittered, Some(0)));
        assert!(jittered.jittered.1 > 0.01 && jittered.poisson.1 < 1e-6, "{jittered:?}");

        let constant = law_of(|_| 667.0 + 12.0 * normal(&mut rng));
        assert_eq!((constant.law, constant.missed), (Law::Constant, Some(0)));
        let poisson = law_of(|_| -667.0 * (1.0 - unit(&mut rng)).ln());
        assert_eq!((poisson.law, poisson.missed), (Law::Poisson, None));
        let cycle = [300.0, 900.0, 500.0, 1200.0, 435.0];
        assert_eq!(law_of(|k| cycle[k % 5] + 10.0 * normal(&mut rng)).law, Law::Pattern(5));
        let bursts = law_of(|k| if k % 977 < 900 { 30.0 } else { 90_000.0 } * unit(&mut rng));
        assert_eq!(bursts.law, Law::None, "{bursts:?}");
        // Twenty microseconds apart, sent at multiples of eight.
        let mut before = 0.0;
        let batched = law_of(|k| {
            let at = ((k + 1) as f64 * 20.0 / 8.0_f64).ceil() * 8.0;
            at - std::mem::replace(&mut before, at)
        });
        assert!(matches!(batched.law, Law::Paced | Law::Pattern(_)), "{batched:?}");
    }

    #[test]
    fn empty_slots_are_counted() {
        let fit = law_of(|k| if k % 100 == 99 { 2000.0 } else { 1000.0 });
        assert_eq!((fit.law, fit.missed), (Law::Constant, Some(200)));
    }

    #[test]
    fn few_gaps_have_no_law() {
        assert!(fit(&[1.0; FEWEST - 1]).is_none());
        assert_eq!(fit(&[0.0; FEWEST]).map(|fit| fit.law), Some(Law::Constant));
    }
}
