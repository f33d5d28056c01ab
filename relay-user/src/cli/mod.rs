//! The command line of the `relay` binary.

mod audit;
mod check;
mod doctor;
mod keygen;
mod network;
mod plan;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{ClientConfig, ConfigError, RelayConfig, Timestamp};
use crate::crypto::keys::KeyFileError;

/// Exit status when a file or the command line must be corrected; clap uses it for the command line, too.
const MISTAKE: u8 = 2;

/// A relay and client of an Evenwire network.
#[derive(Debug, Parser)]
#[command(name = "relay", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a relay.
    Run(RunArguments),
    /// Run a client.
    Client(RunArguments),
    /// Make a key file and print the key's public half.
    Keygen(keygen::Arguments),
    /// Sign, verify or show a network document.
    #[command(subcommand)]
    Network(network::Command),
    /// Check a relay's or a client's file, and what it refers to.
    CheckConfig(ConfigFile),
    /// Say whether this machine is fit for a relay, and what to do about it.
    Doctor(doctor::Arguments),
    /// Say what a relay's or a client's file costs and gives: bandwidth, latency, cores, memory, circuits, leakage. Starts
    /// and touches nothing; exit status 1 means that it cannot work as it stands.
    Plan(plan::Arguments),
    /// Say what a capture of your own wire tells an observer.
    Audit(audit::Arguments),
    /// Ask a running relay or client how it is.
    #[command(after_help = status::EXPLANATION)]
    Status(status::Arguments),
}

#[derive(Args, Debug)]
struct RunArguments {
    /// The relay's or the client's file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The relay's or the client's file.
    file: PathBuf,
}

/// Runs the command that the process was started with. Exit status 2 means that the command line or a file must be
/// corrected, 1 that something failed at run time.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("relay: {error:#}");
            if is_mistake(&error) { ExitCode::from(MISTAKE) } else { ExitCode::FAILURE }
        }
    }
}

/// `false` where the command did its work and has something against the machine.
fn run(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Doctor(arguments) => return doctor::run(&arguments, now()),
        Command::Plan(arguments) => return plan::run(&arguments, now()),
        Command::Audit(arguments) => return audit::run(&arguments),
        Command::Run(arguments) => {
            let config = RelayConfig::load(&arguments.config)?;
            log_to_stderr();
            crate::control::run_relay(config)
        }
        Command::Client(arguments) => {
            let config = ClientConfig::load(&arguments.config)?;
            log_to_stderr();
            crate::control::run_client(config)
        }
        Command::Keygen(arguments) => keygen::run(&arguments),
        Command::Network(command) => network::run(&command, now()),
        Command::CheckConfig(config) => check::run(&config.file, now()),
        Command::Status(arguments) => status::run(&arguments),
    }
    .map(|()| true)
}

fn is_mistake(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<KeyFileError>()
        || doctor::is_mistake(error)
        || audit::is_mistake(error)
}

fn log_to_stderr() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
}

fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_and_failures_have_different_statuses() {
        let missing = check::run(std::path::Path::new("/nonexistent/relay.toml"), Timestamp(0)).unwrap_err();
        assert!(is_mistake(&missing));
        assert!(is_mistake(&missing.context("while starting")));
        assert!(!is_mistake(&anyhow::anyhow!("the socket was closed")));
    }

    #[test]
    fn exactly_one_kind_of_key_must_be_chosen() {
        for arguments in [
            &["relay", "keygen", "--out", "f"][..],
            &["relay", "keygen", "--relay", "--operator", "--out", "f"],
            &["relay", "keygen", "--relay"],
            &["relay", "status"],
            &["relay", "status", "--socket", "s", "--config", "c"],
            &["relay", "network", "verify", "--operator", "00", "doc"],
            &["relay", "plan"],
            &["relay", "plan", "relay.toml"],
        ] {
            assert_eq!(Cli::try_parse_from(arguments).unwrap_err().exit_code(), 2, "{arguments:?}");
        }
        Cli::try_parse_from(["relay", "keygen", "--operator", "--out", "f"]).unwrap();
        Cli::try_parse_from(["relay", "status", "--json", "--socket", "s"]).unwrap();
    }
}
