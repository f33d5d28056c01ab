//! What the client does while the wire is watched: nothing, a download, a burst of small fetches, and so on.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use relay_tests::processes::end_child;
use relay_tests::{Host, Lab};
use serde::Serialize;

use super::serve::{FILE_BYTES, content, sha256};

const IDLE: Duration = Duration::from_secs(6);
/// Seconds after which curl gives a fetch up.
const DOWNLOAD_LIMIT_S: &str = "90";
const BURST_LIMIT_S: &str = "20";
const BURST_FETCHES: usize = 8;

/// What the client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Download,
    Burst,
}

impl Phase {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Download => "download",
            Self::Burst => "burst",
        }
    }
}

/// A stretch of time in the observer's bins, `to` not included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) phase: Phase,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// The latest whole download.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Download {
    pub(super) bytes: u64,
    pub(super) sha256_ok: bool,
    pub(super) mbit_per_s: f64,
    /// Downloads that curl could not complete.
    pub(super) failures: u64,
}

/// The alternation of phases.
#[derive(Debug)]
pub(super) struct Phases<'a> {
    lab: &'a Lab,
    phase: Phase,
    since: Instant,
    since_bin: u64,
    curl: Option<Child>,
    expected: String,
    windows: Vec<Window>,
    pub(super) download: Download,
}

/// Windows kept; the oldest go first.
const WINDOWS_KEPT: usize = 1024;

impl<'a> Phases<'a> {
    pub(super) fn new(lab: &'a Lab, bin: u64) -> Self {
        Self {
            lab,
            phase: Phase::Idle,
            since: Instant::now(),
            since_bin: bin,
            curl: None,
            expected: sha256(&content(FILE_BYTES)),
            windows: Vec::new(),
            download: Download::default(),
        }
    }

    pub(super) fn current(&self) -> Phase {
        self.phase
    }

    /// Whether a download and the burst after it have been tried, so that there is something to judge.
    pub(super) fn has_seen_all(&self) -> bool {
        [Phase::Idle, Phase::Download, Phase::Burst]
            .iter()
            .all(|&phase| self.windows.iter().any(|window| window.phase == phase))
    }

    pub(super) fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Goes on to the next phase when the present one is over.
    pub(super) fn step(&mut self, bin: u64) -> Result<()> {
        let over = match self.curl.as_mut() {
            Some(curl) => curl.try_wait()?.is_some(),
            None => self.since.elapsed() >= IDLE,
        };
        if !over {
            return Ok(());
        }
        if let Some(curl) = self.curl.take()
            && self.phase == Phase::Download
        {
            self.judge(curl)?;
        }
        self.windows.push(Window { phase: self.phase, from: self.since_bin, to: bin });
        if self.windows.len() > WINDOWS_KEPT {
            self.windows.remove(0);
        }
        self.phase = match self.phase {
            Phase::Idle => Phase::Download,
            Phase::Download => Phase::Burst,
            Phase::Burst => Phase::Idle,
        };
        (self.since, self.since_bin) = (Instant::now(), bin);
        self.curl = self.start()?;
        Ok(())
    }

    fn start(&self) -> Result<Option<Child>> {
        let service = Host::Service.address().context("the service has an address")?;
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--connect-timeout", "10"]).stdin(Stdio::null());
        match self.phase {
            Phase::Idle => return Ok(None),
            Phase::Download => {
                curl.args(["--max-time", DOWNLOAD_LIMIT_S, "--output"]).arg(self.file());
                curl.arg(format!("http://{service}/file"));
            }
            Phase::Burst => {
                curl.args(["--max-time", BURST_LIMIT_S, "--parallel"]);
                for _ in 0..BURST_FETCHES {
                    curl.args(["--output", "/dev/null"]).arg(format!("http://{service}/small"));
                }
            }
        }
        curl.stdout(Stdio::null()).stderr(Stdio::null());
        self.lab.spawn(Host::Client, &mut curl).map(Some)
    }

    fn judge(&mut self, mut curl: Child) -> Result<()> {
        let took = self.since.elapsed();
        if !curl.wait()?.success() {
            self.download.failures += 1;
            return Ok(());
        }
        let bytes = fs::read(self.file()).context("the downloaded file is gone")?;
        self.download.bytes = bytes.len() as u64;
        self.download.sha256_ok = sha256(&bytes) == self.expected;
        self.download.mbit_per_s = bytes.len() as f64 * 8.0 / 1e6 / took.as_secs_f64();
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.lab.dir().join("download")
    }
}

impl Drop for Phases<'_> {
    fn drop(&mut self) {
        if let Some(mut curl) = self.curl.take() {
            end_child(&mut curl, Duration::from_secs(1)).ok();
        }
    }
}
