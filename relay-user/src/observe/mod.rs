//! The attack lab: observers that see time, length and flow of packets, and try to tell what goes on inside.
//!
//! Used three ways: on simulated time, on captures from real namespaces, and by users on their own captures. Everything
//! here is pure: packets come in as [`trace::Trace`]s, randomness as a seeded generator, and the same input gives the
//! same [`finding::Finding`]s. An attack that finds nothing is worth its power only, so every finding carries its
//! interval, and every run its positive controls.

pub mod attacks;
pub mod finding;
pub mod learn;
pub mod live;
pub mod stats;
pub mod trace;
