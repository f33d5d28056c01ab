//! Links whose leaks are known, for the tests of the attacks.

use super::super::stats::{normal, unit};
use super::super::trace::{SECOND, Sample, Sight, Trace};
use super::correlation::Run;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

/// What the payload does to the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Packets go as they come.
    Plain,
    /// Slots at a constant rate, late by up to some microseconds.
    Constant,
    /// The same, and later by tens of microseconds within 5 ms of payload.
    Perturbed,
    /// Slots drawn uniformly inside their period.
    Jittered,
    /// Constant, with lateness that differs from block to block, whatever they carry.
    Drifting,
}

/// A block: what goes in, and what comes out.
pub(super) struct Planted {
    pub(super) payload: Trace,
    pub(super) wire: Trace,
    pub(super) label: u16,
    pub(super) block: u32,
}

pub(super) const MILLI: u64 = 1_000_000;
/// Nanoseconds of a block.
pub(super) const BLOCK: u64 = SECOND;
const WINDOW: u64 = 100 * MILLI;
const PERIOD: u64 = 2 * MILLI;

impl Link {
    /// Blocks that are idle and busy in turn.
    pub(super) fn traces(self, blocks: u32, seed: u64) -> Vec<Planted> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..blocks)
            .map(|block| self.block(block, u16::from(block % 2 == 1), |busy, _| busy, &mut rng))
            .collect()
    }

    /// One block, with payload whenever `active` says so of the label and the time since the block began.
    pub(super) fn block(
        self,
        block: u32,
        label: u16,
        active: impl Fn(bool, u64) -> bool,
        rng: &mut ChaCha8Rng,
    ) -> Planted {
        let payload = bursts(|at| active(label != 0, at), rng);
        let wire = self.wire(&payload, rng);
        Planted { payload: Trace::new(payload), wire: Trace::new(wire), label, block }
    }

    fn wire(self, payload: &[Sight], rng: &mut ChaCha8Rng) -> Vec<Sight> {
        if self == Self::Plain {
            return payload.iter().map(|sight| Sight { at: sight.at + 50_000, ..*sight }).collect();
        }
        let phase = unit(rng);
        let drift = 1000.0 * 10f64.powf(unit(rng));
        let slots = (0..BLOCK / PERIOD).map(|slot| {
            let due = (slot as f64 + phase) * PERIOD as f64;
            let recent = payload.partition_point(|sight| (sight.at as f64) < due - 5e6);
            let stirred = payload.get(recent).is_some_and(|sight| (sight.at as f64) < due);
            let late = match self {
                Self::Jittered => unit(rng) * PERIOD as f64,
                Self::Drifting => normal(rng).abs() * drift,
                Self::Perturbed if stirred => normal(rng).abs() * 40_000.0,
                _ => normal(rng).abs() * 3000.0,
            };
            Sight { at: nanos(due + late), length: 1360 }
        });
        slots.collect()
    }
}

/// Bursts of 1 to 8 packets, every 20 ms on average, while `active`.
fn bursts(active: impl Fn(u64) -> bool, rng: &mut ChaCha8Rng) -> Vec<Sight> {
    let mut sights = Vec::new();
    let mut at = 0;
    loop {
        at += nanos(-20e6 * (1.0 - unit(rng)).ln());
        if at >= BLOCK {
            return sights;
        }
        for packet in 0..1 + nanos(8.0 * unit(rng)) {
            if active(at) {
                sights.push(Sight { at: at + packet * 100_000, length: 1200 });
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "times of a second, none negative")]
fn nanos(value: f64) -> u64 {
    value as u64
}

/// Windows of 100 ms.
pub(super) fn samples(planted: &[Planted]) -> Vec<Sample<'_>> {
    planted
        .iter()
        .flat_map(|Planted { wire, label, block, .. }| {
            (0..BLOCK / WINDOW).map(move |index| Sample {
                window: wire.window(index * WINDOW, (index + 1) * WINDOW),
                label: *label,
                block: *block,
            })
        })
        .collect()
}

/// Whole blocks.
pub(super) fn whole(planted: &[Planted]) -> Vec<Sample<'_>> {
    planted
        .iter()
        .map(|Planted { wire, label, block, .. }| Sample {
            window: wire.window(0, BLOCK),
            label: *label,
            block: *block,
        })
        .collect()
}

/// Whole blocks, with what went in.
pub(super) fn runs(planted: &[Planted]) -> Vec<Run<'_>> {
    planted
        .iter()
        .map(|Planted { payload, wire, block, .. }| Run {
            payload: payload.window(0, BLOCK),
            wire: wire.window(0, BLOCK),
            counted: None,
            turned_with: *block,
            direction: 0,
        })
        .collect()
}
