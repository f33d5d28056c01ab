//! The wire as a picture: for each direction, its cells over time and how its gaps are distributed.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::canvas::{Brush, Canvas};

/// Pixels of the whole width and of a direction's row.
const WIDTH: u32 = 1200;
const ROW: u32 = 210;
const HEADING: u32 = 40;
/// Pixels that gaps get of the width.
const GAPS: u32 = 400;
/// Directions that are drawn; a picture of more is one that nobody reads.
pub(crate) const ROWS: usize = 8;
/// Bins over time and over gaps.
pub(crate) const TIMES: usize = 400;
pub(crate) const LENGTHS: usize = 80;

// Okabe and Ito's palette, as in the benchmarks' reports.
const CELLS: RGBColor = RGBColor(0, 114, 178);
const GAP: RGBColor = RGBColor(213, 94, 0);
const MARK: RGBColor = RGBColor(240, 228, 66);
const INK: RGBColor = RGBColor(16, 16, 16);
const GRID: RGBColor = RGBColor(224, 224, 224);

/// What is drawn.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// Above all.
    pub(crate) title: String,
    /// Seconds of the whole and of one bin.
    pub(crate) seconds: f64,
    pub(crate) bin: f64,
    /// When the user was active, in seconds.
    pub(crate) marks: Vec<(f64, f64)>,
    /// One for each direction.
    pub(crate) rows: Vec<Row>,
}

/// A direction.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) title: String,
    /// Cells in each bin.
    pub(crate) counts: Vec<u32>,
    /// Where bins of gaps begin and how wide each is, in microseconds, and the share of gaps (0 to 1) in each.
    pub(crate) gap_from: f64,
    pub(crate) gap_bin: f64,
    pub(crate) gaps: Vec<f64>,
}

impl Picture {
    /// As SVG.
    pub(crate) fn svg(&self) -> Option<String> {
        let mut out = String::new();
        {
            let area = SVGBackend::with_string(&mut out, self.size()).into_drawing_area();
            self.draw(&area).ok()?;
            area.present().ok()?;
        }
        Some(out)
    }

    /// As PNG.
    pub(crate) fn png(&self) -> Option<Vec<u8>> {
        let mut canvas = Canvas::new(self.size());
        {
            let area = Brush(&mut canvas).into_drawing_area();
            self.draw(&area).ok()?;
            area.present().ok()?;
        }
        canvas.png().ok()
    }

    fn size(&self) -> (u32, u32) {
        let rows = u32::try_from(self.rows.len().clamp(1, ROWS)).unwrap_or(1);
        (WIDTH, HEADING + rows * ROW)
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        area.fill(&WHITE)?;
        let (heading, body) = area.split_vertically(HEADING);
        heading.draw(&Text::new(
            self.title.clone(),
            (16, 12),
            ("sans-serif", 19, &INK).into_text_style(area),
        ))?;
        let rows = body.split_evenly((self.rows.len().clamp(1, ROWS), 1));
        let last = rows.len().saturating_sub(1);
        for (place, (row, area)) in self.rows.iter().zip(&rows).enumerate() {
            let (left, right) = area.split_horizontally(WIDTH - GAPS);
            self.over_time(row, &left, place == last)?;
            over_gaps(row, &right, place == last)?;
        }
        Ok(())
    }

    fn over_time<B: DrawingBackend>(
        &self,
        row: &Row,
        area: &DrawingArea<B, Shift>,
        last: bool,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        let most = f64::from(row.counts.iter().copied().max().unwrap_or(0).max(1)) * 1.15;
        let mut chart = ChartBuilder::on(area)
            .margin_left(4)
            .margin_right(16)
            .caption(&row.title, ("sans-serif", 17, &INK).into_text_style(area))
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..self.seconds.max(1e-6), 0.0..most)?;
        let shade = MARK.mix(0.35).filled();
        chart.draw_series(
            self.marks.iter().map(|&(from, to)| Rectangle::new([(from, 0.0), (to, most)], shade)),
        )?;
        axes(&mut chart, 8, if last { "seconds" } else { "" }, "cells")?;
        // Steps: a bin's count holds for the whole bin.
        let steps = row.counts.iter().zip(0_u32..).flat_map(|(&count, bin)| {
            let (from, count) = (f64::from(bin) * self.bin, f64::from(count));
            [(from, count), (from + self.bin, count)]
        });
        chart.draw_series(LineSeries::new(steps, CELLS.stroke_width(1)))?;
        Ok(())
    }
}

fn axes<B: DrawingBackend>(
    chart: &mut ChartContext<'_, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    labels: usize,
    x: &str,
    y: &str,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(labels)
        .y_labels(4)
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .x_desc(x)
        .y_desc(y)
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 15, &INK))
        .axis_desc_style(("sans-serif", 16, &INK))
        .draw()
}

fn over_gaps<B: DrawingBackend>(
    row: &Row,
    area: &DrawingArea<B, Shift>,
    last: bool,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let most = row.gaps.iter().copied().fold(1e-6, f64::max) * 115.0;
    let start = row.gap_from;
    let end = start + (row.gaps.len().max(1) as f64 * row.gap_bin).max(1e-6);
    let mut chart = ChartBuilder::on(area)
        .margin_left(4)
        .margin_right(24)
        .caption(" ", ("sans-serif", 17, &INK).into_text_style(area))
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(start..end, 0.0..most)?;
    axes(&mut chart, 5, if last { "µs between cells" } else { "" }, "% of gaps")?;
    let bars = row.gaps.iter().zip(0_u32..).map(|(share, bin)| {
        let from = start + f64::from(bin) * row.gap_bin;
        Rectangle::new([(from, 0.0), (from + row.gap_bin, share * 100.0)], GAP.filled())
    });
    chart.draw_series(bars)?;
    Ok(())
}

/// Without digits that say nothing.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(rows: usize) -> Picture {
        let row = Row {
            title: "A1".to_owned(),
            counts: vec![3, 4, 5],
            gap_from: 0.0,
            gap_bin: 10.0,
            gaps: vec![0.2, 0.8],
        };
        Picture {
            title: "title".to_owned(),
            seconds: 3.0,
            bin: 1.0,
            marks: vec![(1.0, 2.0)],
            rows: vec![row; rows],
        }
    }

    #[test]
    fn both_kinds_show_every_row() {
        for rows in [1, 3, ROWS] {
            let svg = picture(rows).svg().unwrap();
            assert_eq!(svg.matches("A1").count(), rows, "{svg}");
            let png = picture(rows).png().unwrap();
            assert!(png.starts_with(b"\x89PNG\r\n"));
        }
    }

    #[test]
    fn nothing_at_all_is_drawn_too() {
        let empty =
            Row { title: String::new(), counts: Vec::new(), gap_from: 0.0, gap_bin: 0.0, gaps: Vec::new() };
        let picture = Picture { seconds: 0.0, rows: vec![empty], ..picture(0) };
        assert!(picture.svg().is_some() && picture.png().is_some());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, 12.0, 0.125, 1000.0, -0.0].map(short), ["0", "12", "0.125", "1000", "0"]);
    }
}
