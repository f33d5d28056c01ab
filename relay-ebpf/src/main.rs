//! Evenwire's XDP program.
fn main() {}
