//! What one direction of a link shows by itself.

use super::law::{self, Fit, Gaps};
use super::row::{Row, plain};
use super::steady::{self, Steadiness};
use crate::observe::attacks::{rates, sizes};
use crate::observe::capture::Direction;
use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::stats::entropy;
use crate::observe::trace::{SECOND, Trace, Window};

/// Cells below which a direction says nothing that could be relied on.
pub(crate) const FEWEST: usize = 2000;
/// Cells of a window in which a changed rate is looked for.
const WINDOW_CELLS: f64 = 200.0;
/// Likelihood below which a rate is said to have changed.
pub(super) const CHANGED: f64 = 0.001;

/// A direction's figures.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) ports: (u16, u16),
    pub(crate) cells: u64,
    pub(crate) seconds: f64,
    pub(crate) rate: f64,
    pub(crate) lengths: Vec<(u16, u64)>,
    pub(crate) strange: u64,
    pub(crate) lost: u64,
    pub(crate) late: u64,
    pub(crate) repeated: u64,
    pub(crate) unkept: u64,
    pub(crate) cut: u64,
    pub(crate) handshakes: usize,
    pub(crate) sessions: u64,
    pub(crate) gaps: Option<Gaps>,
    pub(crate) fit: Option<Fit>,
    pub(crate) steady: Option<Steadiness>,
    /// Bits of a byte behind the header, and bytes it rests on.
    pub(crate) entropy: Option<(f64, u64)>,
}

/// All of a direction's kept cells.
pub(crate) fn window(direction: &Direction) -> Window<'_> {
    let sights = direction.trace.sights();
    let from = sights.first().map_or(0, |sight| sight.at);
    direction.trace.window(from, sights.last().map_or(from, |sight| sight.at + 1))
}

/// Counts what there is to count.
pub(crate) fn facts(name: &str, direction: &Direction) -> Facts {
    let window = window(direction);
    let gaps: Vec<f64> = window.gaps().collect();
    let seconds = direction.seconds();
    let mut values = [0_u64; 256];
    for place in direction.bytes.places() {
        for (sum, count) in values.iter_mut().zip(place) {
            *sum += u64::from(*count);
        }
    }
    let bytes = values.iter().sum::<u64>();
    Facts {
        name: name.to_owned(),
        ports: direction.ports,
        cells: direction.cells,
        seconds,
        rate: if seconds > 0.0 { direction.cells.saturating_sub(1) as f64 / seconds } else { 0.0 },
        lengths: direction.lengths.iter().map(|(length, count)| (*length, *count)).collect(),
        strange: direction.strange,
        lost: direction.sessions.lost(),
        late: direction.late,
        repeated: direction.repeated,
        unkept: direction.unkept,
        cut: direction.cut,
        handshakes: direction.handshakes.len(),
        sessions: direction.sessions.begun(),
        gaps: (!gaps.is_empty()).then(|| law::gaps(&gaps)),
        fit: law::fit(&gaps),
        steady: steady::look(window),
        entropy: (bytes > 0).then(|| (entropy(&values), bytes)),
    }
}

/// The attacks that need no marks: sizes and bytes (9), changes of rate (6, 13).
pub(crate) fn rows(facts: &Facts, direction: &Direction) -> Vec<Row> {
    let name = facts.name.as_str();
    let few = format!("{FEWEST} cells are the fewest that say anything");
    let window = window(direction);
    let mut rows = vec![Row::of_target(
        name,
        sizes::lengths(&[window]),
        "one datagram of another length is seen".to_owned(),
        &few,
    )];
    rows.extend(bytes(name, direction));
    rows.extend(facts.steady.map(|steady| Row::of_target(name, changed(&steady), rate_power(&steady), &few)));
    // A gap in the capture is a change, too; whole windows only, so that ends are none.
    let width = (SECOND as f64).max(WINDOW_CELLS / facts.rate.max(1e-9) * 1e9);
    let windows: Vec<Window<'_>> = tiled(&direction.trace, window, width).collect();
    let levels = rates::rates(&windows, 1, 0.0);
    let share = rates::told_apart(facts.rate * width / 1e9);
    let power =
        format!("a rate that differs by {} % for {} s is seen", plain(share * 100.0), plain(width / 1e9));
    rows.push(Row::of_target(name, levels, power, &few));
    rows
}

fn changed(steady: &Steadiness) -> Finding {
    Finding {
        attack: Attack::StartStop,
        statistic: "p of CUSUM of counts",
        value: steady.rate.p,
        interval: Interval::exact(steady.rate.p),
        target: Target::AtLeast { bound: CHANGED },
        samples: steady.bins,
    }
}

fn rate_power(steady: &Steadiness) -> String {
    format!("one change of the rate by {} % half-way is found", plain(steady.rate.detectable * 100.0))
}

fn bytes(name: &str, direction: &Direction) -> Vec<Row> {
    let needs = "needs 1280 cells whose whole bytes were captured (tcpdump -s 0)";
    let places: Vec<[u64; 256]> = direction
        .bytes
        .places()
        .map(|counts| {
            let mut place = [0; 256];
            for (to, from) in place.iter_mut().zip(counts) {
                *to = u64::from(*from);
            }
            place
        })
        .collect();
    let cells = direction.bytes.cells();
    let mut findings = sizes::tallied(&places, cells as usize);
    for finding in &mut findings {
        // Two figures for each direction: at the attack's own 1 %, every tenth capture would raise an alarm.
        finding.target = match finding.target {
            Target::AtMost { bound } => Target::AtMost { bound: bound * 1.3 },
            Target::AtLeast { .. } => Target::AtLeast { bound: 0.0005 },
            other => other,
        };
    }
    // Chi-square of 255 degrees must grow by 130 to stand out among 1344 places, four times in five.
    let excess = (130.0 * 256.0 / f64::from(cells.max(1))).sqrt();
    let power = format!("a value at one place that is {} % too frequent is found", plain(excess * 100.0));
    findings.into_iter().map(|finding| Row::of_target(name, finding, power.clone(), needs)).collect()
}

/// Windows of `width` nanoseconds, one behind the other.
#[expect(clippy::cast_possible_truncation, reason = "a bound of the attack's, positive")]
fn tiled<'a>(trace: &'a Trace, whole: Window<'_>, width: f64) -> impl Iterator<Item = Window<'a>> {
    let width = (width as u64).max(1);
    let (from, count) = (whole.from(), whole.width() / width);
    (0..count).map(move |place| trace.window(from + place * width, from + (place + 1) * width))
}
