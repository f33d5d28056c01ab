//! The attacks, one a module. Each takes what an observer saw and gives what it could tell.

pub mod activity;
pub mod correlation;
pub mod distribution;
pub mod information;
pub mod sizes;
pub mod start_stop;
