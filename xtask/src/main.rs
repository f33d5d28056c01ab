//! Evenwire's developer commands.

mod ci;
mod ebpf;
mod run;
mod test;

fn main() {}
