//! Programs of the system, called in a namespace.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use relay_tests::Netns;

/// Calls `line` (a program and its arguments, separated by spaces) in `netns` and waits for it.
///
/// # Errors
/// What the program says.
pub(super) fn call(netns: &Netns, line: &str) -> Result<()> {
    call_with(netns, line, "")
}

/// As [`call`], with `input` on its standard input.
///
/// # Errors
/// As [`call`].
pub(super) fn call_with(netns: &Netns, line: &str, input: &str) -> Result<()> {
    output(netns, line, input).map(drop)
}

/// As [`call`]; returns what the program prints.
///
/// # Errors
/// As [`call`].
pub(super) fn ask(netns: &Netns, line: &str) -> Result<String> {
    output(netns, line, "")
}

fn output(netns: &Netns, line: &str, input: &str) -> Result<String> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = netns.spawn(&mut command)?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
