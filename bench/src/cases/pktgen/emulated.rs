//! The same case inside an emulated machine, whose kernel has pktgen, and its figures read back.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::figure::Target;
use crate::session::Session;

const KERNEL: &str = "6.12";
/// `cargo xtask vm` sets it: inside, the generator is there or it is an error.
const INSIDE: &str = "EVENWIRE_EMULATED";
const LIMIT_SECONDS: &str = "600";
/// The units that the case's figures have.
const UNITS: [&str; 5] = ["cells", "cells/s", "packets/s", "ratio", "ppm"];

#[derive(Deserialize)]
struct Document {
    kernel: String,
    results: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    figure: String,
    value: Option<f64>,
    unit: String,
    target: Option<String>,
    status: String,
    reason: Option<String>,
    noise: Noise,
}

#[derive(Deserialize)]
struct Noise {
    gap_p999_us: f64,
}

/// A directory that goes when it is dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left in the system's directory for such files is no error.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn run(session: &mut Session) -> Result<()> {
    ensure!(
        std::env::var_os(INSIDE).is_none(),
        "the kernel {} has no pktgen and `modprobe pktgen` does not bring it",
        crate::report::json::kernel()
    );
    let directory = Directory(std::env::temp_dir().join(format!("ewb-pktgen-{}", std::process::id())));
    std::fs::create_dir(&directory.0).with_context(|| format!("cannot create {}", directory.0.display()))?;
    let json = directory.0.join("figures.json");
    machine(session, &directory.0, &json)?;
    let text = std::fs::read_to_string(&json).context("the emulated machine left no figures")?;
    let document: Document = serde_json::from_str(&text).context("the emulated machine's figures")?;
    take_over(session, &document)
}

fn machine(session: &mut Session, share: &Path, json: &Path) -> Result<()> {
    session.progress(&format!("this kernel has no pktgen: starting an emulated {KERNEL}"));
    let own = std::env::current_exe().context("cannot find this program")?;
    // `cargo xtask` is an alias of the source tree.
    let mut command = relay_tests::tree::cargo();
    command.args(["xtask", "vm", "--kernel", KERNEL, "--timeout", LIMIT_SECONDS, "--share"]).arg(share);
    command.arg("--").arg(own).arg("pktgen").arg("--json").arg(json);
    if session.quick {
        command.arg("--quick");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run `cargo xtask vm`")?;
    let stderr = child.stderr.take().context("cargo has no standard error")?;
    let mut error = None;
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        session.progress(&format!("emulated {KERNEL}: {}", line.trim()));
        if error.is_none() && line.starts_with("error") {
            error = Some(line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the emulated machine: {}", error.unwrap_or_else(|| status.to_string()));
    }
    Ok(())
}

fn take_over(session: &mut Session, document: &Document) -> Result<()> {
    let gap = document.results.first().context("the emulated machine measured nothing")?.noise.gap_p999_us;
    session.measured(format!("emulated machine with kernel {}: gap p99.9", document.kernel), gap, "µs", None);
    for row in &document.results {
        let target = row.target.is_some().then_some(Target::AtMost(0.0));
        ensure!(
            row.target.as_deref().is_none_or(|text| target.is_some_and(|target| target.to_string() == text)),
            "the target {:?} of {} is unknown here",
            row.target,
            row.figure
        );
        let reason = || row.reason.clone().unwrap_or_default();
        match (row.status.as_str(), row.value) {
            ("measured", Some(value)) => {
                let unit = UNITS
                    .into_iter()
                    .find(|unit| *unit == row.unit)
                    .with_context(|| format!("the unit {:?} of {} is unknown here", row.unit, row.figure))?;
                session.measured(&row.figure, value, unit, target);
            }
            ("invalid", _) => session.invalid(&row.figure, target, reason()),
            _ => session.skip(&row.figure, target, reason()),
        }
    }
    Ok(())
}
