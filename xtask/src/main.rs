//! Evenwire's developer commands.

mod bench;
mod ci;
mod ebpf;
mod interrupt;
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
    /// Build, verify or disassemble the XDP program
    Ebpf(ebpf::EbpfArgs),
    /// Run a command under a stock kernel in an emulated machine
    Vm(vm::VmArgs),
    /// The HTTP server of the lab's service
    #[command(hide = true)]
    Serve(run::serve::ServeArgs),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Run(args) => run::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Ci => ci::run(),
        Task::Bench(args) => bench::run(&args),
        Task::Ebpf(args) => ebpf::run(args),
        Task::Vm(args) => return vm::run(&args),
        Task::Serve(args) => run::serve::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
