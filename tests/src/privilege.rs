//! What a privileged test does when it may not run.

use nix::unistd::geteuid;

/// Environment variable that turns a skipped privileged test into a failure; CI sets it to `1`.
pub const REQUIRE_PRIVILEGED: &str = "EVENWIRE_REQUIRE_PRIVILEGED";

/// Whether this process is root, which namespaces, raw sockets and XDP need.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// `true` when the test `name` may go on.
///
/// Without root it prints `skipped: NAME: REASON`, which `cargo xtask test` collects, and answers `false`.
///
/// # Panics
/// Without root, when [`REQUIRE_PRIVILEGED`] is `1`: there a skipped test would hide a hole.
pub fn root_or_skip(name: &str) -> bool {
    if is_root() {
        return true;
    }
    let required = std::env::var_os(REQUIRE_PRIVILEGED).is_some_and(|value| value == "1");
    assert!(!required, "{name} needs root, and {REQUIRE_PRIVILEGED}=1 forbids skipping it");
    println!("skipped: {name}: needs root");
    false
}
