//! What the wire tells, on the real kernel.

pub mod truth;
