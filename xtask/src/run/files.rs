//! Keys, the signed network document and the configuration files of the lab's nodes.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use relay_tests::Host;

/// The lab's relays in the order of the client's path.
pub(super) const RELAYS: [Host; 3] = [Host::Entry, Host::Middle, Host::Exit];
/// UDP port of the relays.
const PORT: u16 = 7443;
/// How long before now the document is valid: clocks differ.
const VALID_BEFORE: Duration = Duration::from_secs(3600);
/// How long the document is valid.
const VALID_FOR: Duration = Duration::from_secs(24 * 3600);

/// Writes everything the nodes need into `dir`.
pub(super) fn write_all(relay: &Path, dir: &Path) -> Result<()> {
    let operator = keygen(relay, "--operator", &dir.join("operator.key"))?;
    let mut relays = Vec::with_capacity(RELAYS.len());
    for host in RELAYS {
        relays.push((host, keygen(relay, "--relay", &key_file(dir, host))?));
    }
    let document = dir.join("network.toml");
    write(&document, &network(&relays, SystemTime::now())?)?;
    call(
        relay,
        &[
            "network".as_ref(),
            "sign".as_ref(),
            "--key".as_ref(),
            dir.join("operator.key").as_ref(),
            document.as_ref(),
        ],
    )?;
    for host in RELAYS {
        write(&config_file(dir, host), &relay_config(host, dir, &operator))?;
    }
    write(&config_file(dir, Host::Client), &client_config(dir, &operator))
}

pub(super) fn config_file(dir: &Path, host: Host) -> PathBuf {
    dir.join(format!("{}.toml", host.name()))
}

pub(super) fn socket_file(dir: &Path, host: Host) -> PathBuf {
    dir.join(format!("{}.sock", host.name()))
}

fn key_file(dir: &Path, host: Host) -> PathBuf {
    dir.join(format!("{}.key", host.name()))
}

/// Makes a key file and returns the public key, in hexadecimal digits, that `relay keygen` prints.
fn keygen(relay: &Path, kind: &str, file: &Path) -> Result<String> {
    let output = call(relay, &["keygen".as_ref(), kind.as_ref(), "--out".as_ref(), file.as_ref()])?;
    let public = output.split_whitespace().find(|word| word.len() == 64 && hex::decode(word).is_ok());
    public.map(str::to_owned).with_context(|| format!("relay keygen printed no public key but {output:?}"))
}

fn call(relay: &Path, args: &[&std::ffi::OsStr]) -> Result<String> {
    let mut command = Command::new(relay);
    command.args(args).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn network(relays: &[(Host, String)], now: SystemTime) -> Result<String> {
    let now = now.duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let mut text = format!(
        "version = 1\nepoch = 1\nvalid_from = \"{}\"\nvalid_until = \"{}\"\ncell_len = 1360\nsuite = 1\n\n\
         [classes.standard]\nrate = 1500\nschedule = \"jittered\"\n\n\
         [classes.trunk]\nrate = 2000\nschedule = \"constant\"\n",
        rfc3339(now.saturating_sub(VALID_BEFORE)),
        rfc3339(now + VALID_FOR),
    );
    for (host, key) in relays {
        let address = host.address().context("a relay has an address")?;
        let name = host.name();
        let id = &super::serve::sha256(key.as_bytes())[..32];
        writeln!(
            text,
            "\n[[relays]]\nid = \"{id}\"\nname = \"{name}\"\naddress = \"{address}:{PORT}\"\nkey = \"{key}\"\nroles = [\"{name}\"]"
        )?;
    }
    for pair in relays.windows(2) {
        writeln!(
            text,
            "\n[[trunks]]\nbetween = [\"{}\", \"{}\"]\nclass = \"trunk\"",
            pair[0].0.name(),
            pair[1].0.name()
        )?;
    }
    Ok(text)
}

fn relay_config(host: Host, dir: &Path, operator: &str) -> String {
    let name = host.name();
    let mut text = format!(
        "name = \"{name}\"\nkey = \"{name}.key\"\nnetwork = \"network.toml\"\noperator = \"{operator}\"\n\n\
         [datapath]\ninterface = \"wire0\"\nmode = \"native\"\nbind = \"auto\"\nframes = 16384\nring = 4096\n\n\
         [worker]\npoll = \"adaptive\"\n\n[control]\nsocket = \"{}\"\n",
        socket_file(dir, host).display()
    );
    if host == Host::Exit {
        text.push_str(
            "\n[exit]\ntun = \"ew-exit\"\noutside = \"out0\"\npool4 = \"100.96.0.0/16\"\npool6 = \"fd6e:7765::/64\"\n",
        );
    }
    text
}

fn client_config(dir: &Path, operator: &str) -> String {
    format!(
        "network = \"network.toml\"\noperator = \"{operator}\"\nclass = \"standard\"\ncover = \"circuit\"\n\
         path = [\"entry\", \"middle\", \"exit\"]\n\n\
         [datapath]\nmode = \"udp\"\nlisten = \"0.0.0.0:0\"\n\n[worker]\npoll = \"adaptive\"\n\n\
         [control]\nsocket = \"{}\"\n\n\
         [tun]\nname = \"ew0\"\nmtu = 1400\nroutes = [\"198.51.100.0/24\"]\n",
        socket_file(dir, Host::Client).display()
    )
}

/// A moment after 1970 as RFC 3339 writes it, in UTC.
fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let day = days + 1;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_does() {
        // The expected texts come from `date -u -d @N +%FT%TZ`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_798_761_600, "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn every_file_is_sound_toml() {
        let keys: Vec<(Host, String)> = RELAYS.map(|host| (host, "ab".repeat(32))).into();
        let network: toml::Table = network(&keys, SystemTime::now()).expect("network").parse().expect("TOML");
        assert_eq!(network["relays"].as_array().map(Vec::len), Some(3));
        assert_eq!(network["trunks"].as_array().map(Vec::len), Some(2));
        for host in RELAYS {
            let config: toml::Table = relay_config(host, Path::new("/x"), "cd").parse().expect("TOML");
            assert_eq!(config.contains_key("exit"), host == Host::Exit);
        }
        client_config(Path::new("/x"), "cd").parse::<toml::Table>().expect("TOML");
    }
}
