//! `cargo xtask test`: every test of the workspace that this user may run.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use relay_tests::tools::LAB;

use crate::tools;

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Only tests whose name contains this
    #[arg(long)]
    pub(crate) filter: Option<String>,
}

pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let started = Instant::now();
    if relay_tests::privilege::is_root() {
        tools::install(&LAB)?;
    }
    let mut command = tools::cargo();
    command.args(["test", "--workspace", "--exclude", "relay-ebpf", "--no-fail-fast", "--locked", "--"]);
    // A test that passes keeps its output to itself otherwise, and with it the line that says it was skipped.
    command.arg("--show-output").args(args.filter.as_deref());
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        tally.read(&line);
    }
    let status = child.wait()?;
    println!();
    for skipped in &tally.skipped {
        println!("left out: {skipped}");
    }
    println!(
        "{} passed, {} failed, {} ignored, {} left out, in {:.0} s",
        tally.passed,
        tally.failed,
        tally.ignored,
        tally.skipped.len(),
        started.elapsed().as_secs_f64()
    );
    if !status.success() {
        bail!("cargo test: {status}");
    }
    if tally.passed == 0 {
        bail!("not a single test ran: the filter {:?} matches none", args.filter.as_deref().unwrap_or(""));
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    skipped: BTreeSet<String>,
}

impl Tally {
    /// Takes in a line of the test harness's output.
    fn read(&mut self, line: &str) {
        if let Some(skipped) = line.trim_start().strip_prefix("skipped: ") {
            self.skipped.insert(skipped.to_owned());
        }
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_skipped_tests_are_summed() {
        let mut tally = Tally::default();
        tally.read(
            "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.05s",
        );
        tally.read("skipped: a_guard_brings_the_thread_back: needs root");
        tally.read(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        let skipped = BTreeSet::from(["a_guard_brings_the_thread_back: needs root".to_owned()]);
        assert_eq!(tally, Tally { passed: 10, failed: 2, ignored: 1, skipped });
    }
}
