//! One picture as SVG. Colours stand in it as plain attributes, which the page's style sheet translates for light and
//! dark and pairs with dashes, so that lines can be told apart without seeing colours.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use super::table::short;
use crate::session::Series;

/// Width and height, in pixels where nothing scales it.
const SIZE: (u32, u32) = (930, 390);
/// Labels along an axis, about.
const TICKS: f64 = 7.0;
/// Decades up to which a logarithmic axis has labels at 2 and 5 as well.
const DECADES: f64 = 2.5;
/// Points of one line, at most; more than the picture has columns.
const POINTS: usize = 2_000;
/// What CSS calls these; Okabe and Ito's palette, in the order in which lines get them.
pub(crate) const LINES: [&str; 7] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"];
/// Text, axes and grid.
pub(crate) const INK: &str = "#101010";
pub(crate) const GRID: &str = "#E0E0E0";

/// How an axis runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Log,
    /// Logarithmic over 1/(1-q), labelled with q in percent.
    Percentile,
}

/// An axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis<'a> {
    /// What it shows, with its unit.
    pub(crate) title: &'a str,
    pub(crate) scale: Scale,
}

impl Scale {
    /// Where a value lies along the axis.
    fn place(self, value: f64) -> f64 {
        if self == Self::Linear { value } else { value.log10() }
    }

    fn shows(self, value: f64) -> bool {
        value.is_finite() && (self == Self::Linear || value > 0.0)
    }

    /// The label at a place.
    fn label(self, place: f64) -> String {
        match self {
            Self::Linear => number(place),
            Self::Log => number(10_f64.powf(place)),
            Self::Percentile => {
                let percent = format!("{:.7}", 100.0 * (1.0 - 10_f64.powf(-place)));
                format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
            }
        }
    }

    /// Where labels go between two places.
    fn ticks(self, range: &Range<f64>) -> Vec<f64> {
        let span = range.end - range.start;
        if self == Self::Linear {
            let rough = span / TICKS;
            let decade = 10_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0].map(|part| part * decade);
            return multiples(step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * decade), range);
        }
        if self == Self::Percentile {
            let nines = multiples(1.0, range);
            return [vec![0.0, 2_f64.log10()], nines.into_iter().filter(|nine| *nine > 0.0).collect()]
                .concat();
        }
        if span > DECADES {
            return multiples((span / TICKS).ceil(), range);
        }
        let first = range.start.floor();
        let between = multiples(1.0, &(first..range.end));
        let parts = [1.0, 2.0, 5.0].map(f64::log10);
        let all = between.into_iter().flat_map(|decade| parts.map(|part| decade + part));
        all.filter(|place| (range.start..=range.end).contains(place)).collect()
    }
}

/// A scale's places between two ends, and where its labels go.
struct Places {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Places {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    #[expect(clippy::cast_possible_truncation, reason = "a share of a picture's pixels")]
    fn map(&self, place: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (place - self.range.start) / (self.range.end - self.range.start);
        first + (f64::from(last - first) * share).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// The multiples of `step` in a range, end included.
fn multiples(step: f64, range: &Range<f64>) -> Vec<f64> {
    let first = (range.start / step).ceil();
    (0_u8..=u8::MAX)
        .map(|count| (first + f64::from(count)) * step)
        .take_while(|value| *value <= range.end + step * 1e-9)
        .collect()
}

fn number(value: f64) -> String {
    let text = if (1e-4..0.1).contains(&value.abs()) { format!("{value:.6}") } else { short(value) };
    if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Draws at most as many lines as there are [`LINES`]; `None` where no point can be drawn.
pub(crate) fn svg(x: Axis<'_>, y: Axis<'_>, series: &[Series]) -> Option<String> {
    let lines: Vec<Vec<(f64, f64)>> =
        series.iter().take(LINES.len()).map(|line| places(line, x.scale, y.scale)).collect();
    let xs = range(lines.iter().flatten().map(|point| point.0), x.scale)?;
    let ys = range(lines.iter().flatten().map(|point| point.1), y.scale)?;
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        let (x_ticks, y_ticks) = (x.scale.ticks(&xs), y.scale.ticks(&ys));
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .margin_right(32)
            .x_label_area_size(52)
            .y_label_area_size(82)
            .build_cartesian_2d(Places { range: xs, ticks: x_ticks }, Places { range: ys, ticks: y_ticks })
            .ok()?;
        let (ink, grid) = (colour(INK), colour(GRID));
        chart
            .configure_mesh()
            .x_desc(x.title)
            .y_desc(y.title)
            .x_label_formatter(&|place| x.scale.label(*place))
            .y_label_formatter(&|place| y.scale.label(*place))
            .axis_style(ink)
            .bold_line_style(grid)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 17, &ink))
            .axis_desc_style(("sans-serif", 18, &ink))
            .draw()
            .ok()?;
        for (points, name) in lines.into_iter().zip(LINES) {
            let style = colour(name).stroke_width(2);
            chart.draw_series(LineSeries::new(points, style)).ok()?;
        }
        area.present().ok()?;
    }
    Some(out)
}

/// The places of the points that their axes can show, thinned to what a picture can.
fn places(series: &Series, x: Scale, y: Scale) -> Vec<(f64, f64)> {
    let every = series.points.len().div_ceil(POINTS).max(1);
    let last = series.points.len().saturating_sub(1);
    let thinned = series.points.iter().enumerate().filter(|&(at, _)| at % every == 0 || at == last);
    thinned
        .filter(|(_, point)| x.shows(point.0) && y.shows(point.1))
        .map(|(_, point)| (x.place(point.0), y.place(point.1)))
        .collect()
}

/// From the least to the greatest, with room where there is only one; a linear axis begins at zero where that costs
/// little of the picture.
fn range(places: impl Iterator<Item = f64>, scale: Scale) -> Option<Range<f64>> {
    let (low, high) = places
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| (low.min(place), high.max(place)));
    if low > high {
        return None;
    }
    let range = match scale {
        Scale::Linear if low >= 0.0 && high > 0.0 && low < high / 2.0 => 0.0..high * 1.05,
        Scale::Linear => {
            let room = (high - low).max(high.abs().max(1e-9) * 0.1) * 0.05;
            low - room..high + room
        }
        Scale::Percentile => 0.0..high.max(1.0),
        Scale::Log => low - 0.05..high + 0.05,
    };
    Some(range)
}

fn colour(name: &str) -> RGBColor {
    let part = |at: usize| u8::from_str_radix(name.get(at..at + 2).unwrap_or("00"), 16).unwrap_or(0);
    RGBColor(part(1), part(3), part(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: Axis<'_> = Axis { title: "cells/s", scale: Scale::Linear };
    const Y: Axis<'_> = Axis { title: "µs", scale: Scale::Linear };

    fn line(points: &[(f64, f64)]) -> Series {
        Series { name: "a".into(), points: points.to_vec() }
    }

    #[test]
    fn every_scale_draws_its_lines_and_titles() {
        let series = [line(&[(1.0, 2.0), (10.0, 20.0), (1000.0, 5.0)]), line(&[(1.0, 1.0), (100.0, 3.0)])];
        for x in [Scale::Linear, Scale::Log, Scale::Percentile] {
            for y in [Scale::Linear, Scale::Log] {
                let svg = svg(Axis { scale: x, ..X }, Axis { scale: y, ..Y }, &series).expect("a picture");
                assert!(svg.contains("cells/s") && svg.contains("µs"), "{x:?} {y:?}");
                assert_eq!(svg.matches(LINES[0]).count(), 1, "{x:?} {y:?}");
                assert_eq!(svg.matches(LINES[1]).count(), 1, "{x:?} {y:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        assert!(svg(X, Y, &[]).is_none());
        assert!(svg(X, Y, &[line(&[(f64::NAN, 1.0)])]).is_none());
        let log = Axis { scale: Scale::Log, ..X };
        assert!(svg(log, Y, &[line(&[(0.0, 1.0), (-1.0, 1.0)])]).is_none());
        assert!(svg(log, Y, &[line(&[(0.0, 1.0), (5.0, 1.0)])]).is_some());
    }

    #[test]
    fn long_lines_are_thinned_but_keep_their_ends() {
        let long: Vec<(f64, f64)> = (0..100_001).map(|at| (f64::from(at), 1.0)).collect();
        let kept = places(&line(&long), Scale::Linear, Scale::Linear);
        assert!(kept.len() <= POINTS + 1);
        assert_eq!((kept[0].0, kept.last().unwrap().0), (0.0, 100_000.0));
    }

    #[test]
    fn labels_stand_at_round_values() {
        let labels = |scale: Scale, range: Range<f64>| {
            scale.ticks(&range).into_iter().map(|place| scale.label(place)).collect::<Vec<_>>()
        };
        assert_eq!(labels(Scale::Linear, 0.0..1.05), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(Scale::Linear, -3.0..3.1), ["-3", "-2", "-1", "0", "1", "2", "3"]);
        assert_eq!(labels(Scale::Log, -0.05..1.75), ["1", "2", "5", "10", "20", "50"]);
        assert_eq!(labels(Scale::Log, -1.1..4.1), ["0.1", "1", "10", "100", "1000", "10000"]);
        assert_eq!(labels(Scale::Percentile, 0.0..4.2), ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        for scale in [Scale::Linear, Scale::Log, Scale::Percentile] {
            for (start, end) in [(0.0, 1e-3), (0.0, 8.0), (-3.0, 9.0)] {
                let count = scale.ticks(&(start..end)).len();
                assert!(count <= 12, "{scale:?} {start} {end}: {count}");
            }
        }
    }
}
