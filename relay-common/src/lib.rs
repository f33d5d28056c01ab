//! What the kernel half and the userspace half of an Evenwire relay must agree on: cell and datagram formats,
//! packet parsing and classification, and the layout of the eBPF maps. `no_std`, no dependencies, no allocation.
#![no_std]

pub mod abi;
pub mod classify;
pub mod cursor;
pub mod wire;
