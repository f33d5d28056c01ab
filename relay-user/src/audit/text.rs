//! The report in words.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use super::direction::{self, Facts};
use super::law::Law;
use super::marked::FEWEST_MARKS;
use super::report::Report;
use super::row::{Row, Says, plain};
use super::steady::Steadiness;
use crate::observe::attacks::connections::Kind;
use crate::observe::capture::Other;

/// A p-value below which a change of gaps' spread is mentioned.
const CHANGED: f64 = 0.001;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.seen(f)?;
        for facts in &self.directions {
            describe(f, facts)?;
        }
        self.beginnings(f)?;
        self.section(f, "FOUND: an observer of this wire learns something", Says::Found)?;
        self.section(f, "Unclear: more than chance usually gives; capture again, longer", Says::Unclear)?;
        self.section(f, "Looked for and not found, with what would have been", Says::NotFound)?;
        self.powerless(f)?;
        writeln!(f, "\nNot tested")?;
        let mut said: Vec<(&str, Vec<String>)> = Vec::new();
        for untested in &self.untested {
            let attack = format!("{} {}", untested.attack.number(), untested.attack.name());
            match said.iter_mut().find(|(why, _)| *why == untested.why) {
                Some((_, attacks)) => attacks.push(attack),
                None => said.push((&untested.why, vec![attack])),
            }
        }
        for (why, attacks) in said {
            writeln!(f, "  {}: {why}", attacks.join(", "))?;
        }
        writeln!(f, "\n{}", self.verdict())
    }
}

impl Report {
    fn seen(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        let seconds = totals.span.1.saturating_sub(totals.span.0) as f64 / 1e9;
        writeln!(
            f,
            "{} packets in {} s, {} of Evenwire links.",
            totals.packets,
            plain(seconds),
            totals.of_links
        )?;
        let mut others: Vec<String> = [(totals.udp, "other UDP"), (totals.headless, "UDP cut short")]
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| format!("{count} {name}"))
            .collect();
        for other in Other::ALL {
            others.extend(totals.others.get(&other).map(|count| format!("{count} {}", other.name())));
        }
        if !others.is_empty() {
            writeln!(f, "Besides: {}.", others.join(", "))?;
        }
        if totals.unlisted > 0 {
            writeln!(
                f,
                "{} cells and handshakes are of more directions than are told apart.",
                totals.unlisted
            )?;
        }
        Ok(())
    }

    fn beginnings(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let begun = &self.begun;
        let hour = |count: f64| plain(count / begun.hours.max(1e-9));
        let (handshakes, links) = (begun.count(Kind::Handshake), begun.count(Kind::Flow));
        writeln!(
            f,
            "\n{handshakes} first handshake datagrams ({} an hour), {links} new links, {} changes of a receiver index ({} an \
             hour), in {} h.",
            hour(handshakes as f64),
            begun.rekeys,
            hour(begun.rekeys as f64),
            plain(begun.hours)
        )
    }

    fn section(&self, f: &mut Formatter<'_>, title: &str, says: Says) -> fmt::Result {
        let mut rows = self.that(says).peekable();
        if rows.peek().is_some() {
            writeln!(f, "\n{title}")?;
        }
        rows.try_for_each(|row| line(f, row))
    }

    /// What is missing, and for which figures: many lack the same.
    fn powerless(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut lacking: BTreeMap<&str, BTreeMap<String, Vec<&str>>> = BTreeMap::new();
        for row in self.that(Says::NoPower) {
            let attack = format!("{:>2} {}", row.attack().number(), row.attack().name());
            let of = lacking.entry(&row.power).or_default().entry(attack).or_default();
            if !of.contains(&row.of.as_str()) {
                of.push(&row.of);
            }
        }
        if !lacking.is_empty() {
            writeln!(f, "\nLooked for without power")?;
        }
        for (needs, attacks) in lacking {
            for (attack, of) in attacks {
                writeln!(f, "  {attack}: {}", of.join(", "))?;
            }
            writeln!(f, "     {needs}")?;
        }
        Ok(())
    }

    /// One paragraph. It never says that all is well.
    fn verdict(&self) -> String {
        let (found, unclear) = (self.that(Says::Found).count(), self.that(Says::Unclear).count());
        let silent = self.that(Says::NoPower).count();
        let looked = self.rows.len() - silent;
        let mut verdict = match (found, unclear) {
            (0, 0) => format!(
                "Verdict: none of {looked} figures is beyond chance. That holds for effects of the sizes named above; \
                 smaller ones would not have been seen."
            ),
            (0, unclear) => format!(
                "Verdict: {unclear} of {looked} figures is beyond what chance usually gives. One capture cannot tell."
            ),
            (found, _) => {
                format!("Verdict: {found} of {looked} figures show that this wire tells something.")
            }
        };
        if silent > 0 {
            verdict.push_str(&format!(" {silent} more had no power."));
        }
        match &self.marks {
            None => verdict.push_str(
                " Whether it tells when you are active was not tested: that takes --marks with your own log.",
            ),
            Some(marks) if marks.busy().count() < FEWEST_MARKS => verdict.push_str(&format!(
                " The log has {} marks; with fewer than {FEWEST_MARKS}, what you did cannot be told from what changed by \
                 itself.",
                marks.busy().count()
            )),
            Some(_) => {}
        }
        verdict
    }
}

fn line(f: &mut Formatter<'_>, row: &Row) -> fmt::Result {
    let finding = &row.finding;
    write!(f, "  {:>2} {}, {}: ", finding.attack.number(), finding.attack.name(), row.of)?;
    if finding.value.is_finite() {
        write!(f, "{} {}", finding.statistic, plain(finding.value))?;
        let (low, high) = (finding.interval.low, finding.interval.high);
        if low < high && low.is_finite() && high.is_finite() {
            write!(f, " [{}, {}]", plain(low), plain(high))?;
        }
    } else {
        write!(f, "{}", finding.statistic)?;
    }
    if row.power.is_empty() { writeln!(f) } else { writeln!(f, "; {}", row.power) }
}

fn describe(f: &mut Formatter<'_>, facts: &Facts) -> fmt::Result {
    writeln!(
        f,
        "\n{}, port {} to {}: {} cells in {} s, {} a second",
        facts.name,
        facts.ports.0,
        facts.ports.1,
        facts.cells,
        plain(facts.seconds),
        plain(facts.rate)
    )?;
    if facts.cells < direction::FEWEST as u64 {
        writeln!(f, "  too few to say anything: {} are the fewest", direction::FEWEST)?;
    }
    let lengths: Vec<String> =
        facts.lengths.iter().map(|(length, count)| format!("{length} ({count})")).collect();
    writeln!(f, "  lengths: {}", if lengths.is_empty() { "none".to_owned() } else { lengths.join(", ") })?;
    let counts = [
        (facts.lost, "missing by counters before the capture"),
        (facts.late, "overtaken"),
        (facts.repeated, "seen twice (captured at two places?)"),
        (facts.strange, "that are no cells"),
        (facts.cut, "captured in part"),
        (facts.unkept, "beyond the memory kept for times, not judged"),
    ];
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        writeln!(f, "  {count} {what}")?;
    }
    if let Some(gaps) = facts.gaps {
        writeln!(
            f,
            "  gaps: median {} µs, mean {}, deviation {}, 1 to 99 %: {} to {}, least {}, longest {}",
            plain(gaps.median),
            plain(gaps.mean),
            plain(gaps.deviation),
            plain(gaps.p1),
            plain(gaps.p99),
            plain(gaps.least),
            plain(gaps.most)
        )?;
    }
    law(f, facts)?;
    if let Some(steady) = &facts.steady {
        over_time(f, steady)?;
    }
    if let Some((bits, bytes)) = facts.entropy {
        writeln!(f, "  entropy behind the header: {bits:.6} bits a byte, of {bytes} bytes")?;
    }
    Ok(())
}

fn law(f: &mut Formatter<'_>, facts: &Facts) -> fmt::Result {
    let Some(fit) = facts.fit else { return Ok(()) };
    write!(f, "  law: {}", fit.law.name())?;
    let likely = |p: f64| if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {p:.3}") };
    match fit.law {
        Law::Constant => write!(f, ", gaps spread over {} % of the period", plain(fit.spread * 100.0))?,
        Law::Jittered => write!(f, ", KS distance {} ({})", plain(fit.jittered.0), likely(fit.jittered.1))?,
        Law::Poisson => write!(f, ", KS distance {} ({})", plain(fit.poisson.0), likely(fit.poisson.1))?,
        _ => write!(
            f,
            "; KS distance {} from jittered, {} from poisson, spread {} periods",
            plain(fit.jittered.0),
            plain(fit.poisson.0),
            plain(fit.spread)
        )?,
    }
    match fit.missed {
        Some(gaps) => writeln!(f, "; {gaps} gaps span an empty slot or a lost cell"),
        None => writeln!(f, "; empty slots do not show under this law"),
    }
}

fn over_time(f: &mut Formatter<'_>, steady: &Steadiness) -> fmt::Result {
    let percent = |share: f64| plain(share * 100.0);
    if steady.spread.p < CHANGED {
        writeln!(
            f,
            "  gaps' deviation changed most at {} s, by {} %: look what you, or the machine, did then",
            plain(steady.spread.at),
            percent(steady.spread.by)
        )?;
    }
    if steady.rate.p < CHANGED {
        let (at, by) = (plain(steady.rate.at), percent(steady.rate.by));
        writeln!(f, "  the rate changed most at {at} s, by {by} %")?;
    }
    writeln!(
        f,
        "  counts of {} s: autocorrelation {} at {} s, {} the {} of noise",
        plain(steady.bin),
        plain(steady.echo.0),
        plain(steady.bin * steady.echo.1 as f64),
        if steady.echo.0.abs() > steady.band { "beyond" } else { "within" },
        plain(steady.band)
    )
}
