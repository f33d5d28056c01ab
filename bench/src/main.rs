//! `cargo xtask bench` ends up here, in a release build.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use relay_bench::{cases, report, session::Session};
use relay_tests::privilege::is_root;
use relay_tests::tools;

/// Measures Evenwire's data plane.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// Cases to run; all of them where none is named
    #[arg(value_name = "CASE", value_parser = clap::builder::PossibleValuesParser::new(cases::ALL.map(|case| case.name)))]
    cases: Vec<String>,
    /// Also writes the results here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also writes the results here, as an HTML page with plots, and beside it an HdrHistogram percentile file (.hgrm)
    /// for each distribution
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Shorter measurements: a first look, with wider noise
    #[arg(long)]
    quick: bool,
    /// Lists the cases and measures nothing
    #[arg(long)]
    list: bool,
    /// Prints what a link and a circuit take of memory, measured on so many of each
    #[arg(long, value_name = "COUNT", hide = true)]
    measure_memory: Option<u32>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list {
        for case in cases::ALL {
            println!("{:<10} {}", case.name, case.about);
        }
        return Ok(());
    }
    if let Some(count) = arguments.measure_memory {
        let [link, circuit] = cases::engine::memory::measure(count)?;
        println!("{link} {circuit}");
        return Ok(());
    }
    // Better refused now than after twenty minutes.
    for path in arguments.json.iter().chain(&arguments.html) {
        let file = std::fs::File::options().create(true).append(true).open(path);
        file.with_context(|| format!("cannot write {}", path.display()))?;
    }
    if is_root() {
        tools::install(&tools::LAB)?;
    }
    let mut session = Session::new(arguments.quick);
    for case in cases::ALL {
        if arguments.cases.is_empty() || arguments.cases.iter().any(|name| name == case.name) {
            session.run(case.name, case.run);
        }
    }
    print!("{}", report::table::render(session.figures()));
    if let Some(path) = &arguments.json {
        let json = report::json::render(session.figures(), session.quick)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &arguments.html {
        println!();
        for written in report::html::write(path, &session)? {
            println!("wrote {}", written.display());
        }
    }
    Ok(())
}
