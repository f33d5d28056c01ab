//! `cargo xtask privacy`: attacks on the traffic of real programs, in a release build.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::tools;

/// Time that it gets to take its lab down when it is interrupted.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `cargo xtask privacy`, which its program reads itself.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct PrivacyArgs {
    /// Options; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &PrivacyArgs) -> Result<ExitCode> {
    let mut build = tools::cargo();
    build.args(["build", "--release", "--locked", "--package", "relay-user", "--bin", "relay"]);
    build.args(["--package", "relay-bench", "--bin", "relay-privacy"]);
    let status = build.stdin(Stdio::null()).status().context("cannot run cargo build")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    let release = tools::target_dir().join("release");
    let mut command = Command::new(release.join("relay-privacy"));
    // Started where the user is: files that the arguments name are the user's.
    command.arg("--relay").arg(release.join("relay")).args(&args.args);
    let status = tools::supervise(&mut command, PATIENCE)?;
    Ok(tools::pass_on("the attacks", status))
}
