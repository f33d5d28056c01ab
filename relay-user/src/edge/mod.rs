//! The edges: where IP packets enter or leave.
//!
//! ```text
//! client TUN -> check, clamp -> Packer -> cells ..> cells -> Reassembler -> check, rewrite -> exit TUN -> NAT -> world
//! ```
//!
//! Every client has the same inner addresses. The exit gives each circuit an address of its pool and rewrites packets
//! both ways, so that no address inside a cell tells clients apart.
//!
//! With several workers an exit's TUN has a queue for each, and each has its share of the pool. The kernel sends most
//! answers to the queue that their flow was written to; others are handed over to the worker whose address they go to.

pub mod client;
pub mod drops;
pub mod exit;
mod handover;
pub mod ip;
pub mod nat;
mod offload;
pub mod packing;
mod pieces;
pub mod pool;
mod porter;
pub mod reassembly;
pub mod rewrite;
pub mod routes;
pub mod tun;

pub use client::ClientEdge;
pub use drops::{EdgeDrop, EdgeDrops};
pub use exit::{ExitEdge, ExitError, HandoverCounters, LeaseError};
pub use packing::{BlockKind, Fill, Packer, PushError};
pub use pool::PoolShare;
pub use reassembly::{Reassembler, ReassemblyDrop};
pub use tun::{Offload, TunCounters};
