//! A client's own file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use maybenot::Machine;
use relay_common::wire::MAX_HOPS;
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
use crate::engine::extra::parse_machines;

/// Bytes of an IP packet in the tunnel: IPv6 asks for the lower bound, the upper one is a jumbo frame's.
const MTU_RANGE: std::ops::RangeInclusive<u16> = 1280..=9000;
const DEFAULT_MTU: u16 = 1400;

/// How a client runs.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The network document.
    pub network: PathBuf,
    /// The operator's Ed25519 public key.
    pub operator: [u8; 32],
    /// Name of the class of the client's link.
    pub class: String,
    /// How the class of an epoch comes about; the document's way where missing.
    pub policy: Option<ClientPolicy>,
    /// Where cover traffic goes.
    pub cover: Cover,
    /// Names of entry, middle and exit; chosen by the client where missing.
    pub path: Option<[String; MAX_HOPS]>,
    /// How datagrams get in and out. `listen` is always there.
    pub datapath: Datapath,
    /// The thread that moves the cells.
    pub worker: Worker,
    /// Where the client answers its user.
    pub control: Control,
    /// The interface that applications use.
    pub tun: Tun,
    /// Circuits that come and go on their own clock.
    pub decoys: Option<DecoyPlan>,
    /// Machines that send beyond the link's schedule.
    pub maybenot: Option<Maybenot>,
    source: Source,
}

/// Maybenot machines on top of the link's schedule.
///
/// The schedule stays as it is, and the guarantee that goes with it does not: what machines send depends on the payload,
/// so an observer who knows them learns of it what they let through. The file has to say `guarantee = "lost"`.
#[derive(Clone, Debug)]
pub struct Maybenot {
    /// 1 to 8 machines, as Maybenot writes them.
    pub machines: Vec<Machine>,
    /// The greatest share of extra cells among all, 0 to 1.
    pub max_padding_fraction: f64,
}

/// How decoy circuits come and go. All lengths are drawn by the exponential law with these means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoyPlan {
    /// Circuits begun in a day, on average: 1 to 288, one at a time.
    pub per_day: u32,
    /// Mean life of one, 1 to 720 minutes.
    pub life: Duration,
    /// Mean length of its busy spells and of its quiet ones, 1 to 3600 seconds.
    pub spell: Duration,
}

impl DecoyPlan {
    /// Mean time between the end of one and the begin of the next.
    pub fn pause(self) -> Duration {
        (DAY / self.per_day.max(1)).saturating_sub(self.life)
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// How the class of a client's link comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientPolicy {
    /// One class for ever. Tells nothing.
    Fixed,
    /// By the time of day, as the document lays it down. Tells nothing.
    Scheduled,
    /// Chosen for each epoch from the noised demand of the one before, among the document's classes at its ε. Tells
    /// what the ledger says.
    Adaptive,
}

/// How far cover travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cover {
    /// Through the circuit to the exit.
    Circuit,
    /// To the entry.
    Link,
}

/// The interface that applications use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tun {
    /// Name of the interface to make.
    pub name: String,
    /// Bytes of an IP packet, 1280 to 9000.
    pub mtu: u16,
    /// Destinations that go through the tunnel.
    pub routes: Vec<Prefix>,
}

impl ClientConfig {
    /// Reads a client's file.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read or is wrong in itself.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::check(Source::read(file)?)
    }

    /// Like [`ClientConfig::load`], for a text already at hand; relative paths start from `file`'s directory.
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

    /// Whether `network` has the class and allows the path.
    ///
    /// # Errors
    /// [`ConfigError`] if the class is missing, or a relay of the path is missing, may not take its position or has no
    /// trunk to the next.
    pub fn check_against(&self, network: &NetworkDocument) -> Result<(), ConfigError> {
        if !network.classes.contains_key(&self.class) {
            let what = format!("the network document has no class {:?}", self.class);
            let known: Vec<&str> = network.classes.keys().map(String::as_str).collect();
            return Err(self.source.refuse_key("class", what, format!("use one of: {}", known.join(", "))));
        }
        if network.clients.is_none() && network.is_of_trunks(&self.class) {
            let what = format!("{:?} is a class of links between relays", self.class);
            return Err(self.source.refuse_key("class", what, "use the class of clients' links"));
        }
        if let Some(clients) = network.clients.as_ref().filter(|clients| clients.class != self.class) {
            let what = "is not the class of clients' links in the network document";
            return Err(self.source.refuse_key("class", what, format!("write {:?}", clients.class)));
        }
        self.check_policy(network)?;
        let Some(path) = &self.path else { return Ok(()) };
        let refuse = |what: String, remedy: &str| Err(self.source.refuse_key("path", what, remedy));
        for (name, role) in path.iter().zip([RelayRole::Entry, RelayRole::Middle, RelayRole::Exit]) {
            let Some(relay) = network.relay(name) else {
                return Err(self.no_relay(name));
            };
            if !relay.roles.contains(&role) {
                let what = format!("{name:?} may not be {role:?} by the network document");
                return refuse(what, "order the path as entry, middle, exit");
            }
        }
        for pair in path.windows(2) {
            if network.trunk(&pair[0], &pair[1]).is_none() {
                let what = format!("no trunk joins {:?} and {:?}", pair[0], pair[1]);
                return refuse(what, "choose relays that the network document joins");
            }
        }
        Ok(())
    }

    /// Entry, middle and exit: those that the file names, or the first that the document's trunks join.
    ///
    /// # Errors
    /// [`ConfigError`] if a relay is missing, or no trunks join an entry, a middle and an exit.
    pub fn path_in<'a>(&self, network: &'a NetworkDocument) -> Result<[&'a Relay; MAX_HOPS], ConfigError> {
        let Some(names) = &self.path else {
            return network.paths().next().ok_or_else(|| ConfigError {
                file: self.network.clone(),
                line: None,
                key: Some("trunks".to_owned()),
                what: "no entry, middle and exit are joined by trunks".to_owned(),
                remedy: "have the document changed".to_owned(),
            });
        };
        let mut path = Vec::with_capacity(MAX_HOPS);
        for name in names {
            path.push(network.relay(name).ok_or_else(|| self.no_relay(name))?);
        }
        path.try_into().map_err(|_| self.no_relay(""))
    }

    fn no_relay(&self, name: &str) -> ConfigError {
        let what = format!("the network document has no relay {name:?}");
        self.source.refuse_key("path", what, "name its relays only")
    }

    /// Whether the document has what the policy needs. Hours bind everybody: a client with a class of its own at night
    /// would be told by it.
    fn check_policy(&self, network: &NetworkDocument) -> Result<(), ConfigError> {
        let hours = network.clients.as_ref().is_some_and(|clients| !clients.hours.is_empty());
        let adaptive = network.clients.as_ref().is_some_and(|clients| clients.adaptive.is_some());
        let refuse = |what: &str, remedy: &str| Err(self.source.refuse_key("policy", what, remedy));
        match self.policy {
            Some(ClientPolicy::Fixed) if hours => refuse(
                "the network document gives clients' links a class for each time of day",
                "leave it out",
            ),
            Some(ClientPolicy::Scheduled) if !hours => {
                refuse("the network document has no clients.hours", "leave it out")
            }
            Some(ClientPolicy::Adaptive) if !adaptive => {
                refuse("the network document has no clients.adaptive", "leave it out, or have it changed")
            }
            _ => Ok(()),
        }
    }

    fn check(source: Source) -> Result<Self, ConfigError> {
        let raw: RawClientConfig = source.parse()?;
        let path = raw.path.as_ref().map(|path| check_path(&source, path)).transpose()?;
        let unset = RawDatapath::unset();
        let mut datapath = raw.datapath.as_ref().unwrap_or(&unset).check(&source, DatapathMode::Udp, 1)?;
        let worker = worker(&source, raw.worker.as_ref())?;
        if worker.count > 1 {
            let what = "a client has one link, and so one worker";
            return Err(source.refuse_key("worker.count", what, "leave it out"));
        }
        datapath.listen.get_or_insert(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
        Ok(Self {
            network: source.beside(&raw.network),
            operator: operator(&source, &raw.operator)?,
            class: raw.class,
            policy: raw.policy,
            cover: raw.cover,
            path,
            datapath,
            worker,
            control: control(&source, &raw.control)?,
            tun: raw.tun.check(&source)?,
            decoys: raw.decoys.as_ref().map(|decoys| decoys.check(&source)).transpose()?,
            maybenot: raw.maybenot.as_ref().map(|maybenot| maybenot.check(&source)).transpose()?,
            source,
        })
    }
}

fn check_path(source: &Source, path: &Spanned<Vec<String>>) -> Result<[String; MAX_HOPS], ConfigError> {
    let hops: [String; MAX_HOPS] = path.get_ref().clone().try_into().map_err(|_| {
        let what = format!("has not {MAX_HOPS} relays");
        source.refuse(path, "path", what, "name entry, middle and exit, or leave it out")
    })?;
    let repeats = hops.iter().enumerate().any(|(index, name)| hops[..index].contains(name));
    if repeats {
        return Err(source.refuse(path, "path", "names a relay twice", "name different relays"));
    }
    Ok(hops)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClientConfig {
    network: PathBuf,
    operator: Spanned<String>,
    class: String,
    policy: Option<ClientPolicy>,
    cover: Cover,
    path: Option<Spanned<Vec<String>>>,
    datapath: Option<RawDatapath>,
    worker: Option<RawWorker>,
    control: RawControl,
    tun: RawTun,
    decoys: Option<RawDecoys>,
    maybenot: Option<RawMaybenot>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMaybenot {
    machines: Spanned<Vec<String>>,
    max_padding_fraction: Spanned<f64>,
    guarantee: Spanned<String>,
}

impl RawMaybenot {
    fn check(&self, source: &Source) -> Result<Maybenot, ConfigError> {
        if self.guarantee.get_ref() != "lost" {
            let what =
                "machines send by the payload, so that the wire is no longer the same with and without it";
            let remedy = "write \"lost\" to say that you want them all the same, or remove the table";
            return Err(source.refuse(&self.guarantee, "maybenot.guarantee", what, remedy));
        }
        let max_padding_fraction = *self.max_padding_fraction.get_ref();
        if !(0.0..=1.0).contains(&max_padding_fraction) {
            let (key, what) = ("maybenot.max_padding_fraction", "is not a share from 0 to 1");
            return Err(source.refuse(&self.max_padding_fraction, key, what, "choose one in this range"));
        }
        let machines = parse_machines(self.machines.get_ref()).map_err(|error| {
            let remedy = "write 1 to 8 machines of Maybenot 2 that send padding and block nothing";
            source.refuse(&self.machines, "maybenot.machines", error.to_string(), remedy)
        })?;
        Ok(Maybenot { machines, max_padding_fraction })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDecoys {
    per_day: Spanned<i64>,
    minutes: Spanned<i64>,
    spell_seconds: Spanned<i64>,
}

impl RawDecoys {
    fn check(&self, source: &Source) -> Result<DecoyPlan, ConfigError> {
        let number = |value: &Spanned<i64>, key: &str, most: u32| {
            u32::try_from(*value.get_ref()).ok().filter(|number| (1..=most).contains(number)).ok_or_else(
                || {
                    let what = format!("is not from 1 to {most}");
                    source.refuse(value, &format!("decoys.{key}"), what, "choose a number in this range")
                },
            )
        };
        let per_day = number(&self.per_day, "per_day", 288)?;
        let minutes = number(&self.minutes, "minutes", 720)?;
        let spell = number(&self.spell_seconds, "spell_seconds", 3600)?;
        if per_day * minutes >= 24 * 60 {
            let what = format!("and per_day fill more than a day: {per_day} times {minutes} minutes");
            let remedy = "choose fewer or shorter ones: they follow each other";
            return Err(source.refuse(&self.minutes, "decoys.minutes", what, remedy));
        }
        let life = Duration::from_secs(60 * u64::from(minutes));
        Ok(DecoyPlan { per_day, life, spell: Duration::from_secs(spell.into()) })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTun {
    name: Spanned<String>,
    mtu: Option<Spanned<i64>>,
    #[serde(default)]
    routes: Vec<Spanned<String>>,
}

impl RawTun {
    fn check(&self, source: &Source) -> Result<Tun, ConfigError> {
        let mtu = match &self.mtu {
            None => DEFAULT_MTU,
            Some(given) => u16::try_from(*given.get_ref())
                .ok()
                .filter(|mtu| MTU_RANGE.contains(mtu))
                .ok_or_else(|| {
                    let what = format!("is not from {} to {}", MTU_RANGE.start(), MTU_RANGE.end());
                    source.refuse(
                        given,
                        "tun.mtu",
                        what,
                        format!("write {DEFAULT_MTU} unless measured otherwise"),
                    )
                })?,
        };
        let routes =
            self.routes.iter().map(|route| prefix(source, route, "tun.routes")).collect::<Result<_, _>>()?;
        Ok(Tun { name: interface(source, &self.name, "tun.name")?, mtu, routes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::network::tests::{body, operator as operator_key};

    fn text() -> String {
        format!(
            r#"network = "network.toml"
operator = "{}"
class = "standard"
cover = "circuit"
path = ["entry", "middle", "exit"]

[datapath]
listen = "192.0.2.10:0"

[control]
socket = "client.sock"

[tun]
name = "ew0"
mtu = 1400
routes = ["198.51.100.0/24"]
"#,
            hex::encode(operator_key().public())
        )
    }

    fn parse(text: &str) -> Result<ClientConfig, ConfigError> {
        ClientConfig::parse(Path::new("/home/user/client.toml"), text)
    }

    #[test]
    fn machines_run_only_where_the_guarantee_is_given_up() {
        const ECHO: &str = "02eNply8EJACAMA8DExXQ0P+7pCC4gilYpbe8TEshcD66R8SUJkkDV+VTRWzEZ+OsG4gkO9w==";
        let with = |machines: &str, fraction: &str, guarantee: &str| {
            let table = format!(
                "\n[maybenot]\nmachines = {machines}\nmax_padding_fraction = {fraction}\nguarantee = \"{guarantee}\"\n"
            );
            parse(&(text() + &table))
        };
        let machine = format!("[\"{ECHO}\"]");
        let config = with(&machine, "0.5", "lost").unwrap();
        assert_eq!(config.maybenot.unwrap().machines.len(), 1);
        assert!(parse(&text()).unwrap().maybenot.is_none());
        for (machines, fraction, guarantee, key, line) in [
            (machine.as_str(), "0.5", "kept", "maybenot.guarantee", 21),
            (machine.as_str(), "1.5", "lost", "maybenot.max_padding_fraction", 20),
            ("[]", "0.5", "lost", "maybenot.machines", 19),
            ("[\"02junk\"]", "0.5", "lost", "maybenot.machines", 19),
        ] {
            let error = with(machines, fraction, guarantee).unwrap_err();
            assert_eq!((error.key.as_deref(), error.line), (Some(key), Some(line)), "{error}");
        }
    }

    #[test]
    fn decoys_follow_each_other_within_a_day() {
        let with = |per_day: &str, minutes: &str, spell: &str| {
            let table =
                format!("\n[decoys]\nper_day = {per_day}\nminutes = {minutes}\nspell_seconds = {spell}\n");
            parse(&(text() + &table))
        };
        let plan = with("24", "20", "30").unwrap().decoys.unwrap();
        assert_eq!(
            (plan.per_day, plan.life, plan.pause()),
            (24, Duration::from_secs(1200), Duration::from_secs(2400))
        );
        assert_eq!(parse(&text()).unwrap().decoys, None);
        for (plan, key, line) in [
            (["0", "20", "30"], "decoys.per_day", 19),
            (["289", "1", "30"], "decoys.per_day", 19),
            (["24", "0", "30"], "decoys.minutes", 20),
            (["24", "60", "30"], "decoys.minutes", 20),
            (["24", "20", "3601"], "decoys.spell_seconds", 21),
        ] {
            let error = with(plan[0], plan[1], plan[2]).unwrap_err();
            assert_eq!((error.key.as_deref(), error.line), (Some(key), Some(line)), "{error}");
        }
    }

    #[test]
    fn a_clients_file_is_read() {
        let config = parse(&text()).unwrap();
        assert_eq!(config.control.socket, Path::new("/home/user/client.sock"));
        assert_eq!(config.datapath.mode, DatapathMode::Udp);
        assert_eq!(config.datapath.listen, Some("192.0.2.10:0".parse().unwrap()));
        assert_eq!(config.tun.routes, ["198.51.100.0/24".parse().unwrap()]);
        assert_eq!(config.cover, Cover::Circuit);
        let config = parse(&text().replace("[datapath]\nlisten = \"192.0.2.10:0\"\n", "")).unwrap();
        assert_eq!(config.datapath.listen, Some("0.0.0.0:0".parse().unwrap()));
    }

    #[test]
    fn each_mistake_is_refused_at_its_place() {
        for (from, to, key, line) in [
            ("cover = \"circuit\"", "cover = \"none\"", "cover", 4),
            (", \"exit\"]", "]", "path", 5),
            ("\"middle\"", "\"exit\"", "path", 5),
            ("cover =", "policy = \"greedy\"\ncover =", "policy", 4),
            ("192.0.2.10:0", "192.0.2.10", "listen", 8),
            ("mtu = 1400", "mtu = 1279", "tun.mtu", 15),
            ("mtu = 1400", "mtu = 9001", "tun.mtu", 15),
            ("198.51.100.0/24", "198.51.100.1/24", "tun.routes", 16),
            ("name = \"ew0\"", "name = \"\"", "tun.name", 14),
            ("class =", "key = \"x\"\nclass =", "key", 3),
        ] {
            assert!(text().contains(from), "{from}");
            let error = parse(&text().replacen(from, to, 1)).expect_err(to);
            assert_eq!((error.key.as_deref(), error.line), (Some(key), Some(line)), "{to}: {error}");
        }
    }

    #[test]
    fn class_and_policy_must_fit_the_documents_clients() {
        let document = body([&[1; 32], &[2; 32], &[3; 32]]);
        let light = "[classes.light]\nrate = 300\nschedule = \"jittered\"\n\n[classes.trunk]\n";
        let document = document.replacen("[classes.trunk]\n", light, 1);
        let checked = |clients: &str, change: (&str, &str)| {
            let document = format!("{document}\n[clients]\n{clients}\n");
            let network = NetworkDocument::parse_unverified(Path::new("network.toml"), &document).unwrap();
            let error = parse(&text().replacen(change.0, change.1, 1)).unwrap().check_against(&network).err();
            error.map(|error| (error.key.unwrap(), error.line.unwrap()))
        };
        let policy = |name: &str| format!("policy = \"{name}\"\ncover =");
        let hours = r#"class = "standard"
hours = [{ at = "07:00", class = "standard" }, { at = "23:00", class = "light" }]"#;
        let adaptive = r#"class = "standard"
adaptive = { classes = ["light", "standard"], epsilon = 1 }"#;
        let light = "class = \"light\"";
        let refused = |key: &str, line| Some((key.to_owned(), line));
        assert_eq!(checked(hours, ("cover =", &policy("scheduled"))), None);
        assert_eq!(checked(hours, ("cover =", &policy("fixed"))), refused("policy", 4));
        assert_eq!(checked(hours, ("cover =", &policy("adaptive"))), refused("policy", 4));
        assert_eq!(checked(adaptive, ("cover =", &policy("adaptive"))), None);
        assert_eq!(checked(adaptive, ("cover =", &policy("fixed"))), None);
        assert_eq!(checked(adaptive, ("cover =", "cover =")), None);
        assert_eq!(checked(light, ("cover =", "cover =")), refused("class", 3));
        assert_eq!(checked(light, ("class = \"standard\"", "class = \"light\"")), None);
    }

    #[test]
    fn class_and_path_must_fit_the_document() {
        let document = body([&[1; 32], &[2; 32], &[3; 32]]);
        let network = NetworkDocument::parse_unverified(Path::new("network.toml"), &document).unwrap();
        parse(&text()).unwrap().check_against(&network).unwrap();
        for (from, to, key, line) in [
            ("\"standard\"", "\"gold\"", "class", 3),
            ("\"middle\"", "\"centre\"", "path", 5),
            ("[\"entry\", \"middle\"", "[\"middle\", \"entry\"", "path", 5),
        ] {
            let error = parse(&text().replacen(from, to, 1)).unwrap().check_against(&network).unwrap_err();
            assert_eq!((error.key.as_deref(), error.line), (Some(key), Some(line)), "{to}: {error}");
        }
        for policy in ["scheduled", "adaptive"] {
            let text = text().replacen("cover =", &format!("policy = \"{policy}\"\ncover ="), 1);
            let error = parse(&text).unwrap().check_against(&network).unwrap_err();
            assert_eq!((error.key.as_deref(), error.line), (Some("policy"), Some(4)), "{policy}: {error}");
        }
        let apart = document.replace("between = [\"middle\", \"exit\"]", "between = [\"entry\", \"exit\"]");
        let network = NetworkDocument::parse_unverified(Path::new("network.toml"), &apart).unwrap();
        let error = parse(&text()).unwrap().check_against(&network).unwrap_err();
        assert!(error.what.contains("no trunk joins"), "{error}");
    }
}
