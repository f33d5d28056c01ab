//! `relay audit` on captures that the tests write, through the library and through the binary.

mod findings;
mod reading;
mod refusals;
mod wire;
mod write;
