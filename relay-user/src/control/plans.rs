//! From the network document's tables to the plans of links.

use crate::config::network::Trunk;
use crate::config::rates::Hour;
use crate::config::{ClientPolicy, ConfigError, NetworkDocument};
use crate::rates::{ClassNumber, DayTable, Mechanism, Plan, Policy};
use anyhow::{Context, Result};
use std::path::Path;

/// How a trunk's lanes come by their classes.
pub(super) fn of_trunk(network: &NetworkDocument, trunk: &Trunk) -> Result<Plan> {
    let policy = match by_hour(network, &trunk.hours)? {
        Some(policy) => policy,
        None => Policy::Fixed(number(network, &trunk.class)?),
    };
    plan(network, policy, &trunk.lower)
}

/// How clients' links come by their classes. Hours bind everybody; whether a client makes use of the document's
/// `adaptive` is its own affair, so a relay, which must follow where one does, asks for [`ClientPolicy::Adaptive`].
pub(super) fn of_clients(file: &Path, network: &NetworkDocument, wanted: ClientPolicy) -> Result<Plan> {
    let base = network.client_class().ok_or_else(|| ConfigError {
        file: file.to_owned(),
        line: None,
        key: Some("classes".to_owned()),
        what: "clients' links have no class of their own, or more than one".to_owned(),
        remedy: "have exactly one class that is no trunk's, or a table [clients] that names it".to_owned(),
    })?;
    let base = number(network, base)?;
    let Some(clients) = &network.clients else { return plan(network, Policy::Fixed(base), &[]) };
    let adaptive = clients.adaptive.as_ref().filter(|_| wanted == ClientPolicy::Adaptive);
    let policy = match (by_hour(network, &clients.hours)?, adaptive) {
        (Some(policy), _) => policy,
        (None, Some(adaptive)) => {
            let classes = adaptive.classes.iter().map(|name| {
                let class = number(network, name)?;
                Ok((class, network.classes[name].rate))
            });
            let mechanism = Mechanism::new(classes.collect::<Result<_>>()?, adaptive.epsilon)
                .context("clients.adaptive of the network document")?;
            Policy::Adaptive { base, mechanism }
        }
        (None, None) => Policy::Fixed(base),
    };
    plan(network, policy, &clients.lower)
}

fn by_hour(network: &NetworkDocument, hours: &[Hour]) -> Result<Option<Policy>> {
    if hours.is_empty() {
        return Ok(None);
    }
    let entries = hours.iter().map(|hour| Ok((hour.second, number(network, &hour.class)?)));
    let table = DayTable::new(entries.collect::<Result<_>>()?).context("hours of the network document")?;
    Ok(Some(Policy::Scheduled(table)))
}

fn plan(network: &NetworkDocument, policy: Policy, lower: &[String]) -> Result<Plan> {
    let ladder = lower.iter().map(|name| number(network, name)).collect::<Result<_>>()?;
    let rates = network.classes.values().map(|class| class.rate).collect();
    Ok(Plan { policy, ladder, loss: network.loss, rates })
}

fn number(network: &NetworkDocument, name: &str) -> Result<ClassNumber> {
    let at = network.classes.keys().position(|other| other == name);
    let at = at.with_context(|| format!("the network document has no class {name:?}"))?;
    Ok(ClassNumber(u16::try_from(at).context("too many classes")?))
}
