//! The wire beside the payload.

use relay_tests::Host;
use relay_user::observe::trace::Trace;

use super::page::Picture;
use super::record::Run;
use crate::session::Series;

/// Nanoseconds shown.
const SPAN: u64 = 20_000_000_000;
/// Nanoseconds of a bin.
const BIN: u64 = 50_000_000;

/// What the client's uplink and downlink showed during the first seconds, beside what the programs sent and received.
pub(super) fn of(run: &Run) -> Option<Picture> {
    let [out, home] = [(Host::Client, Host::Entry), (Host::Entry, Host::Client)];
    let wires = [run.wire(out.0, out.1)?, run.wire(home.0, home.1)?];
    let mbit = |bytes: u64| bytes as f64 * 8.0 / (BIN as f64 / 1e9) / 1e6;
    let line = |name: &str, trace: &Trace| {
        let bins = trace.window(0, SPAN).bytes(BIN);
        let at = |bin: usize| bin as f64 * BIN as f64 / 1e9;
        let points = bins.iter().enumerate().map(|(bin, &bytes)| (at(bin), mbit(bytes))).collect();
        Series { name: name.into(), points }
    };
    Some(Picture {
        title: title(run),
        x: "seconds".into(),
        y: "Mbit/s".into(),
        series: vec![
            line("wire, from the client", wires[0]),
            line("wire, to the client", wires[1]),
            line("payload, from the client", &run.inside[0]),
            line("payload, to the client", &run.inside[1]),
        ],
    })
}

/// What flowed when, since a mixed run shows all of them in one picture.
fn title(run: &Run) -> String {
    let shown = run.blocks.iter().filter(|block| block.to <= SPAN && block.is_busy());
    let when = shown.filter_map(|block| {
        let scenario = block.scenario?;
        Some(format!("{:.1} s {}", block.from as f64 / 1e9, scenario.name()))
    });
    let fault = run.plan.fault.map_or_else(String::new, |fault| format!(", {}", fault.name()));
    format!("{}{fault}: {}", run.defence.name, when.collect::<Vec<_>>().join(", "))
}
