//! What slots add to a packet's way: the schedules of a path are laid down as nodes would lay them, and packets put
//! through them at random instants. Cells are no more than times here, on wires without length, and nothing but the
//! path's own cover is in front of them.
//!
//! A formula would do for one link alone. Behind circuit cover it does not: on the way home nearly every slot of the
//! client's link is taken, so that a cell waits for what held up the cells before it.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use relay_common::wire::MAX_HOPS;

use crate::config::network::Class;
use crate::engine::Limits;
use crate::engine::schedule::Schedule;
use crate::engine::time::Nanos;

/// Paths tried, each with phases, rates and draws of its own.
const ROUNDS: u32 = 256;
/// Packets put through each.
const PACKETS: usize = 64;
/// Slots of a client's link before the first packet: more than queues take to fill.
const WARM_UP: usize = 1024;
/// Slots of a client's link into which packets fall.
const WATCHED: usize = 1024;
/// Far from zero, as a machine's uptime is.
const START: Nanos = Nanos(3600 * Nanos::SECOND.0);

/// Mean and 99th percentile, in µs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delay {
    pub(super) mean: f64,
    pub(super) p99: f64,
}

/// The delays of a way: of each hop, and of all together.
#[derive(Debug)]
pub(super) struct Delays {
    pub(super) hops: Vec<Delay>,
    pub(super) whole: Delay,
}

/// A way over links of these classes that are otherwise without cells of circuits.
pub(super) fn alone(classes: &[Class]) -> Delays {
    let mut samples = Samples::new(classes.len());
    for round in 0..ROUNDS {
        let mut paths = Rounds::new(round);
        // So far apart that no packet meets another.
        let mut at = paths.packets(1000.0 * PACKETS as f64 * classes.iter().map(period).sum::<f64>());
        let mut ways: Vec<Vec<Nanos>> = at.iter().map(|&at| vec![at]).collect();
        for class in classes {
            at = serve(&at, &mut paths.slots(*class));
            ways.iter_mut().zip(&at).for_each(|(way, &at)| way.push(at));
        }
        ways.iter().for_each(|way| samples.add(way));
    }
    samples.delays()
}

/// Both ways of a circuit whose client fills its slots, and whose exit answers all cells but one in `spare`.
pub(super) fn covered(clients: Class, trunks: [Class; MAX_HOPS - 1], spare: u32) -> [Delays; 2] {
    let (mut out, mut home) = (Samples::new(MAX_HOPS), Samples::new(MAX_HOPS));
    let [first, second] = trunks;
    for round in 0..ROUNDS {
        let mut paths = Rounds::new(round);
        let mut slots = paths.slots(clients);
        let cells: Vec<Nanos> = std::iter::repeat_with(|| {
            let at = slots.deadline();
            slots.advance();
            at
        })
        .take(WARM_UP + WATCHED)
        .collect();
        let packets = paths.packets(WATCHED as f64 * period(&clients));
        let warm = Nanos(nanos(WARM_UP as f64 * period(&clients)));
        let packets: Vec<Nanos> = packets.into_iter().map(|at| at + warm).collect();

        let at_middle = serve(&cells, &mut paths.slots(first));
        let at_exit = serve(&at_middle, &mut paths.slots(second));
        out.follow(&packets, [&cells, &at_middle, &at_exit]);

        let answered = (1_u32..).zip(&at_exit).filter(|(number, _)| !number.is_multiple_of(spare));
        let answered: Vec<Nanos> = answered.map(|(_, &at)| at).collect();
        let answers = serve(&answered, &mut paths.slots(second));
        let at_entry = serve(&answers, &mut paths.slots(first));
        let at_client = serve(&at_entry, &mut paths.slots(clients));
        home.follow(&packets, [&answers, &at_entry, &at_client]);
    }
    [out.delays(), home.delays()]
}

/// How long before its slot a cell must be there.
fn lead() -> Nanos {
    Limits::default().lead
}

/// When cells leave that arrive at these times, one at a slot.
fn serve(arrivals: &[Nanos], slots: &mut Schedule) -> Vec<Nanos> {
    let leave = |&at: &Nanos| {
        slots.skip_to(at + lead());
        let slot = slots.deadline();
        slots.advance();
        slot
    };
    arrivals.iter().map(leave).collect()
}

/// Mean time between slots, in nanoseconds.
fn period(class: &Class) -> f64 {
    1e9 / f64::from(class.rate)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of hours, not negative")]
const fn nanos(time: f64) -> u64 {
    time as u64
}

/// What one round draws.
struct Rounds {
    rng: ChaCha8Rng,
}

impl Rounds {
    fn new(round: u32) -> Self {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&round.to_be_bytes());
        Self { rng: ChaCha8Rng::from_seed(seed) }
    }

    fn slots(&mut self, class: Class) -> Schedule {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        Schedule::new(class.schedule, class.rate, START, seed)
    }

    /// Instants within a span, in order.
    fn packets(&mut self, span: f64) -> Vec<Nanos> {
        let at = |_| START + Nanos(nanos((self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 * span));
        let mut packets: Vec<Nanos> = (0..PACKETS).map(at).collect();
        packets.sort_unstable();
        packets
    }
}

/// Delays of many packets by hop, in µs.
struct Samples {
    hops: Vec<Vec<f64>>,
    whole: Vec<f64>,
}

impl Samples {
    fn new(hops: usize) -> Self {
        Self { hops: vec![Vec::new(); hops], whole: Vec::new() }
    }

    /// A packet's way, from its beginning on.
    fn add(&mut self, way: &[Nanos]) {
        let micros = |from: Nanos, to: Nanos| to.since(from).0 as f64 / 1e3;
        for (hop, pair) in self.hops.iter_mut().zip(way.windows(2)) {
            hop.push(micros(pair[0], pair[1]));
        }
        if let (Some(&from), Some(&to)) = (way.first(), way.last()) {
            self.whole.push(micros(from, to));
        }
    }

    /// Packets that take the next cell to leave, whose times at all hops are known.
    fn follow(&mut self, packets: &[Nanos], cells: [&[Nanos]; MAX_HOPS]) {
        for &packet in packets {
            let taken = cells[0].partition_point(|&slot| slot < packet + lead());
            let way = cells.iter().map_while(|times| times.get(taken).copied());
            let way: Vec<Nanos> = std::iter::once(packet).chain(way).collect();
            if way.len() == MAX_HOPS + 1 {
                self.add(&way);
            }
        }
    }

    fn delays(mut self) -> Delays {
        Delays { hops: self.hops.iter_mut().map(|hop| delay(hop)).collect(), whole: delay(&mut self.whole) }
    }
}

fn delay(sample: &mut [f64]) -> Delay {
    sample.sort_by(f64::total_cmp);
    let mean = sample.iter().sum::<f64>() / sample.len().max(1) as f64;
    let p99 = sample.get(sample.len() * 99 / 100).copied().unwrap_or(0.0);
    Delay { mean, p99 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::schedule::{Law, Pattern};

    const LEAD: f64 = 200.0;

    fn class(schedule: Law, rate: u32) -> Class {
        Class { rate, schedule }
    }

    fn laws() -> [Law; 4] {
        [Law::Constant, Law::Jittered, Law::Poisson, Law::Pattern(Pattern::new(&[1, 1, 6]).unwrap())]
    }

    fn near(found: f64, expected: f64, tolerance: f64) {
        assert!((found / expected - 1.0).abs() <= tolerance, "{found} is not {expected}");
    }

    #[test]
    fn one_link_is_what_the_formulas_say() {
        // Period 500 µs. Means by hand, E[g²] / 2 E[g]: half; 7/12; one; (1 + 1 + 36) / 3 over (8 / 3)² and half.
        // Of 100 waits, one is longer than: 0.99; 2 less the cube root of 0.06; ln 100; 2.25 less 0.03.
        let expected = [(250.0, 495.0), (291.667, 804.26), (500.0, 2302.6), (445.31, 1110.0)];
        for (law, (mean, p99)) in laws().into_iter().zip(expected) {
            let Delays { hops, whole } = alone(&[class(law, 2000)]);
            let tolerance = if law == Law::Poisson { 0.05 } else { 0.02 };
            near(whole.mean, LEAD + mean, tolerance);
            near(whole.p99, LEAD + p99, tolerance);
            near(hops[0].mean, whole.mean, 1e-9);
        }
    }

    #[test]
    fn links_in_a_row_add_up_and_their_extremes_do_not() {
        let Delays { hops, whole } = alone(&[class(Law::Constant, 2000); 3]);
        near(whole.mean, 3.0 * (LEAD + 250.0), 0.02);
        near(whole.mean, hops.iter().map(|hop| hop.mean).sum(), 1e-9);
        // The sum of three uniform waits is beyond 3 - y with probability y³/6: y is the cube root of 0.06.
        near(whole.p99, 3.0 * LEAD + 500.0 * (3.0 - 0.06_f64.cbrt()), 0.03);
    }

    /// The engine itself in simulated time (tests/tests/simulation/delays.rs): means of the two ways by law, in µs, where
    /// all links have the law, the client's 1500 slots a second and the trunks 2000.
    #[test]
    fn behind_cover_packets_take_as_long_as_in_the_engine() {
        let pattern = Law::Pattern(Pattern::new(&[1, 1, 6, 2]).unwrap());
        let measured = [(1462.0, 1780.0), (1680.0, 2671.0), (4767.0, 6694.0), (2131.0, 2850.0)];
        for (law, (there, back)) in
            [Law::Constant, Law::Jittered, Law::Poisson, pattern].into_iter().zip(measured)
        {
            let trunk = class(law, 2000);
            let [out, home] = covered(class(law, 1500), [trunk; 2], law.spare());
            near(out.whole.mean, there, 0.05);
            near(home.whole.mean, back, if law == Law::Poisson { 0.1 } else { 0.06 });
        }
    }

    #[test]
    fn the_same_comes_out_again() {
        let [one, other] = [0, 1].map(|_| alone(&[class(Law::Poisson, 7)]).whole);
        assert_eq!((one.mean.to_bits(), one.p99.to_bits()), (other.mean.to_bits(), other.p99.to_bits()));
    }
}
