//! Evenwire's developer commands.

mod bench;
mod ci;
mod ebpf;
mod privacy;
mod run;
mod test;
mod tools;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Evenwire's developer commands")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run the relay network over three hops on this machine and watch its wire (needs root)
    Run(run::RunArgs),
    /// Run every test that this machine and user allow, and list what was left out
    Test(test::TestArgs),
    /// Everything that must hold before a change is merged
    Ci,
    /// Measure the data plane: ratios within one run, as a table, JSON and HTML
    Bench(bench::BenchArgs),
    /// Attack the traffic of real programs through each defence, on the real kernel (needs root)
    Privacy(privacy::PrivacyArgs),
    /// Build, verify or disassemble the XDP program
    Ebpf(ebpf::EbpfArgs),
    /// Run a command under a stock kernel in an emulated machine
    Vm(vm::VmArgs),
    /// The HTTP server of the lab's service
    #[command(hide = true)]
    Serve(run::serve::ServeArgs),
}

fn main() -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    let outcome = match Arguments::parse().command {
        Task::Run(args) => run::run(&args).map(done),
        Task::Test(args) => test::run(&args).map(done),
        Task::Ci => ci::run().map(done),
        Task::Bench(args) => bench::run(&args),
        Task::Privacy(args) => privacy::run(&args),
        Task::Ebpf(args) => ebpf::run(args).map(done),
        Task::Vm(args) => vm::run(&args),
        Task::Serve(args) => run::serve::run(&args).map(done),
    };
    match outcome {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
