//! `relay check-config`.

use std::path::Path;

use crate::config::{Config, Timestamp};
use crate::crypto::StaticKey;

/// Checks the file, the network document it names and, for a relay, its key.
pub(super) fn run(file: &Path, now: Timestamp) -> anyhow::Result<()> {
    match Config::load(file)? {
        Config::Relay(config) => {
            let network = config.load_network(now)?;
            let relay = config.find_in(&network, &StaticKey::load(&config.key)?)?;
            println!(
                "{}: relay {} at {}, document epoch {}",
                file.display(),
                relay.name,
                relay.address,
                network.epoch
            );
        }
        Config::Client(config) => {
            let network = config.load_network(now)?;
            config.check_against(&network)?;
            println!(
                "{}: client of class {}, document epoch {}",
                file.display(),
                config.class,
                network.epoch
            );
        }
    }
    Ok(())
}
