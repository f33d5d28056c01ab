use super::*;
use proptest::prelude::*;

const RATE: u32 = 1000;
const PERIOD: f64 = 1e6;
const START: Nanos = Nanos(5);

fn laws() -> [Law; 4] {
    let pattern = Pattern::new(&[1, 1, 6, 2]).unwrap();
    [Law::Constant, Law::Jittered, Law::Poisson, Law::Pattern(pattern)]
}

fn seed(number: u64) -> [u8; 32] {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    seed
}

fn take(schedule: &mut Schedule, count: usize) -> Vec<u64> {
    std::iter::repeat_with(|| {
        let at = schedule.deadline().0;
        schedule.advance();
        at
    })
    .take(count)
    .collect()
}

fn deadlines(law: Law, count: usize) -> Vec<u64> {
    take(&mut Schedule::without_offset(law, RATE, START, seed(1)), count)
}

fn gaps(times: &[u64]) -> Vec<f64> {
    times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect()
}

/// Kolmogorov and Smirnov's distance from a law, times the root of the sample: 1.63 is exceeded by one sample in 100.
fn misfit(sample: &[f64], law: impl Fn(f64) -> f64) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let distance = sorted.iter().enumerate().fold(0.0_f64, |greatest, (i, &x)| {
        let (below, above) = (law(x) - i as f64 / n, (i + 1) as f64 / n - law(x));
        greatest.max(below).max(above)
    });
    distance * n.sqrt()
}

fn exponential_law(mean: f64) -> impl Fn(f64) -> f64 {
    move |gap| 1.0 - (-gap / mean).exp()
}

#[test]
fn constant_slots_are_one_period_apart_for_ever() {
    let mut schedule = Schedule::without_offset(Law::Constant, 3, START, seed(1));
    let at = take(&mut schedule, 30_001);
    // A third of a second has no whole nanoseconds: nothing of it is lost over three hours.
    assert!(at.windows(2).all(|pair| (333_333_333..=333_333_334).contains(&(pair[1] - pair[0]))));
    assert_eq!(at[30_000] - at[0], 10_000 * Nanos::SECOND.0);
}

#[test]
fn jittered_slots_stay_inside_their_period_and_fill_it() {
    let at = deadlines(Law::Jittered, 20_000);
    let base = Schedule::without_offset(Law::Jittered, RATE, START, seed(1)).base >> FRACTION;
    let base = u64::try_from(base).unwrap();
    let offsets: Vec<f64> =
        at.iter().enumerate().map(|(k, t)| (t - base - k as u64 * 1_000_000) as f64).collect();
    assert!(offsets.iter().all(|&o| o < PERIOD));
    assert!(misfit(&offsets, |o| o / PERIOD) < 1.63);
    assert!(misfit(&offsets, |o| (o / PERIOD).powf(1.1)) > 1.63, "another law would not be told");
}

#[test]
fn poisson_gaps_are_exponential_and_bounded() {
    let gaps = gaps(&deadlines(Law::Poisson, 50_000));
    assert!(gaps.iter().all(|&gap| gap <= 20.0 * PERIOD));
    assert!(misfit(&gaps, exponential_law(PERIOD)) < 1.63);
    assert!(misfit(&gaps, exponential_law(0.97 * PERIOD)) > 1.63, "a rate off by 3 % would not be told");
    let capped: Vec<f64> = gaps.iter().map(|gap| gap.min(3.0 * PERIOD)).collect();
    assert!(misfit(&capped, exponential_law(PERIOD)) > 1.63, "a cap of three means would not be told");
    // What is left out: the share beyond the cap, and what that takes from the mean.
    let beyond = (-f64::from(POISSON_LONGEST)).exp();
    let mut longest = Extreme(u64::MAX);
    let most = exponential(&mut longest, 1 << 40) as f64 / (1_u64 << 40) as f64;
    assert!(most <= 20.0 && most > 19.9, "{most}");
    assert_eq!(exponential(&mut Extreme(0), 1 << 40), 0);
    assert!((20.0 * beyond / (1.0 - beyond) - 4.1e-8).abs() < 1e-9);
}

/// Gives the same number always.
struct Extreme(u64);

impl rand_core::TryRng for Extreme {
    type Error = std::convert::Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::try_from(self.0 >> 32).unwrap())
    }
    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0)
    }
    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Self::Error> {
        dst.fill(0);
        Ok(())
    }
}

#[test]
fn patterns_repeat_their_proportions_at_the_classs_rate() {
    let pattern = Pattern::new(&[1, 1, 6, 2]).unwrap();
    // Four slots in 4 ms: a unit is 400 µs.
    let expected = [400_000, 400_000, 2_400_000, 800_000_i64];
    for number in 0..50 {
        let mut schedule = Schedule::without_offset(Law::Pattern(pattern), RATE, START, seed(number));
        assert_eq!(schedule.period(), Nanos(1_000_000));
        let place = usize::from(schedule.place);
        let at = take(&mut schedule, 4001);
        for (index, pair) in at.windows(2).enumerate() {
            let gap = i64::try_from(pair[1] - pair[0]).unwrap();
            assert!((gap - expected[(place + index) % 4]).abs() <= 1, "slot {index}: {gap}");
        }
        assert_eq!(at[4000] - at[0], 4_000_000_000);
    }
}

#[test]
fn every_law_keeps_the_classs_rate() {
    for law in laws() {
        for rate in [3, 7, 1500, MAX_RATE] {
            let mut schedule = Schedule::without_offset(law, rate, START, seed(3));
            let at = take(&mut schedule, 20_001);
            let mean = (at[20_000] - at[0]) as f64 / 20_000.0 * f64::from(rate) / 1e9;
            // Five standard deviations of the mean of as many exponential gaps; the others are off by a gap or two.
            let tolerance = if law == Law::Poisson { 5.0 / 20_000_f64.sqrt() } else { 1e-4 };
            assert!((mean - 1.0).abs() < tolerance, "{law} at {rate}: {mean}");
        }
    }
}

#[test]
fn rates_are_off_by_up_to_200_ppm_uniformly() {
    for law in laws() {
        let offset = |number| {
            let schedule = Schedule::new(law, RATE, START, seed(number));
            schedule.mean() as f64 / nominal(RATE) as f64 - 1.0
        };
        let offsets: Vec<f64> = (0..4000).map(offset).collect();
        assert!(offsets.iter().all(|offset| offset.abs() < 200.1e-6));
        assert!(misfit(&offsets, |offset| (offset + 200e-6) / 400e-6) < 1.63, "{law}");
        // It is the slots that have it, not only what they are said to have.
        let mut schedule = Schedule::new(law, RATE, START, seed(9));
        let first = schedule.deadline();
        let count = schedule.skip_to(first + Nanos(100_000 * Nanos::SECOND.0));
        let mean = schedule.deadline().since(first).0 as f64 / count as f64;
        // By `poisson` the count is a mean, but for the 33 slots that were gone through.
        let tolerance = if law == Law::Poisson { 1e-6 } else { 1e-7 };
        assert!((mean / PERIOD - 1.0 - offset(9)).abs() < tolerance, "{law}: {mean}");
    }
}

#[test]
fn an_offset_stays_with_its_link_whatever_the_class() {
    let mut rng = ChaCha8Rng::from_seed(seed(5));
    for _ in 0..100 {
        let offset = RateOffset::draw(&mut rng);
        let off = |(law, rate)| {
            let schedule = Schedule::with_offset(law, rate, offset, START, seed(rng.next_u64()));
            schedule.mean() as f64 / nominal(rate) as f64 - 1.0
        };
        let offs = laws().into_iter().zip([20, 300, 1500, MAX_RATE]).map(off).collect::<Vec<f64>>();
        assert!(offs.iter().all(|off| (off - offs[0]).abs() < 1e-9 && off.abs() < 200.1e-6), "{offs:?}");
    }
}

#[test]
fn the_mean_of_a_days_offsets_is_not_the_clock_and_no_two_are_alike() {
    let nominal = 1_000_000 << FRACTION;
    let ppm = |offset: RateOffset| (offset.apply(nominal) as f64 / nominal as f64 - 1.0) * 1e6;
    let mut rng = ChaCha8Rng::from_seed(seed(6));
    // Of one node, from some time of a day on.
    let day = |offsets: &mut Offsets, from: u64, rng: &mut ChaCha8Rng| -> Vec<f64> {
        (0..500).map(|link| ppm(offsets.draw(Nanos((from + link * 100) * Nanos::SECOND.0), rng))).collect()
    };
    let mut nodes: Vec<Offsets> = (0..200).map(|_| Offsets::default()).collect();
    let days: Vec<Vec<f64>> = nodes.iter_mut().map(|node| day(node, 7, &mut rng)).collect();
    assert!(days.iter().flatten().all(|off| off.abs() < 200.1));
    let means: Vec<f64> = days.iter().map(|day| day.iter().sum::<f64>() / day.len() as f64).collect();
    // 57.7 / sqrt(500) ppm is how far a mean of 500 strays: 2.6; nodes' own halves are uniform over 200 ppm.
    assert!(misfit(&means, |mean| ((mean + 100.0) / 200.0).clamp(0.0, 1.0)) < 1.63);
    let around: Vec<f64> = days.iter().zip(&means).map(|(day, mean)| day[0] - mean).collect();
    assert!(misfit(&around, |off| ((off + 100.0) / 200.0).clamp(0.0, 1.0)) < 1.63);
    let next: Vec<Vec<f64>> = nodes.iter_mut().map(|node| day(node, 86_407, &mut rng)).collect();
    let moved = means.iter().zip(&next).filter(|(mean, day)| {
        let next = day.iter().sum::<f64>() / day.len() as f64;
        (next - *mean).abs() > 20.0
    });
    assert!(moved.count() > 140, "the next day's half is another one");
}

#[test]
fn the_phase_is_random() {
    let pattern = laws()[3];
    let first = |law, number| {
        let schedule = Schedule::without_offset(law, RATE, START, seed(number));
        (schedule.deadline() - START).0 as f64
    };
    let of = |law| (0..4000).map(|number| first(law, number)).collect::<Vec<f64>>();
    assert!(misfit(&of(Law::Constant), |at| at / PERIOD) < 1.63);
    assert!(misfit(&of(Law::Poisson), exponential_law(PERIOD)) < 1.63);
    // From any instant on: the share of the round that lies less than `at` before a slot.
    let covered = |at: f64| [0.4, 0.4, 2.4, 0.8].iter().map(|gap| (at / PERIOD).min(*gap)).sum::<f64>() / 4.0;
    assert!(misfit(&of(pattern), covered) < 1.63);
    for place in 0..4 {
        let at = |number| Schedule::without_offset(pattern, RATE, START, seed(number)).place == place;
        let share = (0..4000).filter(|&number| at(number)).count() as f64 / 4000.0;
        // The slot behind a gap is as likely as the gap is long.
        let expected = [0.2, 0.1, 0.1, 0.6][usize::from(place)];
        assert!((share - expected).abs() < 0.03, "place {place}: {share}");
    }
}

#[test]
fn skipping_lands_on_the_slot_that_going_through_them_all_would_find() {
    for law in laws() {
        for ahead in [0, 1, 300_000, 999_999, 1_000_000, 1_500_000, 20_000_000, 20_000_123] {
            for number in 0..20 {
                let mut skipping = Schedule::new(law, RATE, START, seed(number));
                let mut walking = Schedule::new(law, RATE, START, seed(number));
                let earliest = skipping.deadline() + Nanos(ahead);
                let skipped = skipping.skip_to(earliest);
                let mut walked = 0;
                while walking.deadline() < earliest {
                    walking.advance();
                    walked += 1;
                }
                assert!(skipping.deadline >= earliest, "{law} {ahead}");
                if law == Law::Jittered {
                    // Offsets of slots that nobody looked at are not drawn: the next one's is another.
                    assert!(skipped.abs_diff(walked) <= 1);
                    assert!(skipping.deadline.since(earliest).0 < 2_001_000);
                } else {
                    assert_eq!((skipping.deadline, skipped), (walking.deadline, walked), "{law} {ahead}");
                }
            }
        }
    }
}

#[test]
fn a_skip_over_days_counts_what_it_skips() {
    const DAY: u64 = 86_400_000_000_123;
    for law in laws() {
        let (mut waits, mut count) = (Vec::new(), 0.0);
        for number in 0..2000 {
            let mut schedule = Schedule::without_offset(law, RATE, START, seed(number));
            let earliest = schedule.deadline() + Nanos(DAY);
            count += schedule.skip_to(earliest) as f64;
            let wait = schedule.deadline().since(earliest).0 as f64;
            waits.push(wait);
        }
        assert!((count / 2000.0 / 86_400_000.0 - 1.0).abs() < 1e-6, "{law}: {count}");
        match law {
            Law::Constant => assert!(waits.iter().all(|&wait| wait < PERIOD)),
            Law::Poisson => assert!(misfit(&waits, exponential_law(PERIOD)) < 1.63),
            Law::Jittered | Law::Pattern(_) => assert!(waits.iter().all(|&wait| wait < 2.4 * PERIOD)),
        }
    }
}

#[test]
fn no_stretch_has_more_slots_than_the_most() {
    for law in laws() {
        let mut schedule = Schedule::new(law, RATE, START, seed(2));
        let most = |span| schedule.most_within(Nanos(span));
        let spans = [1, 204_096, 400_000, 1_000_000, 2_204_096, 3_999_000, 4_001_000, 50_000_000];
        let bounds = spans.map(most);
        let at = take(&mut schedule, 20_000);
        for (span, bound) in spans.into_iter().zip(bounds) {
            let within = |from: usize| at[from..].iter().take_while(|&&t| t < at[from] + span).count() as u64;
            let found = (0..at.len()).map(within).max().unwrap();
            assert!(found <= bound, "{law}, {span} ns: {found} of {bound}");
            if law != Law::Poisson {
                assert!(found + 2 >= bound, "{law}, {span} ns: {found}, far below {bound}");
            }
        }
    }
}

#[test]
fn the_seed_decides() {
    for law in laws() {
        let of = |number| take(&mut Schedule::new(law, RATE, START, seed(number)), 100);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}

/// A relay has one for each link, with the pattern in it.
#[test]
fn a_schedule_is_small() {
    assert!(size_of::<Schedule>() <= 448, "{} bytes", size_of::<Schedule>());
}

#[test]
fn circuits_get_what_a_link_can_spare() {
    assert_eq!(Law::Constant.usable(2000, Law::Jittered), 1992);
    assert_eq!(Law::Constant.usable(2000, Law::Poisson), 1750);
    assert_eq!(Law::Poisson.usable(2000, Law::Constant), 1750);
    assert_eq!(Law::Constant.usable(1, Law::Constant), 0);
}

fn any_law() -> impl Strategy<Value = Law> {
    let pattern = prop::collection::vec(1_i64..=100, 2..=MAX_SLOTS);
    prop_oneof![
        Just(Law::Constant),
        Just(Law::Jittered),
        Just(Law::Poisson),
        pattern.prop_map(|gaps| Law::Pattern(Pattern::new(&gaps).unwrap())),
    ]
}

proptest! {
    #[test]
    fn slots_go_forward_whatever_is_skipped(
        law in any_law(),
        rate in 1_u32..=MAX_RATE,
        number: u64,
        start in 0_u64..1 << 60,
        skips in prop::collection::vec(0_u64..1 << 50, 0..20),
    ) {
        let mut schedule = Schedule::new(law, rate, Nanos(start), seed(number));
        let longest = law.longest_gap() * 1e9 / f64::from(rate) * 1.001 + 2.0;
        prop_assert!(schedule.deadline() >= Nanos(start));
        prop_assert!((schedule.deadline().0 - start) as f64 <= longest);
        for skip in skips {
            let before = schedule.deadline();
            let earliest = before + Nanos(skip);
            let skipped = schedule.skip_to(earliest);
            prop_assert_eq!(skipped == 0, skip == 0);
            prop_assert!(schedule.deadline() >= earliest);
            prop_assert!((schedule.deadline() - earliest).0 as f64 <= longest);
            schedule.advance();
            prop_assert!(schedule.deadline() >= earliest);
        }
    }
}
