//! Decoy sessions of a client: circuits that come and go, and are busy and quiet, by a timetable drawn ahead. What its
//! user does has no part in it: a relay that counts circuits, and sees them begin, end and fall silent, does not count
//! his sessions. They are no doubles of his own circuit, which lives for hours: a relay that looks at one circuit for long
//! may tell which kind it is.

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
    sitting: Sitting,
    builder: Option<Builder>,
    /// The circuit is there and fills its turns.
    busy: bool,
    begun: u64,
}

impl Decoys {
    /// `paths` are those that a decoy may take.
    pub(super) fn new(
        plan: DecoyPlan,
        paths: Vec<Vec<PathRelay>>,
        suite: Suite,
        now: Nanos,
        rng: &mut impl Rng,
    ) -> Self {
        let sitting = Sitting::draw(plan, paths.len(), now, rng);
        Self { plan, paths, suite, sitting, builder: None, busy: false, begun: 0 }
    }

    /// Circuits begun so far.
    pub(super) const fn begun(&self) -> u64 {
        self.begun
    }

    /// The circuit under way, for the events that concern it.
    pub(super) const fn builder(&mut self) -> Option<&mut Builder> {
        self.builder.as_mut()
    }

    /// Begins, ends, quickens and quiets what is due.
    pub(super) fn on_tick(&mut self, now: Nanos, links: &Links, rng: &mut impl Rng, out: &mut Outbox) {
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
                self.builder.insert(Builder::decoy(path.clone(), self.suite, OWN_CIRCUITS, self.begun))
            }
        };
        if builder.attempts() < ATTEMPTS {
            builder.on_tick(now, now, links, rng, out);
        }
        let Some(circuit) = builder.open_circuit() else {
            // A circuit fills its turns from its first moment on.
            self.busy = true;
            return;
        };
        let busy = self.sitting.is_busy(now);
        if busy != self.busy {
            self.busy = busy;
            out.worker(Command::SetCover { circuit, cover: busy });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_sitting_is_busy_first_and_quiet_at_last() {
        let mut rng = ChaCha20Rng::from_seed([5; 32]);
        let sitting = Sitting::draw(PLAN, 1, Nanos(0), &mut rng);
        assert!(sitting.is_busy(sitting.begin));
        assert!(!sitting.is_busy(Nanos(sitting.spells[0].0)));
        assert!(!sitting.is_busy(Nanos(u64::MAX)));
    }
}
