//! The live table.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use relay_tests::{Host, Snapshot};

use super::nodes::Status;
use super::phases::Phase;

/// What one second looked like.
#[derive(Debug)]
pub(super) struct Second<'a> {
    pub(super) number: u64,
    pub(super) phase: Phase,
    pub(super) snapshot: &'a Snapshot,
    /// The observer's bin that this second ends with, not included.
    pub(super) bin: u64,
    /// Bytes per second out of and into the client's tunnel interface.
    pub(super) payload: (u64, u64),
    pub(super) statuses: &'a [(Host, Status)],
}

/// Draws in place on a terminal, a line per second elsewhere.
#[derive(Debug)]
pub(super) struct Table {
    in_place: bool,
    drawn: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { in_place: std::io::stdout().is_terminal(), drawn: 0 }
    }

    pub(super) fn draw(&mut self, second: &Second<'_>) {
        let text = if self.in_place { whole(second) } else { line(second) };
        let mut out = std::io::stdout().lock();
        if self.in_place && self.drawn > 0 {
            write!(out, "\x1b[{}A\x1b[J", self.drawn).ok();
        }
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
        self.drawn = text.lines().count();
    }
}

/// Cells of the second before `bin`, from one host to another.
fn cells(second: &Second<'_>, a: Host, b: Host) -> Option<u64> {
    let flow = second.snapshot.flow(a.address()?, b.address()?)?;
    Some(flow.datagrams_between(second.bin.saturating_sub(10), second.bin))
}

fn pairs() -> impl Iterator<Item = (Host, Host)> {
    Host::ON_WIRE
        .into_iter()
        .enumerate()
        .flat_map(|(nth, a)| Host::ON_WIRE.into_iter().skip(nth + 1).map(move |b| (a, b)))
}

fn mbit(bytes: u64) -> f64 {
    bytes as f64 * 8.0 / 1e6
}

fn whole(second: &Second<'_>) -> String {
    let mut text = String::new();
    let (sent, received) = second.payload;
    writeln!(
        text,
        "{:>5} s  {:<9} payload {:>6.2} Mbit/s out {:>6.2} Mbit/s in   in the clear: {}",
        second.number,
        second.phase.name(),
        mbit(sent),
        mbit(received),
        second.snapshot.in_the_clear()
    )
    .ok();
    for (a, b) in pairs() {
        let (there, back) = (cells(second, a, b), cells(second, b, a));
        if there.is_some() || back.is_some() {
            let (there, back) = (there.unwrap_or(0), back.unwrap_or(0));
            writeln!(text, "  {:<7}{there:>6} cells/s -> {:<7}{back:>6} cells/s <-", a.name(), b.name()).ok();
        }
    }
    for (host, status) in second.statuses {
        let drops: Vec<String> = reasons(status).map(|(reason, count)| format!("{reason} {count}")).collect();
        let mode = status.xdp_mode.as_deref().unwrap_or("-");
        writeln!(
            text,
            "  {:<7}XDP {mode:<8}missed slots {:<8} drops: {}",
            host.name(),
            status.missed_slots,
            if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }
        )
        .ok();
    }
    text
}

fn line(second: &Second<'_>) -> String {
    let mut text = format!("{:>4} s {:<8}", second.number, second.phase.name());
    for (a, b) in pairs() {
        if let (Some(there), Some(back)) = (cells(second, a, b), cells(second, b, a)) {
            write!(text, "  {}-{} {there}/{back}", a.name(), b.name()).ok();
        }
    }
    let missed: u64 = second.statuses.iter().map(|(_, status)| status.missed_slots).sum();
    let drops: u64 =
        second.statuses.iter().flat_map(|(_, status)| reasons(status)).map(|(_, count)| count).sum();
    let (sent, received) = second.payload;
    writeln!(
        text,
        "  payload {:.2}/{:.2} Mbit/s  missed {missed}  drops {drops}  clear {}",
        mbit(sent),
        mbit(received),
        second.snapshot.in_the_clear()
    )
    .ok();
    text
}

fn reasons(status: &Status) -> impl Iterator<Item = (&str, u64)> {
    status.drops.iter().filter(|&(_, &count)| count > 0).map(|(reason, &count)| (reason.as_str(), count))
}
