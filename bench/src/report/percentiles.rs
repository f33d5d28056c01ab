//! Distributions by percentile: as the `.hgrm` text that HdrHistogram's plotter reads, and as a line for a plot.

use std::fmt::Write as _;

use crate::session::{Distribution, Series};

/// Rows for each halving of the distance to 100 %; HdrHistogram's own default.
const STEPS: u32 = 5;
const NANOS_PER_MICRO: f64 = 1e3;

/// What [`Distribution::values`] looks like in HdrHistogram's percentile format, values in µs.
pub fn hgrm(distribution: &Distribution) -> String {
    let values = &distribution.values;
    let mut out =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for step in values.iter_quantiles(STEPS) {
        total += step.count_since_last_iteration();
        let (value, quantile) =
            (step.value_iterated_to() as f64 / NANOS_PER_MICRO, step.quantile_iterated_to());
        let _ = write!(out, "{value:12.3} {quantile:2.12} {total:10}");
        // The last row has no fourth column: it would be infinite.
        let _ =
            if quantile < 1.0 { writeln!(out, " {:14.2}", 1.0 / (1.0 - quantile)) } else { writeln!(out) };
    }
    let (mean, deviation) = (values.mean() / NANOS_PER_MICRO, values.stdev() / NANOS_PER_MICRO);
    let _ = writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let max = values.max() as f64 / NANOS_PER_MICRO;
    let _ = writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", values.len());
    let resolution = 2 * 10_u32.pow(u32::from(values.sigfig()));
    let _ = writeln!(
        out,
        "#[Buckets = {:12}, SubBuckets     = {:12}]",
        values.buckets(),
        resolution.next_power_of_two()
    );
    out
}

/// 1/(1-q) against the value in µs, from the first step above the least value to where one value is left.
pub(super) fn series(distribution: &Distribution) -> Series {
    let values = &distribution.values;
    let most = values.len() as f64;
    let points = values
        .iter_quantiles(STEPS)
        .filter(|step| step.quantile_iterated_to() > 0.0)
        .map(|step| {
            let beyond = (1.0 - step.quantile_iterated_to()).max(f64::MIN_POSITIVE);
            ((1.0 / beyond).min(most), step.value_iterated_to() as f64 / NANOS_PER_MICRO)
        })
        .collect();
    Series { name: distribution.name.clone(), points }
}

/// The file of a distribution, beside a report whose file has this name without its extension.
pub(super) fn file_name(stem: &str, distribution: &Distribution) -> String {
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
    let name: String = distribution.name.chars().map(plain).collect();
    format!("{stem}-{}-{name}.hgrm", distribution.case)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;

    fn distribution() -> Distribution {
        let mut values = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        values.record_n(1_000, 900).unwrap();
        values.record_n(50_000, 99).unwrap();
        values.record(2_000_000).unwrap();
        Distribution { case: "pacing", name: "busy, at 80 % load".into(), values }
    }

    #[test]
    fn the_file_has_the_columns_and_the_footer_that_the_plotter_looks_for() {
        let text = hgrm(&distribution());
        let lines: Vec<&str> = text.lines().collect();
        let words: Vec<&str> = lines[0].split_whitespace().collect();
        assert_eq!(words, ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        let rows: Vec<Vec<f64>> = lines[2..]
            .iter()
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        assert_eq!(rows[0][..2], [1.0, 0.0]);
        let (last, others) = rows.split_last().unwrap();
        assert!(others.iter().all(|row| row.len() == 4));
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 1000.0));
        assert!((last[0] - 2000.0).abs() < 2.0, "{last:?}");
        assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] < pair[1][1]));
        let footer: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("#[")).collect();
        assert!(footer[0].starts_with("#[Mean    =") && footer[0].contains("StdDeviation"));
        assert!(footer[1].starts_with("#[Max     =") && footer[1].contains("Total count    =         1000]"));
        assert!(footer[2].starts_with("#[Buckets =") && footer[2].ends_with("2048]"));
    }

    #[test]
    fn the_line_ends_where_one_value_is_left() {
        let series = series(&distribution());
        assert!(series.points.first().unwrap().0 > 1.0);
        let &(beyond, value) = series.points.last().unwrap();
        assert_eq!(beyond, 1000.0);
        assert!((value - 2000.0).abs() < 2.0);
    }

    #[test]
    fn names_of_files_hold_no_surprises() {
        assert_eq!(file_name("out", &distribution()), "out-pacing-busy--at-80---load.hgrm");
    }
}
