//! `cargo xtask ci`: everything that must hold before a change is merged.

mod audit;
mod kernels;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::tools;

/// Commands a newcomer must find in the README.
const README_COMMANDS: [&str; 4] = ["cargo build", "cargo xtask run", "cargo xtask test", "relay status"];

type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 7] = [
    ("format", || cargo(&["fmt", "--all", "--check"])),
    ("clippy", || {
        cargo(&[
            "clippy",
            "--workspace",
            "--exclude",
            "relay-ebpf",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ])
    }),
    ("dependencies", audit::run),
    ("readme", readme),
    ("tests", || xtask(&["test"])),
    ("ebpf", || xtask(&["ebpf", "verify"])),
    ("kernels", kernels::run),
];

pub(crate) fn run() -> Result<()> {
    let mut outcomes: Vec<(&str, Duration, Result<()>)> = Vec::with_capacity(STEPS.len());
    for (name, step) in STEPS {
        println!("== {name}");
        let started = Instant::now();
        let outcome = step();
        if let Err(error) = &outcome {
            eprintln!("{name}: {error:#}");
        }
        outcomes.push((name, started.elapsed(), outcome));
    }
    println!();
    for (name, took, outcome) in &outcomes {
        println!(
            "{name:<14}{:>7.1} s  {}",
            took.as_secs_f64(),
            if outcome.is_ok() { "ok" } else { "FAILED" }
        );
    }
    let failed: Vec<&str> =
        outcomes.iter().filter(|(_, _, outcome)| outcome.is_err()).map(|&(name, ..)| name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    must_succeed(tools::cargo().args(args))
}

/// Another of these commands, as a process of its own so that the environment it gets is its own too.
fn xtask(args: &[&str]) -> Result<()> {
    let own = std::env::current_exe().context("cannot find this program")?;
    must_succeed(
        Command::new(own)
            .args(args)
            .current_dir(tools::workspace())
            .env(relay_tests::privilege::REQUIRE_PRIVILEGED, "1"),
    )
}

fn must_succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

fn readme() -> Result<()> {
    let path = tools::workspace().join("README.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let absent: Vec<&str> = README_COMMANDS.into_iter().filter(|command| !text.contains(command)).collect();
    if !absent.is_empty() {
        bail!("README.md does not show: {}", absent.join(", "));
    }
    Ok(())
}
