//! `relay doctor`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::config::{Config, Timestamp};
use crate::doctor::apply::{ApplyError, apply};
use crate::doctor::{DoctorError, Plan, Verdict, examine};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Attach the XDP program and bind a socket for a moment, to see how; with zero-copy the driver may restart the
    /// queue.
    #[arg(long)]
    probe: bool,
    /// Set queues, hashing, ntuple rules and hardware rings up for the workers of the file, then report.
    #[arg(long, conflicts_with = "interface")]
    apply: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Target {
    /// The relay's or the client's file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An interface, for one worker.
    interface: Option<String>,
}

/// Prints the report. `true` when nothing is a problem.
pub(super) fn run(arguments: &Arguments, now: Timestamp) -> anyhow::Result<bool> {
    let plan = match (&arguments.target.config, &arguments.target.interface) {
        (Some(file), _) => Plan::of_config(&Config::load(file)?, now)?,
        (None, Some(interface)) => Plan::of_interface(interface),
        (None, None) => anyhow::bail!("nothing to look at is named; give --config or an interface"),
    };
    let steps = if arguments.apply { apply(&plan)? } else { Vec::new() };
    let mut report = examine(&plan, arguments.probe)?;
    report.set_applied(steps);
    let problems = report.count(Verdict::Problem);
    if arguments.json {
        let mut document = serde_json::to_value(&report)?;
        document["problems"] = json!(problems);
        document["warnings"] = json!(report.count(Verdict::Warn));
        println!("{document}");
    } else {
        print!("{}", report.table());
    }
    Ok(problems == 0)
}

/// Whether `error` says that the command line or the file names what is not there.
pub(super) fn is_mistake(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(DoctorError::NoInterface(_)))
        || matches!(
            error.downcast_ref(),
            Some(ApplyError::NoInterface | ApplyError::Doctor(DoctorError::NoInterface(_)))
        )
}
