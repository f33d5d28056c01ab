//! Debian's kernels: found with apt in a suite of their own, downloaded, unpacked into the target directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

/// The series there are.
pub(crate) const SERIES: [&str; 2] = ["6.1", "6.12"];

/// The Debian suite whose `linux-image-amd64` is of the series.
const SUITES: [(&str, &str); 2] = [("6.1", "bookworm"), ("6.12", "bookworm-backports")];
const MIRROR: &str = "http://deb.debian.org/debian";
/// Debian's signing keys, from its package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What is kept of a kernel's modules; the rest is for hardware that the machine does not have.
const KEPT: [&str; 10] = [
    "arch",
    "crypto",
    "lib",
    "net",
    "fs/9p",
    "fs/fscache",
    "fs/netfs",
    "fs/overlayfs",
    "drivers/net/wireguard",
    "drivers/virtio",
];
/// Directories of which the files are kept, but none of the directories in them.
const KEPT_FILES: [&str; 2] = ["drivers/net", "drivers/char"];

/// An unpacked kernel.
pub(super) struct Kernel {
    /// The bootable image.
    pub(super) image: PathBuf,
    /// `/lib/modules` of it.
    pub(super) modules: PathBuf,
    /// As `uname -r` has it.
    pub(super) release: String,
}

impl Kernel {
    /// The kernel of the series from the cache, or else from Debian.
    pub(super) fn get(series: &str) -> Result<Self> {
        let cache = fs::canonicalize(tools::target_dir()).context("the target directory")?.join("vm");
        let home = cache.join(series);
        if !home.exists() {
            fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
            // Beside the cache, so that what is there under its name is whole.
            let work = tempfile::tempdir_in(&cache).context("a directory for the kernel")?;
            let unpacked =
                fetch(series, work.path()).with_context(|| format!("the kernel of series {series}"))?;
            fs::rename(&unpacked, &home).with_context(|| format!("cannot move to {}", home.display()))?;
        }
        let modules = home.join("modules");
        let release = only_entry(&modules)?;
        Ok(Self { image: home.join("vmlinuz"), modules, release })
    }

    /// The files of `names` and of what they depend on, each behind what it needs; what is built in is left out.
    pub(super) fn files_of(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let directory = self.modules.join(&self.release);
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (dependencies, builtin) = (read("modules.dep")?, read("modules.builtin")?);
        let mut files = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            let line = dependencies.lines().find_map(|line| {
                let (file, needs) = line.split_once(':')?;
                (module_name(file) == *name).then_some((file, needs))
            });
            let Some((file, needs)) = line else {
                ensure!(
                    builtin.lines().any(|file| module_name(file) == *name),
                    "kernel {} has no {name}; remove {} to fetch it again",
                    self.release,
                    self.modules.display()
                );
                continue;
            };
            // modules.dep lists the nearest dependency first.
            for file in needs.split_whitespace().rev().chain([file]) {
                if seen.insert(file.to_owned()) {
                    files.push(directory.join(file));
                }
            }
        }
        Ok(files)
    }
}

/// `kernel/net/9p/9pnet.ko` is `9pnet`; the kernel takes `-` and `_` for one.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// Downloads and unpacks below `work`; what must be kept stands in the directory returned.
fn fetch(series: &str, work: &Path) -> Result<PathBuf> {
    let (_, suite) = SUITES
        .into_iter()
        .find(|(known, _)| *known == series)
        .with_context(|| format!("there is none; there are {}", SERIES.join(" and ")))?;
    if !Path::new(KEYRING).exists() {
        tools::install(&[(KEYRING, "debian-archive-keyring")])?;
    }
    eprintln!("downloading the kernel of {suite} ({MIRROR})");
    let sources = work.join("sources.list");
    fs::write(&sources, format!("deb [signed-by={KEYRING}] {MIRROR} {suite} main\n"))?;
    for directory in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(directory))?;
    }
    let apt = |program: &str, arguments: &[&str]| {
        let options = [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", work.join("lists").display()),
            format!("Dir::Cache={}", work.join("cache").display()),
            // The user that apt downloads as cannot write here.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let mut command = Command::new(program);
        command.args(options.iter().flat_map(|option| ["-o", option])).args(arguments).current_dir(work);
        output(&mut command)
    };
    apt("apt-get", &["-qq", "update"])?;
    let depends = apt("apt-cache", &["depends", "linux-image-amd64"])?;
    let package = depends
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("Depends: ")
                .filter(|name| name.starts_with(&format!("linux-image-{series}.")))
        })
        .with_context(|| format!("linux-image-amd64 of {suite} is of another series now: {depends:?}"))?;
    apt("apt-get", &["-qq", "download", package])?;
    let archive = fs::read_dir(work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get left no file of {package}"))?;
    let unpacked = work.join("unpacked");
    output(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    let release = package.trim_start_matches("linux-image-");
    keep(&unpacked, release, &work.join("kept"))
}

fn keep(unpacked: &Path, release: &str, kept: &Path) -> Result<PathBuf> {
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|place| unpacked.join(place).join(release))
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("no modules of {release} in the package"))?;
    // busybox's depmod looks below lib/modules.
    let tree = kept.join("tree/lib/modules").join(release);
    fs::create_dir_all(&tree)?;
    let (from, to) = (modules.join("kernel"), tree.join("kernel"));
    for part in KEPT.into_iter().filter(|part| from.join(part).exists()) {
        let target = to.join(part);
        fs::create_dir_all(target.parent().unwrap_or(&to))?;
        fs::rename(from.join(part), &target)?;
    }
    for part in KEPT_FILES {
        fs::create_dir_all(to.join(part))?;
        for file in fs::read_dir(from.join(part))?.filter_map(Result::ok).filter(|file| file.path().is_file())
        {
            fs::rename(file.path(), to.join(part).join(file.file_name()))?;
        }
    }
    for file in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::rename(modules.join(file), tree.join(file)).with_context(|| format!("the package's {file}"))?;
    }
    fs::rename(unpacked.join(format!("boot/vmlinuz-{release}")), kept.join("vmlinuz"))
        .context("the package's boot image")?;
    // Once here rather than at each start by an emulated processor.
    let mut packed = Vec::new();
    find_packed(&tree, &mut packed)?;
    if !packed.is_empty() {
        output(Command::new("busybox").arg("unxz").args(&packed))?;
    }
    output(Command::new("busybox").args(["depmod", "-b"]).arg(kept.join("tree")).arg(release))?;
    fs::rename(kept.join("tree/lib/modules"), kept.join("modules"))?;
    fs::remove_dir_all(kept.join("tree"))?;
    Ok(kept.to_owned())
}

/// Adds the compressed files below `directory`.
fn find_packed(directory: &Path, packed: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find_packed(&path, packed)?;
        } else if path.extension().is_some_and(|extension| extension == "xz") {
            packed.push(path);
        }
    }
    Ok(())
}

fn only_entry(directory: &Path) -> Result<String> {
    let entry = fs::read_dir(directory)
        .and_then(|mut entries| entries.next().transpose())
        .with_context(|| format!("cannot read {}", directory.display()))?
        .with_context(|| format!("{} is empty; remove it to fetch the kernel again", directory.display()))?;
    entry.file_name().into_string().map_err(|name| anyhow::anyhow!("{name:?} is no kernel release"))
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} does not write UTF-8"))
}
