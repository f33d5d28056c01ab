//! The Evenwire relay and client as a library. Data runs one way:
//!
//! ```text
//! port -> engine (open link, replay, hop layer, queue) -> slot comes due (seal) -> port
//!                 \-> edge (unpack) -> TUN        TUN -> edge (pack) -/
//! ```
//!
//! `control` sets links and circuits up and tells the worker over bounded queues; nothing else crosses.

mod audit;
pub mod cli;
pub mod config;
pub mod control;
pub mod crypto;
mod doctor;
pub mod edge;
pub mod engine;
mod host;
pub mod neighbour;
pub mod observe;
mod plan;
pub mod port;
pub mod rates;
pub mod steering;
pub mod worker;
pub mod xsk;
