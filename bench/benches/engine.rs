//! What a cell costs in the engine, beside what its three AEAD passes cost alone in the same run.

use criterion::Criterion;
use relay_bench::passes::Passes;
use relay_bench::probe::longest_gap;
use relay_bench::relay::{BATCH, Halves, Relay};
use std::time::Duration;

/// Rounds of the table; each measures everything once, so that a slow moment of the machine meets all alike.
const ROUNDS: usize = 2000;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let total = |halves: Halves| halves.receive + halves.send;
    let mut relay = Relay::new();
    bench(&mut criterion, "forwarded cell", || total(relay.forward()));
    let mut relay = Relay::new();
    bench(&mut criterion, "cover cell in and out", || total(relay.cover()));
    let mut passes = Passes::new();
    bench(&mut criterion, "three AES-256-GCM passes", || passes.batch());
    criterion.final_summary();
    table();
}

fn bench(criterion: &mut Criterion, name: &str, mut batch: impl FnMut() -> Duration) {
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|cells| {
            let batches = cells.div_ceil(BATCH as u64);
            let time: Duration = (0..batches).map(|_| batch()).sum();
            time.mul_f64(cells as f64 / (batches * BATCH as u64) as f64)
        });
    });
}

fn table() {
    const ROWS: [&str; 6] = [
        "forwarded cell, in and out",
        "  payload in: open, hop, queue",
        "  payload out: choose, seal, emit",
        "cover in: open, dummy hop",
        "cover out: make, seal, emit",
        "three AES-256-GCM passes",
    ];
    let (mut relay, mut passes) = (Relay::new(), Passes::new());
    let mut rows: [Vec<f64>; ROWS.len()] = Default::default();
    let mut gaps = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let (payload, cover, bare) = (relay.forward(), relay.cover(), passes.batch());
        let times =
            [payload.receive + payload.send, payload.receive, payload.send, cover.receive, cover.send, bare];
        for (row, time) in rows.iter_mut().zip(times) {
            row.push(time.as_secs_f64() * 1e9 / BATCH as f64);
        }
        gaps.push(longest_gap(Duration::from_micros(100)).as_secs_f64() * 1e9);
    }
    println!("\nns per cell, {ROUNDS} rounds of {BATCH} cells, all rows in turn      min   median");
    for (name, row) in ROWS.iter().zip(&mut rows) {
        let (min, median) = min_and_median(row);
        println!("{name:<57} {min:>8.0} {median:>8.0}");
    }
    let [forwarded, .., bare] = &mut rows;
    let (forwarded, bare) = (min_and_median(forwarded), min_and_median(bare));
    let ratio = (forwarded.0 / bare.0, forwarded.1 / bare.1);
    println!("{:<57} {:>8.2} {:>8.2}", "forwarded cell over three passes", ratio.0, ratio.1);
    let (min, median) = min_and_median(&mut gaps);
    let longest = gaps.last().copied().unwrap_or_default();
    println!("longest gap of an empty loop of 100 µs: {min:.0} min, {median:.0} median, {longest:.0} max ns");
}

fn min_and_median(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values.first().copied().unwrap_or_default(), values.get(values.len() / 2).copied().unwrap_or_default())
}
