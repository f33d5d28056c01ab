//! The control plane: keeps links up, builds circuits, answers the operator. One tokio task owns all of its state; the
//! worker is told over a bounded queue and answers over another.

mod action;
mod builder;
mod circuits;
mod decoys;
mod links;
mod node;
mod path;
pub(crate) mod plans;
mod start;
mod status;

pub use start::{run_client, run_relay, run_watched_relay};
