//! The tests that meet the kernel, under each of the emulated machine's kernels.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::tools;
use crate::vm::SERIES;

/// Those that ask the verifier or move cells through AF_XDP. None is left out under any kernel.
const TESTS: [&str; 3] = ["prog_run", "steering", "xsk_veth"];
/// Far above what they take on an idle machine (docs/decisions/0016-emulated-kernels.md).
const LIMIT_SECONDS: &str = "300";
/// Runs every argument and fails where one did.
const RUN_ALL: &str = r#"status=0; for test in "$@"; do "$test" || status=1; done; exit $status"#;

pub(super) fn run() -> Result<()> {
    let tests = build()?;
    let mut failed = Vec::new();
    for series in SERIES {
        println!("-- kernel {series}");
        let machine = ["vm", "--kernel", series, "--timeout", LIMIT_SECONDS, "--", "env"];
        let required = format!("{}=1", relay_tests::privilege::REQUIRE_PRIVILEGED);
        let command = [required.as_str(), "sh", "-c", RUN_ALL, "tests"];
        let arguments: Vec<&str> =
            machine.into_iter().chain(command).chain(tests.iter().map(String::as_str)).collect();
        if let Err(error) = super::xtask(&arguments) {
            eprintln!("kernel {series}: {error:#}");
            failed.push(series);
        }
    }
    ensure!(failed.is_empty(), "tests failed under {}", failed.join(", "));
    Ok(())
}

/// What cargo says of an artifact, as far as it is of interest here.
#[derive(Deserialize)]
struct Message {
    executable: Option<String>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds the tests and returns their programs.
fn build() -> Result<Vec<String>> {
    let mut command = tools::cargo();
    command.args(["test", "--package", "relay-tests", "--locked", "--no-run", "--message-format=json"]);
    command.args(TESTS.iter().flat_map(|test| ["--test", test]));
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo test")?;
    if !output.status.success() {
        bail!("cargo test --no-run: {}", output.status);
    }
    let mut programs = BTreeMap::new();
    for line in String::from_utf8(output.stdout).context("cargo does not write UTF-8")?.lines() {
        let message: Message = serde_json::from_str(line).context("a message of cargo's")?;
        if let (Some(program), Some(target)) = (message.executable, message.target) {
            programs.insert(target.name, program);
        }
    }
    TESTS
        .iter()
        .map(|test| programs.remove(*test).with_context(|| format!("cargo built no program for {test}")))
        .collect()
}
