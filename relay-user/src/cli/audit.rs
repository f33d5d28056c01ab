//! `relay audit`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::audit::{AuditError, Marks, MarksError, Says, audit};
use crate::observe::capture::{CaptureError, Limits, read};

/// Of what is drawn at random in resampling: the same capture gives the same report.
const SEED: u64 = 1;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// A capture of your own wire: pcap or pcapng.
    #[arg(value_name = "CAPTURE")]
    capture: PathBuf,
    /// When you were active: lines `START END LABEL`, in seconds since 1970.
    #[arg(long, value_name = "FILE")]
    marks: Option<PathBuf>,
    /// Write the report as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the wire as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Draw the wire as PNG.
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
}

/// Why there is no report; all of it is for the user to correct.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0} {1}")]
    Capture(PathBuf, CaptureError),
    #[error("{0} {1}")]
    Audit(PathBuf, AuditError),
    #[error("{0}, {1}")]
    Marks(PathBuf, MarksError),
    #[error("cannot {1} {0}: {2}")]
    File(PathBuf, &'static str, std::io::Error),
    #[error("cannot draw {0}")]
    Picture(PathBuf),
}

/// Prints the report. `true` where nothing was found, which is not to say that there is nothing.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let path = &arguments.capture;
    let marks = arguments.marks.as_deref().map(marks).transpose()?;
    let file = File::open(path).map_err(|error| Refusal::File(path.clone(), "open", error))?;
    let capture =
        read(BufReader::with_capacity(1 << 18, file), Limits::default()).map_err(|error| match error {
            CaptureError::Io(error) => Refusal::File(path.clone(), "read", error),
            error => Refusal::Capture(path.clone(), error),
        })?;
    let report =
        audit(&capture, marks.as_ref(), SEED).map_err(|error| Refusal::Audit(path.clone(), error))?;
    drop(capture);
    print!("{report}");
    if let Some(path) = &arguments.json {
        write(path, format!("{:#}\n", report.json()).as_bytes())?;
    }
    if let Some(path) = &arguments.svg {
        let svg = report.picture.svg().ok_or_else(|| Refusal::Picture(path.clone()))?;
        write(path, svg.as_bytes())?;
    }
    if let Some(path) = &arguments.png {
        let png = report.picture.png().ok_or_else(|| Refusal::Picture(path.clone()))?;
        write(path, &png)?;
    }
    Ok(report.that(Says::Found).next().is_none())
}

fn marks(path: &Path) -> Result<Marks, Refusal> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Refusal::File(path.to_owned(), "read", error))?;
    Marks::parse(&text).map_err(|error| Refusal::Marks(path.to_owned(), error))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Refusal> {
    std::fs::write(path, bytes).map_err(|error| Refusal::File(path.to_owned(), "write", error))
}

/// Whether `error` says what the user must correct.
pub(super) fn is_mistake(error: &anyhow::Error) -> bool {
    error.is::<Refusal>()
}
