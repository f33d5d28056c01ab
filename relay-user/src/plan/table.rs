//! The plan for people.

use std::fmt::Write as _;

use super::Plan;

/// Columns of text with two blanks between them.
struct Columns {
    rows: Vec<Vec<String>>,
    /// Columns that are words and not numbers, set flush left.
    words: &'static [usize],
}

impl Columns {
    fn new(words: &'static [usize], heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|&head| head.to_owned()).collect()], words }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn text(&self) -> String {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let _ = if self.words.contains(&column) {
                    write!(line, "{gap}{cell:<width$}")
                } else {
                    write!(line, "{gap}{cell:>width$}")
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

impl Plan {
    /// The plan as blocks of columns.
    pub(crate) fn table(&self) -> String {
        let what = if self.kind == "client" { "client of class" } else { "relay" };
        let mut text = format!("{what} {}, document epoch {}\n\n", self.name, self.epoch);
        text += &self.links_table();
        text.push('\n');
        text += &self.latency_table();
        text.push('\n');
        if let Some(goodput) = &self.goodput {
            let _ = writeln!(
                text,
                "goodput  {:.2} Mbit/s out, {:.2} Mbit/s home, in IP packets of {} bytes\n",
                goodput.out_mbit_per_second, goodput.home_mbit_per_second, goodput.mtu
            );
        }
        text += &self.cores_table();
        let memory = &self.memory;
        let _ = writeln!(
            text,
            "\nmemory   {} in all: frames {}, links {}, circuits {} (estimate: docs/benchmarks.md)",
            size(memory.total()),
            size(memory.frames),
            size(memory.links),
            size(memory.circuits)
        );
        let _ = writeln!(text, "leakage  {}", self.leakage.line());
        text.push('\n');
        for problem in &self.problems {
            let _ = writeln!(text, "problem  {problem}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note     {note}");
        }
        text
    }

    fn links_table(&self) -> String {
        let heads = [
            "link to",
            "class",
            "schedule",
            "lanes",
            "cells/s",
            "Mbit/s each way",
            "GB in 30 days each way",
            "circuits",
        ];
        let mut columns = Columns::new(&[0, 1, 2], &heads);
        for link in &self.links {
            columns.row([
                link.to.clone(),
                link.class.clone(),
                link.schedule.clone(),
                link.lanes.to_string(),
                link.cells_per_second.to_string(),
                format!("{:.2}", link.mbit_per_second_each_way),
                format!("{:.1}", link.gb_per_month_each_way),
                link.circuits.map_or_else(|| "-".to_owned(), |circuits| circuits.to_string()),
            ]);
        }
        if let Some(all) = &self.all_links {
            columns.row([
                all.what.clone(),
                String::new(),
                String::new(),
                String::new(),
                all.cells_per_second.to_string(),
                format!("{:.2}", all.mbit_per_second_each_way),
                format!("{:.1}", all.gb_per_month_each_way),
                String::new(),
            ]);
        }
        columns.text()
    }

    fn latency_table(&self) -> String {
        let mut columns = Columns::new(&[0, 1], &["latency added", "", "mean ms", "p99 ms"]);
        let millis = |micros: f64| format!("{:.2}", micros / 1e3);
        for way in &self.latency {
            for hop in &way.hops {
                let hops = format!("{} -> {}", hop.from, hop.to);
                columns.row([way.way.clone(), hops, millis(hop.mean_us), millis(hop.p99_us)]);
            }
            if way.hops.len() > 1 {
                columns.row([
                    way.way.clone(),
                    "end to end".to_owned(),
                    millis(way.mean_us),
                    millis(way.p99_us),
                ]);
            }
        }
        columns.text()
    }

    fn cores_table(&self) -> String {
        let mut columns = Columns::new(
            &[0, 1, 4],
            &["cores (estimate)", "port", "cells/s each way", "cores at 80 %", "source"],
        );
        for load in &self.cores {
            columns.row([
                load.when.clone(),
                load.datapath.to_owned(),
                format!("{:.0}", load.cells_per_second),
                format!("{:.3}", load.cores),
                load.source.to_owned(),
            ]);
        }
        columns.text()
    }
}

/// Bytes as people write them.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut columns = Columns::new(&[0], &["name", "n"]);
        columns.row(["a longer µs".to_owned(), "5".to_owned()]);
        columns.row(["b".to_owned(), "12345".to_owned()]);
        assert_eq!(columns.text(), "name             n\na longer µs      5\nb            12345\n");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!([512, 2048, 3 << 20].map(size), ["512 B", "2.0 KiB", "3.0 MiB"]);
    }
}
