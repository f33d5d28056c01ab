//! `relay status`.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::Value;

use crate::config::Config;

/// A running program answers at once; this is for one that hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer, at most.
const MAX_ANSWER_LEN: u64 = 1 << 20;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Target {
    /// The program's control socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The program's file, which names the control socket.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let socket = match (&arguments.target.socket, &arguments.target.config) {
        (Some(socket), _) => socket.clone(),
        (None, Some(file)) => Config::load(file)?.control().socket.clone(),
        (None, None) => anyhow::bail!("no control socket is named; give --socket or --config"),
    };
    let status = ask(&socket)?;
    if arguments.json {
        println!("{status}");
    } else {
        print!("{}", table(&status));
    }
    Ok(())
}

fn ask(socket: &Path) -> anyhow::Result<Value> {
    let name = socket.display();
    let stream = UnixStream::connect(socket).with_context(|| {
        format!("{name}: nothing answers; is the program running, and may you open its socket?")
    })?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut answer = String::new();
    let len = stream
        .take(MAX_ANSWER_LEN + 1)
        .read_to_string(&mut answer)
        .with_context(|| format!("{name}: no whole answer came; is the program stuck?"))?;
    ensure!(
        u64::try_from(len)? <= MAX_ANSWER_LEN,
        "{name}: the answer has no end; is this a control socket?"
    );
    serde_json::from_str(&answer)
        .with_context(|| format!("{name}: the answer is not JSON; is this a control socket?"))
}

/// One line per value, names aligned and nested names joined by dots.
fn table(status: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", status, &mut rows);
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let under = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&under(field), value, rows);
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                flatten(&under(&index.to_string()), entry, rows);
            }
        }
        Value::Null => rows.push((name.to_owned(), "-".to_owned())),
        Value::String(text) => rows.push((name.to_owned(), text.clone())),
        Value::Bool(true) => rows.push((name.to_owned(), "yes".to_owned())),
        Value::Bool(false) => rows.push((name.to_owned(), "no".to_owned())),
        Value::Number(number) => rows.push((name.to_owned(), number.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    fn answering(answer: &'static [u8]) -> anyhow::Result<Value> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(answer).unwrap());
        let status = ask(&path);
        server.join().unwrap();
        status
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let status = answering(br#"{"name":"entry","ready":true,"drops":{"replay":3}}"#).unwrap();
        assert_eq!(status["drops"]["replay"], 3);
    }

    #[test]
    fn other_answers_are_failures_with_a_hint() {
        for answer in [&b""[..], b"{", b"hello", b"{} {}"] {
            let error = answering(answer).unwrap_err().to_string();
            assert!(error.contains("is this a control socket?"), "{error}");
        }
        let error = ask(Path::new("/nonexistent/control.sock")).unwrap_err().to_string();
        assert!(error.contains("is the program running"), "{error}");
    }

    #[test]
    fn the_table_is_aligned() {
        let status = serde_json::json!({
            "name": "entry", "ready": true, "xdp_mode": null,
            "drops": {"replay": 3}, "links": [{"peer": "middle", "up": false}],
        });
        let mut lines: Vec<String> = table(&status).lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "drops.replay  3",
                "links.0.peer  middle",
                "links.0.up    no",
                "name          entry",
                "ready         yes",
                "xdp_mode      -",
            ]
        );
    }
}
