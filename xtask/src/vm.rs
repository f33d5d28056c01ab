//! `cargo xtask vm`: runs a command under a stock kernel in an emulated machine.
//!
//! ```text
//! kernel     Debian's package, unpacked into the target directory, never installed
//! initramfs  busybox and the modules that 9p and the channels need; it loads the rest and chroots
//! machine    qemu without KVM: / of the host over 9p, read-only, under an overlay in the guest's memory
//! ```
//!
//! What the command changes is gone with the machine, except below the directories given with `--share`.

mod initramfs;
mod kernel;
mod machine;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::tools::{self, Tool};
use kernel::Kernel;
pub(crate) use kernel::SERIES;
use machine::Machine;

/// What the machine needs of the host.
const TOOLS: [Tool; 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("dpkg", "dpkg"),
    ("setpriv", "util-linux"),
    ("apt-get", "apt"),
];

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Series of the kernel
    #[arg(long, value_name = "SERIES", value_parser = clap::builder::PossibleValuesParser::new(SERIES))]
    kernel: String,
    /// Processors of the machine
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory of the machine, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// The machine is ended after this long
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// A directory that the command may write to for good; everything else it writes is gone with the machine
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// The command; it runs as root in the current directory, with the variables of this environment that its
    /// programs know: PATH, HOME, and those of Rust and Evenwire
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) fn run(args: &VmArgs) -> Result<ExitCode> {
    let job = Job {
        series: &args.kernel,
        cpus: args.cpus,
        memory: args.memory,
        limit: Duration::from_secs(args.timeout),
        share: &args.share,
        directory: &std::env::current_dir().context("the current directory")?,
        command: &args.command,
    };
    job.run().map(ExitCode::from)
}

/// A command to be run in a machine.
pub(crate) struct Job<'a> {
    /// One of [`SERIES`].
    pub(crate) series: &'a str,
    pub(crate) cpus: u32,
    /// In MiB.
    pub(crate) memory: u32,
    pub(crate) limit: Duration,
    /// Directories that stay writable.
    pub(crate) share: &'a [PathBuf],
    /// Where the command starts.
    pub(crate) directory: &'a Path,
    pub(crate) command: &'a [String],
}

impl Job<'_> {
    /// Runs it with its output on this process's, and returns its exit status.
    pub(crate) fn run(&self) -> Result<u8> {
        if !cfg!(target_arch = "x86_64") {
            bail!("the emulated machine is an x86-64 one and runs this machine's programs, which are not");
        }
        if relay_tests::privilege::is_root() {
            tools::install(&TOOLS)?;
        }
        let missing = tools::missing(&TOOLS);
        if !missing.is_empty() {
            bail!(
                "the emulated machine needs what these packages contain; install them: {}",
                missing.join(" ")
            );
        }
        let kernel = Kernel::get(self.series)?;
        let share = self
            .share
            .iter()
            .map(|path| path.canonicalize().with_context(|| format!("cannot share {}", path.display())))
            .collect::<Result<Vec<_>>>()?;
        let script = initramfs::Script {
            kernel: &kernel,
            share: &share,
            directory: self.directory,
            command: self.command,
        };
        let image = initramfs::build(&script)?;
        Machine {
            kernel: &kernel,
            image: &image,
            share: &share,
            cpus: self.cpus,
            memory: self.memory,
            limit: self.limit,
        }
        .run()
    }
}
