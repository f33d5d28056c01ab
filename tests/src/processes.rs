//! A record of started processes that survives the one who started them.
//!
//! A process is named by its id *and* its start time, so that a later run never ends a stranger that got the same id.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The file that lists what a lab started.
#[derive(Debug)]
pub struct ProcessRecord {
    path: PathBuf,
}

impl ProcessRecord {
    /// A record kept at `path`; the file appears with the first entry.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Adds a running process.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, pid: u32) -> Result<()> {
        let Some(started) = start_time(pid) else {
            return Ok(());
        };
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&self.path)
            .with_context(|| format!("cannot open {}", self.path.display()))?;
        writeln!(file, "{pid} {started}").with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Ends every listed process that still is the one that was started: SIGTERM, up to `patience`, then SIGKILL.
    /// Returns how many were still there.
    ///
    /// # Errors
    /// When the record exists but cannot be read.
    pub fn end_all(&self, patience: Duration) -> Result<usize> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            other => other.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        let ours: Vec<(u32, u64)> = text
            .lines()
            .filter_map(|line| {
                let (pid, started) = line.split_once(' ')?;
                Some((pid.parse().ok()?, started.parse().ok()?))
            })
            .filter(|&entry| is_running(entry))
            .collect();
        end_running(&ours, patience);
        Ok(ours.len())
    }
}

/// Ends these processes: SIGTERM, up to `patience`, then SIGKILL. Returns how many of them ran.
pub(crate) fn end_processes(pids: impl Iterator<Item = u32>, patience: Duration) -> usize {
    let running: Vec<(u32, u64)> = pids.filter_map(|pid| Some((pid, start_time(pid)?))).collect();
    end_running(&running, patience);
    running.len()
}

fn end_running(processes: &[(u32, u64)], patience: Duration) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for &entry in processes.iter().filter(|&&entry| is_running(entry)) {
            signal_to(entry.0, signal);
        }
        let until = Instant::now() + patience;
        while processes.iter().any(|&entry| is_running(entry)) && Instant::now() < until {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Ends a child: SIGTERM, up to `patience`, then SIGKILL. Always reaps it.
///
/// # Errors
/// When the child cannot be waited for.
pub fn end_child(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    signal_to(child.id(), Signal::SIGTERM);
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    child.kill().with_context(|| format!("cannot end process {}", child.id()))?;
    Ok(child.wait()?)
}

fn signal_to(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have gone by itself in between; the wait that follows decides.
        kill(Pid::from_raw(pid), signal).ok();
    }
}

fn is_running((pid, started): (u32, u64)) -> bool {
    start_time(pid) == Some(started)
}

/// Clock ticks after boot at which the process started; `None` when it is gone or only waits to be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The program's name stands in parentheses and may itself contain spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // Field 22 of proc_pid_stat(5); `state` is field 3.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_recorded_process_is_ended_and_a_stranger_with_its_id_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("pids");
        let mut ours = Command::new("sleep").arg("60").spawn().expect("sleep");
        let mut stranger = Command::new("sleep").arg("60").spawn().expect("sleep");
        ProcessRecord::at(path.clone()).add(ours.id()).expect("record");
        let wrong_start = start_time(stranger.id()).expect("start time") + 1;
        let mut file = File::options().append(true).open(&path).expect("open");
        writeln!(file, "{} {wrong_start}\nnot a line", stranger.id()).expect("write");

        let ended = ProcessRecord::at(path).end_all(Duration::from_secs(5)).expect("end");
        assert_eq!(ended, 1);
        assert!(ours.wait().expect("wait").code().is_none(), "ended by a signal");
        assert!(stranger.try_wait().expect("try_wait").is_none(), "the stranger lives");
        end_child(&mut stranger, Duration::from_secs(5)).expect("end");
    }
}
