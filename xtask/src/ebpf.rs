//! `cargo xtask ebpf build | verify | disasm`: the committed XDP object, its toolchain note and their upkeep.

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

const OBJECT: &str = "relay-ebpf/relay.bpf.o";
const NOTE: &str = "relay-ebpf/toolchain.toml";
const TARGET: &str = "bpfel-unknown-none";
const PROGRAM: &str = "evenwire";

/// Arguments of `cargo xtask ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct EbpfArgs {
    #[command(subcommand)]
    command: EbpfCommand,
}

#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum EbpfCommand {
    /// Build the XDP program and replace the committed object and its toolchain note.
    Build,
    /// Check that the committed object is what the sources build to, and that the kernel takes both.
    Verify,
    /// Print the committed object's instructions.
    Disasm,
}

/// Runs the command.
pub(crate) fn run(args: EbpfArgs) -> Result<()> {
    let root = workspace_root()?;
    match args.command {
        EbpfCommand::Build => build(&root),
        EbpfCommand::Verify => verify(&root),
        EbpfCommand::Disasm => disasm(&root),
    }
}

fn build(root: &Path) -> Result<()> {
    let toolchain = Toolchain::find(root)?;
    println!("building with {toolchain}");
    let object = compile(root, &toolchain)?;
    let note = format!(
        "# What {OBJECT} was built with, and from; written by `cargo xtask ebpf build`.\n\
         rustc = \"{}\"\nllvm = \"{}\"\nbpf-linker = \"{}\"\n\
         # SHA-256 over the sources, manifests and locked packages that the object is built from.\nsources = \"{}\"\n",
        toolchain.rustc_version,
        toolchain.llvm_version,
        toolchain.linker_version,
        source::digest(root)?
    );
    fs::write(root.join(OBJECT), &object).with_context(|| format!("write {OBJECT}"))?;
    fs::write(root.join(NOTE), note).with_context(|| format!("write {NOTE}"))?;
    println!("{OBJECT}: {} bytes", object.len());
    Ok(())
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
    let committed = fs::read(root.join(OBJECT)).with_context(|| format!("read {OBJECT}"))?;
    let rebuilt = compile(root, &toolchain)?;
    let differing = elf::differing_sections(&committed, &rebuilt)?;
    ensure!(
        differing.is_empty(),
        "{OBJECT} is not what the sources build to with {toolchain}; sections that differ: {}. \
         Run `cargo xtask ebpf build` and commit the result",
        differing.join(", ")
    );
    println!("{OBJECT} is what the sources build to");
    if !nix::unistd::geteuid().is_root() {
        ensure!(
            env::var_os("EVENWIRE_REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"),
            "loading the objects into the kernel needs root"
        );
        println!("skipped: loading into the kernel: not root");
        return Ok(());
    }
    load(&committed).context("the committed object")?;
    load(&rebuilt).context("the rebuilt object")?;
    println!("the kernel takes both objects");
    Ok(())
}

fn disasm(root: &Path) -> Result<()> {
    let status = Command::new("llvm-objdump")
        .args(["--disassemble", "--reloc", "--no-show-raw-insn"])
        .arg(root.join(OBJECT))
        .status()
        .context("run llvm-objdump; Debian has it in the package llvm")?;
    ensure!(status.success(), "llvm-objdump failed: {status}");
    Ok(())
}

/// That the committed object was built from the sources as they stand.
fn check_digest(root: &Path) -> Result<()> {
    let note = fs::read_to_string(root.join(NOTE)).with_context(|| format!("read {NOTE}"))?;
    let (noted, found) = (noted(&note, "sources")?.to_owned(), source::digest(root)?);
    ensure!(
        noted == found,
        "{OBJECT} was built from other sources ({NOTE} says {noted}, they are {found}); run `cargo xtask ebpf \
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

/// Builds the object in a target directory of its own; the paths of this machine stay out of it.
fn compile(root: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let target_dir = root.join("target/ebpf");
    let mut flags = vec!["-Cdebuginfo=0".to_owned(), format!("-Clinker={}", toolchain.linker.display())];
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
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
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
    ensure!(status.success(), "the XDP program does not build with {toolchain}");
    let object = target_dir.join(TARGET).join("release/relay-ebpf");
    fs::read(&object).with_context(|| format!("read {}", object.display()))
}

fn load(object: &[u8]) -> Result<()> {
    let mut ebpf = EbpfLoader::new().load(object).context("create its maps")?;
    let Some(program) = ebpf.program_mut(PROGRAM) else { bail!("it has no program {PROGRAM}") };
    let program: &mut Xdp = program.try_into().context("its program is not for XDP")?;
    program.load().context("the kernel's verifier does not accept it")
}

fn workspace_root() -> Result<PathBuf> {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().map(Path::to_owned).context("the xtask package stands in no workspace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_was_built_from_these_sources() {
        check_digest(&workspace_root().expect("workspace")).expect("up to date");
    }

    #[test]
    fn the_committed_object_names_no_path_of_the_machine_that_built_it() {
        let object = fs::read(workspace_root().expect("workspace").join(OBJECT)).expect("object");
        for path in ["/root/", "/home/", "/tmp/", "/usr/", ".cargo"] {
            let found = object.windows(path.len()).any(|window| window == path.as_bytes());
            assert!(!found, "{path} is in {OBJECT}");
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
