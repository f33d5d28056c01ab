//! The classes of a network document: rates, and the laws by which slots lie in time.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::NetworkDocument;
use crate::config::source::{ConfigError, Source};
use crate::engine::schedule::{Law, MAX_RATE, Pattern};

/// The longest gap of a class whose gaps are uneven, in seconds: half of the silence after which a link is down.
const LONGEST_GAP: f64 = 1.0;

/// A rate and how slots lie in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Cells per second in each direction, 1 to [`MAX_RATE`].
    pub rate: u32,
    /// How slots lie in time.
    pub schedule: Law,
}

impl NetworkDocument {
    /// The class of client links and its name.
    ///
    /// # Errors
    /// [`ConfigError`] about `file` where no one class is meant.
    pub fn class_of_clients(&self, file: &Path) -> Result<(&str, Class), ConfigError> {
        let named = self.client_class().and_then(|name| Some((name, *self.classes.get(name)?)));
        named.ok_or_else(|| ConfigError {
            file: file.to_owned(),
            line: None,
            key: Some("classes".to_owned()),
            what: "clients' links have no class of their own, or more than one".to_owned(),
            remedy: "have exactly one class that is no trunk's, or a table [clients] that names it"
                .to_owned(),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClass {
    rate: Spanned<i64>,
    schedule: Spanned<Name>,
    pattern: Option<Spanned<Vec<i64>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Constant,
    Jittered,
    Poisson,
    Pattern,
}

pub(super) fn classes(
    source: &Source,
    raw: &BTreeMap<String, RawClass>,
) -> Result<BTreeMap<String, Class>, ConfigError> {
    raw.iter().map(|(name, class)| Ok((name.clone(), class.check(source, name)?))).collect()
}

impl RawClass {
    fn check(&self, source: &Source, name: &str) -> Result<Class, ConfigError> {
        let key = |key: &str| format!("classes.{name}.{key}");
        let rate = u32::try_from(*self.rate.get_ref()).ok().filter(|rate| (1..=MAX_RATE).contains(rate));
        let rate = rate.ok_or_else(|| {
            let what = format!("is not a number of cells per second from 1 to {MAX_RATE}");
            source.refuse(&self.rate, &key("rate"), what, "choose a rate in this range")
        })?;
        let schedule = self.law(source, name)?;
        let longest = schedule.longest_gap() / f64::from(rate);
        if !matches!(schedule, Law::Constant | Law::Jittered) && longest > LONGEST_GAP {
            let what = format!("lets this schedule leave {longest:.1} s between two slots");
            let remedy = format!(
                "raise it to {:.0} at least, since 2 s without a cell take a link down",
                (schedule.longest_gap() / LONGEST_GAP).ceil()
            );
            return Err(source.refuse(&self.rate, &key("rate"), what, remedy));
        }
        Ok(Class { rate, schedule })
    }

    fn law(&self, source: &Source, name: &str) -> Result<Law, ConfigError> {
        let key = format!("classes.{name}.pattern");
        let law = match (*self.schedule.get_ref(), &self.pattern) {
            (Name::Pattern, Some(gaps)) => {
                return Pattern::new(gaps.get_ref()).map(Law::Pattern).map_err(|error| {
                    let remedy = "write the gaps between slots in proportion to each other, as in [1, 1, 6]";
                    source.refuse(gaps, &key, error.to_string(), remedy)
                });
            }
            (Name::Pattern, None) => {
                let what = "is \"pattern\", and the class has no `pattern`";
                let remedy =
                    "add the gaps between slots in proportion to each other, as in pattern = [1, 1, 6]";
                return Err(source.refuse(&self.schedule, &format!("classes.{name}.schedule"), what, remedy));
            }
            (Name::Constant, _) => Law::Constant,
            (Name::Jittered, _) => Law::Jittered,
            (Name::Poisson, _) => Law::Poisson,
        };
        match &self.pattern {
            None => Ok(law),
            Some(gaps) => {
                let what = format!("means nothing where the schedule is {law}");
                Err(source.refuse(gaps, &key, what, "remove it, or write schedule = \"pattern\""))
            }
        }
    }
}
