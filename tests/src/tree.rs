//! The source tree, and the cargo that builds what is in it.

use std::path::Path;
use std::process::Command;

/// The root of the source tree.
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The `cargo` that started this program, or else that of the `PATH`, in the root of the source tree.
///
/// It is not told of a package what `cargo run` or `cargo test` told this program: some build scripts ask for it, and all
/// that depends on them would be built anew whenever somebody calls `cargo` by hand, and once more after it.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_a_package) {
            command.env_remove(name);
        }
    }
    command.current_dir(workspace());
    command
}

/// Whether cargo sets this variable for the package of a program that it runs (the reference of cargo, "Environment
/// variables").
fn is_of_a_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_not_told_of_the_package_that_started_it() {
        let told = |command: &Command, name: &str| command.get_envs().any(|set| set == (name.as_ref(), None));
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "cargo test tells this program");
        let command = cargo();
        assert!(told(&command, "CARGO_PKG_NAME") && told(&command, "CARGO_MANIFEST_DIR"));
        assert!(!told(&command, "PATH"));
        assert!(command.get_current_dir().is_some_and(|root| root.join("Cargo.lock").is_file()));
    }
}
