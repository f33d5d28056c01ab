//! `cargo xtask ebpf build | verify | disasm`: the committed XDP objects, their toolchain note and their upkeep.

mod elf;
mod source;
mod toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{EbpfLoader, programs::Xdp};

use self::toolchain::Toolchain;
use crate::tools;

/// The relay's object, and the one that only benchmarks load.
const OBJECTS: [Object; 2] = [
    Object { path: "relay-ebpf/relay.bpf.o", binary: "relay-ebpf", programs: &["evenwire"] },
    Object {
        path: "relay-ebpf/floor.bpf.o",
        binary: "floor",
        programs: &["floor_drop", "floor_pass", "flood", "flood_indices"],
    },
];
const NOTE: &str = "relay-ebpf/toolchain.toml";
const TARGET: &str = "bpfel-unknown-none";

/// Instructions of BPF's third version (32-bit arithmetic and jumps, Linux 5.1), and fields of packets read in one go
/// at any address, which the verifier permits on processors that can do so, x86-64 and aarch64 among them.
const CODE_FLAGS: [&str; 2] = ["-Ctarget-cpu=v3", "-Ctarget-feature=+allows-misaligned-mem-access"];

/// A committed object.
#[derive(Clone, Copy)]
struct Object {
    path: &'static str,
    /// The binary of the package `relay-ebpf` that it is.
    binary: &'static str,
    programs: &'static [&'static str],
}

impl Object {
    fn committed(self, root: &Path) -> Result<Vec<u8>> {
        fs::read(root.join(self.path)).with_context(|| format!("read {}", self.path))
    }
}

/// Arguments of `cargo xtask ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct EbpfArgs {
    #[command(subcommand)]
    command: EbpfCommand,
}

#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum EbpfCommand {
    /// Build the XDP programs and replace the committed objects and their toolchain note.
    Build,
    /// Check that the committed objects are what the sources build to, and that the kernel takes all of them.
    Verify,
    /// Print the committed objects' instructions.
    Disasm,
}

/// Runs the command.
pub(crate) fn run(args: EbpfArgs) -> Result<()> {
    let root = tools::workspace();
    match args.command {
        EbpfCommand::Build => build(root),
        EbpfCommand::Verify => verify(root),
        EbpfCommand::Disasm => disasm(root),
    }
}

fn build(root: &Path) -> Result<()> {
    let toolchain = Toolchain::find(root)?;
    println!("building with {toolchain}");
    let built = compile(root, &toolchain)?;
    let paths = OBJECTS.map(|object| object.path).join(" and ");
    let note = format!(
        "# What {paths} were built with, and from; written by `cargo xtask ebpf build`.\n\
         rustc = \"{}\"\nllvm = \"{}\"\nbpf-linker = \"{}\"\n\
         # SHA-256 over the sources, manifests and locked packages that the objects are built from.\nsources = \"{}\"\n",
        toolchain.rustc_version,
        toolchain.llvm_version,
        toolchain.linker_version,
        source::digest(root)?
    );
    for (Object { path, .. }, bytes) in OBJECTS.iter().zip(&built) {
        fs::write(root.join(path), bytes).with_context(|| format!("write {path}"))?;
        println!("{path}: {} bytes", bytes.len());
    }
    fs::write(root.join(NOTE), note).with_context(|| format!("write {NOTE}"))
}

fn verify(root: &Path) -> Result<()> {
    check_digest(root)?;
    let toolchain = Toolchain::find(root)?;
    let note = fs::read_to_string(root.join(NOTE)).with_context(|| format!("read {NOTE}"))?;
    for (key, found) in [
        ("rustc", &toolchain.rustc_version),
        ("llvm", &toolchain.llvm_version),
        ("bpf-linker", &toolchain.linker_version),
    ] {
        let noted = noted(&note, key)?;
        if noted != found {
            println!("the object was built with {key} {noted}, this machine has {found}: code may differ");
        }
    }
    let rebuilt = compile(root, &toolchain)?;
    for (object, rebuilt) in OBJECTS.iter().zip(&rebuilt) {
        let path = object.path;
        let differing = elf::differing_sections(&object.committed(root)?, rebuilt)?;
        ensure!(
            differing.is_empty(),
            "{path} is not what the sources build to with {toolchain}; sections that differ: {}. \
             Run `cargo xtask ebpf build` and commit the result",
            differing.join(", ")
        );
        println!("{path} is what the sources build to");
    }
    if !nix::unistd::geteuid().is_root() {
        ensure!(
            env::var_os("EVENWIRE_REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"),
            "loading the objects into the kernel needs root"
        );
        println!("skipped: loading into the kernel: not root");
        return Ok(());
    }
    for (object, rebuilt) in OBJECTS.iter().zip(&rebuilt) {
        let path = object.path;
        load(&object.committed(root)?, object.programs).with_context(|| format!("{path} as committed"))?;
        load(rebuilt, object.programs).with_context(|| format!("{path} as rebuilt"))?;
    }
    println!("the kernel takes the committed and the rebuilt objects");
    Ok(())
}

fn disasm(root: &Path) -> Result<()> {
    let status = Command::new("llvm-objdump")
        .args(["--disassemble", "--reloc", "--no-show-raw-insn", "--mcpu=v3"])
        .args(OBJECTS.map(|object| root.join(object.path)))
        .status()
        .context("run llvm-objdump; Debian has it in the package llvm")?;
    ensure!(status.success(), "llvm-objdump failed: {status}");
    Ok(())
}

/// That the committed objects were built from the sources as they stand.
fn check_digest(root: &Path) -> Result<()> {
    let note = fs::read_to_string(root.join(NOTE)).with_context(|| format!("read {NOTE}"))?;
    let (noted, found) = (noted(&note, "sources")?.to_owned(), source::digest(root)?);
    ensure!(
        noted == found,
        "the committed objects were built from other sources ({NOTE} says {noted}, they are {found}); run `cargo xtask ebpf \
         build` and commit the result"
    );
    Ok(())
}

fn noted<'a>(note: &'a str, key: &str) -> Result<&'a str> {
    note.lines()
        .filter_map(|line| line.split_once(" = "))
        .find(|(found, _)| *found == key)
        .map(|(_, value)| value.trim_matches('"'))
        .with_context(|| format!("{NOTE} has no {key}"))
}

/// Builds the objects in a target directory of their own; the paths of this machine stay out of them.
fn compile(root: &Path, toolchain: &Toolchain) -> Result<[Vec<u8>; OBJECTS.len()]> {
    let target_dir = root.join("target/ebpf");
    let mut flags = vec!["-Cdebuginfo=0".to_owned(), format!("-Clinker={}", toolchain.linker.display())];
    flags.extend(CODE_FLAGS.map(str::to_owned));
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let remapped =
        [(Some(root.to_owned()), "/evenwire"), (home, "/cargo"), (Some(toolchain.sysroot.clone()), "/rustc")];
    for (from, to) in remapped {
        if let Some(from) = from {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        }
    }
    let status = tools::cargo()
        .args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET])
        .args(["--package", "relay-ebpf"])
        .args([
            "--config",
            "profile.release.package.relay-ebpf.debug=0",
            "--config",
            "profile.release.debug=0",
        ])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "the XDP programs do not build with {toolchain}");
    let mut built = [const { Vec::new() }; OBJECTS.len()];
    for (bytes, object) in built.iter_mut().zip(OBJECTS) {
        let path = target_dir.join(TARGET).join("release").join(object.binary);
        *bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    }
    Ok(built)
}

fn load(object: &[u8], programs: &[&str]) -> Result<()> {
    let mut ebpf = EbpfLoader::new().load(object).context("create its maps")?;
    for name in programs {
        let Some(program) = ebpf.program_mut(name) else { bail!("it has no program {name}") };
        let program: &mut Xdp = program.try_into().with_context(|| format!("{name} is not for XDP"))?;
        program.load().with_context(|| format!("the kernel's verifier does not accept {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_objects_were_built_from_these_sources() {
        check_digest(tools::workspace()).expect("up to date");
    }

    #[test]
    fn the_committed_objects_name_no_path_of_the_machine_that_built_them() {
        for object in OBJECTS {
            let bytes = object.committed(tools::workspace()).expect("object");
            for path in ["/root/", "/home/", "/tmp/", "/usr/", ".cargo"] {
                let found = bytes.windows(path.len()).any(|window| window == path.as_bytes());
                assert!(!found, "{path} is in {}", object.path);
            }
        }
    }

    #[test]
    fn a_note_is_read_by_its_keys() {
        let note = "# a = \"x\"\nrustc = \"1.96.0\"\nsources = \"00ff\"\n";
        assert_eq!(noted(note, "rustc").expect("there"), "1.96.0");
        assert_eq!(noted(note, "sources").expect("there"), "00ff");
        assert!(noted(note, "llvm").is_err());
    }
}
