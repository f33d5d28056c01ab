//! The digest that ties the committed object to what it was built from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{self, SHA256};

const PACKAGE: &str = "relay-ebpf";
const DIRECTORIES: [&str; 2] = ["relay-ebpf/src", "relay-common/src"];
const MANIFESTS: [&str; 2] = ["relay-ebpf/Cargo.toml", "relay-common/Cargo.toml"];
/// Modules of this name are only compiled for tests.
const TESTS: &str = "tests.rs";

/// SHA-256 in hex over the program's sources, manifests and the packages that Cargo.lock gives it. Each part goes in
/// with its name and length, so that parts cannot run into each other.
pub(super) fn digest(root: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = MANIFESTS.iter().map(PathBuf::from).collect();
    for directory in DIRECTORIES {
        collect(root, Path::new(directory), &mut files)?;
    }
    files.sort();
    let mut context = digest::Context::new(&SHA256);
    let mut add = |name: &str, bytes: &[u8]| {
        context.update(format!("{name} {}\n", bytes.len()).as_bytes());
        context.update(bytes);
    };
    for file in files {
        let bytes = fs::read(root.join(&file)).with_context(|| format!("read {}", file.display()))?;
        add(&file.to_string_lossy(), &bytes);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("read Cargo.lock")?;
    for block in locked_packages(&lock, PACKAGE)? {
        add("Cargo.lock", block.as_bytes());
    }
    Ok(hex::encode(context.finish()))
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(root.join(directory)).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        let path = directory.join(entry.file_name());
        if entry.file_type().with_context(|| format!("look at {}", path.display()))?.is_dir() {
            collect(root, &path, files)?;
        } else if entry.file_name() != TESTS {
            files.push(path);
        }
    }
    Ok(())
}

/// The lock's entries of every foreign package that `package` depends on. The workspace's own are left out: their
/// entries also list what only their tests need, and their sources are digested themselves.
fn locked_packages<'a>(lock: &'a str, package: &str) -> Result<BTreeSet<&'a str>> {
    let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for block in lock.split("[[package]]").skip(1).map(str::trim) {
        let name = field(block, "name").context("Cargo.lock has a package without a name")?;
        by_name.entry(name).or_default().push(block);
    }
    ensure!(by_name.contains_key(package), "Cargo.lock has no package {package}");
    let mut found = BTreeSet::new();
    let mut open = vec![package];
    while let Some(dependency) = open.pop() {
        let (name, version) = dependency.split_once(' ').map_or((dependency, None), |(n, v)| (n, Some(v)));
        for &block in by_name.get(name).into_iter().flatten() {
            let foreign = field(block, "source").is_some();
            let wanted = version.is_none_or(|version| field(block, "version") == Some(version));
            if wanted && (name == package || foreign) && (!foreign || found.insert(block)) {
                open.extend(dependencies(block));
            }
        }
    }
    Ok(found)
}

fn field<'a>(block: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = block.lines().filter_map(|line| line.split_once(" = "));
    lines.find(|(found, _)| *found == key).map(|(_, value)| value.trim_matches('"'))
}

fn dependencies(block: &str) -> impl Iterator<Item = &str> {
    let list = block.split_once("dependencies = [").map_or("", |(_, list)| list);
    let list = list.split(']').next().unwrap_or_default();
    list.lines()
        .map(|line| line.trim().trim_end_matches(',').trim_matches('"'))
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"r\"\n\
        dependencies = [\n \"b 2.0.0\",\n]\n\n[[package]]\nname = \"b\"\nversion = \"1.0.0\"\nsource = \"r\"\n\n\
        [[package]]\nname = \"b\"\nversion = \"2.0.0\"\nsource = \"r\"\ndependencies = [\n \"a\",\n]\n\n\
        [[package]]\nname = \"own\"\nversion = \"0.1.0\"\ndependencies = [\n \"c\",\n]\n\n\
        [[package]]\nname = \"c\"\nversion = \"1.0.0\"\nsource = \"r\"\n\n\
        [[package]]\nname = \"ebpf\"\nversion = \"0.1.0\"\ndependencies = [\n \"a\",\n \"own\",\n]\n";

    #[test]
    fn only_what_the_program_depends_on_counts() {
        let found = locked_packages(LOCK, "ebpf").expect("well formed");
        let names: Vec<_> =
            found.iter().map(|block| (field(block, "name"), field(block, "version"))).collect();
        assert_eq!(names, [(Some("a"), Some("1.0.0")), (Some("b"), Some("2.0.0"))]);
        assert!(locked_packages(LOCK, "none").is_err());
    }

    #[test]
    fn a_changed_source_changes_the_digest_and_a_changed_test_does_not() {
        let root = tempfile::tempdir().expect("directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, text).expect("file");
        };
        let lock = LOCK.replace("\"ebpf\"", "\"relay-ebpf\"");
        for file in MANIFESTS.iter().chain(&["relay-ebpf/src/main.rs", "relay-common/src/room/lib.rs"]) {
            write(file, "one");
        }
        write("Cargo.lock", &lock);
        let first = digest(root.path()).expect("digest");
        write("relay-common/src/room/tests.rs", "two");
        write(
            "Cargo.lock",
            &lock.replace("name = \"c\"\nversion = \"1.0.0\"", "name = \"c\"\nversion = \"1.0.1\""),
        );
        assert_eq!(digest(root.path()).expect("digest"), first);
        write(
            "Cargo.lock",
            &lock.replace("name = \"a\"\nversion = \"1.0.0\"", "name = \"a\"\nversion = \"1.0.1\""),
        );
        assert_ne!(digest(root.path()).expect("digest"), first);
        write("Cargo.lock", &lock);
        write("relay-common/src/room/lib.rs", "two");
        assert_ne!(digest(root.path()).expect("digest"), first);
    }
}
