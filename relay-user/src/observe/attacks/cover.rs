//! Attack 10: which cells are cover? The sharpest, since the truth is at hand: whoever lays slots down knows when each
//! cell was due, and whoever holds the keys knows what it carries.
//!
//! Cells are no independent observations. A stall makes many of them late, on all links, and payload comes in bursts: so
//! blocks of time are what is counted, and a figure's interval and p-value come from how blocks differ. Within a block
//! and a link, cells of payload are compared with cells of cover; the difference is zero on average, whatever the load
//! was, unless the cells themselves tell. Giving each block's difference a sign by chance shows how far the sum strays
//! where nothing tells (a permutation of the two names by whole blocks).

use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::live::LARGE_DISTANCE;
use crate::observe::stats::ranked;
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

/// Blocks that a run is cut into, of as many cells each: few, so that a block outlasts stalls and bursts many times over.
const BLOCKS: usize = 64;
/// Values told apart: as many cells in each. Equal values stay together.
const CODES: usize = 64;
/// Draws of signs: the least p-value is 1 / (this + 1).
const DRAWS: u32 = 1999;
/// Cells of payload, and of cover, below which nothing is said.
const LEAST: usize = 1000;
/// Half of a 95 % interval, in standard errors: Student's, for so many blocks.
const INTERVAL: f64 = 1.998;
/// What the design lets pass.
const AUC: Target = Target::Between { low: 0.48, high: 0.52 };
/// And of a distance between distributions, which sees what their order does not: what the self-audit calls large.
const DISTANCE: Target = Target::AtMost { bound: LARGE_DISTANCE };
/// A planted leak is found with less.
const FOUND: Target = Target::AtMost { bound: 0.001 };

/// One cell that left, and the truth about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Emission {
    /// When it was seen, in nanoseconds of any one clock.
    pub at: u64,
    /// Its link.
    pub link: u32,
    /// It carried payload.
    pub payload: bool,
    /// Nanoseconds after its slot; below zero only by what two clocks differ.
    pub lateness: f64,
    /// Cells of its send batch before it.
    pub place: f64,
    /// Nanoseconds since the cell before it in its batch; NaN for the first.
    pub service: f64,
    /// Nanoseconds since its link's cell before it; NaN for the first.
    pub gap: f64,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// [`Emission::lateness`].
    Lateness,
    /// [`Emission::place`].
    Place,
    /// [`Emission::service`].
    Service,
    /// [`Emission::gap`].
    Gap,
}

impl View {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lateness, Self::Place, Self::Service, Self::Gap];

    const fn of(self, cell: &Emission) -> f64 {
        match self {
            Self::Lateness => cell.lateness,
            Self::Place => cell.place,
            Self::Service => cell.service,
            Self::Gap => cell.gap,
        }
    }

    /// Names of its AUC over all cells, of the AUC within block and link, of the distance and of its p-value.
    const fn names(self) -> [&'static str; 4] {
        match self {
            Self::Lateness => [
                "AUC of lateness",
                "AUC of lateness, same link and time",
                "KS distance of lateness",
                "p of lateness",
            ],
            Self::Place => [
                "AUC of place in batch",
                "AUC of place in batch, same link and time",
                "KS distance of place in batch",
                "p of place in batch",
            ],
            Self::Service => [
                "AUC of service time",
                "AUC of service time, same link and time",
                "KS distance of service time",
                "p of service time",
            ],
            Self::Gap => {
                ["AUC of gaps", "AUC of gaps, same link and time", "KS distance of gaps", "p of gaps"]
            }
        }
    }
}

/// Payload against cover, in one view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The chance that a cell of payload has a greater value than one of cover, all cells together, ties half.
    pub auc: f64,
    /// Its 95 % interval, from how blocks differ.
    pub interval: Interval,
    /// The same within blocks of time and links, averaged by how many pairs of the two kinds these have.
    pub within: f64,
    /// Its 95 % interval.
    pub within_interval: Interval,
    /// The greatest difference between the two distribution functions within blocks and links (Kolmogorov and Smirnov).
    pub distance: f64,
    /// How often chance gives a distance as great, by blocks.
    pub p: f64,
    /// Cells of payload.
    pub payload: usize,
    /// Cells of cover.
    pub cover: usize,
}

/// What every view gives; gaps have no target. `planted` says what is wanted of the p-values: in a run whose payload was delayed, that it is
/// found; otherwise they have no target, and the AUCs and lateness's distance have theirs. A view without enough cells of either kind has no power.
pub fn cover(emissions: &[Emission], planted: bool, rng: &mut ChaCha8Rng) -> Vec<Finding> {
    findings(planted, |view| compare(emissions, view, rng))
}

fn findings(planted: bool, mut compare: impl FnMut(View) -> Option<Comparison>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for view in View::ALL {
        let [auc, within, distance, p] = view.names();
        let compared = compare(view);
        let samples = compared.map_or(0, |it| it.payload + it.cover);
        let mut add = |statistic, value: Option<(f64, Interval)>, target| {
            let (value, interval) = value.unwrap_or((f64::NAN, Interval::exact(f64::NAN)));
            findings.push(Finding { attack: Attack::Cover, statistic, value, interval, target, samples });
        };
        // A planted leak of any kind is one that lateness shows; what else it shows in is told. Gaps are told and no more:
        // where slots are not evenly spaced, a slot behind a long gap finds payload more often, for more has come
        // meanwhile. That says which slots would be full if there were payload, and not whether there is any.
        let none = Target::None;
        let [of_auc, of_distance, of_p] = match (planted, view) {
            (false, View::Lateness) => [AUC, DISTANCE, none],
            (true, View::Gap | View::Place | View::Service) | (false, View::Gap) => [none; 3],
            (false, View::Place | View::Service) => [AUC, none, none],
            (true, View::Lateness) => [none, none, FOUND],
        };
        add(auc, compared.map(|it| (it.auc, it.interval)), of_auc);
        add(within, compared.map(|it| (it.within, it.within_interval)), of_auc);
        add(distance, compared.map(|it| (it.distance, Interval::exact(it.distance))), of_distance);
        add(p, compared.map(|it| (it.p, Interval::exact(it.p))), of_p);
    }
    findings
}

/// One view; `None` where it has fewer than 1000 cells of either kind.
pub fn compare(emissions: &[Emission], view: View, rng: &mut ChaCha8Rng) -> Option<Comparison> {
    compare_by(emissions, view, DRAWS, rng)
}

fn compare_by(emissions: &[Emission], view: View, draws: u32, rng: &mut ChaCha8Rng) -> Option<Comparison> {
    let cells = coded(emissions, view);
    let payload = cells.iter().filter(|cell| cell.payload).count();
    let cover = cells.len() - payload;
    if payload < LEAST || cover < LEAST {
        return None;
    }
    let blocks = blocks(&cells);
    let (within, within_interval) = ratio(&blocks);
    let (auc, interval) = pooled(&cells, payload as f64, cover as f64);
    let (distance, p) = signed(&blocks, draws, rng);
    Some(Comparison { auc, interval, within, within_interval, distance, p, payload, cover })
}

/// A cell as the statistics need it.
#[derive(Clone, Copy)]
struct Cell {
    at: u64,
    link: u32,
    payload: bool,
    /// The rank of its value, in [`CODES`] steps.
    code: usize,
}

/// The cells that have a value, in order of time.
fn coded(emissions: &[Emission], view: View) -> Vec<Cell> {
    let mut values: Vec<f64> = emissions.iter().map(|it| view.of(it)).filter(|it| !it.is_nan()).collect();
    values.sort_unstable_by(f64::total_cmp);
    let mut firsts: Vec<f64> =
        (1..CODES).filter_map(|step| values.get(step * values.len() / CODES).copied()).collect();
    firsts.dedup_by(|a, b| a.total_cmp(b).is_eq());
    let mut cells: Vec<Cell> = emissions
        .iter()
        .map(|it| (it, view.of(it)))
        .filter(|(_, value)| !value.is_nan())
        .map(|(it, value)| Cell {
            at: it.at,
            link: it.link,
            payload: it.payload,
            code: firsts.partition_point(|first| *first <= value),
        })
        .collect();
    cells.sort_by_key(|cell| cell.at);
    cells
}

/// What a block of time says: sums over its links.
#[derive(Clone)]
struct Block {
    /// Payload less cover, in the shares up to each code, times `weight`.
    shares: [f64; CODES],
    /// Of the AUC less one half, times `weight`.
    ranks: f64,
    /// How much the block can tell.
    weight: f64,
}

fn block_of(number: usize, cells: usize) -> usize {
    number * BLOCKS / cells.max(1)
}

fn blocks(cells: &[Cell]) -> Vec<Block> {
    let mut rest = cells;
    let mut blocks = Vec::with_capacity(BLOCKS);
    let mut cut = 0;
    while !rest.is_empty() {
        let number = block_of(cut, cells.len());
        let length = (1..=rest.len()).take_while(|ahead| block_of(cut + ahead - 1, cells.len()) == number);
        let (block, others) = rest.split_at(length.count());
        let mut block = block.to_vec();
        block.sort_by_key(|cell| cell.link);
        let mut sums = Block { shares: [0.0; CODES], ranks: 0.0, weight: 0.0 };
        for stratum in block.chunk_by(|a, b| a.link == b.link) {
            sums.add(stratum);
        }
        blocks.push(sums);
        cut += block.len();
        rest = others;
    }
    blocks
}

/// Cells of cover and of payload, by code.
fn counts(cells: &[Cell]) -> [[f64; CODES]; 2] {
    let mut counts = [[0.0; CODES]; 2];
    for cell in cells {
        counts[usize::from(cell.payload)][cell.code] += 1.0;
    }
    counts
}

impl Block {
    /// Adds the cells of one link.
    fn add(&mut self, stratum: &[Cell]) {
        let [cover, payload] = counts(stratum);
        let (covers, payloads) = (cover.iter().sum::<f64>(), payload.iter().sum::<f64>());
        if covers == 0.0 || payloads == 0.0 {
            return;
        }
        let cells = covers + payloads;
        let (mut cover_below, mut payload_below) = (0.0, 0.0);
        for ((share, c), p) in self.shares.iter_mut().zip(&cover).zip(&payload) {
            cover_below += c;
            payload_below += p;
            *share += (payload_below * covers - cover_below * payloads) / cells;
        }
        let (wins, pairs) = ranked(cover.iter().zip(&payload).map(|(c, p)| [*c, *p]));
        self.ranks += (wins - pairs / 2.0) / cells;
        self.weight += payloads * covers / cells;
    }
}

/// The AUC within strata, and its interval.
fn ratio(blocks: &[Block]) -> (f64, Interval) {
    let weight: f64 = blocks.iter().map(|block| block.weight).sum();
    let shift = blocks.iter().map(|block| block.ranks).sum::<f64>() / weight;
    let spread: f64 = blocks.iter().map(|block| (block.ranks - shift * block.weight).powi(2)).sum();
    around(0.5 + shift, spread.sqrt() / weight, blocks.len())
}

fn around(value: f64, error: f64, blocks: usize) -> (f64, Interval) {
    let blocks = blocks as f64;
    let half = INTERVAL * error * (blocks / (blocks - 1.0)).sqrt();
    (value, Interval { low: value - half, high: value + half })
}

/// The AUC over all cells. Each cell moves it by how it lies among those of the other kind; blocks by what their cells
/// do together.
fn pooled(cells: &[Cell], payload: f64, cover: f64) -> (f64, Interval) {
    let by_kind = counts(cells);
    let mut below = [0.0; 2];
    // The share of each kind below a code, and half of that at it.
    let mut middle = [[0.0; CODES]; 2];
    for code in 0..CODES {
        for ((below, middle), (counts, all)) in
            below.iter_mut().zip(&mut middle).zip(by_kind.iter().zip([cover, payload]))
        {
            middle[code] = (*below + counts[code] / 2.0) / all;
            *below += counts[code];
        }
    }
    let [among_cover, among_payload] = middle;
    let (wins, pairs) = ranked(by_kind[0].iter().zip(&by_kind[1]).map(|(c, p)| [*c, *p]));
    let auc = wins / pairs;
    let mut moved = vec![0.0; BLOCKS];
    for (number, cell) in cells.iter().enumerate() {
        moved[block_of(number, cells.len())] += if cell.payload {
            (among_cover[cell.code] - auc) / payload
        } else {
            (1.0 - among_payload[cell.code] - auc) / cover
        };
    }
    let error = moved.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
    around(auc, error, BLOCKS)
}

/// The distance between the distributions, and how often blocks with signs by chance give one as great.
fn signed(blocks: &[Block], draws: u32, rng: &mut ChaCha8Rng) -> (f64, f64) {
    let weight: f64 = blocks.iter().map(|block| block.weight).sum();
    let greatest = |sign: &mut dyn FnMut() -> f64| {
        let mut sums = [0.0; CODES];
        for block in blocks {
            let sign = sign();
            for (sum, share) in sums.iter_mut().zip(&block.shares) {
                *sum += sign * share;
            }
        }
        sums.iter().fold(0.0, |greatest: f64, sum| greatest.max(sum.abs()))
    };
    let found = greatest(&mut || 1.0);
    let as_great = (0..draws)
        .filter(|_| greatest(&mut || if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 }) >= found)
        .count();
    (found / weight, (1.0 + as_great as f64) / (1.0 + f64::from(draws)))
}

#[cfg(test)]
mod tests;
