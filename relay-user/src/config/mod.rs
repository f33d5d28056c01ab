//! What operators and users write: the network document and the two programs' own files.
//!
//! Every refusal reads `file:line: key: what; remedy`. Paths in a file are relative to that file.

mod client;
mod datapath;
pub mod network;
mod prefix;
pub mod rates;
mod relay;
mod source;
mod timestamp;

pub use client::{ClientConfig, ClientPolicy, Cover, DecoyPlan, Maybenot, Tun};
pub use datapath::{BindMode, BusyPoll, Control, Datapath, DatapathMode, HugePages, PollMode, Worker};
pub use network::NetworkDocument;
pub use prefix::{InvalidPrefix, Prefix};
pub use relay::{Exit, RelayConfig};
pub use source::ConfigError;
pub use timestamp::{InvalidTimestamp, Timestamp};

use std::path::Path;

use source::Source;

/// A file of either kind.
#[derive(Clone, Debug)]
pub enum Config {
    /// A relay's file.
    Relay(Box<RelayConfig>),
    /// A client's file.
    Client(Box<ClientConfig>),
}

impl Config {
    /// Reads a relay's or a client's file, told apart by the keys that only one kind has.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read, is wrong in itself, or is of neither kind.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let source = Source::read(file)?;
        let table: toml::Table = source.parse()?;
        let has = |keys: &[&str]| keys.iter().any(|key| table.contains_key(*key));
        if has(&["name", "key", "exit"]) {
            return RelayConfig::parse(file, source.text()).map(|config| Self::Relay(Box::new(config)));
        }
        if has(&["class", "cover", "path", "tun"]) {
            return ClientConfig::parse(file, source.text()).map(|config| Self::Client(Box::new(config)));
        }
        let what = "is neither a relay's nor a client's file";
        Err(ConfigError::of_file(
            file,
            what,
            "a relay's has `name` and `key`, a client's has `class` and [tun]",
        ))
    }

    /// Where the program answers.
    pub fn control(&self) -> &Control {
        match self {
            Self::Relay(config) => &config.control,
            Self::Client(config) => &config.control,
        }
    }
}
