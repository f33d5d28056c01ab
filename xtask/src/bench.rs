//! `cargo xtask bench`: the benchmarks, in a release build.

use anyhow::{Context, Result, bail};

use crate::tools;

/// Arguments of `cargo xtask bench`, which the benchmarks read themselves.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct BenchArgs {
    /// Cases and options; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if relay_tests::privilege::is_root() {
        tools::install_missing()?;
    }
    let mut command = tools::cargo();
    // Files that the arguments name are the caller's.
    command.current_dir(std::env::current_dir().context("the current directory")?);
    let manifest = tools::workspace().join("Cargo.toml");
    command.args(["run", "--release", "--locked", "--quiet", "--package", "relay-bench", "--manifest-path"]);
    let status = command.arg(manifest).arg("--").args(&args.args).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the benchmarks: {status}");
    }
    Ok(())
}
