//! `relay plan`.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, Timestamp};
use crate::plan::Plan;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The relay's or the client's file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the plan. `true` when it can work as it stands.
pub(super) fn run(arguments: &Arguments, now: Timestamp) -> anyhow::Result<bool> {
    let plan = Plan::of(&Config::load(&arguments.config)?, now)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&plan)?);
    } else {
        print!("{}", plan.table());
    }
    Ok(plan.works())
}
