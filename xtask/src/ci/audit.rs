//! The dependency audit: licences, sources and versions that occur twice, against `.audit.toml`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::tools;

/// `.audit.toml`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    /// SPDX identifiers that may be relied on.
    licences: BTreeSet<String>,
    /// Package -> why several versions of it are acceptable.
    duplicates: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Cargo's name of the public registry, the only source besides this tree.
const PUBLIC_REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(super) fn run() -> Result<()> {
    let path = tools::workspace().join(".audit.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let policy: Policy = toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))?;
    let output = tools::cargo()
        .args([
            "metadata",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", output.status);
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cargo metadata answered oddly")?;
    let complaints = complaints(&metadata.packages, &policy);
    for complaint in &complaints {
        println!("{complaint}");
    }
    if !complaints.is_empty() {
        bail!(
            "{} complaints about {} packages; .audit.toml says what is allowed",
            complaints.len(),
            metadata.packages.len()
        );
    }
    println!(
        "{} packages: licences, sources and duplicate versions are as .audit.toml allows",
        metadata.packages.len()
    );
    Ok(())
}

fn complaints(packages: &[Package], policy: &Policy) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let Package { name, version, .. } = package;
        match &package.license {
            None => complaints.push(format!("{name} {version}: states no licence")),
            Some(expression) if !is_allowed(expression, &policy.licences) => {
                complaints.push(format!("{name} {version}: licence {expression} is not on the list"));
            }
            Some(_) => {}
        }
        if package.source.as_deref().is_some_and(|source| source != PUBLIC_REGISTRY) {
            complaints.push(format!("{name} {version}: comes from elsewhere than the public registry"));
        }
        versions.entry(name).or_default().insert(version);
    }
    for (name, versions) in &versions {
        let explained = policy.duplicates.contains_key(*name);
        if versions.len() > 1 && !explained {
            let list = versions.iter().copied().collect::<Vec<_>>().join(", ");
            complaints.push(format!("{name}: several versions ({list}) and no reason given"));
        }
        if versions.len() == 1 && explained {
            complaints
                .push(format!("{name}: only one version is left, so its entry under duplicates can go"));
        }
    }
    for name in policy.duplicates.keys().filter(|name| !versions.contains_key(name.as_str())) {
        complaints.push(format!("{name}: no longer a dependency, so its entry under duplicates can go"));
    }
    complaints
}

/// Whether an SPDX expression can be met by licences of the list: every AND part must, one OR part is enough.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    // An old way to write OR.
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let mut at = 0;
    let met = any_of(&words, &mut at, allowed);
    met && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at, allowed);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let met = any_of(words, at, allowed);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return met && closed;
    }
    let mut licence = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    allowed.contains(&licence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> BTreeSet<String> {
        ["MIT", "Apache-2.0", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into()
    }

    #[test]
    fn licence_expressions_are_read_by_their_operators() {
        for met in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(GPL-2.0 OR ISC) AND MIT",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
            "GPL-3.0 OR ISC AND MIT",
        ] {
            assert!(is_allowed(met, &allowed()), "{met}");
        }
        for unmet in [
            "GPL-2.0",
            "MIT AND GPL-2.0",
            "ISC AND (GPL-2.0 OR LGPL-3.0)",
            "",
            "(MIT",
            "MIT ISC",
            "MIT WITH x",
        ] {
            assert!(!is_allowed(unmet, &allowed()), "{unmet}");
        }
    }

    #[test]
    fn duplicates_need_a_reason_and_reasons_a_duplicate() {
        let package = |name: &str, version: &str| Package {
            name: name.to_owned(),
            version: version.to_owned(),
            license: Some("MIT".to_owned()),
            source: Some(PUBLIC_REGISTRY.to_owned()),
        };
        let packages = [package("a", "1.0.0"), package("a", "2.0.0"), package("b", "1.0.0")];
        let mut policy = Policy { licences: allowed(), duplicates: BTreeMap::new() };
        assert_eq!(complaints(&packages, &policy).len(), 1);
        policy.duplicates.insert("a".to_owned(), "c still wants a 1".to_owned());
        assert_eq!(complaints(&packages, &policy), Vec::<String>::new());
        policy.duplicates.insert("b".to_owned(), "no longer true".to_owned());
        assert_eq!(complaints(&packages, &policy).len(), 1);
    }
}
