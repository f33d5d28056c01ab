//! Evenwire's XDP program: hands cells to the AF_XDP sockets, leaves handshakes and all foreign traffic to the
//! kernel, drops the rest and counts everything. What a frame is, [`relay_common::classify`] decides.
//!
//! It is built for `bpfel-unknown-none` by `cargo xtask ebpf build`. For any other target this is an empty program,
//! so that the workspace can be checked as a whole.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "packet bytes and map entries are only reachable through pointers; the verifier checks each access"
    )
)]

#[cfg(target_arch = "bpf")]
mod cursor;
#[cfg(target_arch = "bpf")]
mod program;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
