//! Evenwire developer commands.
fn main(){}
