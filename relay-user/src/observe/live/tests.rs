use super::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

const LINKS: u32 = 8;

/// Short epochs, so that many fit into a test.
const SHORT: Pace = Pace { cluster: 256, cells: 1 << 14, span: 1 };

/// Cells of a worker on a grid of 32 µs, link by link, whose payload comes in bursts.
struct Source {
    rng: ChaCha8Rng,
    /// Whether each link is in a burst.
    on: [bool; LINKS as usize],
    /// Cells that the stall still holds up.
    stalled: u32,
    cell: u32,
}

/// What is true of the cells of a [`Source`].
#[derive(Clone, Copy, Default)]
struct Truth {
    /// Nanoseconds that cells of payload are later.
    delay: u64,
    /// Nanoseconds that all cells of a busy hour are later; payload comes mostly in busy hours.
    load: u64,
    /// Nanoseconds that odd links are later; payload comes mostly on odd links.
    unequal: u64,
}

impl Source {
    fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), on: [false; LINKS as usize], stalled: 0, cell: 0 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    fn next(&mut self, truth: Truth) -> (u32, bool, u64) {
        let link = self.cell % LINKS;
        let busy = truth.load == 0 || (self.cell / 4096) % 2 == 1;
        self.cell += 1;
        // Bursts of 50 cells; a third of the time with, a sixth without a reason to be rare.
        let rare = !busy || (truth.unequal > 0 && link.is_multiple_of(2));
        let end = if rare { 5 } else { 50 };
        let on = self.on[link as usize];
        let turns = if on { self.below(end) == 0 } else { self.below(100) == 0 };
        self.on[link as usize] = on != turns;
        let payload = on && self.below(10) > 0;
        if self.below(4000) == 0 {
            self.stalled = 100;
        }
        let mut late = self.below(32_003);
        if self.stalled > 0 {
            self.stalled -= 1;
            late += 1000 * u64::from(self.stalled);
        }
        late += if busy { truth.load } else { 0 };
        late += u64::from(link % 2) * truth.unequal;
        late += if payload { truth.delay } else { 0 };
        (link, payload, late)
    }

    fn epochs(&mut self, audit: &mut SelfAudit, count: u32, truth: Truth) {
        for epoch in 0..count {
            for _ in 0..audit.all.pace[1] {
                let (link, payload, late) = self.next(truth);
                audit.note(link, payload, late);
            }
            audit.look(u64::from(epoch) * 10 + 10);
        }
    }
}

#[test]
fn a_delay_of_5_us_on_payload_is_found_in_each_epoch() {
    let mut audit = SelfAudit::new(LINKS, LONG);
    audit.look(1);
    Source::new(1).epochs(&mut audit, 3, Truth { delay: 5_000, ..Truth::default() });
    let state = audit.state();
    assert_eq!((state.epochs, state.breaches), (3, 3));
    // 5 of 32 µs: an AUC of 0.64 between two uniform laws, a little less in bins and beside stalls.
    assert!(state.last.is_some_and(|(_, breach)| breach.at_least >= 0.1), "{state:?}");
}

const LONG: Pace = Pace { cluster: 1 << 10, cells: 1 << 17, span: 1 };

#[test]
fn what_one_link_of_sixty_tells_is_found_and_of_the_others_nothing_is() {
    // Of all links together, the AUC is off by 0.15 / 64.
    let links = 64;
    for delay in [0, 5_000] {
        let mut audit = SelfAudit::new(links, LONG);
        audit.look(1);
        let mut sources: Vec<Source> = (0..u64::from(links)).map(Source::new).collect();
        for cell in 0..LONG.cells / OF_ONE + 100 {
            for (link, source) in (0..links).zip(&mut sources) {
                let delay = if link == 17 { delay } else { 0 };
                let (_, payload, late) = source.next(Truth { delay, ..Truth::default() });
                audit.note(link, payload, late);
            }
            if cell % 1000 == 0 {
                audit.look(u64::from(cell) + 10);
            }
        }
        audit.look(u64::MAX);
        let AuditState { breaches, last, .. } = audit.state();
        assert_eq!(breaches, u64::from(delay > 0), "{delay} ns: {last:?}");
        assert!(last.is_none_or(|(_, breach)| breach.at_least >= 0.1), "{last:?}");
    }
}

#[test]
fn a_link_that_begins_is_not_held_against_the_one_before() {
    let mut audit = SelfAudit::new(1, SHORT);
    // Cover of the old link is early, payload of the new one late.
    for _ in 0..10_000 {
        (0..16).for_each(|_| audit.note(0, false, 100));
        audit.begin_link(0);
        (0..16).for_each(|_| audit.note(0, true, 10_000));
        audit.begin_link(0);
    }
    audit.look(1);
    audit.look(10);
    assert_eq!((audit.state().epochs, audit.state().breaches), (1, 0));
}

/// The AUC of all cells lumped together.
fn lumped_auc([cover, payload]: [[f64; BINS]; 2]) -> f64 {
    let (wins, pairs) = crate::observe::stats::ranked(cover.into_iter().zip(payload).map(|(c, p)| [c, p]));
    wins / pairs
}

#[test]
fn payload_that_comes_with_load_or_on_slow_links_is_no_breach() {
    for truth in [Truth { load: 20_000, ..Truth::default() }, Truth { unequal: 20_000, ..Truth::default() }] {
        let mut audit = SelfAudit::new(LINKS, SHORT);
        let mut lumped = [[0.0; BINS]; 2];
        audit.look(1);
        let mut source = Source::new(2);
        for epoch in 1..=20 {
            for _ in 0..SHORT.cells {
                let (link, payload, late) = source.next(truth);
                audit.note(link, payload, late);
                lumped[usize::from(payload)][bin(late)] += 1.0;
            }
            audit.look(10 * epoch);
        }
        assert_eq!((audit.state().epochs, audit.state().breaches), (20, 0), "{:?}", audit.state());
        let auc = lumped_auc(lumped);
        assert!(auc > 0.6, "the trap is none: {auc}");
    }
}

/// Many epochs in which nothing is wrong: the sums stray as little as the bound on false alarms says.
#[test]
fn chance_alone_strays_no_further_than_it_may() {
    let mut audit = SelfAudit::new(LINKS, Pace { cluster: 256, cells: 1 << 13, span: 1 });
    let mut source = Source::new(3);
    let (mut beyond_two, mut beyond_three, mut farthest) = (0, 0, 0.0_f64);
    const EPOCHS: u32 = 150;
    for epoch in 0..EPOCHS {
        for _ in 0..1 << 13 {
            let (link, payload, late) = source.next(Truth::default());
            audit.note(link, payload, late);
        }
        let ranks = audit.all.scores[RANKS].deviations();
        beyond_two += u32::from(ranks > 2.0);
        beyond_three += u32::from(ranks > 3.0);
        farthest = audit.all.scores.iter().map(Score::deviations).fold(farthest, f64::max);
        audit.look(u64::from(epoch) * 10 + 10);
    }
    // 2·exp(-z²/2) of 150: 40 and 1.7. The normal law would give 6.8 and 0.4.
    assert!((1..=20).contains(&beyond_two), "{beyond_two}");
    assert!(beyond_three <= 3, "{beyond_three}");
    assert!(farthest < 5.5, "{farthest}");
    assert_eq!(audit.state().breaches, 0);
}

#[test]
fn what_is_sure_but_small_is_no_breach() {
    let mut audit = SelfAudit::new(1, Pace { cluster: 256, cells: 1 << 17, span: 1 });
    audit.look(1);
    // Every other cell is payload. One in 50 of it is late, and no cover ever is.
    for cell in 0..1_u32 << 17 {
        let payload = cell % 2 == 0;
        let late = payload && cell % 100 == 0;
        audit.note(0, payload, if late { 10_000 } else { 100 });
    }
    assert!(audit.all.scores[RANKS].deviations() > SURE);
    audit.look(10);
    assert_eq!((audit.state().epochs, audit.state().breaches), (1, 0));
}

#[test]
fn epochs_end_by_cells_and_time_whatever_the_cells_are() {
    let pace = Pace { cluster: 16, cells: 100, span: 1000 };
    for payload in [false, true] {
        let mut audit = SelfAudit::new(1, pace);
        audit.look(1);
        for _ in 0..99 {
            audit.note(0, payload, 100);
        }
        audit.look(5000);
        assert_eq!(audit.state().epochs, 0);
        audit.note(0, payload, 100);
        audit.look(5001);
        assert_eq!(audit.state(), AuditState { epochs: 1, breaches: 0, last: None });
        (0..100).for_each(|_| audit.note(0, payload, 100));
        audit.look(6000);
        assert_eq!(audit.state().epochs, 1, "less than a span later");
    }
}

#[test]
fn bins_rise_by_half_octaves() {
    let firsts = [0, 512, 768, 1024, 1536, 2048];
    for (expected, first) in firsts.into_iter().enumerate() {
        assert_eq!(bin(first), expected, "{first}");
        assert_eq!(bin(first.saturating_sub(1)), expected.saturating_sub(1), "{first}");
    }
    assert_eq!(bin(u64::MAX), BINS - 1);
    let all: Vec<usize> = (0..4_000_000).step_by(100).map(bin).collect();
    assert!(all.is_sorted() && all.contains(&(BINS - 2)), "{:?}", all.last());
}

#[test]
fn links_beyond_those_that_there_are_count_for_nothing() {
    let mut audit = SelfAudit::new(2, Pace::default());
    audit.note(2, true, 0);
    audit.note(u32::MAX, true, 0);
    assert_eq!(audit.all.cells, 0);
}

#[test]
fn of_two_workers_breaches_the_later_is_told() {
    let breach = |found, statistic, at_least| AuditState {
        epochs: 2,
        breaches: 1,
        last: Some((found, Breach { statistic, at_least })),
    };
    let (small, large) = (breach(9, Statistic::Auc, 0.02), breach(3, Statistic::Distance, 0.2));
    for joined in [small.join(large), large.join(small)] {
        assert_eq!((joined.epochs, joined.breaches, joined.last), (4, 2, small.last));
    }
    assert_eq!(AuditState::default().join(small).last, small.last);
    assert_eq!(small.join(AuditState::default()).last, small.last);
}
