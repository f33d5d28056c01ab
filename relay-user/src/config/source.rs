//! A configuration file's text, and errors that point into it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;

/// What is wrong with a configuration file, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file as it was named.
    pub file: PathBuf,
    /// The line, from 1, unless the whole file is meant.
    pub line: Option<usize>,
    /// The key, unless the whole file is meant.
    pub key: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if let Some(key) = &self.key {
            write!(f, " {key}:")?;
        }
        write!(f, " {}; {}", self.what, self.remedy)
    }
}

impl ConfigError {
    /// An error about a whole file.
    pub(super) fn of_file(file: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, key: None, what: what.into(), remedy: remedy.into() }
    }
}

/// A file's name and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    file: PathBuf,
    text: String,
}

impl Source {
    pub(super) fn new(file: &Path, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned() }
    }

    pub(super) fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            ConfigError::of_file(
                file,
                format!("cannot be read: {error}"),
                "correct the path or the file's mode",
            )
        })?;
        Ok(Self { file: file.to_owned(), text })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// `path` seen from the directory of this file.
    pub(super) fn beside(&self, path: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| self.explain(&error))
    }

    /// An error about the value at `at`.
    pub(super) fn refuse<T>(
        &self,
        at: &Spanned<T>,
        key: &str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        self.error(Some(self.line(at.span().start)), key, what.into(), remedy.into())
    }

    /// An error about the first line that sets `key`, or opens the table `[key]`.
    pub(super) fn refuse_key(
        &self,
        key: &str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        let sets = |line: &str| {
            let name = line.split('=').next().unwrap_or_default().trim();
            name == key
                || Some(name) == key.split('.').nth(1)
                || name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) == Some(key)
        };
        let line = self.text.lines().position(sets).map(|index| index + 1);
        self.error(line, key, what.into(), remedy.into())
    }

    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let line = self.line(span.start);
        let message = error.message().replace('\n', ", ");
        let quoted = message.split('`').nth(1).unwrap_or_default().to_owned();
        let (what, expected) = match message.split_once(", expected ") {
            Some((what, expected)) => (what.to_owned(), Some(expected.to_owned())),
            None => (message.clone(), None),
        };
        if message.starts_with("unknown field") {
            let remedy = expected.map_or("remove it".to_owned(), |keys| format!("remove it, or use {keys}"));
            return self.error(Some(line), &quoted, "unknown key".into(), remedy);
        }
        if message.starts_with("missing field") {
            let remedy = format!("add `{quoted}` to this table");
            return self.error(Some(line), &quoted, "is missing".into(), remedy);
        }
        let remedy = expected.map_or("correct it".to_owned(), |expected| format!("give {expected}"));
        self.error(Some(line), self.key_at(&span), what, remedy)
    }

    fn error(&self, line: Option<usize>, key: &str, what: String, remedy: String) -> ConfigError {
        let key = (!key.is_empty()).then(|| key.to_owned());
        ConfigError { file: self.file.clone(), line, key, what, remedy }
    }

    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    fn key_at(&self, span: &Range<usize>) -> &str {
        let line = self.text.lines().nth(self.line(span.start) - 1).unwrap_or_default();
        line.split_once('=').map_or("", |(key, _)| key).trim()
    }
}

/// Decodes 2 `N` hexadecimal digits.
pub(super) fn hex_bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[expect(dead_code, reason = "only its type matters")]
        rate: u32,
    }

    fn refusal(text: &str) -> String {
        Source::new(Path::new("f.toml"), text).parse::<Sample>().unwrap_err().to_string()
    }

    #[test]
    fn refusals_name_file_line_key_and_remedy() {
        assert_eq!(refusal("rate = 1\nrat = 2\n"), "f.toml:2: rat: unknown key; remove it, or use `rate`");
        assert_eq!(refusal("\nrate = \"x\"\n"), "f.toml:2: rate: invalid type: string \"x\"; give u32");
        assert_eq!(refusal("# nothing\n"), "f.toml:1: rate: is missing; add `rate` to this table");
        assert!(refusal("rate = 1\nrate 2\n").starts_with("f.toml:2: "), "{}", refusal("rate = 1\nrate 2\n"));
    }

    #[test]
    fn keys_and_tables_are_found_again() {
        let source = Source::new(Path::new("f.toml"), "name = 1\n[exit]\ntun = 2\n");
        assert_eq!(source.refuse_key("exit", "a", "b").line, Some(2));
        assert_eq!(source.refuse_key("tun", "a", "b").line, Some(3));
        assert_eq!(source.refuse_key("none", "a", "b").to_string(), "f.toml: none: a; b");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let source = Source::new(Path::new("/etc/evenwire/relay.toml"), "");
        assert_eq!(source.beside(Path::new("a.key")), Path::new("/etc/evenwire/a.key"));
        assert_eq!(source.beside(Path::new("/a.key")), Path::new("/a.key"));
        assert_eq!(Source::new(Path::new("relay.toml"), "").beside(Path::new("a.key")), Path::new("a.key"));
    }
}
