//! The program that tests of whole nodes run.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::tree::cargo;

/// The `relay` program, built in release mode: three relays of a debug build do not keep their slots on two cores.
///
/// # Panics
/// Where it does not build.
pub fn relay_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let own = std::env::current_exe().expect("the test's own path");
        let target = own.ancestors().nth(3).expect("target/PROFILE/deps/TEST");
        let built = cargo()
            .args([
                "build",
                "--release",
                "--locked",
                "--package",
                "relay-user",
                "--bin",
                "relay",
                "--target-dir",
            ])
            .arg(target)
            .status()
            .expect("cargo");
        assert!(built.success(), "cargo build: {built}");
        target.join("release/relay")
    })
}
