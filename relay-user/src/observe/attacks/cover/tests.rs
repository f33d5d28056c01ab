use super::*;
use crate::observe::finding::Verdict;
use rand_core::SeedableRng;

const LINKS: usize = 8;

/// What is true of a run.
#[derive(Clone, Copy)]
struct Truth {
    cells: usize,
    /// Nanoseconds that payload is later.
    delay: f64,
    /// Nanoseconds that odd links are later; these have most of the payload.
    unequal: f64,
    /// Cells between stalls, on average.
    stalls: u64,
}

const CLEAN: Truth = Truth { cells: 40_000, delay: 0.0, unequal: 0.0, stalls: 500 };

/// Cells of links in turn on a grid of 32 µs, with bursts of payload, and stalls that hold hundreds of cells up.
fn run(truth: Truth, seed: u64) -> Vec<Emission> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = move |bound: u64| rng.next_u64() % bound;
    let (mut on, mut last) = ([false; LINKS], [f64::NAN; LINKS]);
    let mut stalled = 0_u64;
    (0..truth.cells)
        .map(|number| {
            let link = number % LINKS;
            let often = if truth.unequal > 0.0 && link.is_multiple_of(2) { 1000 } else { 40 };
            on[link] ^= below(if on[link] { 40 } else { often }) == 0;
            let payload = on[link] && below(10) > 0;
            stalled = if below(truth.stalls) == 0 { 200 } else { stalled.saturating_sub(1) };
            let late = below(32_003) as f64
                + stalled as f64 * 500.0
                + if payload { truth.delay } else { 0.0 }
                + if link % 2 == 1 { truth.unequal } else { 0.0 };
            let at = number as f64 * 100_000.0 + late;
            let gap = at - std::mem::replace(&mut last[link], at);
            let service = if number.is_multiple_of(3) { f64::NAN } else { 50.0 + below(20) as f64 };
            let place = (number % 3) as f64;
            let at = number as u64 * 100_000;
            Emission { at, link: u32::try_from(link).unwrap(), payload, lateness: late, place, service, gap }
        })
        .collect()
}

fn compared(truth: Truth, view: View, seed: u64) -> Comparison {
    compare_by(&run(truth, seed), view, 199, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()
}

#[test]
fn a_planted_delay_of_5_us_is_found() {
    let cells = run(Truth { delay: 5_000.0, ..CLEAN }, 1);
    let found = compare(&cells, View::Lateness, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
    assert!(found.p < 0.001, "{found:?}");
    // 5 of 32 µs: an AUC of 0.64 between two uniform laws, a little less beside stalls.
    assert!((0.57..0.66).contains(&found.within) && found.distance > 0.08, "{found:?}");
    assert!(!found.interval.holds(0.5) && !found.within_interval.holds(0.5), "{found:?}");
}

#[test]
fn where_nothing_tells_the_interval_holds_one_half_as_often_as_it_says() {
    const RUNS: u64 = 40;
    let truth = CLEAN;
    let (mut held, mut within_held, mut low_p) = (0, 0, 0);
    for seed in 0..RUNS {
        let found = compared(truth, View::Lateness, 100 + seed);
        held += u32::from(found.interval.holds(0.5));
        within_held += u32::from(found.within_interval.holds(0.5));
        low_p += u32::from(found.p <= 0.05);
    }
    // 95 % of 40 is 38, three standard deviations are 4.
    assert!(held >= 33 && within_held >= 33, "{held} {within_held}");
    assert!(low_p <= 6, "{low_p}");
}

/// The trap: as if all cells were independent, stalls and bursts together give a leak now and then.
#[test]
fn cells_that_depend_on_each_other_are_not_counted_as_if_they_did_not() {
    let truth = Truth { cells: 40_000, stalls: 2000, ..CLEAN };
    let (mut naive, mut by_blocks) = (0, 0);
    for seed in 0..20 {
        let cells = run(truth, 300 + seed);
        let found = compare_by(&cells, View::Lateness, 1, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
        let (payload, cover) = (found.payload as f64, found.cover as f64);
        // The spread of an AUC of independent values without ties.
        let error = ((payload + cover + 1.0) / (12.0 * payload * cover)).sqrt();
        naive += u32::from((found.auc - 0.5).abs() > INTERVAL * error);
        by_blocks += u32::from(!found.interval.holds(0.5));
    }
    assert!(naive >= 4, "{naive}: the trap is none");
    assert!(by_blocks <= 4 && by_blocks < naive, "{by_blocks}");
}

#[test]
fn slow_links_with_most_of_the_payload_tell_only_where_they_are_lumped_together() {
    let found = compared(Truth { unequal: 15_000.0, ..CLEAN }, View::Lateness, 5);
    assert!(found.auc > 0.55, "{found:?}");
    assert!(found.within_interval.holds(0.5) && found.p > 0.01, "{found:?}");
}

#[test]
fn findings_have_their_targets_and_too_few_cells_no_power() {
    let cover = |truth, planted| {
        let (cells, mut rng) = (run(truth, 6), ChaCha8Rng::seed_from_u64(6));
        findings(planted, |view| compare_by(&cells, view, 1001, &mut rng))
    };
    let clean = cover(CLEAN, false);
    assert_eq!(clean.len(), 16);
    assert!(clean.iter().all(|it| matches!(it.verdict(), Verdict::Met | Verdict::Reported)), "{clean:?}");
    let planted = cover(Truth { delay: 5_000.0, ..CLEAN }, true);
    let verdicts: Vec<Verdict> = planted.iter().map(Finding::verdict).collect();
    assert_eq!(verdicts.iter().filter(|it| **it == Verdict::Met).count(), 1, "{planted:?}");
    assert!(verdicts.iter().all(|it| matches!(it, Verdict::Met | Verdict::Reported)));
    // The same delay where none may be.
    let leaking = cover(Truth { delay: 5_000.0, ..CLEAN }, false);
    assert!(leaking.iter().any(|it| it.verdict() == Verdict::Missed));
    let few = cover(Truth { cells: 1500, ..CLEAN }, false);
    assert!(few.iter().all(|it| it.verdict() == Verdict::NoPower), "{few:?}");
}

#[test]
fn equal_values_stay_together() {
    let cells = coded(&run(CLEAN, 7), View::Place);
    let codes: std::collections::BTreeSet<usize> = cells.iter().map(|cell| cell.code).collect();
    assert_eq!(codes.len(), 3);
    let place = compared(CLEAN, View::Place, 7);
    assert!((place.auc - 0.5).abs() < 0.02, "{place:?}");
}

#[test]
fn the_same_seed_gives_the_same() {
    assert_eq!(compared(CLEAN, View::Gap, 8), compared(CLEAN, View::Gap, 8));
}
