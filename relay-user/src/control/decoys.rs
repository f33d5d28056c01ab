//! Decoy sessions of a client: circuits that come and go by a timetable drawn ahead. What its user does has no part in it:
//! a relay that counts circuits, and sees them begin, end and fall silent, does not count his sessions.
//!
//! | | with circuit cover | with link cover |
//! | --- | --- | --- |
//! | while one lives | always busy, as the client's own circuit is | busy and quiet by turns |
//! | of the link's slots | one in two: both are alike to relays | one in four while it is busy, always the same ones |
//! | where nothing comes any more | built anew, as his own is | not noticed, as with his own |
//!
//! They are no doubles of his own circuit in everything: that one lives for hours, and now and then carries packets, which
//! its exit sees; with link cover, the exit also sees the flag that asks for answers.

use super::action::Outbox;
use super::builder::Builder;
use super::circuits::PathRelay;
use super::links::Links;
use crate::config::DecoyPlan;
use crate::crypto::Suite;
use crate::engine::Command;
use crate::engine::time::Nanos;
use crate::worker::OWN_CIRCUITS;
use rand_core::Rng;
use std::time::Duration;

/// A drawn length is at most so many times its mean.
const LONGEST: f64 = 8.0;
/// One slot in so many is a decoy's: beside circuit cover, whose rate it would otherwise stand out from, and beside link
/// cover, where the client's own circuit has what its packets take.
const SHARES: [u32; 2] = [2, 4];
/// Attempts to build a decoy's circuit; then the sitting passes without one.
const ATTEMPTS: u32 = 3;

/// One decoy circuit's time, drawn before it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sitting {
    begin: Nanos,
    end: Nanos,
    /// Which of the paths it takes.
    path: usize,
    /// When the spell that holds at the moment ends; busy ones and quiet ones alternate, a busy one first.
    spells: Vec<Nanos>,
}

impl Sitting {
    /// The sitting after `from`.
    fn draw(plan: DecoyPlan, paths: usize, from: Nanos, rng: &mut impl Rng) -> Self {
        let begin = from + length(plan.pause(), rng);
        let end = begin + length(plan.life, rng);
        let mut spells = Vec::new();
        let mut at = begin;
        while at < end && spells.len() < MOST_SPELLS {
            at = at + length(plan.spell, rng);
            spells.push(at);
        }
        let path = usize::try_from(rng.next_u64() % paths.max(1) as u64).unwrap_or(0);
        Self { begin, end, path, spells }
    }

    /// Whether `now` lies in a busy spell. Behind the last one drawn it is quiet.
    fn is_busy(&self, now: Nanos) -> bool {
        let passed = self.spells.partition_point(|&end| end <= now);
        passed < self.spells.len() && passed.is_multiple_of(2)
    }
}

/// Sittings passed over in one look, at most.
const MOST_SLEPT_THROUGH: usize = 64;
/// Spells of one sitting, at most.
const MOST_SPELLS: usize = 4096;

/// A length with this mean by the exponential law, cut off at [`LONGEST`] times the mean: when a spell has lasted tells
/// nothing of how long it will.
fn length(mean: Duration, rng: &mut impl Rng) -> Nanos {
    // 53 bits, as many as the type holds; never zero.
    let uniform = ((rng.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    let factor = (-uniform.ln()).min(LONGEST);
    Nanos(u64::try_from(mean.mul_f64(factor).as_nanos()).unwrap_or(u64::MAX))
}

/// Keeps the timetable.
#[derive(Debug)]
pub(super) struct Decoys {
    plan: DecoyPlan,
    paths: Vec<Vec<PathRelay>>,
    suite: Suite,
    /// The client's own circuit fills its slots.
    covered: bool,
    sitting: Sitting,
    builder: Option<Builder>,
    /// The circuit is there and fills its turns.
    busy: bool,
    begun: u64,
}

impl Decoys {
    /// `paths` are those that a decoy may take; `covered` says whether the client's own circuit fills its slots.
    pub(super) fn new(
        plan: DecoyPlan,
        paths: Vec<Vec<PathRelay>>,
        suite: Suite,
        covered: bool,
        now: Nanos,
        rng: &mut impl Rng,
    ) -> Self {
        let sitting = Sitting::draw(plan, paths.len(), now, rng);
        Self { plan, paths, suite, covered, sitting, builder: None, busy: false, begun: 0 }
    }

    /// Circuits begun so far.
    pub(super) const fn begun(&self) -> u64 {
        self.begun
    }

    /// The circuit under way, for the events that concern it.
    pub(super) const fn builder(&mut self) -> Option<&mut Builder> {
        self.builder.as_mut()
    }

    /// Begins, ends, quickens and quiets what is due. `last_delivery` is when a cell last came over a decoy.
    pub(super) fn on_tick(
        &mut self,
        now: Nanos,
        last_delivery: Nanos,
        links: &Links,
        rng: &mut impl Rng,
        out: &mut Outbox,
    ) {
        // Those that a host slept through are left out.
        for _ in 0..MOST_SLEPT_THROUGH {
            if now < self.sitting.end {
                break;
            }
            if let Some(mut builder) = self.builder.take() {
                builder.close(out);
            }
            // From the end that was drawn: how late this comes depends on what else the host does.
            self.sitting = Sitting::draw(self.plan, self.paths.len(), self.sitting.end, rng);
            self.busy = false;
        }
        if now < self.sitting.begin {
            return;
        }
        let builder = match &mut self.builder {
            Some(builder) => builder,
            None => {
                let Some(path) = self.paths.get(self.sitting.path) else { return };
                self.begun += 1;
                let first = OWN_CIRCUITS | u32::from(!self.begun.is_multiple_of(2));
                let [covered, alone] = SHARES;
                let share = if self.covered { covered } else { alone };
                self.builder.insert(Builder::decoy(path.clone(), self.suite, first, share, self.covered))
            }
        };
        if builder.attempts() < ATTEMPTS {
            builder.on_tick(now, last_delivery, links, rng, out);
        }
        let Some(circuit) = builder.open_circuit() else {
            // A circuit fills its turns from its first moment on.
            self.busy = true;
            return;
        };
        let busy = self.covered || self.sitting.is_busy(now);
        if busy != self.busy {
            self.busy = busy;
            out.worker(Command::SetCover { circuit, cover: busy });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::action::Action;
    use crate::control::links::{Pace, Rates};
    use crate::engine::schedule::Law;
    use crate::rates::{Epochs, Unix};
    use crate::xsk::Arena;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    const PLAN: DecoyPlan =
        DecoyPlan { per_day: 48, life: Duration::from_secs(600), spell: Duration::from_secs(20) };

    #[test]
    fn sittings_keep_the_means_and_never_overlap() {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let (mut at, mut lives, mut busy) = (Nanos(0), 0.0, 0_u64);
        let count = 4000;
        for _ in 0..count {
            let sitting = Sitting::draw(PLAN, 3, at, &mut rng);
            assert!(sitting.begin >= at && sitting.end >= sitting.begin && sitting.path < 3);
            assert!(u128::from(sitting.end.since(sitting.begin).0) <= 8 * PLAN.life.as_nanos());
            lives += sitting.end.since(sitting.begin).0 as f64;
            let middle = Nanos(sitting.begin.0.midpoint(sitting.end.0));
            busy += u64::from(sitting.is_busy(middle));
            at = sitting.end;
        }
        let day = 86_400.0 * Nanos::SECOND.0 as f64;
        let per_day = f64::from(count) / (at.0 as f64 / day);
        assert!((per_day - 48.0).abs() < 3.0, "{per_day} a day");
        assert!((lives / f64::from(count) / PLAN.life.as_nanos() as f64 - 1.0).abs() < 0.06);
        let share = busy as f64 / f64::from(count);
        assert!(
            (0.45..0.65).contains(&share),
            "busy half of the time, a little more since that comes first: {share}"
        );
    }

    /// What a decoy without a path asks of the worker in a day.
    fn covers(covered: bool) -> usize {
        let mut rng = ChaCha20Rng::from_seed([6; 32]);
        let paces = vec![Pace { law: Law::Constant, rate: 1500 }];
        let rates = Rates::new(paces, Epochs::new(3600), Unix::from_seconds(86_400), Nanos(0), [1; 16]);
        let links = Links::new(Suite::Aes256Gcm, None, vec![], 1, 1, rates);
        let mut out = Outbox::new(Arena::anonymous(16).unwrap());
        let relay = PathRelay { name: "entry".into(), id: [1; 16], public: [9; 32] };
        let mut decoys = Decoys::new(PLAN, vec![vec![relay]], Suite::Aes256Gcm, covered, Nanos(0), &mut rng);
        let spells = (1..100).map(|spell| Nanos(20 * spell * Nanos::SECOND.0)).collect();
        decoys.sitting = Sitting { begin: Nanos(0), end: Nanos(u64::MAX), path: 0, spells };
        let relay = PathRelay { name: "entry".into(), id: [1; 16], public: [9; 32] };
        decoys.builder = Some(Builder::opened(vec![relay], Suite::Aes256Gcm));
        for second in 0..1000 {
            decoys.on_tick(Nanos(second * Nanos::SECOND.0), Nanos(u64::MAX / 2), &links, &mut rng, &mut out);
        }
        let set = |action: &&Action| matches!(action, Action::Worker(Command::SetCover { .. }));
        out.actions.iter().filter(set).count()
    }

    #[test]
    fn beside_circuit_cover_a_decoy_is_never_quiet() {
        // What comes of it is that it is busy, once.
        assert_eq!(covers(true), 1);
        assert!(covers(false) > 10, "by spells of 20 seconds");
    }

    #[test]
    fn a_sitting_is_busy_first_and_quiet_at_last() {
        let mut rng = ChaCha20Rng::from_seed([5; 32]);
        let sitting = Sitting::draw(PLAN, 1, Nanos(0), &mut rng);
        assert!(sitting.is_busy(sitting.begin));
        assert!(!sitting.is_busy(Nanos(sitting.spells[0].0)));
        assert!(!sitting.is_busy(Nanos(u64::MAX)));
    }
}
