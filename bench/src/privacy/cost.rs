//! What a defence takes of bandwidth and time.

use relay_tests::Host;
use relay_user::observe::stats::quantile;
use relay_user::observe::trace::Trace;

use super::network::Defence;
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

/// Says of every defence what it adds to the round trip of the tunnel that does not shape, where that was measured too.
pub(super) fn compare(costs: &mut [Cost]) {
    let Some(plain) = costs.iter().find(|cost| cost.defence == Defence::PLAIN.name).cloned() else { return };
    for cost in costs.iter_mut().filter(|cost| cost.defence != plain.defence) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(defence: &str, round_trip: f64) -> Cost {
        Cost {
            defence: defence.into(),
            wire_idle_mbit: 32.6,
            wire_bulk_mbit: 32.6,
            payload_bulk_mbit: 15.0,
            overhead: 2.2,
            round_trip_p50_ms: round_trip,
            round_trip_p99_ms: 2.0 * round_trip,
            missed_slots: 0,
            added_p50_ms: None,
            added_p99_ms: None,
        }
    }

    #[test]
    fn defences_are_held_against_the_tunnel_that_does_not_shape_and_against_no_other() {
        let added = |mut costs: Vec<Cost>| -> Vec<Option<f64>> {
            compare(&mut costs);
            costs.iter().map(|cost| cost.added_p50_ms).collect()
        };
        assert_eq!(added(vec![cost("poisson", 7.0), cost("pattern", 6.0)]), [None, None]);
        assert_eq!(added(vec![cost("poisson", 7.0), cost("plain", 0.5)]), [Some(6.5), None]);
    }

    #[test]
    fn what_a_defence_costs_stands_beside_its_rows() {
        let costs = [cost("constant", 6.44)];
        assert_eq!(Cost::beside(&costs, "constant"), "32.6 Mbit/s 6.4 ms");
        assert_eq!(Cost::beside(&costs, "constant, planted 5 µs"), "");
    }
}
