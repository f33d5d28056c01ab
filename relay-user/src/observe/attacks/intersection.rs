//! Attack 12: who was always there when somebody's partner must have been?

use super::shape::mean_unevenness;
use crate::observe::finding::{Attack, Finding, Target};
use crate::observe::learn::figure;
use crate::observe::stats::mean;
use crate::observe::trace::{Trace, Window};
use rand_chacha::ChaCha8Rng;

/// Who was seen in one stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Whether each sender was active.
    pub senders: Vec<bool>,
    /// Whether each receiver was.
    pub receivers: Vec<bool>,
}

/// A sender whose partner is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// Its place among the senders.
    pub sender: usize,
    /// The truth, by its place among the receivers.
    pub partner: usize,
    /// All who could be the partner, the partner among them, and not the sender itself.
    pub candidates: Vec<usize>,
}

/// Rounds that follow each other, with the same users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaign {
    /// What was seen.
    pub rounds: Vec<Round>,
    /// Whose partners are looked for. Of two who talk with each other, name one.
    pub sought: Vec<Sought>,
}

impl Campaign {
    /// The same in `parts` campaigns, one after the other, that are equally long but for the last.
    pub fn split(self, parts: usize) -> Vec<Self> {
        let Self { rounds, sought } = self;
        let length = rounds.len().div_ceil(parts.max(1)).max(1);
        rounds.chunks(length).map(|rounds| Self { rounds: rounds.to_vec(), sought: sought.clone() }).collect()
    }
}

/// What somebody is taken to be active by, for each round of a width in nanoseconds.
pub type Activity = fn(Window<'_>, u64) -> Vec<f64>;

/// Packets of each round: of who is always on at one rate, they say nothing.
pub fn by_packets(window: Window<'_>, width: u64) -> Vec<f64> {
    window.counts(width).into_iter().map(f64::from).collect()
}

/// How uneven the gaps of each round are, in microseconds: who works for a payload may send on time, and less so.
pub fn by_unevenness(window: Window<'_>, width: u64) -> Vec<f64> {
    mean_unevenness(window, width)
}

/// Rounds of `width` nanoseconds each, from `from` up to `until`. Active is who has more of `activity` than in its own mean
/// round.
pub fn rounds(
    senders: &[Trace],
    receivers: &[Trace],
    (from, until): (u64, u64),
    width: u64,
    activity: Activity,
) -> Vec<Round> {
    let active = |trace: &Trace| -> Vec<bool> {
        let rounds = activity(trace.window(from, until), width);
        let usual = mean(&rounds);
        rounds.into_iter().map(|round| round > usual).collect()
    };
    let senders: Vec<Vec<bool>> = senders.iter().map(active).collect();
    let receivers: Vec<Vec<bool>> = receivers.iter().map(active).collect();
    let count = senders.iter().chain(&receivers).map(Vec::len).min().unwrap_or(0);
    let at = |all: &[Vec<bool>], round: usize| all.iter().map(|one| one[round]).collect();
    (0..count).map(|round| Round { senders: at(&senders, round), receivers: at(&receivers, round) }).collect()
}

/// What an observer of these rounds believes of each candidate, with all alike at first. The sum is 1.
///
/// A candidate's activity either does not depend on the sender's, or has another chance while the sender is active;
/// both chances may be anything. Who is *less* active then is no likelier for it.
pub fn posterior(rounds: &[Round], sought: &Sought) -> Vec<f64> {
    let logs = Logs::up_to(rounds.len() + 1);
    let seen = |of: &[bool], who: usize| of.get(who) == Some(&true);
    let evidence: Vec<f64> = sought
        .candidates
        .iter()
        .map(|candidate| {
            let (mut with, mut without) = (Seen::default(), Seen::default());
            for round in rounds {
                let part = if seen(&round.senders, sought.sender) { &mut with } else { &mut without };
                part.rounds += 1;
                part.active += usize::from(seen(&round.receivers, *candidate));
            }
            let all = Seen { rounds: with.rounds + without.rounds, active: with.active + without.active };
            let more = logs.chance(with) + logs.chance(without) - logs.chance(all);
            if with.active * without.rounds < without.active * with.rounds { more.min(-more) } else { more }
        })
        .collect();
    let most = evidence.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = evidence.iter().map(|evidence| (evidence - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[derive(Clone, Copy, Default)]
struct Seen {
    rounds: usize,
    active: usize,
}

/// Logarithms of factorials.
struct Logs(Vec<f64>);

impl Logs {
    fn up_to(most: usize) -> Self {
        let mut sum = 0.0;
        let logs = (0..=most).map(|n| {
            sum += (n.max(1) as f64).ln();
            sum
        });
        Self(logs.collect())
    }

    /// The logarithm of how likely one sequence of this many active rounds is where every chance is as likely as every
    /// other: a! (n - a)! / (n + 1)!.
    fn chance(&self, seen: Seen) -> f64 {
        self.0[seen.active] + self.0[seen.rounds - seen.active] - self.0[seen.rounds + 1]
    }
}

/// What an observer believes of the true partners, on average. Against a perfect defence 1/N. The interval is by
/// campaign: fewer than six say nothing ([`Campaign::split`]), and 20 are better, as one partner who happens to be there
/// at the right times weighs much.
pub fn intersection(campaigns: &[Campaign], rng: &mut ChaCha8Rng) -> Finding {
    let mut beliefs: Vec<Vec<f64>> = Vec::new();
    let mut guesses = Vec::new();
    for campaign in campaigns.iter().filter(|campaign| !campaign.rounds.is_empty()) {
        let of = |sought: &Sought| {
            let place = sought.candidates.iter().position(|candidate| *candidate == sought.partner)?;
            posterior(&campaign.rounds, sought).get(place).copied()
        };
        beliefs.push(campaign.sought.iter().filter_map(of).collect());
        guesses.extend(campaign.sought.iter().map(|sought| 1.0 / sought.candidates.len().max(1) as f64));
    }
    beliefs.retain(|beliefs| !beliefs.is_empty());
    let samples = beliefs.iter().map(Vec::len).sum();
    let of_campaign: Vec<f64> = beliefs.iter().map(|beliefs| mean(beliefs)).collect();
    let figure = figure::mean(&of_campaign, samples, rng);
    let target = Target::Chance { value: mean(&guesses), half_width: 0.03 };
    figure.found(Attack::Intersection, "posterior of the partner", target)
}

#[cfg(test)]
mod tests {
    use super::super::traffic::{Shape, cells, happens};
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::trace::{SECOND, Sight};
    use rand_core::SeedableRng;

    const USERS: usize = 8;

    /// Senders talk with the receiver of their number. All come and go as they like; where `follow`, who is talked to
    /// is there, too.
    fn campaign(rounds: usize, online: f64, follow: bool, rng: &mut ChaCha8Rng) -> Campaign {
        let rounds = (0..rounds)
            .map(|_| {
                let senders: Vec<bool> = (0..USERS).map(|_| happens(0.3, rng)).collect();
                let receivers =
                    senders.iter().map(|talks| happens(online, rng) || (follow && *talks)).collect();
                Round { senders, receivers }
            })
            .collect();
        let sought = |sender| Sought { sender, partner: sender, candidates: (0..USERS).collect() };
        Campaign { rounds, sought: (0..USERS).map(sought).collect() }
    }

    #[test]
    fn partners_who_come_and_go_are_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let found = intersection(&campaign(800, 0.4, true, &mut rng).split(8), &mut rng);
        assert!(found.value > 0.9, "{found:?}");
        assert_eq!(found.verdict(), Verdict::Missed);
    }

    #[test]
    fn who_is_always_on_is_one_of_n_exactly() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let found = intersection(&campaign(500, 1.1, true, &mut rng).split(10), &mut rng);
        assert!((found.value - 0.125).abs() < 1e-12);
        assert_eq!(found.verdict(), Verdict::Met);
    }

    #[test]
    fn who_comes_and_goes_for_himself_is_one_of_n_on_average() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let missed = (0..40).filter(|_| {
            let campaigns: Vec<Campaign> = (0..12).map(|_| campaign(40, 0.6, false, &mut rng)).collect();
            intersection(&campaigns, &mut rng).verdict() == Verdict::Missed
        });
        let missed = missed.count();
        assert!(missed <= 6, "{missed} of 40, where 2 are expected");
    }

    #[test]
    fn rounds_are_those_of_packets() {
        let bursts = Trace::new((0..10).map(|k| Sight { at: k / 5 * 2 * SECOND + k, length: 99 }).collect());
        let steady = Trace::new((0..400).map(|k| Sight { at: k * SECOND / 100, length: 1360 }).collect());
        let seen = rounds(&[bursts], &[steady], (0, 4 * SECOND), SECOND, by_packets);
        let senders: Vec<bool> = seen.iter().map(|round| round.senders[0]).collect();
        assert_eq!(senders, [true, false, true, false]);
        assert!(seen.iter().all(|round| !round.receivers[0]));
    }

    #[test]
    fn slots_leave_all_alike() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let campaigns: Vec<Campaign> = (0..10)
            .map(|_| {
                let mut traces = || -> Vec<Trace> {
                    (0..4).map(|_| cells(Shape::Jittered, 50, 30 * SECOND, &mut rng)).collect()
                };
                let rounds = rounds(&traces(), &traces(), (0, 30 * SECOND), SECOND, by_packets);
                let sought = |sender| Sought { sender, partner: sender, candidates: (0..4).collect() };
                Campaign { rounds, sought: (0..4).map(sought).collect() }
            })
            .collect();
        assert!(intersection(&campaigns, &mut rng).interval.holds(0.25));
    }

    #[test]
    fn nothing_seen_has_no_power() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        assert_eq!(intersection(&[], &mut rng).verdict(), Verdict::NoPower);
        for campaigns in [campaign(0, 1.0, true, &mut rng).split(9), vec![campaign(90, 0.4, true, &mut rng)]]
        {
            assert_eq!(intersection(&campaigns, &mut rng).verdict(), Verdict::NoPower);
        }
    }
}
