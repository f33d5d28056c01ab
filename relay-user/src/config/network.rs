//! The network document: what the operator signs and everyone else believes.

mod classes;

pub use classes::Class;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use relay_common::wire::{CELL_LEN, MAX_HOPS, RELAY_ID_LEN};
use serde::Deserialize;
use toml::Spanned;

use super::rates::{self, Clients, Hour, RawClients, RawEpochs, RawHour, RawLoss};
use super::source::{ConfigError, Source, hex_bytes};
use super::timestamp::Timestamp;
use crate::crypto::handshake::PROTOCOL_VERSION;
use crate::crypto::keys::is_signed_by;
use crate::crypto::{OperatorKey, Suite};
use crate::rates::LossRules;

const SIGNATURE_PREFIX: &str = "# evenwire-signature: ed25519 ";
/// Lanes of a trunk, at most: as many as a relay has workers.
pub const MAX_LANES: u16 = 64;
/// Bytes of a name, at most.
const MAX_NAME_LEN: usize = 32;

/// A document that is whole in itself. Whether it is signed and in force is told by how it was obtained.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkDocument {
    /// Grows with each document of the operator.
    pub epoch: u64,
    /// First second in which it holds.
    pub valid_from: Timestamp,
    /// First second in which it no longer holds.
    pub valid_until: Timestamp,
    /// The AEAD of all links and hops.
    pub suite: Suite,
    /// Rates that links may have.
    pub classes: BTreeMap<String, Class>,
    /// Seconds of an epoch: classes change at its multiples in Unix time only. A divisor of a day, at least 10.
    pub epoch_seconds: u32,
    /// How clients' links come by their classes; without it, all have the one class that no trunk has.
    pub clients: Option<Clients>,
    /// What loss leads to.
    pub loss: LossRules,
    /// The relays, in the document's order.
    pub relays: Vec<Relay>,
    /// The links between relays, in the document's order.
    pub trunks: Vec<Trunk>,
}

/// A relay as everyone knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Names the relay in handshakes and EXTEND.
    pub id: [u8; RELAY_ID_LEN],
    /// Names the relay to people: lower-case letters, digits and `-`.
    pub name: String,
    /// Where it receives datagrams.
    pub address: SocketAddr,
    /// X25519 public key.
    pub key: [u8; 32],
    /// Positions on a circuit that it may take; not empty.
    pub roles: BTreeSet<RelayRole>,
}

/// A position on a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayRole {
    /// Knows the client's address.
    Entry,
    /// Knows two relays.
    Middle,
    /// Knows the destinations.
    Exit,
}

/// A link that two relays keep up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trunk {
    /// Names of two different relays.
    pub between: [String; 2],
    /// Name of its class, at whose rate each lane runs.
    pub class: String,
    /// Sessions side by side, 1 to [`MAX_LANES`]. Lane i runs between the UDP ports that lie i above the relays' own.
    pub lanes: u16,
    /// Classes by the time of day; empty where the class is fixed.
    pub hours: Vec<Hour>,
    /// Names of the classes that lasting loss leads to, each slower than the one before.
    pub lower: Vec<String>,
}

impl Trunk {
    fn may_have(&self, class: &str) -> bool {
        let by_hour = self.hours.iter().map(|hour| &hour.class);
        [&self.class].into_iter().chain(by_hour).chain(&self.lower).any(|name| name == class)
    }
}

impl NetworkDocument {
    /// Reads a document that the operator signed and that holds at `now`.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read, is not signed by `operator`, is wrong in itself or does not hold at `now`.
    pub fn load(file: &Path, operator: &[u8; 32], now: Timestamp) -> Result<Self, ConfigError> {
        Self::accept(Source::read(file)?, operator, now)
    }

    /// Like [`NetworkDocument::load`], for a text already at hand; `file` is only for errors.
    ///
    /// # Errors
    /// As [`NetworkDocument::load`].
    pub fn parse_signed(
        file: &Path,
        text: &str,
        operator: &[u8; 32],
        now: Timestamp,
    ) -> Result<Self, ConfigError> {
        Self::accept(Source::new(file, text), operator, now)
    }

    /// Whether a trunk has this class, at some time of the day or for its loss.
    pub fn is_of_trunks(&self, class: &str) -> bool {
        self.trunks.iter().any(|trunk| trunk.may_have(class))
    }

    /// Name of the class of clients' links: that of `[clients]`, else the one that no trunk has. With more than one of
    /// these, a relay could not tell which a client means before its first cell.
    pub fn client_class(&self) -> Option<&str> {
        if let Some(clients) = &self.clients {
            return Some(&clients.class);
        }
        let mut free = self.classes.keys().filter(|name| !self.is_of_trunks(name));
        free.next().filter(|_| free.next().is_none()).map(String::as_str)
    }

    /// Names of the classes that clients' links may come to have, repeats included.
    pub fn client_classes(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.client_class().into_iter().collect();
        if let Some(clients) = &self.clients {
            names.extend(clients.hours.iter().map(|hour| hour.class.as_str()));
            names.extend(clients.adaptive.iter().flat_map(|adaptive| &adaptive.classes).map(String::as_str));
            names.extend(clients.lower.iter().map(String::as_str));
        }
        names
    }

    /// Reads a document without asking who signed it or whether it holds; for showing and signing only.
    ///
    /// # Errors
    /// [`ConfigError`] if it is wrong in itself.
    pub fn parse_unverified(file: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::check(&Source::new(file, text))
    }

    /// The relay of this name.
    pub fn relay(&self, name: &str) -> Option<&Relay> {
        self.relays.iter().find(|relay| relay.name == name)
    }

    /// The relay of this id.
    pub fn relay_by_id(&self, id: &[u8; RELAY_ID_LEN]) -> Option<&Relay> {
        self.relays.iter().find(|relay| relay.id == *id)
    }

    /// UDP ports that relay `name` uses, from that of its address on: as many as its widest trunk has lanes.
    pub fn ports(&self, name: &str) -> u16 {
        let its = self.trunks.iter().filter(|trunk| trunk.between.iter().any(|end| end == name));
        its.map(|trunk| trunk.lanes).max().unwrap_or(1)
    }

    /// The trunk between two relays, in either order.
    pub fn trunk(&self, one: &str, other: &str) -> Option<&Trunk> {
        self.trunks.iter().find(|trunk| {
            let [first, second] = &trunk.between;
            (first == one && second == other) || (first == other && second == one)
        })
    }

    /// Entry, middle and exit, for every path that roles and trunks allow, in the document's order.
    pub fn paths(&self) -> impl Iterator<Item = [&Relay; MAX_HOPS]> {
        let with = |role: RelayRole| self.relays.iter().filter(move |relay| relay.roles.contains(&role));
        let joined = |one: &Relay, other: &Relay| self.trunk(&one.name, &other.name).is_some();
        with(RelayRole::Entry).flat_map(move |entry| {
            with(RelayRole::Middle).filter(move |middle| joined(entry, middle)).flat_map(move |middle| {
                with(RelayRole::Exit)
                    .filter(move |exit| exit.name != entry.name && joined(middle, exit))
                    .map(move |exit| [entry, middle, exit])
            })
        })
    }

    fn accept(source: Source, operator: &[u8; 32], now: Timestamp) -> Result<Self, ConfigError> {
        verify(source.text(), operator).map_err(|error| ConfigError {
            line: Some(1),
            ..ConfigError::of_file(source.file(), error.to_string(), error.remedy())
        })?;
        let document = Self::check(&source)?;
        if now < document.valid_from {
            let what = format!("holds only from {} on, and it is {now}", document.valid_from);
            return Err(source.refuse_key("valid_from", what, "set the clock, or keep the former document"));
        }
        if now >= document.valid_until {
            let what = format!("expired at {}, and it is {now}", document.valid_until);
            return Err(source.refuse_key(
                "valid_until",
                what,
                "get the operator's current document, or set the clock",
            ));
        }
        Ok(document)
    }

    fn check(source: &Source) -> Result<Self, ConfigError> {
        let raw: RawDocument = source.parse()?;
        if *raw.version.get_ref() != i64::from(PROTOCOL_VERSION) {
            let what = format!("this program speaks version {PROTOCOL_VERSION}");
            return Err(source.refuse(
                &raw.version,
                "version",
                what,
                "use the program that fits the document",
            ));
        }
        if usize::try_from(*raw.cell_len.get_ref()) != Ok(CELL_LEN) {
            let what = format!("cells of this version have {CELL_LEN} bytes");
            return Err(source.refuse(&raw.cell_len, "cell_len", what, format!("write {CELL_LEN}")));
        }
        let suite = u8::try_from(*raw.suite.get_ref()).ok().and_then(|number| Suite::try_from(number).ok());
        let suite = suite.ok_or_else(|| {
            source.refuse(&raw.suite, "suite", "is unknown", "write 1 (AES-256-GCM) or 2 (ChaCha20-Poly1305)")
        })?;
        let valid_from = timestamp(source, &raw.valid_from, "valid_from")?;
        let valid_until = timestamp(source, &raw.valid_until, "valid_until")?;
        if valid_until <= valid_from {
            return Err(source.refuse(
                &raw.valid_until,
                "valid_until",
                "is not after valid_from",
                "write a later time",
            ));
        }
        let classes = classes::classes(source, &raw.classes)?;
        let relays = relays(source, &raw.relays)?;
        let epoch_seconds = rates::epoch_seconds(source, raw.epochs.as_ref())?;
        let trunks = trunks(source, &raw.trunks, &classes, &relays, epoch_seconds)?;
        let clients = rates::clients(source, raw.clients.as_ref(), &classes, epoch_seconds)?;
        let loss = rates::loss(source, raw.loss.as_ref())?;
        let document = Self {
            epoch: raw.epoch,
            valid_from,
            valid_until,
            suite,
            classes,
            epoch_seconds,
            clients,
            loss,
            relays,
            trunks,
        };
        for trunk in &raw.trunks {
            rates::room(source, &trunk.hours, &trunk.lower, &document)?;
        }
        rates::told_in_time(source, raw.epochs.as_ref(), raw.clients.as_ref(), &document)?;
        Ok(document)
    }
}

/// Why a document's signature does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The first line is none.
    #[error("has no signature in its first line")]
    Missing,
    /// The first line is not a whole signature.
    #[error("has a broken signature in its first line")]
    Malformed,
    /// It is not the operator's signature over this text.
    #[error("is not signed by this operator, or was changed afterwards")]
    Wrong,
}

impl SignatureError {
    /// What to do.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Missing | Self::Malformed => {
                "sign it with `relay network sign`, or get it anew from the operator"
            }
            Self::Wrong => "compare the operator's public key, and get the document anew from the operator",
        }
    }
}

/// The document with the operator's signature as its first line; an older signature is replaced.
pub fn sign(text: &str, operator: &OperatorKey) -> String {
    let body = match text.split_once('\n') {
        Some((first, body)) if first.starts_with(SIGNATURE_PREFIX) => body,
        _ => text,
    };
    format!("{SIGNATURE_PREFIX}{}\n{body}", hex::encode(operator.sign(body.as_bytes())))
}

/// Whether the document's first line is `operator`'s signature over all bytes after that line.
///
/// # Errors
/// [`SignatureError`] if it is not.
pub fn verify(text: &str, operator: &[u8; 32]) -> Result<(), SignatureError> {
    let (first, body) = text.split_once('\n').ok_or(SignatureError::Missing)?;
    let digits = first.strip_prefix(SIGNATURE_PREFIX).ok_or(SignatureError::Missing)?;
    let signature: [u8; 64] = hex_bytes(digits).ok_or(SignatureError::Malformed)?;
    if is_signed_by(operator, body.as_bytes(), &signature) { Ok(()) } else { Err(SignatureError::Wrong) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDocument {
    version: Spanned<i64>,
    epoch: u64,
    valid_from: Spanned<String>,
    valid_until: Spanned<String>,
    cell_len: Spanned<i64>,
    suite: Spanned<i64>,
    classes: BTreeMap<String, classes::RawClass>,
    epochs: Option<RawEpochs>,
    clients: Option<RawClients>,
    loss: Option<RawLoss>,
    relays: Vec<RawRelay>,
    #[serde(default)]
    trunks: Vec<RawTrunk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRelay {
    id: Spanned<String>,
    name: Spanned<String>,
    address: Spanned<SocketAddr>,
    key: Spanned<String>,
    roles: Spanned<Vec<RelayRole>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrunk {
    between: Spanned<[String; 2]>,
    class: Spanned<String>,
    lanes: Option<Spanned<i64>>,
    #[serde(default)]
    hours: Vec<RawHour>,
    #[serde(default)]
    lower: Vec<Spanned<String>>,
}

fn timestamp(source: &Source, text: &Spanned<String>, key: &str) -> Result<Timestamp, ConfigError> {
    text.get_ref().parse().map_err(|error: super::timestamp::InvalidTimestamp| {
        source.refuse(text, key, error.to_string(), "write it so, in quotes")
    })
}

fn relays(source: &Source, raw: &[RawRelay]) -> Result<Vec<Relay>, ConfigError> {
    let mut relays: Vec<Relay> = Vec::with_capacity(raw.len());
    for entry in raw {
        let relay = relay(source, entry)?;
        let taken = |what: &str| format!("another relay has this {what}");
        let remedy = "give each relay its own";
        if relays.iter().any(|other| other.id == relay.id) {
            return Err(source.refuse(&entry.id, "relays.id", taken("id"), remedy));
        }
        if relays.iter().any(|other| other.name == relay.name) {
            return Err(source.refuse(&entry.name, "relays.name", taken("name"), remedy));
        }
        if relays.iter().any(|other| other.address == relay.address) {
            return Err(source.refuse(&entry.address, "relays.address", taken("address"), remedy));
        }
        if relays.iter().any(|other| other.key == relay.key) {
            return Err(source.refuse(&entry.key, "relays.key", taken("key"), remedy));
        }
        relays.push(relay);
    }
    Ok(relays)
}

fn relay(source: &Source, raw: &RawRelay) -> Result<Relay, ConfigError> {
    let id = hex_bytes(raw.id.get_ref()).ok_or_else(|| {
        source.refuse(&raw.id, "relays.id", "is not an id", "write 32 hex digits, at random")
    })?;
    let name = raw.name.get_ref();
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME_LEN || !name.bytes().all(is_plain) {
        let remedy = format!("use 1 to {MAX_NAME_LEN} lower-case letters, digits and `-`");
        return Err(source.refuse(&raw.name, "relays.name", "is not a plain name", remedy));
    }
    let address = *raw.address.get_ref();
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        let remedy = "write the address and port at which others reach the relay";
        return Err(source.refuse(&raw.address, "relays.address", "cannot be reached", remedy));
    }
    let key = hex_bytes(raw.key.get_ref()).filter(|key| *key != [0; 32]).ok_or_else(|| {
        let remedy = "write the 64 hex digits that `relay keygen --relay` printed";
        source.refuse(&raw.key, "relays.key", "is not an X25519 public key", remedy)
    })?;
    let roles: BTreeSet<RelayRole> = raw.roles.get_ref().iter().copied().collect();
    if roles.is_empty() || roles.len() != raw.roles.get_ref().len() {
        let remedy = "name one or more of \"entry\", \"middle\", \"exit\", each once";
        return Err(source.refuse(&raw.roles, "relays.roles", "is empty or names a role twice", remedy));
    }
    Ok(Relay { id, name: name.clone(), address, key, roles })
}

fn trunks(
    source: &Source,
    raw: &[RawTrunk],
    classes: &BTreeMap<String, Class>,
    relays: &[Relay],
    epoch: u32,
) -> Result<Vec<Trunk>, ConfigError> {
    let mut pairs = BTreeSet::new();
    let mut trunks = Vec::with_capacity(raw.len());
    for entry in raw {
        let between = entry.between.get_ref().clone();
        let refuse =
            |what: String, remedy: &str| source.refuse(&entry.between, "trunks.between", what, remedy);
        if let Some(name) = between.iter().find(|name| relays.iter().all(|relay| relay.name != **name)) {
            return Err(refuse(format!("no relay is named {name:?}"), "name a relay of this document"));
        }
        let mut pair = between.clone();
        pair.sort();
        if pair[0] == pair[1] {
            return Err(refuse("both ends are the same relay".into(), "name two relays"));
        }
        if !pairs.insert(pair) {
            return Err(refuse("another trunk joins these relays".into(), "keep one of them"));
        }
        if !classes.contains_key(entry.class.get_ref()) {
            let what = format!("no class is named {:?}", entry.class.get_ref());
            return Err(source.refuse(&entry.class, "trunks.class", what, "name a class of this document"));
        }
        let lanes = lanes(source, entry, &between, relays)?;
        let class = entry.class.get_ref().clone();
        let hours = rates::hours(source, &entry.hours, "trunks", &entry.class, classes, epoch)?;
        let lower = rates::lower(source, &entry.lower, "trunks", &class, classes)?;
        trunks.push(Trunk { between, class, lanes, hours, lower });
    }
    Ok(trunks)
}

fn lanes(
    source: &Source,
    raw: &RawTrunk,
    between: &[String; 2],
    relays: &[Relay],
) -> Result<u16, ConfigError> {
    let Some(given) = &raw.lanes else { return Ok(1) };
    let refuse = |what: String, remedy: String| source.refuse(given, "trunks.lanes", what, remedy);
    let lanes = u16::try_from(*given.get_ref()).ok().filter(|lanes| (1..=MAX_LANES).contains(lanes));
    let lanes = lanes.ok_or_else(|| {
        refuse("is not a number of lanes".into(), format!("write a number from 1 to {MAX_LANES}"))
    })?;
    for relay in relays.iter().filter(|relay| between.contains(&relay.name)) {
        let (first, host) = (relay.address.port(), relay.address.ip());
        let Some(last) = first.checked_add(lanes - 1) else {
            let what = format!("lane {} of {} would have a port beyond 65535", lanes - 1, relay.name);
            return Err(refuse(what, "use fewer lanes or a lower port".into()));
        };
        let taken = relays.iter().find(|other| {
            other.name != relay.name
                && other.address.ip() == host
                && (first..=last).contains(&other.address.port())
        });
        if let Some(other) = taken {
            let what = format!("the lanes of {} would take the port of {}", relay.name, other.name);
            return Err(refuse(what, "give the relays ports further apart".into()));
        }
    }
    Ok(lanes)
}

#[cfg(test)]
pub(super) mod tests;
