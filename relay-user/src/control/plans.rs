//! From the network document's tables to the plans of links.

use crate::config::network::Trunk;
use crate::config::rates::Hour;
use crate::config::{ClientPolicy, NetworkDocument};
use crate::rates::{ClassNumber, DayTable, Mechanism, Plan, Policy};
use anyhow::{Context, Result};
use std::path::Path;

/// How a trunk's lanes come by their classes.
pub(crate) fn of_trunk(network: &NetworkDocument, trunk: &Trunk) -> Result<Plan> {
    let policy = match by_hour(network, &trunk.hours)? {
        Some(policy) => policy,
        None => Policy::Fixed(number(network, &trunk.class)?),
    };
    plan(network, policy, &trunk.lower)
}

/// How clients' links come by their classes. Hours bind everybody; whether a client makes use of the document's
/// `adaptive` is its own affair, so a relay, which must follow where one does, asks for [`ClientPolicy::Adaptive`].
pub(crate) fn of_clients(file: &Path, network: &NetworkDocument, wanted: ClientPolicy) -> Result<Plan> {
    let (base, _) = network.class_of_clients(file)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn document(tables: &str) -> NetworkDocument {
        NetworkDocument::parse_unverified(Path::new("network.toml"), &text(tables)).unwrap()
    }

    fn text(tables: &str) -> String {
        let mut text = format!(
            r#"version = 1
epoch = 1
valid_from = "2026-01-01T00:00:00Z"
valid_until = "2027-01-01T00:00:00Z"
cell_len = 1360
suite = 1
{tables}
[classes]
client = {{ rate = 500, schedule = "jittered" }}
fast = {{ rate = 800, schedule = "jittered" }}
low = {{ rate = 900, schedule = "constant" }}
night = {{ rate = 1000, schedule = "constant" }}
trunk = {{ rate = 2000, schedule = "constant" }}
"#
        );
        for number in 1..=2 {
            text += &format!(
                "[[relays]]\nid = \"{number:032}\"\nname = \"relay-{number}\"\naddress = \"192.0.2.{number}:1\"\nkey = \"{number:064}\"\nroles = [\"entry\"]\n"
            );
        }
        text += r#"[[trunks]]
between = ["relay-1", "relay-2"]
class = "trunk"
hours = [{ at = "06:00", class = "trunk" }, { at = "20:00", class = "night" }]
lower = ["night", "low"]
"#;
        text
    }

    const ADAPTIVE: &str = r#"[clients]
class = "client"
adaptive = { classes = ["fast", "client"], epsilon = 1.0 }
"#;

    fn clients(tables: &str, wanted: ClientPolicy) -> Result<Plan> {
        of_clients(Path::new("network.toml"), &document(tables), wanted)
    }

    #[test]
    fn classes_are_numbered_by_name() {
        let document = document(ADAPTIVE);
        let plan = of_trunk(&document, &document.trunks[0]).unwrap();
        assert_eq!(plan.rates, [500, 800, 900, 1000, 2000]);
        assert_eq!(plan.ladder, [ClassNumber(3), ClassNumber(2)]);
        let evening = crate::rates::Unix::from_seconds(20 * 3600);
        assert_eq!(plan.policy.class_at(evening, None), ClassNumber(3));
        assert_eq!((plan.slowest(), plan.fastest()), (900, 2000), "its steps for loss included");
    }

    #[test]
    fn a_client_chooses_only_where_it_wants_to() {
        for (wanted, name, fastest) in [
            (ClientPolicy::Adaptive, "adaptive", 800),
            (ClientPolicy::Scheduled, "fixed", 500),
            (ClientPolicy::Fixed, "fixed", 500),
        ] {
            let plan = clients(ADAPTIVE, wanted).unwrap();
            assert_eq!((plan.policy.name(), plan.fastest()), (name, fastest), "{wanted:?}");
        }
    }

    #[test]
    fn hours_bind_every_client() {
        let hours = r#"[clients]
class = "client"
hours = [{ at = "06:00", class = "fast" }, { at = "20:00", class = "client" }]
"#;
        for wanted in [ClientPolicy::Adaptive, ClientPolicy::Scheduled] {
            assert_eq!(clients(hours, wanted).unwrap().policy.name(), "scheduled");
        }
    }

    #[test]
    fn without_the_table_one_class_must_be_free() {
        let clients = |text: &str| {
            let document = NetworkDocument::parse_unverified(Path::new("network.toml"), text).unwrap();
            of_clients(Path::new("network.toml"), &document, ClientPolicy::Fixed)
        };
        // The trunk has the others by day, at night, and for its loss.
        let text = text("").replacen("client = { rate = 500, schedule = \"jittered\" }\n", "", 1);
        assert_eq!(clients(&text).unwrap().policy, Policy::Fixed(ClassNumber(0)));
        let more = text.replacen("fast =", "client = { rate = 500, schedule = \"jittered\" }\nfast =", 1);
        let error = clients(&more).unwrap_err().to_string();
        assert!(error.contains("network.toml: classes:"), "{error}");
    }
}
