//! What all runs of a defence say together: attacks 5, 6, 9, 13 and 14, and the families of p-values.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use relay_tests::Host;
use relay_user::observe::attacks::connections::{Event, Watch};
use relay_user::observe::attacks::{connections, fingerprint, rates, sizes, start_stop};
use relay_user::observe::finding::{Attack, Finding, Target};
use relay_user::observe::learn::features;
use relay_user::observe::learn::table::Table;
use relay_user::observe::trace::{SECOND, Sample, Trace};

use super::directions::{furthest, parts};
use super::{Found, SEEN, UNSEEN, is_control};
use crate::privacy::links::{CLIENT, TRUNKS};
use crate::privacy::record::{Block, Run};
use crate::privacy::row::{Row, Status};
use crate::privacy::scenario::Scenario;

/// To either side of a beginning or end, and of the middle of a stretch without: in one of 800 ms, the moments around its
/// borders and its middle have nothing in common.
const AROUND: u64 = 200_000_000;
/// Bins in which a beginning is looked for.
const CHANGE_BIN: u64 = 25_000_000;
/// Windows from which an activity is guessed: it takes longer to see what goes on than that something does, and a window
/// that fits into one segment of a video shows what a long download shows. They overlap, so that what begins between two
/// of them is whole in one.
const ACTIVITY_WINDOW: Duration = Duration::from_millis(400);
const ACTIVITY_STEP: Duration = Duration::from_millis(100);
/// What begins is to differ by less, an hour. Nothing seen in eleven minutes of each shows that.
const RESOLUTION: f64 = 20.0;

/// What can be said of a defence from all its runs that may be judged, or, where none may, why not.
pub(in crate::privacy) fn all(runs: &[Run], found: &mut Found, rng: &mut ChaCha8Rng) {
    let valid: Vec<&Run> = runs.iter().filter(|run| run.invalid.is_none()).collect();
    let (runs, invalid) = if valid.is_empty() {
        (runs.iter().collect(), runs.iter().find_map(|run| run.invalid.clone()))
    } else {
        (valid, None)
    };
    let Some(&first) = runs.first() else { return };
    let mut rows = Vec::new();
    let wires: Vec<(Host, Host)> = CLIENT.into_iter().chain(TRUNKS).collect();
    let directions = parts(&wires, rng, |wire, rng| {
        let runs = changes(&runs, wire);
        runs.iter().any(|run| !run.is_empty()).then(|| start_stop::parts(&runs, CHANGE_BIN, rng))
    });
    rows.push(match furthest(&directions, &wires, rng).into_iter().next() {
        Some((finding, note)) => Row { note, ..row(first, &finding) },
        None => Row::nothing(Attack::StartStop, "all", first.defence.name, UNSEEN),
    });
    rows.extend(sound(first, &runs, rng));
    let [active, idle] = [true, false].map(|busy| watched(&runs, busy));
    let minutes = active.watched.min(idle.watched) as f64 / 6e10;
    let note = format!("{minutes:.1} min of each were watched");
    let begun = connections::connections(&active, &idle, RESOLUTION, rng);
    rows.extend(begun.iter().map(|finding| Row { note: note.clone(), ..begun_row(first, finding) }));
    let windows = runs.iter().flat_map(|run| run.wires.values());
    let windows: Vec<_> = windows.map(|trace| trace.window(0, u64::MAX)).collect();
    rows.push(row(first, &sizes::lengths(&windows)));
    let datagrams = runs.iter().flat_map(|run| &run.whole).map(|datagram| datagram.bytes.as_slice());
    let bytes =
        if is_control(first) { sizes::bytes(datagrams) } else { sizes::bytes(sizes::sealed(datagrams)) };
    rows.extend(bytes.iter().map(|finding| row(first, finding)));
    rows.extend(found.family.rows(first.defence.name, !is_control(first)));
    if let Some(why) = invalid {
        rows = rows.into_iter().map(|row| row.invalid(&why)).collect();
    }
    found.rows.extend(rows);
}

/// Of the run over a sound link: which payload flows, and what rates tell.
fn sound(first: &Run, runs: &[&Run], rng: &mut ChaCha8Rng) -> Vec<Row> {
    let nothing = |attack, why: &str| Row::nothing(attack, "all", first.defence.name, why);
    let Some(run) = runs.iter().find(|run| run.plan.fault.is_none()) else {
        let why = "no run over a sound link that may be judged";
        return [Attack::Fingerprint, Attack::Rates].map(|attack| nothing(attack, why)).into();
    };
    let [Some(out), Some(home)] = CLIENT.map(|(from, to)| run.wire(from, to)) else {
        return [Attack::Fingerprint, Attack::Rates].map(|attack| nothing(attack, UNSEEN)).into();
    };
    let mut rows = match run.plan.scenarios.as_slice() {
        [] | [_] => vec![nothing(Attack::Fingerprint, "needs several payloads")],
        _ => which(run, [out, home], rng),
    };
    let end = run.blocks.last().map_or(0, |block| block.to);
    for (trace, way) in [(out, "from the client"), (home, "to the client")] {
        let windows: Vec<_> =
            (0..end / SECOND).map(|second| trace.window(second * SECOND, (second + 1) * SECOND)).collect();
        let found = row(first, &rates::rates(&windows, 1, 0.0));
        rows.push(Row { statistic: format!("{}, {way}", found.statistic), ..found });
    }
    rows
}

/// Attack 5.
fn which(run: &Run, [out, home]: [&Trace; 2], rng: &mut ChaCha8Rng) -> Vec<Row> {
    let cuts = run.cuts_of(ACTIVITY_WINDOW, ACTIVITY_STEP);
    // The counterpart of all payloads is as frequent as two of them; that held against it is as frequent as one.
    let cuts = cuts.into_iter().filter(|cut| cut.scenario.is_some());
    let (ways, back): (Vec<Sample<'_>>, Vec<_>) = cuts
        .map(|cut| {
            let label = cut.scenario.map_or(0, |scenario| scenario as u16);
            (
                Sample { window: out.window(cut.from, cut.to), label, block: cut.block },
                home.window(cut.from, cut.to),
            )
        })
        .unzip();
    let table = Table::two_way(&ways, &back);
    let mut rows: Vec<Row> =
        fingerprint::fingerprint(&table, rng).iter().map(|finding| row(run, finding)).collect();
    for row in rows.iter_mut().filter(|row| !is_control(run) && row.status == Status::Missed) {
        row.note = telling(&table, rng);
    }
    rows
}

/// The features that a forest learns most from: where to look for the mechanism.
fn telling(table: &Table, rng: &mut ChaCha8Rng) -> String {
    let mut shares: Vec<(f64, String)> =
        fingerprint::telling(table, rng).into_iter().zip(features::names(2)).collect();
    shares.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let most = shares.iter().take(4).map(|(share, name)| format!("{name} {:.0} %", share * 100.0));
    format!("learnt from {}", most.collect::<Vec<_>>().join(", "))
}

/// A tunnel without shaping has flows that begin, and no handshakes to show.
fn begun_row(run: &Run, finding: &Finding) -> Row {
    let row = Row::new(finding, "all", run.defence.name);
    match finding.target {
        Target::Chance { half_width, .. } if is_control(run) && finding.statistic.contains("flows") => {
            row.as_control(Target::AtLeast { bound: half_width })
        }
        _ if is_control(run) => row.as_control(Target::None),
        _ => row,
    }
}

/// What began in stretches with payload, or in those without.
fn watched(runs: &[&Run], busy: bool) -> Watch {
    let mut watch = Watch::default();
    for run in runs {
        for block in run.blocks.iter().filter(|block| block.is_busy() == busy) {
            let within = run.begun.iter().filter(|event| (block.from..block.to).contains(&event.at));
            // Stretches follow each other as if nothing lay between.
            watch
                .events
                .extend(within.map(|event| Event { at: watch.watched + event.at - block.from, ..*event }));
            watch.watched += block.to - block.from;
        }
    }
    watch
}

/// What is seen around the moments of each run.
fn changes<'a>(runs: &[&'a Run], (from, to): (Host, Host)) -> Vec<Vec<Sample<'a>>> {
    // Moments have the same number in every direction, though one were not seen in a run.
    let mut numbers = 0..;
    let of = |run: &&'a Run| {
        let numbered = moments(&run.blocks).into_iter().zip(numbers.by_ref());
        let sample = |((at, label), block): ((u64, u16), u32)| {
            let window = run.wire(from, to)?.window(at.saturating_sub(AROUND), at + AROUND);
            Some(Sample { window, label, block })
        };
        numbered.filter_map(sample).collect()
    };
    runs.iter().map(of).collect()
}

/// Each border of two stretches, labelled 1 where payload begins or ends and 0 where there is none on either side, and the
/// middle of each stretch without payload, labelled 0.
fn moments(blocks: &[Block]) -> Vec<(u64, u16)> {
    let payload = |block: &Block| block.scenario.filter(|one| *one != Scenario::Idle);
    // From one payload to another something ends and something begins, and neither is clean.
    let clean = blocks.windows(2).filter(|pair| pair.iter().any(|block| payload(block).is_none()));
    let borders = clean.map(|pair| (pair[1].from, u16::from(payload(&pair[0]) != payload(&pair[1]))));
    let quiet = blocks.iter().filter(|block| payload(block).is_none());
    let quiet = quiet.filter(|block| block.to - block.from >= 3 * AROUND);
    let middles = quiet.map(|block| (block.from.midpoint(block.to), 0));
    let mut moments: Vec<(u64, u16)> = borders.chain(middles).collect();
    moments.sort_unstable();
    moments
}

/// A figure of all runs together.
fn row(run: &Run, finding: &Finding) -> Row {
    let row = Row::new(finding, "all", run.defence.name);
    match (is_control(run), finding.target) {
        (false, _) | (_, Target::None) => row,
        // More than what the defence may show, and more than nothing.
        (true, Target::AtMost { bound }) => {
            row.as_control(Target::AtLeast { bound: bound.mul_add(1.000_001, f64::MIN_POSITIVE) })
        }
        (true, Target::AtLeast { bound }) => row.as_control(Target::AtMost { bound }),
        (true, _) => row.as_control(Target::AtLeast { bound: SEEN }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_borders_of_what_flows_and_the_middle_of_what_is_quiet() {
        let (idle, bulk, voice) = (Some(Scenario::Idle), Some(Scenario::Bulk), Some(Scenario::Voice));
        let kinds = [None, idle, bulk, voice, None];
        let block = |(number, scenario): (u64, Option<Scenario>)| Block {
            scenario,
            from: number * 4 * AROUND,
            to: (number + 1) * 4 * AROUND,
        };
        let blocks: Vec<Block> = (0..).zip(kinds).map(block).collect();
        let found: Vec<(u64, u16)> =
            moments(&blocks).into_iter().map(|(at, label)| (at / AROUND, label)).collect();
        assert_eq!(found, [(2, 0), (4, 0), (6, 0), (8, 1), (16, 1), (18, 0)]);
        let short = Block { to: 2 * AROUND, ..blocks[0] };
        assert_eq!(moments(&[short]), []);
    }
}
