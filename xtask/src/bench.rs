//! `cargo xtask bench`: the benchmarks, in a release build.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

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

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if relay_tests::privilege::is_root() {
        tools::install_missing()?;
        install_peers(&args.args);
    }
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
        bail!("the benchmarks: {status}");
    }
    Ok(())
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

/// (program, Debian package) of those that the case `peers` compares with.
const PEERS: [(&str, &str); 2] = [("/usr/bin/wireguard-go", "wireguard-go"), ("/usr/sbin/tor", "tor")];

/// Installs what the case `peers` compares with, where it is among the cases. What cannot be had leaves out rows, which
/// say so, and stops nothing.
fn install_peers(args: &[String]) {
    if !runs("peers", args) || !Path::new("/usr/bin/apt-get").is_file() {
        return;
    }
    // Where systemd runs, installing tor starts a client on the public network, which nobody asked a benchmark for.
    let systemd = Path::new("/run/systemd/system").is_dir();
    for (program, package) in PEERS {
        if Path::new(program).is_file() || (package == "tor" && systemd) {
            continue;
        }
        println!("installing {package} with apt-get");
        let get = |words: &[&str]| {
            let mut command = Command::new("apt-get");
            // In runlevel 1, no service is started.
            command.args(words).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let install = ["install", "--yes", "--no-install-recommends", package];
        // A fresh image has no package lists yet.
        let installed = get(&install) || (get(&["update"]) && get(&install));
        if !installed {
            eprintln!("{package} could not be installed: its rows will be left out");
        }
    }
}

/// Whether `case` is among the cases that the arguments name, or they name none.
fn runs(case: &str, args: &[String]) -> bool {
    let mut named = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" | "--help" | "-h" => return false,
            // Their value is no case.
            "--json" | "--html" => drop(args.next()),
            option if option.starts_with('-') => {}
            name if name == case => return true,
            _ => named = true,
        }
    }
    !named
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn a_case_runs_where_it_is_named_or_none_is() {
        let runs = |line: &str| {
            let args: Vec<String> = line.split_whitespace().map(Into::into).collect();
            runs("peers", &args)
        };
        assert!(runs("") && runs("--quick --json out") && runs("engine peers"));
        assert!(!runs("engine") && !runs("engine --json peers") && !runs("--list"));
    }
}
