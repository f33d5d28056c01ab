//! Attack 11: who holds a link puts a secret code on its cells, a bit a second, and somebody else looks for it two links
//! further. Both directions are marked at once, each by a code of its own; a flow is marked by delay or by drops.
//!
//! ```text
//!   client --[box]-- entry ------- middle ------- exit --------- service
//!             code A ->                      -> is A here?   -> and here, where packets leave?
//!   client --------- entry ------- middle --[box]-- exit
//!      <- is B here?                     <- code B
//! ```
//!
//! Where the mark must be is looked as well, in the same run: directly behind the box, and two links further in the tunnel
//! without shaping, whose joints pass each packet on as it comes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;
use relay_tests::delay_box::{DelayBox, Fate, Passage, Way};
use relay_tests::interrupt::Interrupt;
use relay_tests::lab::OUTSIDE;
use relay_tests::nodes::{CLIENT_RATE, TRUNK_RATE};
use relay_tests::{Host, Lab, Recorder, Recording};
use relay_user::observe::attacks::filter::LATEST;
use relay_user::observe::attacks::watermark::{Act, Heard, Mark, Watermark, watermark};
use relay_user::observe::finding::{Finding, Target};
use relay_user::observe::stats::shuffle;
use relay_user::observe::trace::{SECOND, Sight, Trace};

use super::network::{Defence, Network};
use super::record::{SEEN_AT_LEAST, now, wires};
use super::row::Row;
use super::scenario::Streams;

/// Time to lay everything out before the first flow.
const HEAD_START: u64 = 3 * SECOND;
/// Between the end of a code and the next, more than [`LATEST`].
const PAUSE: u64 = 700_000_000;
/// After the last cell of a flow, until recorders have written it down.
const WRITTEN: u64 = 50_000_000;
/// How often the user is heeded.
const TURN: u64 = 200_000_000;
/// Of the packets that a stream has, at least so many leave the exit: a seventh of its cells is dropped.
const LEAVE_AT_LEAST: f64 = 0.5;
/// Of so many frames, a box may lose one that it should not.
const SPOILT_IN: u64 = 1000;
/// What finds a mark where it must be.
const SEEN: f64 = 0.9;

/// How a flow is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Delay,
    Drop,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Delay, Self::Drop];

    const fn name(self) -> &'static str {
        match self {
            Self::Delay => "mark, delay",
            Self::Drop => "mark, drop",
        }
    }

    /// As strong as in virtual time (sim/watermark.rs).
    const fn mark(self) -> Mark {
        match self {
            Self::Delay => Mark::Delay(120_000_000),
            Self::Drop => Mark::Drop(150_000_000),
        }
    }
}

/// A direction that is marked: where the box is, and the link on which the mark is looked for.
struct End {
    host: Host,
    marked: (Host, Host),
    further: (Host, Host),
    /// Cells per second of that link.
    rate: u32,
}

const ENDS: [End; 2] = [
    End {
        host: Host::Client,
        marked: (Host::Client, Host::Entry),
        further: (Host::Middle, Host::Exit),
        rate: TRUNK_RATE,
    },
    End {
        host: Host::Exit,
        marked: (Host::Exit, Host::Middle),
        further: (Host::Entry, Host::Client),
        rate: CLIENT_RATE,
    },
];

/// How much is recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Flows marked by each kind, both ways at once.
    each: usize,
    /// Bits of each code, one a second.
    bits: usize,
    /// Whether figures are of both kinds together only: there are too few of each to say anything.
    together: bool,
}

impl Plan {
    /// 23 flows of 20 s for each kind take a quarter of an hour. Of both kinds and both ways they are 92, which the attack
    /// needs for power. What is plain to see takes few, and a quick run has no more.
    pub(super) const fn of(quick: bool, shaped: bool) -> Self {
        match (quick, shaped) {
            (true, _) => Self { each: 3, bits: 4, together: true },
            (false, false) => Self { each: 10, bits: 10, together: false },
            (false, true) => Self { each: 23, bits: 20, together: false },
        }
    }

    /// How long all flows take.
    pub(super) const fn lasts(self) -> Duration {
        let flows = (self.each * Kind::ALL.len()) as u64;
        Duration::from_nanos(HEAD_START + flows * self.period())
    }

    const fn length(self) -> u64 {
        self.bits as u64 * SECOND
    }

    const fn period(self) -> u64 {
        self.length() + PAUSE
    }
}

/// Which mark is put on when.
struct Timetable {
    from: u64,
    period: u64,
    flows: Vec<(Kind, [Watermark; 2])>,
}

impl Timetable {
    fn drawn(plan: Plan, from: u64, rng: &mut ChaCha8Rng) -> Self {
        let mut kinds: Vec<Kind> = Kind::ALL.iter().flat_map(|kind| vec![*kind; plan.each]).collect();
        shuffle(&mut kinds, rng);
        let period = plan.period();
        let mut begins = from;
        let flows = kinds.into_iter().map(|kind| {
            let marks = [(); 2].map(|()| Watermark::new(kind.mark(), rng.next_u64(), begins, plan.bits));
            begins += period;
            (kind, marks)
        });
        Self { flows: flows.collect(), from, period }
    }

    /// What becomes of a frame that comes to the box at an end at `at`.
    fn fate(&self, at: u64, end: usize) -> Fate {
        let flow = at.checked_sub(self.from).and_then(|since| usize::try_from(since / self.period).ok());
        let act =
            flow.and_then(|flow| self.flows.get(flow)).map_or(Act::Pass, |(_, marks)| marks[end].act(at));
        match act {
            Act::Pass => Fate::After(Duration::ZERO),
            Act::Delay(delay) => Fate::After(Duration::from_nanos(delay)),
            Act::Drop => Fate::Lost,
        }
    }
}

/// A flow each way, marked at the same time. Traces begin with the marks.
#[derive(Debug)]
struct Flow {
    kind: Kind,
    codes: [Vec<bool>; 2],
    /// Two links further.
    further: [Trace; 2],
    /// Directly behind the boxes.
    behind: [Trace; 2],
    /// What leaves the exit for the service.
    beyond: Trace,
}

/// All flows.
#[derive(Debug)]
pub(super) struct Marked {
    defence: Defence,
    plan: Plan,
    flows: Vec<Flow>,
    invalid: Option<String>,
    missed_slots: u64,
}

/// Marks flows of a network that is up, and records them where they might be found.
///
/// # Errors
/// Where a program, a box or a recorder cannot be started, something ends by itself, or the user interrupts.
pub(super) fn record(
    lab: &Lab,
    network: &mut Network<'_>,
    (defence, plan): (Defence, Plan),
    rng: &mut ChaCha8Rng,
    interrupt: &Interrupt,
) -> Result<Marked> {
    let mut streams = Streams::start(lab, Host::Client)?;
    let timetable = Arc::new(Timetable::drawn(plan, now() + HEAD_START, rng));
    let [near, far] = [0, 1].map(|end: usize| {
        let timetable = Arc::clone(&timetable);
        DelayBox::insert(lab, ENDS[end].host, move |at, way| match way {
            Way::Out => timetable.fate(at, end),
            Way::Home => Fate::After(Duration::ZERO),
        })
    });
    let boxes = [near?, far?];
    let wire = lab.netns(Host::Wire);
    let recorders = [
        Recorder::on_wire(wire, lab.wire_ports())?,
        Recorder::on_wire(wire, &boxes.each_ref().map(DelayBox::behind))?,
        Recorder::at_interface(lab.netns(Host::Exit), OUTSIDE)?,
    ];
    let missed = network.missed_slots();
    ensure!(now() < timetable.from, "the machine is too busy: nothing was ready in time");
    let mut marked = Marked { defence, plan, flows: Vec::new(), invalid: None, missed_slots: 0 };
    let mut begins = timetable.from;
    for (kind, marks) in &timetable.flows {
        let end = begins + plan.length() + LATEST + WRITTEN;
        while now() < end {
            if interrupt.is_set() {
                bail!("interrupted");
            }
            std::thread::sleep(Duration::from_nanos(end.saturating_sub(now()).min(TURN)));
        }
        streams.check()?;
        network.check()?;
        ensure!(recorders.iter().all(Recorder::is_listening), "a recorder ended before the run did");
        let recordings = recorders.each_ref().map(Recorder::take);
        let codes = marks.each_ref().map(|mark| mark.code().to_vec());
        marked.add(*kind, codes, &recordings, begins);
        begins += timetable.period;
    }
    marked.missed_slots = network.missed_slots().saturating_sub(missed);
    for one in boxes {
        let counts = one.remove()?;
        marked.invalid = marked.invalid.or_else(|| spoilt(counts));
    }
    Ok(marked)
}

fn spoilt(counts: [Passage; 2]) -> Option<String> {
    let lost: u64 = counts.iter().map(|way| way.unwanted()).sum();
    let passed: u64 = counts.iter().map(|way| way.passed).sum();
    (lost * SPOILT_IN >= passed)
        .then(|| format!("a box lost {lost} frames of {passed} of which nobody said so"))
}

impl Marked {
    fn add(&mut self, kind: Kind, codes: [Vec<bool>; 2], recordings: &[Recording; 3], begins: u64) {
        let [ports, boxes, outside] = recordings;
        let (mut ports, mut boxes) = (wires(ports, begins), wires(boxes, begins));
        let further = [0, 1].map(|end: usize| ports.remove(&ENDS[end].further).unwrap_or_default());
        let behind = [0, 1].map(|end: usize| boxes.remove(&ENDS[end].marked).unwrap_or_default());
        let service = Host::Service.address();
        let leaving =
            outside.seen.iter().filter(|seen| seen.at >= begins && Some(seen.destination) == service);
        let beyond = leaving.map(|seen| Sight { at: seen.at - begins, length: seen.length });
        let flow = Flow { kind, codes, further, behind, beyond: Trace::new(beyond.collect()) };
        let lost: u64 = recordings.iter().map(|recording| recording.lost).sum();
        self.invalid = self.invalid.take().or_else(|| self.complaint(&flow, lost));
        self.flows.push(flow);
    }

    fn complaint(&self, flow: &Flow, lost: u64) -> Option<String> {
        if lost > 0 {
            return Some(format!("the capture lost {lost} packets"));
        }
        let seconds = self.plan.bits as f64;
        let few = |trace: &Trace, rate: u32, least: f64| {
            (trace.sights().len() as f64) < f64::from(rate) * seconds * least
        };
        if few(&flow.beyond, Streams::RATE, LEAVE_AT_LEAST) {
            return Some(format!("{} packets left the exit in {seconds:.0} s", flow.beyond.sights().len()));
        }
        let shaped = self.defence.schedule.is_some();
        let missing = ENDS.iter().zip(&flow.further).find(|(end, trace)| few(trace, end.rate, SEEN_AT_LEAST));
        missing.filter(|_| shaped).map(|(end, trace)| {
            let hosts = [end.further.0.name(), end.further.1.name()].join(" to ");
            format!("from {hosts} came {} cells in {seconds:.0} s", trace.sights().len())
        })
    }

    /// What was found of the marks, where they must not be and where they must.
    pub(super) fn rows(&self, rng: &mut ChaCha8Rng) -> Vec<Row> {
        let kinds: [(&str, &[Kind]); 3] =
            [("mark", &Kind::ALL), (Kind::Delay.name(), &[Kind::Delay]), (Kind::Drop.name(), &[Kind::Drop])];
        let shown = if self.plan.together { 1 } else { kinds.len() };
        let mut rows = Vec::new();
        for (scenario, kinds) in kinds.into_iter().take(shown) {
            let row = |finding: &Finding, place: &str| {
                let row = Row::new(finding, scenario, self.defence.name);
                let note = format!("{} slots missed", self.missed_slots);
                Row { statistic: format!("{}, {place}", finding.statistic), note, ..row }
            };
            let further = self.found(kinds, &[0, 1], |flow, end| &flow.further[end], rng);
            rows.extend(further.iter().map(|finding| {
                let row = row(finding, "two links further, both ways");
                match (self.defence.schedule, finding.statistic) {
                    (Some(_), _) => row,
                    (None, "AUC") => row.as_control(Target::AtLeast { bound: SEEN }),
                    (None, _) => row.as_control(Target::None),
                }
            }));
            let behind = self.found(kinds, &[0, 1], |flow, end| &flow.behind[end], rng);
            let behind = behind.iter().filter(|finding| finding.statistic == "AUC");
            rows.extend(behind.map(|finding| {
                row(finding, "behind the box, both ways").as_control(Target::AtLeast { bound: SEEN })
            }));
            let beyond = self.found(kinds, &[0], |flow, _| &flow.beyond, rng);
            rows.extend(
                beyond
                    .iter()
                    .map(|finding| row(finding, "beyond the exit, from the client").as_control(Target::None)),
            );
        }
        match &self.invalid {
            Some(why) => rows.into_iter().map(|row| row.invalid(why)).collect(),
            None => rows,
        }
    }

    /// The attack on flows of these kinds and directions, at one place.
    fn found(
        &self,
        kinds: &[Kind],
        ends: &[usize],
        place: impl Fn(&Flow, usize) -> &Trace,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Finding> {
        let mut heard = Vec::new();
        for (block, flow) in (0..).zip(&self.flows).filter(|(_, flow)| kinds.contains(&flow.kind)) {
            for &end in ends {
                let window = place(flow, end).window(0, self.plan.length() + LATEST);
                heard.push(Heard { window, code: &flow.codes[end], block });
            }
        }
        watermark(&heard, rng)
    }
}

#[cfg(test)]
mod tests;
