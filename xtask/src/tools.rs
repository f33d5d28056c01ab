//! Programs that the developer commands need beyond Rust's own.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use relay_tests::interrupt::Interrupt;
use relay_tests::processes::end_child;
pub(crate) use relay_tests::tree::{cargo, workspace};

/// A program and the Debian package that contains it.
pub(crate) type Tool = (&'static str, &'static str);

/// What the lab and the tests use.
const LAB: [Tool; 7] = [
    ("nft", "nftables"),
    ("iperf3", "iperf3"),
    ("tcpdump", "tcpdump"),
    ("ethtool", "ethtool"),
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
];

/// Where programs for the administrator live; an ordinary user's `PATH` leaves the sbin ones out.
const SYSTEM_DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Runs a program to its end. Ctrl-C and a signal to this process alone are passed on as SIGTERM, and the program gets
/// `patience` to remove what it made.
pub(crate) fn supervise(command: &mut Command, patience: Duration) -> Result<ExitStatus> {
    let interrupt = Interrupt::listen()?;
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt.is_set() {
            return end_child(&mut child, patience);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// How often a running program is looked after.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Installs what the lab and the tests lack with the distribution's package manager, saying so.
pub(crate) fn install_missing() -> Result<()> {
    install(&LAB)
}

/// Installs those of `tools` that are missing with the distribution's package manager, saying so.
pub(crate) fn install(tools: &[Tool]) -> Result<()> {
    let packages = missing(tools);
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!(
            "missing programs, and no apt-get to install them with; install what these packages contain: {list}"
        );
    }
    println!("installing {list} with apt-get");
    let install = || {
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("cannot run apt-get")
    };
    if !install()?.success() {
        // A fresh image has no package lists yet.
        Command::new("apt-get").arg("update").stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        if !install()?.success() {
            bail!("apt-get could not install {list}: install them by hand and start again");
        }
    }
    let still = missing(tools);
    if !still.is_empty() {
        bail!("still missing after apt-get: {}", still.join(" "));
    }
    Ok(())
}

/// Packages of those of `tools` that are not there.
pub(crate) fn missing(tools: &[Tool]) -> Vec<&'static str> {
    tools.iter().filter(|(program, _)| find(program).is_none()).map(|&(_, package)| package).collect()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Where `program` is, if it is there.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
