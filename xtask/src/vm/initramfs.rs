//! The first file system of the machine: busybox, the modules for 9p and the channels, and a script.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

use super::kernel::Kernel;
use crate::tools;

/// What it takes to reach the host's files and to speak to it.
const FIRST: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];
/// What a command may want and nothing loads for it. The kernel asks for the rest by itself.
const NEXT: [&str; 7] = ["pktgen", "veth", "tun", "virtio_net", "sch_netem", "sch_fq", "wireguard"];
/// Variables that the command gets, beside those with the prefixes below.
const PASSED: [&str; 4] = ["PATH", "HOME", "LANG", "NO_COLOR"];
const PASSED_PREFIXES: [&str; 2] = ["RUST_", "EVENWIRE_"];

/// Tells the command that it runs in an emulated machine.
const EMULATED: &str = "EVENWIRE_EMULATED";

/// Where the host's root is mounted, and where the command's root is.
const HOST: &str = "/host";
const ROOT: &str = "/root";

/// What the machine shall do.
pub(super) struct Script<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) share: &'a [PathBuf],
    pub(super) directory: &'a Path,
    pub(super) command: &'a [String],
}

/// Writes the image; the file goes when it is dropped.
pub(super) fn build(script: &Script<'_>) -> Result<NamedTempFile> {
    let busybox = tools::find("busybox").context("busybox is not there")?;
    let mut archive = Archive::default();
    for directory in [
        "bin",
        "dev",
        "proc",
        "sys",
        "sbin",
        "lib",
        "lib/modules",
        "first",
        &HOST[1..],
        &ROOT[1..],
        "scratch",
    ] {
        archive.add(directory, DIRECTORY, &[])?;
    }
    let content = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    // A busybox that wants libraries would leave a kernel without an init.
    ensure!(
        !content.windows(INTERPRETER.len()).any(|window| window == INTERPRETER),
        "{} is not static: install busybox-static",
        busybox.display()
    );
    archive.add("bin/busybox", PROGRAM, &content)?;
    let mut first = String::new();
    for file in script.kernel.files_of(&FIRST)? {
        let name = format!("first/{}", file.file_name().context("a module's name")?.to_string_lossy());
        archive.add(
            &name,
            FILE,
            &fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?,
        )?;
        first.push_str(&format!(" /{name}"));
    }
    archive.add("init", PROGRAM, init(script, &first)?.as_bytes())?;
    archive.add("command", FILE, command(script)?.as_bytes())?;
    let mut file = NamedTempFile::new().context("a file for the initramfs")?;
    file.write_all(&archive.finish()?).context("cannot write the initramfs")?;
    Ok(file)
}

/// In every dynamically linked program for this architecture.
const INTERPRETER: &[u8] = b"/lib64/ld-linux-x86-64.so.2\0";

fn init(script: &Script<'_>, first: &str) -> Result<String> {
    let modules = quote(&format!("{HOST}{}", text(&script.kernel.modules)?));
    let mut shares = String::new();
    for (number, path) in script.share.iter().enumerate() {
        let path = quote(&format!("{ROOT}{}", text(path)?));
        shares.push_str(&format!(
            "mount -t 9p -o {NINEP},cache=none share{number} {path} || fail sharing {path}\n"
        ));
    }
    let next = NEXT.join(" ");
    Ok(format!(
        r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
ln -s /bin/modprobe /sbin/modprobe
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
fail() {{ echo "evenwire: $*" >/dev/console; poweroff -f; }}
for module in{first}; do insmod $module || fail insmod $module; done
waited=0
until [ -e /dev/vport0p3 ]; do
    waited=$((waited + 1)); [ $waited -lt 300 ] || fail no channel to the host
    sleep 0.1
done
mount -t 9p -o {NINEP},cache=loose,ro host {HOST} || fail 9p
mount -t tmpfs -o size=75% scratch /scratch
mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir={HOST},upperdir=/scratch/upper,workdir=/scratch/work overlay {ROOT} || fail overlay
mount --bind {modules} /lib/modules || fail modules
for module in {next}; do modprobe $module || fail modprobe $module; done
mkdir -p {ROOT}/lib/modules
mount --bind {modules} {ROOT}/lib/modules
mount --bind /dev {ROOT}/dev
mkdir -p {ROOT}/dev/pts {ROOT}/dev/shm
mount -t devpts devpts {ROOT}/dev/pts
mount -t tmpfs shm {ROOT}/dev/shm
mount -t proc proc {ROOT}/proc
mount -t sysfs sys {ROOT}/sys
mount -t bpf bpf {ROOT}/sys/fs/bpf
mount -t tmpfs run {ROOT}/run
{shares}ip link set lo up
chroot {ROOT} /bin/sh -c "$(cat /command)" </dev/null >/dev/vport0p1 2>/dev/vport0p2
echo $? >/dev/vport0p3
# The channels are emptied by the host's main loop, which must turn once more before the machine is off.
sleep 0.3
poweroff -f
"#
    ))
}

const NINEP: &str = "trans=virtio,version=9p2000.L,msize=262144";

fn command(script: &Script<'_>) -> Result<String> {
    let mut line = format!("cd {} && exec env -i {EMULATED}=1", quote(text(script.directory)?));
    for (name, value) in std::env::vars() {
        if PASSED.contains(&name.as_str()) || PASSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            line.push_str(&format!(" {}", quote(&format!("{name}={value}"))));
        }
    }
    for word in script.command {
        line.push_str(&format!(" {}", quote(word)));
    }
    Ok(line)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// `word` as one word of a shell command.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

// linux/stat.h; the permissions are those of root's own files.
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

/// A cpio archive in the kernel's format, Documentation/driver-api/early-userspace/buffer-format.rst.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too long"))?;
        let name_size =
            u32::try_from(name.len() + 1).with_context(|| format!("{name} is too long a name"))?;
        // inode, mode, uid, gid, links, mtime, size, device x 4, name's size, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}")?;
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_quotes_and_spaces_through_a_shell() -> Result<()> {
        let words = ["a b", "it's", "$HOME", "\"", "", "line\nline"];
        let line = words.map(quote).join(" ");
        let script = format!("printf '<%s>' {line}");
        let output = std::process::Command::new("/bin/sh").args(["-c", &script]).output()?;
        let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(String::from_utf8(output.stdout)?, expected);
        Ok(())
    }

    #[test]
    fn every_part_of_an_archive_starts_at_a_multiple_of_four() -> Result<()> {
        let mut archive = Archive::default();
        archive.add("a", DIRECTORY, &[])?;
        archive.add("a/bcd", FILE, b"12345")?;
        let bytes = archive.finish()?;
        let headers: Vec<usize> =
            bytes.windows(6).enumerate().filter(|(_, w)| w == b"070701").map(|(at, _)| at).collect();
        // 110 bytes of header, the name with its zero, and the content, each padded.
        assert_eq!(headers, [0, 112, 112 + 116 + 8]);
        assert_eq!(bytes.len() % 4, 0);
        Ok(())
    }
}
