//! Evenwire's developer commands.

mod ci;
mod ebpf;
mod run;
mod test;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Evenwire's developer commands")]
enum Xtask {
    /// Build, check or show the committed XDP object.
    Ebpf(ebpf::EbpfArgs),
}

fn main() -> anyhow::Result<()> {
    match Xtask::parse() {
        Xtask::Ebpf(args) => ebpf::run(args),
    }
}
