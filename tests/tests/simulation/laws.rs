//! Whether slots have the law that their class promises: the schedules by themselves, and what leaves the nodes of a
//! network. A cover scheduler that is quietly off still sends its cells; only a fit against the law shows it. So each
//! check is also given what it must refuse: every other law, and every law spoilt in one small way.

use crate::net::{ENTRY, MS, Net, RATES, laws};
use crate::scenario::Traffic;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use relay_user::engine::DropReason;
use relay_user::engine::schedule::{Law, Pattern, Schedule};
use relay_user::engine::time::Nanos;

/// What a distance of Kolmogorov and Smirnov's, times the root of the sample, exceeds in one sample of 10,000.
const MISFIT: f64 = 2.23;
/// The same for a normal deviate, either way.
const DEVIATE: f64 = 3.9;
/// How far a rate may be off.
const OFFSET: f64 = 201e-6;

/// Says in what `times` (nanoseconds) are not slots of `law` at `rate` cells per second.
fn misfit(law: Law, rate: u32, times: &[u64]) -> Result<(), String> {
    let period = 1e9 / f64::from(rate);
    let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / period).collect();
    let grain = 1.0 / period;
    match law {
        Law::Constant => repeats(&[1.0], &gaps, grain),
        Law::Pattern(pattern) => {
            let unit = f64::from(u32::try_from(pattern.gaps().len()).unwrap()) / f64::from(pattern.total());
            let expected: Vec<f64> = pattern.gaps().iter().map(|&gap| f64::from(gap) * unit).collect();
            repeats(&expected, &gaps, grain)
        }
        Law::Jittered => {
            // A gap and the next but one have no offset in common.
            let apart: Vec<f64> = gaps.iter().copied().step_by(2).collect();
            fits("gaps", &apart, |x| if x < 1.0 { x * x / 2.0 } else { 1.0 - (2.0 - x).powi(2) / 2.0 })?;
            correlated(&gaps, 1, -0.5)?;
            correlated(&gaps, 2, 0.0)?;
            keeps_to_periods(times, period)
        }
        Law::Poisson => {
            fits("gaps", &gaps, |x| 1.0 - (-x).exp())?;
            centred(&gaps)?;
            for lag in 1..=5 {
                correlated(&gaps, lag, 0.0)?;
            }
            spread(times, 10.0 * period)?;
            spread(times, period)
        }
    }
}

/// Whether gaps repeat `expected`, from any place on, to the nanosecond and at one rate.
fn repeats(expected: &[f64], gaps: &[f64], grain: f64) -> Result<(), String> {
    let from = |place: usize| {
        let ratio = |(index, gap): (usize, &f64)| {
            let expected = expected[(place + index) % expected.len()];
            ((gap - 2.0 * grain) / expected, (gap + 2.0 * grain) / expected)
        };
        let bounds = gaps.iter().enumerate().map(ratio);
        bounds.fold((0.0_f64, f64::MAX), |(low, high), (least, most)| (low.max(least), high.min(most)))
    };
    // One rate explains all gaps, and it is the class's to within its offset.
    let explains = |(low, high): (f64, f64)| low <= high && low <= 1.0 + OFFSET && high >= 1.0 - OFFSET;
    if (0..expected.len()).map(from).any(explains) {
        return Ok(());
    }
    Err(format!("gaps do not repeat {expected:?}"))
}

/// Whether a sample of independent values has this distribution function.
fn fits(what: &str, sample: &[f64], law: impl Fn(f64) -> f64) -> Result<(), String> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let distance = sorted.iter().enumerate().fold(0.0_f64, |greatest, (i, &x)| {
        greatest.max(law(x) - i as f64 / n).max((i + 1) as f64 / n - law(x))
    });
    let scaled = distance * n.sqrt();
    if scaled < MISFIT { Ok(()) } else { Err(format!("{what} do not fit: {scaled:.2}")) }
}

/// Whether exponential gaps of mean 1 have that mean.
fn centred(gaps: &[f64]) -> Result<(), String> {
    let n = gaps.len() as f64;
    let mean = gaps.iter().sum::<f64>() / n;
    if (mean - 1.0).abs() < DEVIATE / n.sqrt() { Ok(()) } else { Err(format!("mean gap {mean:.3}")) }
}

/// Whether values `lag` apart have this correlation.
fn correlated(values: &[f64], lag: usize, expected: f64) -> Result<(), String> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let product = |pair: (&f64, &f64)| (pair.0 - mean) * (pair.1 - mean);
    let found = values.iter().zip(&values[lag..]).map(product).sum::<f64>() / variance;
    // Bartlett's width for independent values; that of a moving average is at most half as much again.
    let width = 1.5 * DEVIATE / n.sqrt();
    if (found - expected).abs() < width {
        Ok(())
    } else {
        Err(format!("correlation at lag {lag}: {found:.3}"))
    }
}

/// Whether counts per bin spread as those of a Poisson process: their variance is their mean (chi-square, either way).
fn spread(times: &[u64], bin: f64) -> Result<(), String> {
    let span = (times[times.len() - 1] - times[0]) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bins, not negative and few")]
    let bin_of = |at: u64| ((at - times[0]) as f64 / bin) as usize;
    let bins = bin_of(times[0] + (times[times.len() - 1] - times[0]));
    let mut counts = vec![0.0; bins];
    for &at in times {
        if let Some(count) = counts.get_mut(bin_of(at)) {
            *count += 1.0;
        }
    }
    let mean = times.len() as f64 * bin / span;
    let index = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / mean / bins as f64;
    // The index's own variance is 2 for many in a bin, and 1 / mean more for few.
    let width = DEVIATE * ((2.0 + 1.0 / mean) / bins as f64).sqrt();
    if (index - 1.0).abs() < width { Ok(()) } else { Err(format!("counts in {bin} ns spread by {index:.3}")) }
}

/// Whether every slot lies in a period of its own: what is left beside a straight line through them is one period wide.
fn keeps_to_periods(times: &[u64], period: f64) -> Result<(), String> {
    let n = times.len() as f64;
    let points: Vec<(f64, f64)> = times
        .iter()
        .enumerate()
        .map(|(k, at)| (k as f64 - (n - 1.0) / 2.0, (at - times[0]) as f64))
        .collect();
    let slope =
        points.iter().map(|(x, y)| x * y).sum::<f64>() / points.iter().map(|(x, _)| x * x).sum::<f64>();
    if (slope / period - 1.0).abs() > OFFSET + 4.0 / n.powf(1.5) {
        return Err(format!("the rate is off by {:.0} ppm", (slope / period - 1.0) * 1e6));
    }
    let beside = points.iter().map(|(x, y)| (y - slope * x) / period);
    let (least, most) = beside.fold((f64::MAX, f64::MIN), |(low, high), at| (low.min(at), high.max(at)));
    let wide = most - least;
    // From one end to the other, the line is off by 1 / √n (one deviation).
    let width = 5.0 / n.sqrt();
    if (wide - 1.0).abs() < width { Ok(()) } else { Err(format!("offsets are {wide:.3} periods wide")) }
}

fn slots(law: Law, rate: u32, number: u64, count: usize) -> Vec<u64> {
    let mut seed = [3; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let mut schedule = Schedule::new(law, rate, Nanos(1 << 50), seed);
    std::iter::repeat_with(|| {
        let at = schedule.deadline().0;
        schedule.advance();
        at
    })
    .take(count)
    .collect()
}

#[test]
fn schedules_have_their_law_and_no_other() {
    for (made, law) in laws().into_iter().enumerate() {
        for (number, rate) in (0..).zip([50, 1500, 2000, 20_000, 200_000, 1, 7, 33_333]) {
            let times = slots(law, rate, number, 6000);
            for (checked, other) in laws().into_iter().enumerate() {
                let found = misfit(other, rate, &times);
                assert_eq!(found.is_ok(), made == checked, "{law} at {rate} taken for {other}: {found:?}");
            }
        }
    }
}

#[test]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times, not negative and far from 2^64"
)]
fn a_law_that_is_quietly_off_is_found_out() {
    const RATE: u32 = 2000;
    const PERIOD: u64 = 500_000;
    let [constant, jittered, poisson, pattern] = laws();
    let times = |law| slots(law, RATE, 77, 6000);
    let stretched = |times: Vec<u64>, by: f64| -> Vec<u64> {
        let first = times[0];
        times.iter().map(|at| first + ((at - first) as f64 * by) as u64).collect()
    };
    let without = |mut times: Vec<u64>, every: usize| -> Vec<u64> {
        let mut at = 0;
        times.retain(|_| {
            at += 1;
            at % every != 0
        });
        times
    };
    let of_gaps = |mut gap: Box<dyn FnMut(f64) -> f64>| -> Vec<u64> {
        let mut rng = ChaCha8Rng::from_seed([9; 32]);
        let mut at = 0.0;
        let next = |_| {
            at += gap((rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64) * PERIOD as f64;
            at as u64
        };
        (0..6000).map(next).collect()
    };
    let spoilt: Vec<(&str, Law, Vec<u64>)> = vec![
        ("a slot left out", constant, without(times(constant), 5000)),
        ("half a per mille fast", constant, stretched(times(constant), 0.9995)),
        ("half a per mille slow", pattern, stretched(times(pattern), 1.0005)),
        ("a slot left out", pattern, without(times(pattern), 5000)),
        ("half a per mille slow", jittered, stretched(times(jittered), 1.0005)),
        ("a slot left out", jittered, without(times(jittered), 3000)),
        ("a burst", jittered, {
            let mut times = times(jittered);
            let end = times[3004];
            times[3000..3004].fill(end);
            times
        }),
        ("uniform gaps of the same mean", jittered, of_gaps(Box::new(|u| 2.0 * u))),
        ("gaps of the same law, drawn one by one", jittered, {
            of_gaps(Box::new(|u: f64| if u < 0.5 { (2.0 * u).sqrt() } else { 2.0 - (2.0 - 2.0 * u).sqrt() }))
        }),
        ("every tenth slot left out", poisson, without(times(poisson), 10)),
        ("ten per cent fast", poisson, stretched(times(poisson), 0.9)),
        ("no gap beyond two means", poisson, of_gaps(Box::new(|u: f64| (-(1.0 - u).ln()).min(2.0)))),
        ("uniform gaps of the same mean", poisson, of_gaps(Box::new(|u| 2.0 * u))),
        ("gaps that follow each other", poisson, {
            let mut previous = 0.0;
            of_gaps(Box::new(move |u: f64| {
                let gap = -(1.0 - u).ln();
                let mixed = if u < 0.2 { previous } else { gap };
                previous = gap;
                mixed
            }))
        }),
    ];
    for (what, law, times) in spoilt {
        assert!(misfit(law, RATE, &times).is_err(), "{law} with {what} is taken for right");
    }
    let other = Law::Pattern(Pattern::new(&[1, 1, 2, 6]).expect("a pattern"));
    assert!(misfit(pattern, RATE, &times(other)).is_err(), "the same gaps in another order");
}

#[test]
fn what_leaves_the_nodes_has_the_law_of_its_class() {
    for law in laws() {
        let mut net = Net::with_circuit(21, law, true);
        Traffic::Bulk.run(&mut net, 1000 * MS);
        assert_eq!(net.egress.len(), 6, "three links, both directions");
        for ((node, link), cells) in &net.egress {
            let rate = RATES[if *link == 1 { *node } else { node - 1 }];
            let times: Vec<u64> = cells.iter().map(|&(at, _)| at).collect();
            assert!(times.len() > 2500, "too few to tell");
            for other in laws() {
                let found = misfit(other, rate, &times);
                assert_eq!(found.is_ok(), other == law, "{node}/{link}, {law} taken for {other}: {found:?}");
            }
        }
    }
}

/// Cells that come by `poisson` and leave by it, all of them answered, fill a queue to its end: hence what an exit leaves
/// out.
#[test]
fn an_exit_leaves_room_on_the_way_home() {
    let run = |spare| {
        let mut net = Net::sparing(31, Law::Poisson, spare);
        net.run(100 * MS);
        net.build(1, true);
        let (mut waiting, samples) = (0, 400);
        for _ in 0..samples {
            net.run(10 * MS);
            waiting += net.nodes[ENTRY].engine.waiting_cells();
        }
        (net.dropped(ENTRY, DropReason::QueueFull), waiting / samples)
    };
    let (dropped, waiting) = run(Law::Poisson.spare());
    assert!(dropped == 0 && waiting < 16, "{dropped} dropped, {waiting} wait");
    let (dropped, waiting) = run(u32::MAX);
    assert!(dropped > 10 && waiting > 16, "nothing would show: {dropped} dropped, {waiting} wait");
}
