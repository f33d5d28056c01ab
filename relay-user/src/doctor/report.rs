//! Findings, and how they are shown.

use std::fmt::Write as _;

use serde::Serialize;

use super::apply::Step;
use super::plan::{Plan, WorkerPlace};

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// The machine does not tell.
    Unknown,
    /// It works, and could work better.
    Warn,
    /// A relay does not start, or loses cells.
    Problem,
}

impl Verdict {
    /// The word that reports use.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What it is a part of: the machine, the interface, or one worker.
    pub(crate) part: String,
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How to take it.
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) what: String,
    /// What to do, as lines: commands where a command does it.
    pub(crate) remedy: Vec<String>,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    interface: Option<String>,
    workers: Vec<WorkerPlace>,
    findings: Vec<Finding>,
    applied: Vec<Step>,
}

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            interface: plan.interface.clone(),
            workers: plan.workers.clone(),
            findings: Vec::new(),
            applied: Vec::new(),
        }
    }

    /// Adds what was found to be right.
    pub(super) fn ok(&mut self, part: &str, name: &'static str, what: impl Into<String>) {
        self.add(part, name, Verdict::Ok, what, Vec::<String>::new());
    }

    /// Adds what the machine does not tell, and how it could be known.
    pub(super) fn unknown(
        &mut self,
        part: &str,
        name: &'static str,
        what: impl Into<String>,
        remedy: impl IntoIterator<Item = impl Into<String>>,
    ) {
        self.add(part, name, Verdict::Unknown, what, remedy);
    }

    /// Adds a finding.
    pub(super) fn add(
        &mut self,
        part: &str,
        name: &'static str,
        verdict: Verdict,
        what: impl Into<String>,
        remedy: impl IntoIterator<Item = impl Into<String>>,
    ) {
        self.findings.push(Finding {
            part: part.to_owned(),
            name,
            verdict,
            what: what.into(),
            remedy: remedy.into_iter().map(Into::into).collect(),
        });
    }

    /// Notes what was carried out before.
    pub(crate) fn set_applied(&mut self, steps: Vec<Step>) {
        self.applied = steps;
    }

    /// Findings of this verdict.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// The report for people: a block for each part, a line for each finding, remedies below it.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for step in &self.applied {
            let _ = match &step.refused {
                None => writeln!(text, "done     {}", step.command),
                Some(reason) => writeln!(text, "refused  {}\n         {reason}", step.command),
            };
        }
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        let mut part = None;
        for finding in &self.findings {
            if part != Some(&finding.part) {
                let gap = if text.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}{}", finding.part);
                part = Some(&finding.part);
            }
            let _ =
                writeln!(text, "  {:<7}  {:width$}  {}", finding.verdict.name(), finding.name, finding.what);
            for line in &finding.remedy {
                let _ = writeln!(text, "  {:<7}  {:width$}  -> {line}", "", "");
            }
        }
        let counts = [Verdict::Problem, Verdict::Warn, Verdict::Unknown].map(|verdict| self.count(verdict));
        let _ = writeln!(
            text,
            "\nlooked at: {}, problems: {}, warnings: {}, unknown: {}",
            self.findings.len(),
            counts[0],
            counts[1],
            counts[2]
        );
        text
    }

    #[cfg(test)]
    pub(super) fn find(&self, name: &str) -> &Finding {
        self.findings
            .iter()
            .find(|finding| finding.name == name)
            .unwrap_or_else(|| panic!("no {name} in {self:#?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_block_for_each_part() {
        let mut report = Report::new(&Plan::of_interface("wire0"));
        report.ok("machine", "kernel", "6.12.9");
        report.add("machine", "huge pages", Verdict::Warn, "0 free", ["sysctl -w vm.nr_hugepages=16"]);
        report.unknown("interface wire0", "zero-copy", "not told", ["relay doctor --probe"]);
        assert_eq!(
            report.table(),
            "machine\n  \
               ok       kernel      6.12.9\n  \
               warn     huge pages  0 free\n                       \
                                    -> sysctl -w vm.nr_hugepages=16\n\n\
             interface wire0\n  \
               unknown  zero-copy   not told\n                       \
                                    -> relay doctor --probe\n\n\
             looked at: 3, problems: 0, warnings: 1, unknown: 1\n"
        );
    }
}
