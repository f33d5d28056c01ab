//! The attacks, one a module. Each takes what an observer saw and gives what it could tell.
//!
//! Those that hold a figure against 95 % of what chance gives ([`correlation`], [`information`], [`distribution`]'s
//! distance) exceed it once in twenty times with nothing there: a table of many rows has such rows, and should look at
//! how often, or at their p-values, which are reported beside them.

pub mod activity;
pub mod clock;
pub mod connections;
pub mod correlation;
pub mod cover;
pub mod directions;
pub mod distribution;
pub mod filter;
pub mod fingerprint;
pub mod information;
pub mod intersection;
pub mod long_gaps;
pub mod matching;
pub mod pairing;
#[cfg(test)]
mod planted;
pub mod rates;
mod shape;
pub mod sizes;
pub mod start_stop;
#[cfg(test)]
mod traffic;
pub mod watermark;

use super::finding::{Attack, Finding, Interval, Target};
use super::stats::{Permuted, UNBOUNDED};

/// A figure that cannot be given for lack of data.
fn untold(attack: Attack, statistic: &'static str, target: Target, samples: usize) -> Finding {
    Finding { attack, statistic, value: f64::NAN, interval: UNBOUNDED, target, samples }
}

/// A figure held against what chance gives, and how likely chance is to reach it.
fn against_chance(
    attack: Attack,
    [statistic, p]: [&'static str; 2],
    value: f64,
    interval: Interval,
    chance: Permuted,
    samples: usize,
) -> Vec<Finding> {
    let target = Target::AtMost { bound: chance.bound };
    if chance.p.is_nan() {
        return vec![untold(attack, statistic, target, samples), untold(attack, p, Target::None, samples)];
    }
    let likely = Finding {
        attack,
        statistic: p,
        value: chance.p,
        interval: Interval::exact(chance.p),
        target: Target::None,
        samples,
    };
    vec![Finding { attack, statistic, value, interval, target, samples }, likely]
}

/// What chance gives where it could not be found out.
const NO_CHANCE: Permuted = Permuted { p: f64::NAN, bound: f64::NAN };
