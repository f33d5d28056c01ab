//! Where the programs to compare with come from.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use relay_tests::processes::{ProcessRecord, end_child};
use relay_tests::tools;

/// Time that a build may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// A program that Debian packages or crates.io has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// `apt-get install` it.
    Debian {
        /// The package.
        package: &'static str,
        /// The program in it.
        program: &'static str,
    },
    /// `cargo install` it, once.
    Crate {
        /// The crate.
        name: &'static str,
        /// The version: figures of two runs are of the same program.
        version: &'static str,
        /// The program in it.
        program: &'static str,
    },
}

impl Source {
    /// The program's path where it is there already.
    pub(super) fn find(self) -> Option<PathBuf> {
        match self {
            Self::Debian { program, .. } => tools::find(program),
            Self::Crate { name, version, program } => {
                let path = root(name, version).join("bin").join(program);
                path.is_file().then_some(path)
            }
        }
    }

    /// The program's path, installed or built first; or why there is none, and what to do. Needs root.
    pub(super) fn get(self, may_build: bool) -> Result<PathBuf, String> {
        if let Some(path) = self.find() {
            return Ok(path);
        }
        match self {
            // Where systemd runs, installing tor starts a client on the public network, which nobody asked a benchmark for.
            Self::Debian { package: package @ "tor", program }
                if Path::new("/run/systemd/system").is_dir() =>
            {
                Err(format!("no program {program}: install the Debian package {package}"))
            }
            Self::Debian { package, program } => {
                tools::install(&[(program, package)]).map_err(|error| format!("{error:#}"))?;
                self.find().ok_or_else(|| format!("{package} was installed, but has no program {program}"))
            }
            Self::Crate { name, version, .. } if !may_build => Err(format!(
                "{name} {version} is not built yet: a run of this case without --quick builds it, once"
            )),
            Self::Crate { name, version, .. } => {
                build(name, version, &root(name, version))?;
                self.find().ok_or_else(|| format!("{name} {version} was built, but its program is missing"))
            }
        }
    }
}

/// Below the target directory, since `cargo clean` shall take it away.
fn root(name: &str, version: &str) -> PathBuf {
    cache().join(format!("{name}-{version}"))
}

/// Where this case keeps what it builds and the last words of what it ran: beside the profile's directory that this
/// program was built into.
pub(super) fn cache() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).unwrap_or(Path::new("target")).join("peers")
}

/// What this case started, so that a run after a crash ends what the crash left running.
pub(super) fn processes() -> ProcessRecord {
    ProcessRecord::at(cache().join("processes"))
}

/// Ends what an earlier run left running, and forgets it.
pub(super) fn end_leftovers() -> anyhow::Result<()> {
    processes().end_all(Duration::from_secs(2))?;
    match std::fs::remove_file(cache().join("processes")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn build(name: &str, version: &str, root: &Path) -> Result<(), String> {
    let failed = |what: String| format!("{name} {version} cannot be built: {what}");
    std::fs::create_dir_all(root).map_err(|error| failed(format!("{}: {error}", root.display())))?;
    let log = root.join("build.log");
    let output = std::fs::File::create(&log).map_err(|error| failed(error.to_string()))?;
    let mut command = relay_tests::tree::cargo();
    command.args(["install", "--locked", "--version", version, "--root"]).arg(root).arg(name);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .spawn()
        .map_err(|error| failed(format!("cannot run cargo: {error}")))?;
    let until = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) => {
                return Err(failed(format!("{}; all of it in {}", last_line(&log), log.display())));
            }
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(200)),
            Ok(None) => {
                end_child(&mut child, Duration::from_secs(5)).ok();
                return Err(failed(format!("it took longer than {} s", PATIENCE.as_secs())));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// The last line of a log that says something.
pub(super) fn last_line(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.map_or_else(|| "it said nothing".to_owned(), |line| line.chars().take(200).collect())
}
