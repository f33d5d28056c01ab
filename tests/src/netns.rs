//! Network namespaces with a name in `/run/netns`, so that `ip netns exec NAME` reaches them too.

use std::fs::File;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::processes::end_processes;

/// Where iproute2 looks for named namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// The namespace of the calling thread; `/proc/self/ns/net` would be that of the main thread.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Time after which a conversation with the kernel over netlink counts as failed.
const NETLINK_LIMIT: Duration = Duration::from_secs(10);

/// A named network namespace. Dropping the value leaves the namespace in place; [`Netns::delete`] removes it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a new, empty namespace and binds it to `/run/netns/NAME`.
    ///
    /// # Errors
    /// When the name is taken or unusable, or without root.
    pub fn create(name: &str) -> Result<Self> {
        let path = path_of(name)?;
        shared_netns_dir()?;
        File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("namespace {name}: cannot create {}", path.display()))?;
        let bound = on_own_thread(|| -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET); this needs root")?;
            mount(Some(OWN_NETNS), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("binding it to {}", path.display()))?;
            Ok(())
        });
        if let Err(error) = bound {
            // The empty file would make the name look taken for ever.
            std::fs::remove_file(&path).ok();
            return Err(error.context(format!("namespace {name}: cannot be made")));
        }
        Self::open(name)
    }

    /// Opens the namespace that `/run/netns/NAME` is bound to.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name)?;
        let file =
            File::open(&path).with_context(|| format!("namespace {name}: cannot open {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// The names of all namespaces that have one; none where they cannot be listed.
    pub fn names() -> Vec<String> {
        let entries = std::fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Whether a namespace of this name is there.
    pub fn exists(name: &str) -> bool {
        path_of(name).is_ok_and(|path| path.exists())
    }

    /// Removes the name. The namespace itself, with its interfaces, goes when its last process has gone.
    /// Removing what isn't there is no error.
    ///
    /// # Errors
    /// When the mount or the file cannot be removed.
    pub fn delete(name: &str) -> Result<()> {
        let path = path_of(name)?;
        if !path.exists() {
            return Ok(());
        }
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a file without a mount, left by a run that died between the two steps of `create`.
            Ok(()) | Err(nix::Error::EINVAL) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("namespace {name}: cannot unmount {}", path.display()));
            }
        }
        std::fs::remove_file(&path)
            .with_context(|| format!("namespace {name}: cannot remove {}", path.display()))
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into this namespace until the guard is dropped.
    ///
    /// # Errors
    /// When `setns` is refused, mostly for lack of root.
    pub fn enter(&self) -> Result<NetnsGuard> {
        let previous = File::open(OWN_NETNS).with_context(|| format!("cannot open {OWN_NETNS}"))?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("namespace {}: cannot be entered", self.name))?;
        Ok(NetnsGuard { previous, _not_send: PhantomData })
    }

    /// Runs `work` inside the namespace on a thread of its own and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `work` returns.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            let _inside = self.enter()?;
            work()
        })
    }

    /// Starts `command` inside the namespace: a child inherits the namespace of the thread that spawns it.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the program cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.run(|| {
            let program = command.get_program().to_owned();
            command
                .spawn()
                .with_context(|| format!("cannot start {} in namespace {}", program.display(), self.name))
        })
    }

    /// Runs `conversation` with a netlink route socket that belongs to this namespace.
    ///
    /// # Errors
    /// What the conversation returns, or that it took longer than 10 s.
    pub fn netlink<T, F>(&self, conversation: impl FnOnce(rtnetlink::Handle) -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().context("cannot open a netlink socket")?;
                let connection = tokio::spawn(connection);
                let answer = tokio::time::timeout(NETLINK_LIMIT, conversation(handle)).await;
                connection.abort();
                answer.with_context(|| format!("namespace {}: netlink gave no answer in 10 s", self.name))?
            })
        })
        .with_context(|| format!("namespace {}", self.name))
    }

    /// Writes a sysctl of this namespace; `key` is the path below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel has no such key or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| {
            let path = Path::new("/proc/sys").join(key);
            std::fs::write(&path, value)
                .with_context(|| format!("namespace {}: cannot set {} to {value}", self.name, path.display()))
        })
    }

    /// Ends every process inside: SIGTERM, up to `patience`, then SIGKILL. Returns how many there were.
    ///
    /// # Errors
    /// When the namespace or the list of processes cannot be read.
    pub fn end_processes(&self, patience: Duration) -> Result<usize> {
        let own = self.file.metadata().with_context(|| format!("namespace {}", self.name))?;
        let is_inside = |pid: &u32| {
            std::fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|other| (other.dev(), other.ino()) == (own.dev(), own.ino()))
        };
        let processes = std::fs::read_dir("/proc").context("cannot list processes")?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(end_processes(pids.filter(is_inside), patience))
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// Brings the calling thread back to the namespace it came from when dropped.
///
/// The namespace is a property of the thread, so the guard must stay on it:
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<relay_tests::NetnsGuard>();
/// ```
#[derive(Debug)]
#[must_use = "the thread goes back at once when the guard is dropped"]
pub struct NetnsGuard {
    previous: File,
    _not_send: PhantomData<*const ()>,
}

impl Drop for NetnsGuard {
    fn drop(&mut self) {
        if let Err(error) = setns(self.previous.as_fd(), CloneFlags::CLONE_NEWNET) {
            // Anything this thread did next would happen in the wrong network.
            eprintln!("cannot go back to the previous network namespace: {error}");
            std::process::abort();
        }
    }
}

fn path_of(name: &str) -> Result<PathBuf> {
    let usable = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if !usable {
        bail!("{name:?} is no name for a namespace: use up to 64 letters, digits, '-' and '_'");
    }
    Ok(Path::new(NETNS_DIR).join(name))
}

/// Makes `/run/netns` a shared mount point, as iproute2 does: a name added or removed here is then seen in other mount
/// namespaces as well.
fn shared_netns_dir() -> Result<()> {
    std::fs::create_dir_all(NETNS_DIR)
        .with_context(|| format!("cannot create {NETNS_DIR}; this needs root"))?;
    let share =
        || mount(None::<&str>, NETNS_DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(nix::Error::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NETNS_DIR), NETNS_DIR, None::<&str>, bind, None::<&str>)
                .and_then(|()| share())
                .with_context(|| format!("cannot make {NETNS_DIR} a mount point"))
        }
        other => other.with_context(|| format!("cannot share {NETNS_DIR}; this needs root")),
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .context("cannot start a thread")?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked").into()))
    })
}
