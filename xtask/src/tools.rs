//! What several developer commands do: other programs, run to their end, and where cargo puts what it builds.

use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use relay_tests::interrupt::Interrupt;
use relay_tests::processes::end_child;
pub(crate) use relay_tests::tools::{Tool, find, install, missing};
pub(crate) use relay_tests::tree::{cargo, workspace};

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

/// The exit status of a program that has itself said what is wrong; one that a signal ended could not.
pub(crate) fn pass_on(program: &str, status: ExitStatus) -> ExitCode {
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => ExitCode::from(code),
        None => {
            eprintln!("error: {program}: {status}");
            ExitCode::FAILURE
        }
    }
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}
