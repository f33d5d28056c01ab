//! qemu, and the channels through which the command's output and status come back.

use std::io::{self, Read as _, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::{NamedTempFile, TempDir};

use super::kernel::Kernel;
use crate::interrupt::Interrupt;

/// How often the machine is looked after.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long qemu may take to open its channels, and the channels to run dry once it has gone.
const CHANNELS: Duration = Duration::from_secs(20);
/// Lines of the console that an error shows.
const CONSOLE_LINES: usize = 15;
/// Names of the channels, in the order of their ports 1, 2 and 3.
const OUT: &str = "out";
const ERR: &str = "err";
const STATUS: &str = "status";

/// A machine to be started.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) image: &'a NamedTempFile,
    pub(super) share: &'a [PathBuf],
    pub(super) cpus: u32,
    pub(super) memory: u32,
    pub(super) limit: Duration,
}

impl Machine<'_> {
    /// Runs the machine until it switches itself off, and returns the command's exit status.
    pub(super) fn run(&self) -> Result<u8> {
        let interrupt = Interrupt::listen()?;
        let room = TempDir::new().context("a directory for the machine's channels")?;
        let listen = |name: &str| -> Result<UnixListener> {
            let listener = UnixListener::bind(room.path().join(name)).context("a channel")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listeners = [listen(OUT)?, listen(ERR)?, listen(STATUS)?];
        let mut qemu = Qemu(self.command(room.path()).spawn().context("cannot start qemu-system-x86_64")?);
        let started = Instant::now();
        let [out, err, status] = accept(&listeners, &mut qemu)?;
        let out = copy(out, io::stdout())?;
        let err = copy(err, io::stderr())?;
        let status = read(status)?;
        let ended = loop {
            if let Some(ended) = qemu.0.try_wait()? {
                break ended;
            }
            if interrupt.is_set() {
                bail!("interrupted; the machine is ended");
            }
            if started.elapsed() > self.limit {
                bail!(
                    "the machine was still running after {} s and is ended; allow more with --timeout. {}",
                    self.limit.as_secs(),
                    console(room.path())
                );
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        for channel in [out, err] {
            channel.join().ok().context("a channel's thread panicked")?.context("the command's output")?;
        }
        let status =
            status.join().ok().context("a channel's thread panicked")?.context("the command's status")?;
        status.trim().parse().ok().with_context(|| {
            format!(
                "the machine ended ({ended}) without an exit status of the command. {}",
                console(room.path())
            )
        })
    }

    fn command(&self, room: &Path) -> Command {
        // The machine goes with this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"]);
        command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &self.memory.to_string()]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.image.path());
        command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        command.arg("-serial").arg(format!("file:{}", room.join(CONSOLE).display()));
        command.args(["-device", "virtio-serial-pci"]);
        for (name, port) in [OUT, ERR, STATUS].into_iter().zip(1..) {
            command.arg("-chardev").arg(format!("socket,id={name},path={}", room.join(name).display()));
            command.arg("-device").arg(format!("virtserialport,chardev={name},name={name},nr={port}"));
        }
        let export = |path: &str, tag: &str, rest: &str| {
            // A comma in a value is doubled.
            let path = path.replace(',', ",,");
            format!("local,path={path},mount_tag={tag},security_model=none,multidevs=remap{rest}")
        };
        command.arg("-virtfs").arg(export("/", "host", ",readonly=on"));
        for (number, path) in self.share.iter().enumerate() {
            command.arg("-virtfs").arg(export(&path.to_string_lossy(), &format!("share{number}"), ""));
        }
        command.stdin(Stdio::null());
        command
    }
}

const CONSOLE: &str = "console";

/// Ended when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Gone already, mostly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn accept<const N: usize>(listeners: &[UnixListener; N], qemu: &mut Qemu) -> Result<[UnixStream; N]> {
    let started = Instant::now();
    let mut streams = Vec::with_capacity(N);
    for listener in listeners {
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("a channel"),
            }
            if let Some(ended) = qemu.0.try_wait()? {
                bail!("qemu-system-x86_64 did not start: {ended}");
            }
            if started.elapsed() > CHANNELS {
                bail!("qemu-system-x86_64 did not open its channels in {} s", CHANNELS.as_secs());
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        stream.set_nonblocking(false)?;
        streams.push(stream);
    }
    streams.try_into().ok().context("as many streams as listeners")
}

/// Passes on what comes, as it comes.
fn copy(mut from: UnixStream, mut to: impl Write + Send + 'static) -> io::Result<JoinHandle<io::Result<()>>> {
    std::thread::Builder::new().name("channel".to_owned()).spawn(move || {
        let mut buffer = [0; 8192];
        loop {
            let length = from.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..length])?;
            to.flush()?;
        }
    })
}

fn read(from: UnixStream) -> io::Result<JoinHandle<io::Result<String>>> {
    std::thread::Builder::new().name("status".to_owned()).spawn(move || {
        let mut text = String::new();
        // Three digits and a line's end; no more is read whatever the machine sends.
        from.take(64).read_to_string(&mut text)?;
        Ok(text)
    })
}

/// The last lines of the machine's console.
fn console(room: &Path) -> String {
    let text = std::fs::read(room.join(CONSOLE)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    if last.is_empty() {
        "Its console shows nothing".to_owned()
    } else {
        format!("Its console ends:\n{}", last.join("\n"))
    }
}
