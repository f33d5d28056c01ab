//! What a driver can be asked and told through the program `ethtool`: what an operator would call, and show, as well.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

/// Why an `ethtool` command did nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EthtoolError {
    /// The program is missing.
    #[error("the program ethtool is missing; `apt-get install ethtool`")]
    Missing,
    /// The program could not be started.
    #[error("ethtool cannot be started: {0}")]
    Start(std::io::Error),
    /// The driver or the kernel does not do it.
    #[error("{0}")]
    Refused(String),
}

/// Calls `ethtool` with `arguments` and returns what it prints.
///
/// # Errors
/// [`EthtoolError`].
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Result<String, EthtoolError> {
    let output =
        Command::new("ethtool").args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(
            |error| match error.kind() {
                std::io::ErrorKind::NotFound => EthtoolError::Missing,
                _ => EthtoolError::Start(error),
            },
        )?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    Err(EthtoolError::Refused(complaint.collect::<Vec<_>>().join("; ")))
}

/// The driver and its version, from `-i`.
pub(crate) fn parse_driver(text: &str) -> Option<(String, String)> {
    let values = pairs(text);
    let get = |key| values.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned());
    Some((get("driver")?, get("version").unwrap_or_default()))
}

/// A number that a device has now, and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// As it is set.
    pub(crate) now: u32,
    /// The most that can be set.
    pub(crate) max: u32,
}

/// Queues, from `-l`. A device has combined ones, or separate ones, or some of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channels {
    /// For receiving only.
    pub(crate) rx: Option<Range>,
    /// For sending only.
    pub(crate) tx: Option<Range>,
    /// For both.
    pub(crate) combined: Option<Range>,
}

impl Channels {
    /// Receive queues in use.
    pub(crate) fn receiving(&self) -> u32 {
        [self.rx, self.combined].into_iter().flatten().map(|range| range.now).sum()
    }

    /// What to set for `count` receive and transmit queues, as arguments behind `-L INTERFACE`. `None` where the
    /// device has not as many.
    pub(crate) fn set(&self, count: u32) -> Option<Vec<String>> {
        let enough = |range: &Option<Range>| range.is_some_and(|range| range.max >= count);
        let count_of = |word: &str| [word.to_owned(), count.to_string()];
        if enough(&self.combined) {
            return Some(count_of("combined").to_vec());
        }
        (enough(&self.rx) && enough(&self.tx)).then(|| [count_of("rx"), count_of("tx")].concat())
    }
}

/// Reads the answer to `-l`.
pub(crate) fn parse_channels(text: &str) -> Channels {
    let ranges = ranges(text);
    let get = |key| ranges.get(key).copied();
    Channels { rx: get("RX"), tx: get("TX"), combined: get("Combined") }
}

/// Descriptors of each hardware ring, receiving and sending, from `-g`.
pub(crate) fn parse_rings(text: &str) -> Option<(Range, Range)> {
    let ranges = ranges(text);
    Some((*ranges.get("RX")?, *ranges.get("TX")?))
}

/// A switch of a device, from `-k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    /// As it is set.
    pub(crate) on: bool,
    /// Whether it cannot be changed.
    pub(crate) fixed: bool,
}

/// Reads the answer to `-k`.
pub(crate) fn parse_features(text: &str) -> BTreeMap<String, Feature> {
    let features = pairs(text).into_iter().filter_map(|(name, value)| {
        let on = match value.split(' ').next()? {
            "on" => true,
            "off" => false,
            _ => return None,
        };
        Some((name.to_owned(), Feature { on, fixed: value.contains("[fixed]") }))
    });
    features.collect()
}

/// A rule that puts datagrams to one UDP port into one queue. Whatever else a rule asks for is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRule {
    /// For IPv6; else for IPv4.
    pub(crate) v6: bool,
    /// Destination port.
    pub(crate) port: u16,
    /// Receive queue.
    pub(crate) queue: u32,
}

/// Reads the answer to `-n`. Addresses in it stay where they are.
pub(crate) fn parse_rules(text: &str) -> Vec<PortRule> {
    let mut rules = Vec::new();
    for filter in text.split("Filter: ").skip(1) {
        let values = pairs(filter);
        let get = |key| values.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        let v6 = match get("Rule Type") {
            Some("UDP over IPv4") => false,
            Some("UDP over IPv6") => true,
            _ => continue,
        };
        // A mask here has the bits that do not count.
        let port = get("Dest port").and_then(|value| value.strip_suffix(" mask: 0x0")?.parse().ok());
        let queue = get("Action").and_then(|action| action.strip_prefix("Direct to queue ")?.parse().ok());
        if let (Some(port), Some(queue)) = (port, queue) {
            rules.push(PortRule { v6, port, queue });
        }
    }
    rules
}

/// The queues that hashing spreads over, from `-x`.
pub(crate) fn parse_indirection(text: &str) -> BTreeSet<u32> {
    let mut queues = BTreeSet::new();
    for line in text.lines() {
        let Some((start, entries)) = line.trim().split_once(':') else { continue };
        if start.parse::<u32>().is_ok() {
            queues.extend(entries.split_ascii_whitespace().filter_map(|entry| entry.parse::<u32>().ok()));
        }
    }
    queues
}

fn pairs(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect()
}

/// The two blocks of `-l` and `-g`: first what can be set at most, then what is.
fn ranges(text: &str) -> BTreeMap<&str, Range> {
    let (most, now) = text.split_once("Current hardware settings:").unwrap_or((text, ""));
    let now = pairs(now);
    let both = pairs(most).into_iter().filter_map(|(name, max)| {
        let (_, now) = now.iter().find(|(other, _)| *other == name)?;
        Some((name, Range { now: now.parse().ok()?, max: max.parse().ok()? }))
    });
    both.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNELS: &str = "Channel parameters for eth0:\nPre-set maximums:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\n\
        Combined:\t16\nCurrent hardware settings:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\nCombined:\t4\n";
    const VETH: &str = "Channel parameters for v0:\nPre-set maximums:\nRX:\t\t2\nTX:\t\t2\nOther:\t\tn/a\n\
        Combined:\tn/a\nCurrent hardware settings:\nRX:\t\t2\nTX:\t\t1\nOther:\t\tn/a\nCombined:\tn/a\n";

    #[test]
    fn channels_are_combined_or_separate() {
        let combined = parse_channels(CHANNELS);
        assert_eq!(combined.combined, Some(Range { now: 4, max: 16 }));
        assert_eq!((combined.rx, combined.receiving()), (None, 4));
        assert_eq!(combined.set(2), Some(vec!["combined".to_owned(), "2".to_owned()]));
        assert_eq!(combined.set(17), None);
        let separate = parse_channels(VETH);
        assert_eq!((separate.receiving(), separate.tx), (2, Some(Range { now: 1, max: 2 })));
        assert_eq!(separate.set(1), Some(["rx", "1", "tx", "1"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn rings_have_a_maximum() {
        let text = "Ring parameters for eth0:\nPre-set maximums:\nRX:\t\t4096\nRX Mini:\tn/a\nTX:\t\t8192\n\
            Current hardware settings:\nRX:\t\t512\nRX Mini:\tn/a\nTX:\t\t1024\nTX Push:\toff\n";
        assert_eq!(parse_rings(text), Some((Range { now: 512, max: 4096 }, Range { now: 1024, max: 8192 })));
        assert_eq!(parse_rings(""), None);
    }

    #[test]
    fn features_may_be_fixed() {
        let features = parse_features(
            "Features for eth0:\nlarge-receive-offload: off [fixed]\n\ttx-checksum-ipv4: on\nrx-gro-hw: on [fixed]\n",
        );
        assert_eq!(features["large-receive-offload"], Feature { on: false, fixed: true });
        assert_eq!(features["tx-checksum-ipv4"], Feature { on: true, fixed: false });
        assert_eq!(features.len(), 3);
    }

    #[test]
    fn rules_for_whole_ports_are_found_among_others() {
        let rule = |kind: &str, port: &str, action: &str| {
            format!(
                "Filter: 9\n\tRule Type: {kind}\n\tSrc IP addr: 0.0.0.0 mask: 255.255.255.255\n\
                 \tSrc port: 0 mask: 0xffff\n\tDest port: {port}\n\tAction: {action}\n\n"
            )
        };
        let text = format!(
            "4 RX rings available\nTotal 5 rules\n\n{}{}{}{}{}",
            rule("UDP over IPv4", "7443 mask: 0x0", "Direct to queue 1"),
            rule("TCP over IPv4", "7443 mask: 0x0", "Direct to queue 1"),
            rule("UDP over IPv4", "0 mask: 0xffff", "Direct to queue 2"),
            rule("UDP over IPv4", "7444 mask: 0x0", "Drop"),
            rule("UDP over IPv6", "7444 mask: 0x0", "Direct to queue 3"),
        );
        assert_eq!(
            parse_rules(&text),
            [PortRule { v6: false, port: 7443, queue: 1 }, PortRule { v6: true, port: 7444, queue: 3 }]
        );
    }

    #[test]
    fn the_indirection_table_names_queues_in_use() {
        let text = "RX flow hash indirection table for eth0 with 4 RX ring(s):\n    0:      0     1     2     0\n    \
            8:      1     2     0     1\nRSS hash key:\n6d:5a:56:da\nRSS hash function:\n    toeplitz: on\n";
        assert_eq!(parse_indirection(text), BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn the_driver_is_named() {
        let text = "driver: ice\nversion: 6.12.9\nfirmware-version: 4.40\nbus-info: 0000:81:00.0\n";
        assert_eq!(parse_driver(text), Some(("ice".to_owned(), "6.12.9".to_owned())));
        assert_eq!(parse_driver(""), None);
    }
}
