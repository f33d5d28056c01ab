//! `relay status`.

use std::fmt::Write as _;
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

/// What the names in the answer mean that do not say it themselves.
pub(super) const EXPLANATION: &str = "\
guarantee                    what wires may tell of the payload: schedule, nothing; ledger, as many bits as
                             stand in the ledger; lost, what machines let through
Self-audit (self_audit.*): whether payload leaves when cover does, on links that carry much of both
  alarm, breaches, epochs    whether it did not since the start, how often, and how often that was looked for
  statistic, at_least        of the latest breach: what it was found by, and how large it is at least
Drops (drops.*), cells and packets by reason; among them
  edge_queue_delay           packets that waited for their circuit's cells for too long (CoDel)
  edge_circuit_gone, circuit_ended
                             packets and cells that waited when their circuit or link ended
  lost_cell, late_cell, cut_packet
                             cells of circuits that end here, as far as their numbers tell, and packets that they cost
Rates (rates.*):
  policy                     of clients' links: fixed, scheduled or adaptive
  epoch_seconds              classes change at multiples of this in Unix time, and never between
  breaker_trips              links stopped for their loss
Ledger (rates.leakage.*): what changes of class may have told whoever watches the wires, over all links of this node
together. Upper bounds in bits; days begin at midnight, UTC. What a peer decides stands in the peer's ledger.
  bits_today, bits_yesterday, bits_worst_day, bits_since_start
  bits_by_demand             of these, by choices of an adaptive client
  bits_by_loss               by steps for lasting loss, taken or not
  bits_by_breaker            by links that were stopped, and when
  bits_by_delay              by boundaries that this node missed, as while its host stood still
  epsilon_today, epsilon_since_start
                             sums of the choices' ε
  opportunities, changes     times at which a class could have changed, and those at which it did";

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Print the answer as JSON.
    #[arg(long, conflicts_with = "metrics")]
    json: bool,
    /// Print the answer's numbers in the text format of Prometheus, as for a collector that reads files.
    #[arg(long)]
    metrics: bool,
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
    } else if arguments.metrics {
        print!("{}", metrics(&status));
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

/// One line per number, yes and no as 1 and 0, and what is left of the guarantee. What there are several of has a label:
/// the drops' reason, a link's peer, a socket's queue.
fn metrics(status: &Value) -> String {
    let mut lines = String::new();
    sample("evenwire", "", status, &mut lines);
    lines
}

fn sample(name: &str, label: &str, value: &Value, lines: &mut String) {
    let mut number = |value: &dyn std::fmt::Display| {
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{name}{label} {value}");
    };
    match value {
        Value::Number(value) => number(value),
        Value::Bool(value) => number(&u8::from(*value)),
        // Words that an operator has to be woken by are labels of a one.
        Value::String(word) if name.ends_with("_guarantee") => {
            sample(name, &format!("{{is=\"{word}\"}}"), &Value::from(1), lines);
        }
        Value::Null | Value::String(_) => {}
        Value::Object(fields) if name.ends_with("_drops") => {
            for (reason, count) in fields {
                sample(name, &format!("{{reason=\"{reason}\"}}"), count, lines);
            }
        }
        Value::Object(fields) => {
            for (field, value) in fields {
                sample(&format!("{name}_{field}"), label, value, lines);
            }
        }
        Value::Array(entries) => {
            for entry in entries {
                let of = ["peer", "queue"].into_iter().find_map(|key| Some((key, entry.get(key)?)));
                let label = of.map_or_else(String::new, |(key, value)| {
                    format!(
                        "{{{key}=\"{}\"}}",
                        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                    )
                });
                sample(name, &label, entry, lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
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
    fn the_ledgers_names_are_explained() {
        let summary = crate::rates::Ledger::default().summary(crate::rates::Unix(0));
        let Value::Object(fields) = serde_json::to_value(summary).unwrap() else { panic!("an object") };
        assert!(fields.len() >= 12);
        for name in fields.keys() {
            assert!(EXPLANATION.contains(name.as_str()), "{name} is not explained");
        }
        assert!(EXPLANATION.lines().all(|line| line.chars().count() <= 120));
        let text = table(&serde_json::json!({ "rates": { "leakage": summary } }));
        assert!(
            text.lines()
                .any(|line| line.starts_with("rates.leakage.bits_by_breaker") && line.ends_with("  0.0")),
            "{text}"
        );
    }

    #[test]
    fn bits_are_shown_to_the_millionth() {
        let mut ledger = crate::rates::Ledger::default();
        for _ in 0..3 {
            let bound = crate::rates::Bound::private(3, 0.7);
            ledger.enter(crate::rates::Unix(0), crate::rates::Cause::Adaptive, bound, false);
        }
        let text = table(&serde_json::json!({ "leakage": ledger.summary(crate::rates::Unix(0)) }));
        let shown = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("leakage.{name} "))).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!((shown("bits_today").as_str(), shown("epsilon_today").as_str()), ("3.029661", "2.1"));
        assert_eq!((shown("opportunities").as_str(), shown("changes").as_str()), ("3", "0"));
    }

    #[test]
    fn numbers_are_metrics_and_of_words_the_guarantee() {
        let status = serde_json::json!({
            "name": "entry", "ready": true, "xdp_mode": null, "missed_slots": 7, "guarantee": "lost",
            "drops": {"queue_full": 3}, "links": [{"peer": "middle", "up": false, "lanes": 2}],
            "queues": [{"queue": 1, "need_wakeup": true}], "self_audit": {"alarm": false, "at_least": null},
            "rates": {"leakage": {"bits_today": 1.5}},
        });
        let text = metrics(&status);
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "evenwire_drops{reason=\"queue_full\"} 3",
                "evenwire_guarantee{is=\"lost\"} 1",
                "evenwire_links_lanes{peer=\"middle\"} 2",
                "evenwire_links_up{peer=\"middle\"} 0",
                "evenwire_missed_slots 7",
                "evenwire_queues_need_wakeup{queue=\"1\"} 1",
                "evenwire_queues_queue{queue=\"1\"} 1",
                "evenwire_rates_leakage_bits_today 1.5",
                "evenwire_ready 1",
                "evenwire_self_audit_alarm 0",
            ]
        );
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
