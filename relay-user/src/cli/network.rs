//! `relay network`: what an operator does with the network document.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;

use crate::config::network::sign;
use crate::config::rates::Hour;
use crate::config::{ConfigError, NetworkDocument, Timestamp};
use crate::crypto::OperatorKey;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check a document and put the operator's signature into its first line, in place.
    Sign {
        /// The operator's key file.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The document.
        document: PathBuf,
    },
    /// Check that a document is right, signed by the operator and in force.
    Verify {
        /// The operator's public key.
        #[arg(long, value_name = "HEX", value_parser = public_key)]
        operator: PublicKey,
        /// The document.
        document: PathBuf,
    },
    /// Show what a document says, whoever signed it.
    Show {
        /// The document.
        document: PathBuf,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PublicKey([u8; 32]);

fn public_key(digits: &str) -> Result<PublicKey, String> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(digits, &mut bytes)
        .map_err(|_| "give the 64 hex digits of an Ed25519 public key")?;
    Ok(PublicKey(bytes))
}

pub(super) fn run(command: &Command, now: Timestamp) -> anyhow::Result<()> {
    match command {
        Command::Sign { key, document } => sign_in_place(key, document),
        Command::Verify { operator, document } => {
            let network = NetworkDocument::load(document, &operator.0, now)?;
            println!(
                "{}: signed by this operator, epoch {}, in force until {}",
                document.display(),
                network.epoch,
                network.valid_until
            );
            Ok(())
        }
        Command::Show { document } => {
            let network = NetworkDocument::parse_unverified(document, &read(document)?)?;
            print!("{}", describe(&network));
            Ok(())
        }
    }
}

fn sign_in_place(key: &Path, document: &Path) -> anyhow::Result<()> {
    let key = OperatorKey::load(key)?;
    let text = read(document)?;
    NetworkDocument::parse_unverified(document, &text)?;
    replace(document, &sign(&text, &key)).with_context(|| {
        format!("{}: cannot be replaced; make its directory writable", document.display())
    })?;
    println!("{}: signed by {}", document.display(), hex::encode(key.public()));
    Ok(())
}

fn read(document: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(document).map_err(|error| ConfigError {
        file: document.to_owned(),
        line: None,
        key: None,
        what: format!("cannot be read: {error}"),
        remedy: "correct the path or the file's mode".into(),
    })
}

/// A relay that reloads at the same moment sees the old document or the new one, never a part.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let mut name = file.file_name().ok_or(std::io::ErrorKind::InvalidFilename)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let draft = file.with_file_name(name);
    let mut out = OpenOptions::new().write(true).create_new(true).open(&draft)?;
    let written = (|| {
        out.set_permissions(fs::metadata(file)?.permissions())?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&draft, file)
    })();
    if written.is_err() {
        fs::remove_file(&draft)?;
    }
    written
}

fn describe(network: &NetworkDocument) -> String {
    let mut text = format!(
        "epoch   {}\nvalid   {} to {}\nsuite   {}\n",
        network.epoch,
        network.valid_from,
        network.valid_until,
        network.suite.number()
    );
    for (name, class) in &network.classes {
        text += &format!("class   {name}  {} cells/s, {}\n", class.rate, class.schedule);
    }
    text += &format!("epochs  {} s\n", network.epoch_seconds);
    if let Some(clients) = &network.clients {
        text += &format!("clients {}{}\n", clients.class, ways(&clients.hours, &clients.lower));
        if let Some(adaptive) = &clients.adaptive {
            text += &format!("adapt   {}, ε {}\n", adaptive.classes.join(" "), adaptive.epsilon);
        }
    }
    for relay in &network.relays {
        let roles: Vec<String> = relay.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
        text += &format!(
            "relay   {}  {}  {}  id {}  key {}\n",
            relay.name,
            relay.address,
            roles.join("+"),
            hex::encode(relay.id),
            hex::encode(relay.key)
        );
    }
    for trunk in &network.trunks {
        let [one, other] = &trunk.between;
        text += &format!("trunk   {one} - {other}  {}{}\n", trunk.class, ways(&trunk.hours, &trunk.lower));
    }
    text
}

/// Classes by the time of day and for loss, behind that of a link.
fn ways(hours: &[Hour], lower: &[String]) -> String {
    let by_hour = hours.iter().map(|hour| {
        let minutes = hour.second / 60;
        format!("  {:02}:{:02} {}", minutes / 60, minutes % 60, hour.class)
    });
    let steps = lower.iter().map(|name| format!("  loss: {name}"));
    by_hour.chain(steps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::StaticKey;

    const DOCUMENT: &str = r#"version = 1
epoch = 7
valid_from = "2026-01-01T00:00:00Z"
valid_until = "2027-01-01T00:00:00Z"
cell_len = 1360
suite = 1
[classes.standard]
rate = 1500
schedule = "jittered"
[[relays]]
id = "00000000000000000000000000000001"
name = "entry"
address = "192.0.2.1:7443"
key = "KEY"
roles = ["middle", "entry"]
"#;

    #[test]
    fn a_signed_document_verifies_until_it_is_changed() {
        let directory = tempfile::tempdir().unwrap();
        let (key, document) = (directory.path().join("operator.key"), directory.path().join("network.toml"));
        let operator = OperatorKey::generate();
        operator.save(&key).unwrap();
        fs::write(&document, DOCUMENT.replace("KEY", &hex::encode(StaticKey::generate().public()))).unwrap();
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let verify = || {
            let command =
                Command::Verify { operator: PublicKey(operator.public()), document: document.clone() };
            run(&command, now)
        };
        assert!(verify().unwrap_err().to_string().contains("has no signature"));
        run(&Command::Sign { key, document: document.clone() }, now).unwrap();
        verify().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "a draft was left behind");

        let text = fs::read_to_string(&document).unwrap();
        fs::write(&document, text.replace("1500", "1501")).unwrap();
        assert!(verify().unwrap_err().is::<ConfigError>());
    }

    #[test]
    fn a_wrong_document_is_not_signed() {
        let directory = tempfile::tempdir().unwrap();
        let (key, document) = (directory.path().join("operator.key"), directory.path().join("network.toml"));
        OperatorKey::generate().save(&key).unwrap();
        fs::write(&document, DOCUMENT).unwrap();
        let error = run(&Command::Sign { key, document: document.clone() }, Timestamp(0)).unwrap_err();
        assert!(error.to_string().contains("network.toml:14: relays.key"), "{error}");
        assert_eq!(fs::read_to_string(&document).unwrap(), DOCUMENT);
    }

    #[test]
    fn the_description_has_everything() {
        let tables = r#"[classes.light]
rate = 100
schedule = "jittered"
[epochs]
seconds = 900
[clients]
class = "standard"
hours = [{ at = "07:30", class = "standard" }, { at = "23:00", class = "light" }]
lower = ["light"]
[[relays]]"#;
        let text = DOCUMENT.replace("KEY", &"ab".repeat(32)).replace("[[relays]]", tables);
        let network = NetworkDocument::parse_unverified(Path::new("network.toml"), &text).unwrap();
        let shown = describe(&network);
        for part in [
            "epoch   7",
            "2027-01-01T00:00:00Z",
            "1500 cells/s",
            "entry+middle",
            "192.0.2.1:7443",
            "900 s",
            "standard  07:30 standard  23:00 light  loss: light",
        ] {
            assert!(shown.contains(part), "{part} is missing in {shown}");
        }
    }
}
