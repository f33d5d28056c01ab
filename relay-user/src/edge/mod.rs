//! The edges: where IP packets enter and leave, and how cells carry them.

pub mod packing;
pub mod reassembly;

pub use packing::{BlockKind, Fill, Packer, PushError};
pub use reassembly::{Reassembler, ReassemblyDrop};
