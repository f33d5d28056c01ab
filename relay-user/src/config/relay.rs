//! A relay's own file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::datapath::{
    Control, Datapath, DatapathMode, RawControl, RawDatapath, RawWorker, Worker, control, interface,
    operator, prefix, worker,
};
use super::network::{NetworkDocument, Relay, RelayRole};
use super::prefix::Prefix;
use super::source::{ConfigError, Source};
use super::timestamp::Timestamp;
use crate::crypto::StaticKey;

/// How one relay runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Its name in the network document.
    pub name: String,
    /// Its key file.
    pub key: PathBuf,
    /// The network document.
    pub network: PathBuf,
    /// The operator's Ed25519 public key.
    pub operator: [u8; 32],
    /// How datagrams get in and out.
    pub datapath: Datapath,
    /// The thread that moves the cells.
    pub worker: Worker,
    /// Where the relay answers its operator.
    pub control: Control,
    /// What an exit needs beyond that.
    pub exit: Option<Exit>,
    source: Source,
}

/// How an exit reaches the destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Name of the TUN interface to make.
    pub tun: String,
    /// Name of the interface towards the destinations.
    pub outside: String,
    /// IPv4 addresses for circuits, a prefix of 8 to 30 bits.
    pub pool4: Prefix,
    /// IPv6 addresses for circuits, a prefix of 32 to 126 bits.
    pub pool6: Prefix,
}

impl RelayConfig {
    /// Reads a relay's file.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read or is wrong in itself.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::check(Source::read(file)?)
    }

    /// Like [`RelayConfig::load`], for a text already at hand; relative paths start from `file`'s directory.
    ///
    /// # Errors
    /// [`ConfigError`] if it is wrong in itself.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::check(Source::new(file, text))
    }

    /// Reads the network document, which must be signed and hold at `now`.
    ///
    /// # Errors
    /// As [`NetworkDocument::load`].
    pub fn load_network(&self, now: Timestamp) -> Result<NetworkDocument, ConfigError> {
        NetworkDocument::load(&self.network, &self.operator, now)
    }

    /// The relay of this name in `network`, whatever its key.
    ///
    /// # Errors
    /// [`ConfigError`] if the document has no such relay.
    pub fn named_in<'a>(&self, network: &'a NetworkDocument) -> Result<&'a Relay, ConfigError> {
        network.relay(&self.name).ok_or_else(|| {
            let what = format!("the network document has no relay named {:?}", self.name);
            self.source.refuse_key("name", what, "write the name that the operator gave the relay")
        })
    }

    /// This relay in `network`, if file, key and document agree.
    ///
    /// # Errors
    /// [`ConfigError`] if the document has no such relay, another key for it, or a role that does not fit `[exit]`.
    pub fn find_in<'a>(
        &self,
        network: &'a NetworkDocument,
        key: &StaticKey,
    ) -> Result<&'a Relay, ConfigError> {
        let relay = self.named_in(network)?;
        if relay.key != *key.public() {
            let what = format!(
                "is not the key of {:?} in the network document; its public half is {}",
                self.name,
                hex::encode(key.public())
            );
            return Err(self.source.refuse_key(
                "key",
                what,
                "use the relay's own key, or have the document changed",
            ));
        }
        let narrow = network
            .trunks
            .iter()
            .find(|trunk| trunk.between.contains(&self.name) && trunk.lanes < self.worker.count);
        if let Some(trunk) = narrow {
            let [one, other] = &trunk.between;
            let what = format!(
                "is {}, but the trunk of {one} and {other} has {} lanes, so some workers would have none of it",
                self.worker.count, trunk.lanes
            );
            let remedy = "use no more workers than that, or have the document's trunks.lanes raised";
            return Err(self.source.refuse_key("worker.count", what, remedy));
        }
        match (relay.roles.contains(&RelayRole::Exit), &self.exit) {
            (true, None) => Err(self.source.refuse_key(
                "name",
                "the network document makes this relay an exit",
                "add a table [exit], or have the role taken from it",
            )),
            (false, Some(_)) => Err(self.source.refuse_key(
                "exit",
                "the network document does not make this relay an exit",
                "remove the table, or have the role given to it",
            )),
            _ => Ok(relay),
        }
    }

    fn check(source: Source) -> Result<Self, ConfigError> {
        let raw: RawRelayConfig = source.parse()?;
        if let Some(listen) = &raw.datapath.listen {
            let what = "a relay listens on its address in the network document";
            return Err(source.refuse(listen, "datapath.listen", what, "remove it"));
        }
        let worker = worker(&source, raw.worker.as_ref())?;
        let datapath = raw.datapath.check(&source, DatapathMode::Auto, worker.count)?;
        if worker.count > 1 && datapath.mode == DatapathMode::Udp {
            let what = "needs AF_XDP: each worker reads a receive queue of its own";
            let remedy = "write another datapath.mode, or count = 1";
            return Err(source.refuse_key("worker.count", what, remedy));
        }
        Ok(Self {
            name: raw.name,
            key: source.beside(&raw.key),
            network: source.beside(&raw.network),
            operator: operator(&source, &raw.operator)?,
            datapath,
            worker,
            control: control(&source, &raw.control)?,
            exit: raw.exit.as_ref().map(|exit| exit.check(&source)).transpose()?,
            source,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRelayConfig {
    name: String,
    key: PathBuf,
    network: PathBuf,
    operator: Spanned<String>,
    datapath: RawDatapath,
    worker: Option<RawWorker>,
    control: RawControl,
    exit: Option<RawExit>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExit {
    tun: Spanned<String>,
    outside: Spanned<String>,
    pool4: Spanned<String>,
    pool6: Spanned<String>,
}

impl RawExit {
    fn check(&self, source: &Source) -> Result<Exit, ConfigError> {
        let pool4 = prefix(source, &self.pool4, "exit.pool4")?;
        if !pool4.address().is_ipv4() || !(8..=29).contains(&pool4.prefix_len()) {
            let what = "is not an IPv4 prefix of 8 to 29 bits";
            return Err(source.refuse(&self.pool4, "exit.pool4", what, "write one such as 100.96.0.0/16"));
        }
        let pool6 = prefix(source, &self.pool6, "exit.pool6")?;
        if !pool6.address().is_ipv6() || !(32..=96).contains(&pool6.prefix_len()) {
            let what = "is not an IPv6 prefix of 32 to 96 bits";
            return Err(source.refuse(&self.pool6, "exit.pool6", what, "write one such as fd6e:7765::/64"));
        }
        let tun = interface(source, &self.tun, "exit.tun")?;
        let outside = interface(source, &self.outside, "exit.outside")?;
        if tun == outside {
            let what = "is the interface that exit.tun names";
            return Err(source.refuse(&self.outside, "exit.outside", what, "name two interfaces"));
        }
        Ok(Exit { tun, outside, pool4, pool6 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::network::tests::{NOW, body, operator as operator_key};
    use crate::config::network::{self};
    use crate::config::{BindMode, BusyPoll, HugePages};

    fn text() -> String {
        format!(
            r#"name = "exit"
key = "exit.key"
network = "network.toml"
operator = "{}"

[datapath]
interface = "wire0"
mode = "native"
bind = "zero-copy"
frames = 16384
ring = 4096

[worker]
cpus = [0]
poll = "busy"

[control]
socket = "/run/evenwire/exit.sock"

[exit]
tun = "ew-exit"
outside = "out0"
pool4 = "100.96.0.0/16"
pool6 = "fd6e:7765::/64"
"#,
            hex::encode(operator_key().public())
        )
    }

    fn file() -> &'static Path {
        Path::new("/etc/evenwire/exit.toml")
    }

    #[test]
    fn memory_and_polling_are_automatic_unless_named() {
        let config = RelayConfig::parse(file(), &text()).unwrap();
        assert_eq!((config.datapath.huge_pages, config.worker.busy_poll), (HugePages::Auto, BusyPoll::Auto));
        let named = text()
            .replace("ring = 4096", "ring = 4096\nhuge_pages = \"require\"")
            .replace("poll = \"busy\"", "poll = \"busy\"\nbusy_poll = \"off\"");
        let config = RelayConfig::parse(file(), &named).unwrap();
        assert_eq!(
            (config.datapath.huge_pages, config.worker.busy_poll),
            (HugePages::Require, BusyPoll::Off)
        );
        let error = RelayConfig::parse(file(), &named.replace("\"require\"", "\"yes\"")).unwrap_err();
        assert_eq!((error.key.as_deref(), error.line), (Some("huge_pages"), Some(12)), "{error}");
    }

    #[test]
    fn a_relays_file_is_read() {
        let config = RelayConfig::parse(file(), &text()).unwrap();
        assert_eq!(config.key, Path::new("/etc/evenwire/exit.key"));
        assert_eq!(config.network, Path::new("/etc/evenwire/network.toml"));
        assert_eq!(config.datapath.interface.as_deref(), Some("wire0"));
        assert_eq!((config.datapath.mode, config.datapath.bind), (DatapathMode::Native, BindMode::ZeroCopy));
        assert_eq!((config.worker.count, config.worker.cpus), (1, vec![0]));
        assert_eq!(config.exit.unwrap().pool4.to_string(), "100.96.0.0/16");
    }

    #[test]
    fn each_mistake_is_refused_at_its_place() {
        for (from, to, key, line) in [
            ("name =", "nam =", "nam", 1),
            ("\nnetwork = \"network.toml\"", "", "network", 1),
            ("operator = \"", "operator = \"0", "operator", 4),
            ("interface = \"wire0\"\n", "", "datapath", 6),
            ("\"wire0\"", "\"an-interface-too-long\"", "datapath.interface", 7),
            ("\"wire0\"", "\"../wire0\"", "datapath.interface", 7),
            ("\"native\"", "\"fast\"", "mode", 8),
            ("\"zero-copy\"", "\"zerocopy\"", "bind", 9),
            ("frames = 16384", "frames = 16383", "datapath.frames", 10),
            ("frames = 16384", "frames = 1048577", "datapath.frames", 10),
            ("ring = 4096", "ring = 4095", "datapath.ring", 11),
            ("ring = 4096", "ring = 4294967296", "datapath.ring", 11),
            ("ring = 4096", "listen = \"0.0.0.0:0\"", "datapath.listen", 11),
            ("cpus = [0]", "cpus = [-1]", "worker.cpus", 14),
            ("cpus = [0]", "cpus = [1024]", "worker.cpus", 14),
            ("cpus = [0]", "cpus = [0, 1]", "worker.cpus", 14),
            ("cpus = [0]", "count = 0", "worker.count", 14),
            ("cpus = [0]", "count = 65", "worker.count", 14),
            ("cpus = [0]", "count = 2", "datapath.frames", 10),
            ("[worker]\ncpus = [0]", "[worker]\ncount = 2\ncpus = [3, 3]", "worker.cpus", 15),
            ("\"100.96.0.0/16\"", "\"100.96.0.1/16\"", "exit.pool4", 23),
            ("\"100.96.0.0/16\"", "\"fd6e::/64\"", "exit.pool4", 23),
            ("\"100.96.0.0/16\"", "\"100.96.0.0/30\"", "exit.pool4", 23),
            ("\"fd6e:7765::/64\"", "\"fd6e:7765::/112\"", "exit.pool6", 24),
            ("\"fd6e:7765::/64\"", "\"fd6e:7765::/127\"", "exit.pool6", 24),
            ("outside = \"out0\"", "outside = \"ew-exit\"", "exit.outside", 22),
        ] {
            assert!(text().contains(from), "{from}");
            let error = RelayConfig::parse(file(), &text().replacen(from, to, 1)).expect_err(to);
            assert_eq!((error.key.as_deref(), error.line), (Some(key), Some(line)), "{to}: {error}");
        }
        let long = format!("\"/{}\"", "x".repeat(107));
        let error =
            RelayConfig::parse(file(), &text().replace("\"/run/evenwire/exit.sock\"", &long)).unwrap_err();
        assert_eq!(error.key.as_deref(), Some("control.socket"));
    }

    #[test]
    fn file_key_and_document_must_agree() {
        let directory = tempfile::tempdir().unwrap();
        let key = StaticKey::generate();
        let document = body([&[1; 32], &[2; 32], key.public()]);
        std::fs::write(directory.path().join("network.toml"), network::sign(&document, &operator_key()))
            .unwrap();
        let file = directory.path().join("exit.toml");
        std::fs::write(&file, text()).unwrap();

        let config = RelayConfig::load(&file).unwrap();
        let network = config.load_network(NOW).unwrap();
        assert_eq!(config.find_in(&network, &key).unwrap().name, "exit");
        let error = config.find_in(&network, &StaticKey::generate()).unwrap_err();
        assert_eq!((error.key.as_deref(), error.line), (Some("key"), Some(2)));

        let parse = |text: String| RelayConfig::parse(&file, &text).unwrap();
        let error =
            parse(text().replace("name = \"exit\"", "name = \"last\"")).find_in(&network, &key).unwrap_err();
        assert_eq!((error.key.as_deref(), error.line), (Some("name"), Some(1)));
        let error =
            parse(text().split_once("[exit]").unwrap().0.to_owned()).find_in(&network, &key).unwrap_err();
        assert!(error.what.contains("makes this relay an exit"), "{error}");
        let document = document.replace("roles = [\"exit\"]", "roles = [\"middle\"]");
        let network = NetworkDocument::parse_unverified(&file, &document).unwrap();
        let error = config.find_in(&network, &key).unwrap_err();
        assert_eq!((error.key.as_deref(), error.line), (Some("exit"), Some(20)));
    }
}
