//! The edges: where IP packets enter or leave.
//!
//! ```text
//! client TUN -> check, clamp -> Packer -> cells ..> cells -> Reassembler -> check, rewrite -> exit TUN -> NAT -> world
//! ```
//!
//! Every client has the same inner addresses. The exit gives each circuit an address of its pool and rewrites packets
//! both ways, so that no address inside a cell tells clients apart.

pub mod client;
pub mod drops;
pub mod exit;
pub mod ip;
pub mod nat;
pub mod packing;
pub mod pool;
pub mod reassembly;
pub mod rewrite;
pub mod routes;
pub mod tun;

pub use client::ClientEdge;
pub use drops::{EdgeDrop, EdgeDrops};
pub use exit::{ExitEdge, ExitError, LeaseError};
pub use packing::{BlockKind, Fill, Packer, PushError};
pub use reassembly::{Reassembler, ReassemblyDrop};
