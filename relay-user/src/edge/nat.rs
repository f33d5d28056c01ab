//! The exit's NAT: a table of its own, set and removed through the `nft` program, and the forwarding switches it needs.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::pool::PoolNetworks;
use super::tun::is_device_name;

/// What went wrong with the exit's NAT.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// A configured interface name cannot be one.
    #[error("interface name {0:?} is not usable: give 1 to 15 letters, digits, '-', '_' or '.'")]
    Name(String),
    /// There is no `nft` program.
    #[error("the nft program is missing and the exit's NAT needs it; install the package nftables")]
    NoNft,
    /// The program could not be run.
    #[error("running nft failed")]
    Run(#[source] io::Error),
    /// The program refused the rules.
    #[error(
        "nft refused table inet {table}: {message}; root or CAP_NET_ADMIN and nf_tables with NAT in the kernel are needed"
    )]
    Refused {
        /// The table.
        table: String,
        /// What nft wrote.
        message: String,
    },
    /// A forwarding switch cannot be read or written.
    #[error(
        "{path}: cannot {action} the forwarding switch; see whether the interface exists and /proc/sys is writable"
    )]
    Forwarding {
        /// The switch.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Where the kernel shows its network settings, those of the calling thread's namespace.
const SETTINGS: &str = "/proc/sys/net";
/// Begins the table's comment that names the switches which this program switched on.
const SWITCHED_ON: &str = "switched on: ";

/// Running NAT; dropping it takes everything back as far as that is possible.
#[derive(Debug)]
pub struct Nat {
    table: String,
    /// Those that were off before.
    switches: Vec<PathBuf>,
    active: bool,
}

impl Nat {
    /// Masquerades the pool behind the interface `outside` and forwards between it and the device `tun`, in the network
    /// namespace of the calling thread. A table left by a killed run is replaced in the same transaction, and what that
    /// run had switched on is switched off in the end.
    ///
    /// # Errors
    /// [`NatError`]; what was already changed is taken back.
    pub fn install(tun: &str, outside: &str, networks: &PoolNetworks) -> Result<Self, NatError> {
        for name in [tun, outside] {
            if !is_device_name(name) {
                return Err(NatError::Name(name.to_owned()));
            }
        }
        let table = table_name(tun);
        let mut switches =
            vec![format!("ipv4/conf/{tun}/forwarding"), format!("ipv4/conf/{outside}/forwarding")];
        // IPv6 has no forwarding by interface before Linux 6.17; a host without IPv6 has no such switch.
        if Path::new(SETTINGS).join("ipv6").exists() {
            switches.push("ipv6/conf/all/forwarding".to_owned());
        }
        // A killed run left its table, and with it word of what it had switched on and could not switch off again.
        let owed = listing(&table)?;
        let mut off = Vec::with_capacity(switches.len());
        for switch in switches {
            let path = Path::new(SETTINGS).join(&switch);
            let value = fs::read_to_string(&path).map_err(|source| NatError::Forwarding {
                path,
                action: "read",
                source,
            })?;
            if value.trim() == "0" || is_owed(&owed, &switch) {
                off.push(switch);
            }
        }
        // Rules before forwarding: no packet is forwarded by rules that do not stand yet.
        nft(&table, &rules(&table, tun, outside, networks, &off))?;
        let mut nat = Self { table, switches: Vec::with_capacity(off.len()), active: true };
        for switch in off {
            let path = Path::new(SETTINGS).join(switch);
            match fs::write(&path, "1") {
                Ok(()) => nat.switches.push(path),
                Err(source) => return Err(NatError::Forwarding { path, action: "set", source }),
            }
        }
        Ok(nat)
    }

    /// The name of the table, of family `inet`.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Takes rules and switches back: the clean stop.
    ///
    /// # Errors
    /// The first thing that could not be taken back; the others are.
    pub fn remove(mut self) -> Result<(), NatError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), NatError> {
        if !std::mem::take(&mut self.active) {
            return Ok(());
        }
        let mut first_error = Ok(());
        for path in self.switches.drain(..).rev() {
            match fs::write(&path, "0") {
                Ok(()) => {}
                // The TUN's own switch goes with the device.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) if first_error.is_ok() => {
                    first_error = Err(NatError::Forwarding { path, action: "restore", source });
                }
                Err(_) => {}
            }
        }
        // Declared first, so that it is no error when somebody else removed it already.
        let table = &self.table;
        let removed = nft(table, &format!("table inet {table}\ndelete table inet {table}\n"));
        first_error.and(removed)
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            log::warn!("taking the exit's NAT back failed: {error}");
        }
    }
}

/// `evenwire_` and the device's name, whatever is no letter or digit in it written as `_` and two hex digits.
fn table_name(tun: &str) -> String {
    let mut name = String::from("evenwire_");
    for byte in tun.bytes() {
        if byte.is_ascii_alphanumeric() {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("_{byte:02x}"));
        }
    }
    name
}

fn rules(table: &str, tun: &str, outside: &str, networks: &PoolNetworks, off: &[String]) -> String {
    let [pool4, pool6] = networks.to_text();
    let off = off.join(" ");
    format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
  comment "{SWITCHED_ON}{off}"
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool4} oifname "{outside}" masquerade
    ip6 saddr {pool6} oifname "{outside}" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    # What connection tracking cannot place would leave with its pool address.
    iifname "{tun}" ct state invalid drop
    iifname "{tun}" ip saddr != {pool4} drop
    iifname "{tun}" ip6 saddr != {pool6} drop
    iifname "{tun}" oifname "{outside}" accept
    iifname "{tun}" drop
    iifname "{outside}" oifname "{tun}" ct state established,related accept
    oifname "{tun}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{tun}" icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} accept
    iifname "{tun}" icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept
    iifname "{tun}" drop
  }}
}}
"#
    )
}

/// The table as nft prints it; empty where there is none.
fn listing(table: &str) -> Result<String, NatError> {
    let output = Command::new("nft")
        .args(["list", "table", "inet", table])
        .stdin(Stdio::null())
        .output()
        .map_err(could_not_run)?;
    Ok(if output.status.success() {
        String::from_utf8_lossy(&output.stdout).into_owned()
    } else {
        String::new()
    })
}

/// Whether the table `listing` says that `switch` was switched on by this program.
fn is_owed(listing: &str, switch: &str) -> bool {
    let named = listing.lines().filter_map(|line| line.trim().strip_prefix("comment \""));
    let named = named.filter_map(|comment| comment.strip_suffix('"')?.strip_prefix(SWITCHED_ON));
    named.flat_map(|switches| switches.split(' ')).any(|named| named == switch)
}

fn could_not_run(error: io::Error) -> NatError {
    match error.kind() {
        io::ErrorKind::NotFound => NatError::NoNft,
        _ => NatError::Run(error),
    }
}

fn nft(table: &str, script: &str) -> Result<(), NatError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(could_not_run)?;
    // A program that ends without reading breaks the pipe; what it wrote about it says more than that.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(NatError::Run)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let message = message.lines().next().unwrap_or("no message").to_owned();
        return Err(NatError::Refused { table: table.to_owned(), message });
    }
    written.map_err(NatError::Run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::pool::tests::networks;

    #[test]
    fn table_names_are_identifiers_and_differ() {
        assert_eq!(table_name("ew0"), "evenwire_ew0");
        assert_eq!(table_name("ew-exit"), "evenwire_ew_2dexit");
        assert_ne!(table_name("ew-0"), table_name("ew_0"));
    }

    #[test]
    fn the_table_remembers_what_was_switched_on() {
        let off = ["ipv4/conf/ew0/forwarding".to_owned(), "ipv6/conf/all/forwarding".to_owned()];
        let table = rules("evenwire_ew0", "ew0", "out0", &networks(16), &off);
        assert!(off.iter().all(|switch| is_owed(&table, switch)));
        assert!(!is_owed(&table, "ipv4/conf/out0/forwarding"));
        assert!(!is_owed(&table, "ipv6/conf/all"));
        assert!(!is_owed("", "ipv6/conf/all/forwarding"));
    }

    #[test]
    fn a_name_that_could_break_out_of_the_rules_is_refused() {
        let error = Nat::install("ew0", "out\" accept #", &networks(16)).map(|_| ());
        assert!(matches!(error, Err(NatError::Name(_))));
    }
}
