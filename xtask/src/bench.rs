//! `cargo xtask bench`: the benchmarks, in a release build.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use relay_tests::Netns;

use crate::tools;

/// How the names of the benchmarks' namespaces begin.
const NAMESPACES: [&str; 4] = ["ewb-", "ewp-", "ewu", "ewx-"];
/// Time that a process gets to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `cargo xtask bench`, which the benchmarks read themselves.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct BenchArgs {
    /// Cases and options; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let mut command = tools::cargo();
    // Files that the arguments name are the caller's.
    command.current_dir(std::env::current_dir().context("the current directory")?);
    let manifest = tools::workspace().join("Cargo.toml");
    command.args(["run", "--release", "--locked", "--quiet", "--package", "relay-bench", "--manifest-path"]);
    let before = Netns::names();
    // cargo becomes the program that it runs, so this is the benchmarks' process.
    let status = tools::supervise(command.arg(manifest).arg("--").args(&args.args), PATIENCE)?;
    if !status.success() {
        remove_leftovers(&before);
    }
    Ok(tools::pass_on("the benchmarks", status))
}

/// Removes the namespaces that ended benchmarks made and no longer could remove, with the processes inside.
fn remove_leftovers(before: &[String]) {
    let ours = |name: &String| NAMESPACES.iter().any(|start| name.starts_with(start));
    for name in Netns::names().into_iter().filter(|name| ours(name) && !before.contains(name)) {
        let removed = Netns::open(&name)
            .and_then(|netns| netns.end_processes(PATIENCE))
            .and_then(|_| Netns::delete(&name));
        if let Err(error) = removed {
            eprintln!("{error:#}; remove it with `ip netns delete {name}`");
        }
    }
}
