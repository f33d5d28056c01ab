//! `cargo xtask privacy` ends up here, in a release build.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use relay_bench::privacy::network::Cores;
use relay_bench::privacy::witness::notes;
use relay_bench::privacy::{self, Options};

/// Attacks the traffic of real programs through each defence, on this machine.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask privacy", override_usage = "cargo xtask privacy [OPTIONS]")]
struct Arguments {
    /// At most 15 minutes: fewer windows, so wider intervals. Where none is named, plain, constant and jittered only, and
    /// without overload-down, throttled-up, throttled-trunk, delay and witness
    #[arg(long)]
    quick: bool,
    /// Also writes the results here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also writes the results here, as an HTML page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Decides every order and every drawing
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Only this scenario; may be given several times
    #[arg(long = "scenario", value_name = "NAME", value_parser = PossibleValuesParser::new(privacy::scenario_names()))]
    scenarios: Vec<String>,
    /// Only this defence; may be given several times
    #[arg(long = "defence", value_name = "NAME", value_parser = PossibleValuesParser::new(privacy::defence_names()))]
    defences: Vec<String>,
    /// Lets workers share their processors with everything else. Otherwise they have some for themselves, all but one at most
    #[arg(long, conflicts_with = "alone")]
    shared_cores: bool,
    /// Gives a processor to the worker of this node alone, as on a host of its own, and judges only what it sends
    #[arg(long, value_name = "NODE", value_parser = PossibleValuesParser::new(privacy::node_names()))]
    alone: Option<String>,
    /// The program `relay`, built for release
    #[arg(long, value_name = "FILE", hide = true)]
    relay: PathBuf,
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let outcome = if words.next().is_some_and(|word| word == notes::WORD) {
        notes::run_as_relay(words)
    } else {
        run(Arguments::parse())
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    // Better refused now than when all is measured.
    for path in arguments.json.iter().chain(&arguments.html) {
        let file = std::fs::File::options().create(true).append(true).open(path);
        file.with_context(|| format!("cannot write {}", path.display()))?;
    }
    let options = Options {
        quick: arguments.quick,
        relay: arguments.relay,
        seed: arguments.seed,
        cores: Cores::of(arguments.shared_cores, arguments.alone.as_deref()),
        scenarios: arguments.scenarios,
        defences: arguments.defences,
    };
    let (report, pictures) = privacy::run(&options)?;
    print!("{}", privacy::text::table(&report));
    if let Some(path) = &arguments.json {
        let json = privacy::text::json(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &arguments.html {
        let page = privacy::page::render(&report, &pictures);
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    ensure!(!report.interrupted, "interrupted: what had been measured before is all that is reported");
    Ok(())
}
