//! Finding a compiler and a linker that can build for BPF.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

/// Later versions want an LLVM of the system's; this one loads the compiler's own.
const LINKER_VERSION: &str = "0.10.3";
/// Debian's packages of a compiler with the library's sources.
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
/// Where the sources stand below a sysroot.
const CORE: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

/// A compiler whose sysroot has the sources of `core`, and a linker that makes BPF objects.
pub(super) struct Toolchain {
    pub(super) rustc: PathBuf,
    pub(super) sysroot: PathBuf,
    pub(super) rustc_version: String,
    pub(super) llvm_version: String,
    pub(super) linker: PathBuf,
    pub(super) linker_version: String,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rustc_version, llvm_version, linker_version, .. } = self;
        write!(f, "rustc {rustc_version}, LLVM {llvm_version}, bpf-linker {linker_version}")
    }
}

impl Toolchain {
    /// The first that is there: a nightly with sources, any compiler with sources, Debian's. What is missing and
    /// can be installed, is, with a line that says so.
    pub(super) fn find(root: &Path) -> Result<Self> {
        let (rustc, sysroot) = match compilers().into_iter().find_map(with_sources) {
            Some(found) => found,
            None => install_compiler()?,
        };
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let field = |key: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .map(|value| value.trim().to_owned())
                .with_context(|| format!("{} -vV has no {key:?}", rustc.display()))
        };
        let (rustc_version, llvm_version) = (field("release:")?, field("LLVM version:")?);
        let linker = find_linker(root)?;
        let linker_version = output(Command::new(&linker).arg("--version"))?;
        let linker_version = linker_version.split_whitespace().nth(1).unwrap_or_default().to_owned();
        Ok(Self { rustc, sysroot, rustc_version, llvm_version, linker, linker_version })
    }
}

fn compilers() -> Vec<PathBuf> {
    let rustup = |toolchain: &str| {
        output(Command::new("rustup").args(["which", "--toolchain", toolchain, "rustc"]))
            .ok()
            .map(PathBuf::from)
    };
    let paths = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&paths).map(|directory| directory.join("rustc"));
    rustup("nightly").into_iter().chain(in_path).chain([PathBuf::from("/usr/bin/rustc")]).collect()
}

fn with_sources(rustc: PathBuf) -> Option<(PathBuf, PathBuf)> {
    let sysroot = PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"])).ok()?);
    sysroot.join(CORE).exists().then_some((rustc, sysroot))
}

fn install_compiler() -> Result<(PathBuf, PathBuf)> {
    let packages = DEBIAN_PACKAGES.join(" ");
    let advice = format!(
        "no Rust compiler here has the library's sources; install `rustup component add rust-src --toolchain \
         nightly` or, on Debian, `apt-get install {packages}`"
    );
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("{advice}");
    }
    println!("installing {packages} with apt-get");
    // Old lists offer a compiler too old for the workspace.
    apt_get(&["update"]).with_context(|| advice.clone())?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], &DEBIAN_PACKAGES[..]].concat())
        .with_context(|| advice.clone())?;
    with_sources(PathBuf::from("/usr/bin/rustc")).context(advice)
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    let status = command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
    let status = status.context("run apt-get")?;
    ensure!(status.success(), "apt-get {} failed: {status}", arguments.join(" "));
    Ok(())
}

fn find_linker(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let ours = tools.join("bin/bpf-linker");
    let paths = env::var_os("PATH").unwrap_or_default();
    let cargo_bin = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin/bpf-linker"));
    let candidates = env::split_paths(&paths)
        .map(|directory| directory.join("bpf-linker"))
        .chain(cargo_bin)
        .chain([ours.clone()]);
    for candidate in candidates {
        let version = output(Command::new(&candidate).arg("--version"));
        if version.is_ok_and(|version| version.split_whitespace().nth(1) == Some(LINKER_VERSION)) {
            return Ok(candidate);
        }
    }
    println!("installing bpf-linker {LINKER_VERSION} into {}", tools.display());
    let status = tools::cargo()
        .args(["install", "--locked", "--root"])
        .arg(&tools)
        .arg(format!("bpf-linker@{LINKER_VERSION}"))
        .status()
        .context("run cargo install")?;
    ensure!(status.success(), "bpf-linker {LINKER_VERSION} could not be installed: {status}");
    Ok(ours)
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {name}"))?;
    ensure!(output.status.success(), "{name} failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)
        .with_context(|| format!("{name} does not write UTF-8"))?
        .trim()
        .to_owned())
}
