//! What a defence takes of bandwidth and time.

use relay_tests::Host;
use relay_user::observe::trace::Trace;

use super::record::{Block, Run, nanos};
use super::row::Cost;
use super::scenario::Scenario;

/// What one defence's run, with downloads among its payload, says of its cost.
pub(super) fn of(run: &Run, mut round_trips: Vec<f64>) -> Cost {
    round_trips.sort_unstable_by(f64::total_cmp);
    let wires = [(Host::Client, Host::Entry), (Host::Entry, Host::Client)];
    let wire = |what| rate(run, what, wires.iter().filter_map(|&(from, to)| run.wire(from, to)));
    let (idle, loaded) = (wire(None), wire(Some(Scenario::Bulk)));
    let payload = rate(run, Some(Scenario::Bulk), run.inside.iter());
    Cost {
        defence: run.defence.name.into(),
        wire_idle_mbit: idle,
        wire_bulk_mbit: loaded,
        payload_bulk_mbit: payload,
        overhead: loaded / payload,
        round_trip_p50_ms: quantile(&round_trips, 0.5),
        round_trip_p99_ms: quantile(&round_trips, 0.99),
        missed_slots: run.missed_slots,
        added_p50_ms: None,
        added_p99_ms: None,
    }
}

/// Says of every defence what it adds to the round trip of the first, which does not shape.
pub(super) fn compare(costs: &mut [Cost]) {
    let Some((plain, shaped)) = costs.split_first_mut() else { return };
    for cost in shaped {
        cost.added_p50_ms = Some(cost.round_trip_p50_ms - plain.round_trip_p50_ms);
        cost.added_p99_ms = Some(cost.round_trip_p99_ms - plain.round_trip_p99_ms);
    }
}

/// Mbit/s over all stretches of a kind, without their guards.
fn rate<'a>(run: &Run, scenario: Option<Scenario>, traces: impl Iterator<Item = &'a Trace> + Clone) -> f64 {
    let guard = nanos(run.plan.guard);
    let of_kind = |block: &&Block| block.scenario == scenario;
    let (mut bits, mut seconds) = (0.0, 0.0);
    for block in run.blocks.iter().filter(of_kind) {
        let sights = traces.clone().flat_map(|trace| trace.window(block.from + guard, block.to).sights());
        bits += sights.map(|sight| f64::from(sight.length) * 8.0).sum::<f64>();
        seconds += block.to.saturating_sub(block.from + guard) as f64 / 1e9;
    }
    bits / seconds.max(1e-9) / 1e6
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = (q * (sorted.len().saturating_sub(1)) as f64).round() as usize;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}
