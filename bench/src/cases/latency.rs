//! What each hop adds to a packet's way, against the mean wait for a slot: half a period.
//!
//! Client, entry, middle and exit stand on wires without length and are driven in turn by one thread that never
//! sleeps: with fewer processors than nodes, threads of their own would measure the scheduler. A hop's latency runs
//! from the instant at which a probe left the node before it (at the first hop: was put where packets wait) to the
//! instant at which it left this one.

mod node;
mod path;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use relay_user::engine::Limits;
use relay_user::engine::schedule::Law;
use relay_user::engine::time::Nanos;
use relay_user::xsk::Arena;

use crate::cpu;
use crate::session::{Series, Session};
use path::{Path, Times, Way};

/// Cells per second of every link.
const RATE: u32 = 2000;
const PERIOD_US: f64 = 1e6 / RATE as f64;
const FLOOR_US: f64 = PERIOD_US / 2.0;
const NAMES: [&str; 4] = ["client", "entry", "middle", "exit"];

/// Measures.
///
/// # Errors
/// Where there is no memory for frames, or the circuit does not come about.
pub fn run(session: &mut Session) -> anyhow::Result<()> {
    let arena = Arena::anonymous(path::FRAMES).context("no memory for frames")?;
    let cpu = *cpu::allowed()?.last().context("no processor is allowed")?;
    // Between links of constant slots a probe waits the same time at every turn: only new slots show the mean.
    let (rounds, length) = if session.quick { (4, 200) } else { (24, 400) };
    let length = Nanos(length * Nanos::MILLISECOND.0);
    session.measured("floor of a hop: half a slot at 2000 cells/s", FLOOR_US, "µs", None);
    let lead = Limits::default().lead.0 as f64 / 1e3;
    session.measured("  cells are chosen and sealed this long before their slot", lead, "µs", None);
    let mut lines = Vec::new();
    for (law, law_name) in [(Law::Constant, "constant"), (Law::Jittered, "jittered")] {
        let mut ways = [(Way::Out, "out", Sample::default()), (Way::Home, "home", Sample::default())];
        let mut missed = 0;
        for round in 0..rounds {
            session.progress(&format!("{law_name} schedule, round {} of {rounds}", round + 1));
            let path = cpu::on(cpu, || {
                cpu::prefer_like_a_worker();
                let mut path = Path::new(arena, law, RATE, round)?;
                path.probe(length)?;
                Ok(path)
            })?;
            missed += path.missed();
            for (way, _, sample) in &mut ways {
                sample.add(path.times(*way));
            }
        }
        for (way, way_name, mut sample) in ways {
            let name = format!("{law_name}, {way_name}");
            if let Some(reason) = sample.contradiction {
                session.invalid(format!("{name}: added latency by hop"), None, reason);
                continue;
            }
            for (place, hop) in way.hops().into_iter().zip(&mut sample.hops) {
                let row = format!("{name}: {}", NAMES[place]);
                give(session, &row, hop, 1.0);
                session.distribution(row.replace([':', ','], ""), histogram(hop)?);
                if way == Way::Out {
                    lines.push(Series { name: row, points: cdf(hop) });
                }
            }
            give(session, &format!("{name}: edge to edge, three hops"), &mut sample.whole, 3.0);
        }
        session.measured(format!("{law_name}: slots missed meanwhile"), missed as f64, "", None);
    }
    session.plot("Latency that a hop adds, out", "added latency, µs", "share of probes", false, lines);
    Ok(())
}

/// Latencies of one way, in µs.
#[derive(Debug, Default)]
struct Sample {
    hops: [Vec<f64>; 3],
    whole: Vec<f64>,
    contradiction: Option<String>,
}

impl Sample {
    fn add(&mut self, times: &Times) {
        self.contradiction = self.contradiction.take().or_else(|| contradiction(times));
        let mut before = &times.entered;
        for (hop, left) in self.hops.iter_mut().zip(&times.left) {
            hop.extend(differences(before, left));
            before = left;
        }
        self.whole.extend(differences(&times.entered, &times.delivered));
    }
}

/// Every probe must have left every hop once.
fn contradiction(times: &Times) -> Option<String> {
    let sent = times.entered.len();
    let counts: Vec<usize> =
        times.left.iter().map(Vec::len).chain(std::iter::once(times.delivered.len())).collect();
    (sent == 0 || counts.iter().any(|&count| count != sent)).then(|| {
        format!("{sent} probes sent; cells of the circuit seen after each hop, and delivered: {counts:?}")
    })
}

/// Sorts the latencies and hands their figures in.
fn give(session: &mut Session, row: &str, latencies: &mut [f64], hops: f64) {
    latencies.sort_by(f64::total_cmp);
    let mean = latencies.iter().sum::<f64>() / latencies.len() as f64;
    session.measured(format!("{row}, median"), quantile(latencies, 0.5), "µs", None);
    session.measured(format!("  {row}, mean"), mean, "µs", None);
    session.measured(format!("  {row}, mean / floor"), mean / (hops * FLOOR_US), "ratio", None);
}

/// In µs.
fn differences(from: &[Nanos], to: &[Nanos]) -> impl Iterator<Item = f64> {
    from.iter().zip(to).map(|(from, to)| to.since(*from).0 as f64 / 1e3)
}

fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of the sample")]
    let at = (sorted.len() as f64 * quantile) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn cdf(sorted: &[f64]) -> Vec<(f64, f64)> {
    // The last per cent is the machine's, and would take the whole axis.
    (0..=99).map(|percent| f64::from(percent) / 100.0).map(|share| (quantile(sorted, share), share)).collect()
}

fn histogram(latencies: &[f64]) -> anyhow::Result<Histogram<u64>> {
    let mut values = Histogram::new_with_bounds(1, 60 * Nanos::SECOND.0, 3)?;
    for micros in latencies {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "was whole nanoseconds")]
        values.record((micros * 1e3).round() as u64)?;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_that_do_not_add_up_are_told() {
        let at = |count: usize| vec![Nanos(1); count];
        let mut times = Times { entered: at(2), left: [at(2), at(2), at(2)], delivered: at(2) };
        assert_eq!(contradiction(&times), None);
        times.left[1] = at(1);
        assert!(contradiction(&times).is_some_and(|text| text.contains("[2, 1, 2, 2]")));
        assert!(contradiction(&Times::default()).is_some());
    }

    #[test]
    fn latencies_come_in_microseconds() {
        let from = [Nanos(1000), Nanos(2000), Nanos(9000)];
        let to = [Nanos(4000), Nanos(3000), Nanos(11_500)];
        let latencies: Vec<f64> = differences(&from, &to).collect();
        assert_eq!(latencies, [3.0, 1.0, 2.5]);
        assert!(histogram(&latencies).unwrap().max().abs_diff(3000) < 10);
    }
}
