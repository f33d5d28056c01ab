//! Attack 9: sizes and bytes.

use super::untold;
use crate::observe::finding::{Attack, Finding, Interval, Target};
use crate::observe::stats::{chi_square_p, kolmogorov_p, ks_uniform};
use crate::observe::trace::Window;
use relay_common::wire::{CELL_LEN, DatagramType, LINK_HEADER_LEN};
use std::collections::BTreeSet;

/// How many different lengths there are: one, on a link that is up.
pub fn lengths(windows: &[Window<'_>]) -> Finding {
    let sights = || windows.iter().flat_map(|window| window.sights());
    let distinct = sights().map(|sight| sight.length).collect::<BTreeSet<u16>>().len() as f64;
    Finding {
        attack: Attack::Sizes,
        statistic: "distinct lengths",
        value: distinct,
        interval: Interval::exact(distinct),
        target: Target::AtMost { bound: 1.0 },
        samples: sights().count(),
    }
}

/// Those of the captured datagrams that are cells, without what the protocol shows everyone: type, receiver index and
/// counter. Handshakes are left out: keys in them are not uniform as bytes, and they are no cells.
pub fn sealed<'a>(datagrams: impl IntoIterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let cells = datagrams
        .into_iter()
        .filter(|datagram| datagram.len() == CELL_LEN && datagram.first() == Some(&CELL));
    cells.filter_map(|cell| cell.get(LINK_HEADER_LEN..))
}

const CELL: u8 = DatagramType::Cell as u8;

/// Whether bytes at each place of `texts` are uniform, by chi-square; places with fewer than 1280 bytes are left out.
///
/// - "KS distance of byte p-values": if bytes are uniform, so are the p-values of the places; against the distance that
///   one in a hundred such captures exceeds. Sees what all places have a little of.
/// - "smallest byte p-value, by places": times their number; less than 0.01 in one of a hundred such captures. Sees one
///   place that is off.
pub fn bytes<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Vec<Finding> {
    let mut places: Vec<[u64; 256]> = Vec::new();
    let mut samples = 0;
    for text in texts {
        samples += 1;
        if places.len() < text.len() {
            places.resize(text.len(), [0; 256]);
        }
        for (place, &byte) in places.iter_mut().zip(text) {
            place[usize::from(byte)] += 1;
        }
    }
    tallied(&places, samples)
}

/// [`bytes`] of texts whose values at each place were counted already; `samples` is how many texts.
pub fn tallied(places: &[[u64; 256]], samples: usize) -> Vec<Finding> {
    let p: Vec<f64> = places.iter().filter_map(chi_square).collect();
    let n = p.len() as f64;
    let uniform = Target::AtMost { bound: exceeded_by(LEVEL, n) };
    let rare = Target::AtLeast { bound: LEVEL };
    if p.len() < LEAST_PLACES {
        return vec![
            untold(Attack::Sizes, STATISTICS[0], uniform, samples),
            untold(Attack::Sizes, STATISTICS[1], rare, samples),
        ];
    }
    let smallest = (p.iter().copied().fold(1.0, f64::min) * n).min(1.0);
    let values = [(ks_uniform(&p), uniform), (smallest, rare)];
    let findings = STATISTICS.into_iter().zip(values);
    findings
        .map(|(statistic, (value, target))| {
            let interval = Interval::exact(value);
            Finding { attack: Attack::Sizes, statistic, value, interval, target, samples }
        })
        .collect()
}

const STATISTICS: [&str; 2] = ["KS distance of byte p-values", "smallest byte p-value, by places"];
const LEVEL: f64 = 0.01;
/// Five of each byte, from where chi-square's law holds well.
const LEAST_BYTES: u64 = 5 * 256;
const LEAST_PLACES: usize = 16;

/// How likely uniform bytes are to be this uneven; none where there are too few.
fn chi_square(counts: &[u64; 256]) -> Option<f64> {
    let total = counts.iter().sum::<u64>();
    if total < LEAST_BYTES {
        return None;
    }
    let expected = total as f64 / 256.0;
    let sum: f64 = counts.iter().map(|&count| (count as f64 - expected).powi(2)).sum();
    Some(chi_square_p(sum / expected, 255))
}

/// The distance from their law that `n` draws exceed with likelihood `level`.
fn exceeded_by(level: f64, n: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if kolmogorov_p(middle, n) > level { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::finding::Verdict;
    use crate::observe::trace::{Sight, Trace};
    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    fn texts(count: usize, length: usize, seed: u64, alter: impl Fn(usize, &mut [u8])) -> Vec<Vec<u8>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count)
            .map(|index| {
                let mut text = vec![0; length];
                rng.fill_bytes(&mut text);
                alter(index, &mut text);
                text
            })
            .collect()
    }

    fn verdicts(texts: &[Vec<u8>]) -> [Verdict; 2] {
        let findings = bytes(texts.iter().map(Vec::as_slice));
        [findings[0].verdict(), findings[1].verdict()]
    }

    #[test]
    fn one_length_is_one() {
        let trace = |lengths: &[u16]| {
            Trace::new(lengths.iter().zip(0..).map(|(&length, at)| Sight { at, length }).collect())
        };
        let shaped = trace(&[1360; 5]);
        assert_eq!(lengths(&[shaped.window(0, 9)]).verdict(), Verdict::Met);
        let plain = trace(&[60, 1500]);
        assert_eq!(lengths(&[shaped.window(0, 9), plain.window(0, 9)]).value, 3.0);
        assert_eq!(lengths(&[plain.window(0, 9)]).verdict(), Verdict::Missed);
        assert_eq!(lengths(&[]).verdict(), Verdict::NoPower);
    }

    #[test]
    fn uniform_bytes_pass_as_often_as_they_should() {
        let missed = (0..30)
            .flat_map(|seed| verdicts(&texts(1500, 64, 600 + seed, |_, _| ())))
            .filter(|&verdict| verdict != Verdict::Met)
            .count();
        assert!(missed <= 3, "{missed} of 60 at 1 %");
    }

    #[test]
    fn text_is_found() {
        let text = texts(1500, 64, 1, |_, text| text.iter_mut().for_each(|byte| *byte &= 0x7f));
        assert_eq!(verdicts(&text), [Verdict::Missed; 2]);
    }

    #[test]
    fn one_place_that_counts_is_found() {
        let counter = texts(1500, 64, 2, |index, text| text[9] = u8::try_from(index / 10 % 256).unwrap());
        assert_eq!(verdicts(&counter), [Verdict::Met, Verdict::Missed]);
    }

    #[test]
    fn a_slight_bias_of_all_places_is_found() {
        // One byte in a hundred is zero.
        let biased = texts(3000, 256, 3, |index, text| {
            text.iter_mut().skip(index % 100).step_by(100).for_each(|byte| *byte = 0);
        });
        assert_eq!(verdicts(&biased)[0], Verdict::Missed);
    }

    #[test]
    fn too_few_bytes_are_no_power() {
        assert_eq!(verdicts(&texts(1000, 64, 1, |_, _| ())), [Verdict::NoPower; 2]);
        assert_eq!(verdicts(&[]), [Verdict::NoPower; 2]);
    }

    #[test]
    fn only_the_sealed_part_of_cells_is_looked_at() {
        let cell = |kind: u8, length: usize| {
            let mut cell = vec![7; length];
            cell[0] = kind;
            cell
        };
        let captured = [cell(1, CELL_LEN), cell(2, CELL_LEN), cell(1, 900), cell(4, 64)];
        let kept: Vec<&[u8]> = sealed(captured.iter().map(Vec::as_slice)).collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].len(), CELL_LEN - LINK_HEADER_LEN);
    }
}
