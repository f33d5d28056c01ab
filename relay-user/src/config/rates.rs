//! The network document's tables about changes of class: epochs, hours, what clients may choose, and loss.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::network::{Class, NetworkDocument};
use super::source::{ConfigError, Source};
use crate::engine::schedule::Law;
use crate::engine::time::Nanos;
use crate::rates::{Epochs, LossRules, MAX_EPSILON, SECONDS_PER_DAY};

/// Seconds of an epoch, at least: a choice is made and told within a quarter of it.
const MIN_EPOCH: u32 = 10;
/// By how much hosts' clocks may differ where one end tells the other of a class: ten times what NTP leaves over a bad
/// way.
const MAX_SKEW: Nanos = Nanos(500 * Nanos::MILLISECOND.0);
/// How long a cell may be under way, the control planes' ticks at both ends included.
const WAY: Nanos = Nanos(200 * Nanos::MILLISECOND.0);
/// Slots that a message may wait for: cells of other messages go before it.
const TOLD_SLOTS: u64 = 8;
/// Seconds of an epoch where the document does not say.
pub(super) const DEFAULT_EPOCH: u32 = 3600;
/// Seconds for which loss must last, at most.
const MAX_SECONDS: u32 = 60;
/// Seconds for which a link stays down, at most.
const MAX_PAUSE: u32 = 3600;
/// Epochs before a class goes up again, at most.
const MAX_RECOVER: u32 = 1000;

/// From when on a class holds, each day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hour {
    /// Seconds since midnight, UTC; at a boundary of an epoch.
    pub second: u32,
    /// Name of the class.
    pub class: String,
}

/// How clients' links come by their classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    /// Name of the class that clients' configurations name, and of every link until the first choice.
    pub class: String,
    /// Classes by the time of day; empty where the class is fixed.
    pub hours: Vec<Hour>,
    /// What clients may choose from, where they may.
    pub adaptive: Option<Adaptive>,
    /// Names of the classes that lasting loss leads to, each slower than the one before.
    pub lower: Vec<String>,
}

/// What clients may choose from, by their noised demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Adaptive {
    /// Names of two or more classes of different rates.
    pub classes: Vec<String>,
    /// ε of each choice, above 0 and up to 16.
    pub epsilon: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEpochs {
    seconds: Spanned<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHour {
    at: Spanned<String>,
    class: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClients {
    class: Spanned<String>,
    #[serde(default)]
    hours: Vec<RawHour>,
    adaptive: Option<Spanned<RawAdaptive>>,
    #[serde(default)]
    lower: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdaptive {
    classes: Spanned<Vec<String>>,
    epsilon: Spanned<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLoss {
    high: Option<Spanned<f64>>,
    recover: Option<Spanned<i64>>,
    limit: Option<Spanned<f64>>,
    seconds: Option<Spanned<i64>>,
    pause: Option<Spanned<i64>>,
}

type Classes = BTreeMap<String, Class>;

/// The length of epochs in seconds: a divisor of a day, so that boundaries lie at the same times every day.
pub(super) fn epoch_seconds(source: &Source, raw: Option<&RawEpochs>) -> Result<u32, ConfigError> {
    let Some(raw) = raw else { return Ok(DEFAULT_EPOCH) };
    let given = u32::try_from(*raw.seconds.get_ref()).ok();
    let fits = |seconds: &u32| {
        (MIN_EPOCH..=SECONDS_PER_DAY).contains(seconds) && SECONDS_PER_DAY.is_multiple_of(*seconds)
    };
    given.filter(fits).ok_or_else(|| {
        let what = format!("is not a divisor of {SECONDS_PER_DAY} of at least {MIN_EPOCH}");
        source.refuse(&raw.seconds, "epochs.seconds", what, "write 900 or 3600, or another part of a day")
    })
}

/// Classes by the time of day, checked: at boundaries, no time twice, at least two of them, and `class` is one of theirs.
pub(super) fn hours(
    source: &Source,
    raw: &[RawHour],
    table: &str,
    class: &Spanned<String>,
    classes: &Classes,
    epoch: u32,
) -> Result<Vec<Hour>, ConfigError> {
    let key = format!("{table}.hours");
    let mut hours: Vec<Hour> = Vec::with_capacity(raw.len());
    for entry in raw {
        let second = second_of_day(entry.at.get_ref()).ok_or_else(|| {
            source.refuse(&entry.at, &key, "is not a time of the day", "write it as 07:00, in UTC")
        })?;
        if !second.is_multiple_of(epoch) {
            let what = format!("no epoch begins at {}: they have {epoch} seconds", entry.at.get_ref());
            return Err(source.refuse(&entry.at, &key, what, "choose a time at a multiple of them"));
        }
        if hours.iter().any(|other| other.second == second) {
            return Err(source.refuse(&entry.at, &key, "this time has a class already", "keep one of them"));
        }
        known(source, &entry.class, &key, classes)?;
        hours.push(Hour { second, class: entry.class.get_ref().clone() });
    }
    if let [only] = raw {
        let remedy = "add the time at which another begins, or leave the table out";
        return Err(source.refuse(&only.at, &key, "holds one class all day", remedy));
    }
    if !raw.is_empty() && hours.iter().all(|hour| hour.class != *class.get_ref()) {
        let what = format!("{:?} is at no time of {key}", class.get_ref());
        return Err(source.refuse(class, &format!("{table}.class"), what, "name one of its classes"));
    }
    Ok(hours)
}

/// Whether a trunk carries at least one client's circuit at each of its hours and at each step for its loss, the client
/// in its fastest class.
pub(super) fn room(
    source: &Source,
    hours: &[RawHour],
    lower: &[Spanned<String>],
    document: &NetworkDocument,
) -> Result<(), ConfigError> {
    let rate = |name: &str| document.classes.get(name).map_or(0, |class| class.rate);
    let names = document.client_classes();
    let needed = names.iter().copied().map(rate).max().unwrap_or(0);
    let laws: Vec<Law> =
        names.iter().filter_map(|name| document.classes.get(*name)).map(|class| class.schedule).collect();
    let hours = hours.iter().map(|hour| (&hour.class, "trunks.hours"));
    for (given, key) in hours.chain(lower.iter().map(|step| (step, "trunks.lower"))) {
        let name = given.get_ref();
        let Some(class) = document.classes.get(name) else { continue };
        let usable = class.schedule.usable_by_any(class.rate, laws.iter().copied());
        if usable < needed {
            let what = format!("{name:?} has {usable} cells per second for circuits, and one takes {needed}");
            return Err(source.refuse(given, key, what, "name a class on which a circuit fits"));
        }
    }
    Ok(())
}

/// Whether epochs are long enough for what client and entry tell each other: the last telling must be there before the
/// peer decides, by a clock that is [`MAX_SKEW`] ahead, and behind [`TOLD_SLOTS`] slots of the slowest class.
pub(super) fn told_in_time(
    source: &Source,
    epochs: Option<&RawEpochs>,
    clients: Option<&RawClients>,
    document: &NetworkDocument,
) -> Result<(), ConfigError> {
    let (Some(raw), Some(clients)) = (clients, &document.clients) else { return Ok(()) };
    if clients.adaptive.is_none() && clients.lower.is_empty() {
        return Ok(());
    }
    let classes = document.client_classes().into_iter().filter_map(|name| document.classes.get(name));
    let slowest = classes.map(|class| class.rate).min().unwrap_or(1).max(1);
    let needed = Nanos(MAX_SKEW.0 + WAY.0 + TOLD_SLOTS * Nanos::SECOND.0 / u64::from(slowest));
    let fits = |seconds: u32| Epochs::new(seconds).margin() >= needed;
    if fits(document.epoch_seconds) {
        return Ok(());
    }
    let seconds = |time: Nanos| time.0 as f64 / Nanos::SECOND.0 as f64;
    let what = format!(
        "an epoch of {} s is too short: what an end chooses is told {:.2} s before the other decides, and clocks {} s apart and {TOLD_SLOTS} \
         slots at {slowest} cells per second take {:.2} s",
        document.epoch_seconds,
        seconds(Epochs::new(document.epoch_seconds).margin()),
        seconds(MAX_SKEW),
        seconds(needed)
    );
    let parts =
        (document.epoch_seconds..=SECONDS_PER_DAY).filter(|&part| SECONDS_PER_DAY.is_multiple_of(part));
    let remedy = match parts.into_iter().find(|&part| fits(part)) {
        Some(enough) => format!("write epochs.seconds = {enough} or more"),
        None => "give clients' slowest class a higher rate".to_owned(),
    };
    Err(match epochs {
        Some(epochs) => source.refuse(&epochs.seconds, "epochs.seconds", what, remedy),
        // The usual length is nowhere in the document.
        None => source.refuse(&raw.class, "clients.class", what, remedy),
    })
}

/// The classes that lasting loss leads to, checked: each slower than the one before, the first than `class`.
pub(super) fn lower(
    source: &Source,
    raw: &[Spanned<String>],
    table: &str,
    class: &str,
    classes: &Classes,
) -> Result<Vec<String>, ConfigError> {
    let key = format!("{table}.lower");
    let mut above = classes.get(class).map_or(0, |class| class.rate);
    for name in raw {
        let rate = known(source, name, &key, classes)?.rate;
        if rate >= above {
            let what = format!("{:?} has {rate} cells per second, not less than {above}", name.get_ref());
            return Err(source.refuse(name, &key, what, "order the classes by falling rate, below `class`"));
        }
        above = rate;
    }
    Ok(raw.iter().map(|name| name.get_ref().clone()).collect())
}

/// How clients come by their classes.
pub(super) fn clients(
    source: &Source,
    raw: Option<&RawClients>,
    classes: &Classes,
    epoch: u32,
) -> Result<Option<Clients>, ConfigError> {
    let Some(raw) = raw else { return Ok(None) };
    known(source, &raw.class, "clients.class", classes)?;
    let hours = hours(source, &raw.hours, "clients", &raw.class, classes, epoch)?;
    let adaptive = raw.adaptive.as_ref().map(|raw| adaptive(source, raw, classes)).transpose()?;
    if let Some(given) = raw.adaptive.as_ref().filter(|_| !hours.is_empty()) {
        let what = "clients.hours lays their classes down already";
        return Err(source.refuse(given, "clients.adaptive", what, "keep one of both"));
    }
    let class = raw.class.get_ref().clone();
    if let (Some(given), Some(adaptive)) = (&raw.adaptive, &adaptive)
        && !adaptive.classes.contains(&class)
    {
        let what = format!("{class:?} cannot be chosen again");
        return Err(source.refuse(&given.get_ref().classes, "clients.adaptive.classes", what, "add it"));
    }
    let lower = lower(source, &raw.lower, "clients", &class, classes)?;
    Ok(Some(Clients { class, hours, adaptive, lower }))
}

fn adaptive(source: &Source, raw: &Spanned<RawAdaptive>, classes: &Classes) -> Result<Adaptive, ConfigError> {
    let RawAdaptive { classes: names, epsilon } = raw.get_ref();
    let refuse =
        |what: String, remedy: &str| Err(source.refuse(names, "clients.adaptive.classes", what, remedy));
    let mut rates = Vec::with_capacity(names.get_ref().len());
    for name in names.get_ref() {
        let Some(class) = classes.get(name) else {
            return refuse(format!("no class is named {name:?}"), "name classes of this document");
        };
        if rates.contains(&class.rate) {
            return refuse(
                format!("another class has the rate of {name:?}"),
                "name classes of different rates, each once",
            );
        }
        rates.push(class.rate);
    }
    if rates.len() < 2 {
        return refuse("leaves nothing to choose".into(), "name two classes or more, or leave the table out");
    }
    let given = *epsilon.get_ref();
    if !(given > 0.0 && given <= MAX_EPSILON) {
        let what = format!("is not above 0 and up to {MAX_EPSILON}");
        let remedy = "write 1.0, or less for more noise";
        return Err(source.refuse(epsilon, "clients.adaptive.epsilon", what, remedy));
    }
    Ok(Adaptive { classes: names.get_ref().clone(), epsilon: given })
}

/// What loss leads to.
pub(super) fn loss(source: &Source, raw: Option<&RawLoss>) -> Result<LossRules, ConfigError> {
    let usual = LossRules::default();
    let Some(raw) = raw else { return Ok(usual) };
    let rules = LossRules {
        high: share(source, raw.high.as_ref(), "loss.high", usual.high)?,
        recover: number(source, raw.recover.as_ref(), "loss.recover", MAX_RECOVER, usual.recover)?,
        limit: share(source, raw.limit.as_ref(), "loss.limit", usual.limit)?,
        seconds: number(source, raw.seconds.as_ref(), "loss.seconds", MAX_SECONDS, usual.seconds)?,
        pause: number(source, raw.pause.as_ref(), "loss.pause", MAX_PAUSE, usual.pause)?,
    };
    if rules.limit <= rules.high {
        let (given, key) = match (&raw.limit, &raw.high) {
            (Some(limit), _) => (limit, "loss.limit"),
            (None, Some(high)) => (high, "loss.high"),
            (None, None) => return Ok(rules),
        };
        let what = "a link would stop before its class went down: limit is not above high";
        return Err(source.refuse(given, key, what, "raise limit or lower high"));
    }
    Ok(rules)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a million")]
fn share(source: &Source, raw: Option<&Spanned<f64>>, key: &str, usual: u32) -> Result<u32, ConfigError> {
    let Some(given) = raw else { return Ok(usual) };
    let millionths = given.get_ref() * 1e6;
    if (1.0..1e6).contains(&millionths) {
        return Ok(millionths.round() as u32);
    }
    let remedy = "write a part of one, as 0.02 for one cell of fifty";
    Err(source.refuse(given, key, "is not a share of cells between 0 and 1", remedy))
}

fn number(
    source: &Source,
    raw: Option<&Spanned<i64>>,
    key: &str,
    most: u32,
    usual: u32,
) -> Result<u32, ConfigError> {
    let Some(given) = raw else { return Ok(usual) };
    let number = u32::try_from(*given.get_ref()).ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| {
        source.refuse(given, key, format!("is not a whole number from 1 to {most}"), format!("write {usual}"))
    })
}

fn known<'a>(
    source: &Source,
    name: &Spanned<String>,
    key: &str,
    classes: &'a Classes,
) -> Result<&'a Class, ConfigError> {
    classes.get(name.get_ref()).ok_or_else(|| {
        let what = format!("no class is named {:?}", name.get_ref());
        source.refuse(name, key, what, "name a class of this document")
    })
}

/// Seconds since midnight of `HH:MM`.
fn second_of_day(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |part: &str, below: u32| {
        let plain = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<u32>().ok().filter(|&number| plain && number < below)
    };
    Some(3600 * digits(hour, 24)? + 60 * digits(minute, 60)?)
}

#[cfg(test)]
#[path = "rates/tests.rs"]
mod tests;
