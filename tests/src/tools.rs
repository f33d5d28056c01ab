//! Programs that the lab and the developer commands need beyond Rust's own.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program and the Debian package that contains it.
pub type Tool = (&'static str, &'static str);

/// What the lab and the tests use.
pub const LAB: [Tool; 7] = [
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

/// Installs those of `tools` that are missing with the distribution's package manager, saying so. No service that comes
/// with them is started.
///
/// # Errors
/// When there is no `apt-get`, or it does not bring what is missing; the packages are named.
pub fn install(tools: &[Tool]) -> Result<()> {
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
    // Results have standard output to themselves.
    eprintln!("installing {list} with apt-get");
    let install = || {
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Nobody asked a test for a service; packages start none in this runlevel.
            .env("RUNLEVEL", "1")
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
pub fn missing(tools: &[Tool]) -> Vec<&'static str> {
    tools.iter().filter(|(program, _)| find(program).is_none()).map(|&(_, package)| package).collect()
}

/// Where `program` is, if it is there.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_named_by_its_package() {
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
        assert_eq!(missing(&[("sh", "dash"), ("no-such-program", "no-such-package")]), ["no-such-package"]);
        install(&[("sh", "dash")]).expect("nothing to do");
    }
}
