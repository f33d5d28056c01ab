use super::*;
use crate::privacy::row::Status;
use rand_core::SeedableRng as _;

const FROM: u64 = 1_000 * SECOND;

fn timetable(plan: Plan) -> Timetable {
    Timetable::drawn(plan, FROM, &mut ChaCha8Rng::seed_from_u64(1))
}

#[test]
fn each_flow_has_a_code_of_its_own_and_nothing_is_marked_in_between() {
    let plan = Plan::of(true, true);
    let timetable = timetable(plan);
    let pass = Fate::After(Duration::ZERO);
    let end = FROM + timetable.period * timetable.flows.len() as u64;
    assert_eq!([FROM - 1, end, end + SECOND].map(|at| timetable.fate(at, 0)), [pass; 3]);
    let count = |kind| timetable.flows.iter().filter(|flow| flow.0 == kind).count();
    assert_eq!(Kind::ALL.map(count), [plan.each; 2]);
    for (flow, (kind, marks)) in (0..).zip(&timetable.flows) {
        let begins = FROM + flow * timetable.period;
        assert_eq!(timetable.fate(begins + plan.length(), 0), pass);
        for (end, mark) in marks.iter().enumerate() {
            for (bit, &second) in (0..).zip(mark.code()) {
                let half =
                    |late: bool| timetable.fate(begins + bit * SECOND + u64::from(late) * SECOND / 2, end);
                let (marked, other) = (half(second), half(!second));
                assert_eq!(other, pass);
                assert_eq!(marked == Fate::Lost, *kind == Kind::Drop);
                assert_ne!(marked, pass);
            }
        }
    }
    let codes: Vec<_> =
        timetable.flows.iter().flat_map(|(_, marks)| marks.each_ref().map(Watermark::code)).collect();
    assert!(codes.iter().any(|code| *code != codes[0]));
}

/// Flows as they would be recorded: the boxes' marks are behind them, and `shown` says whether further on too.
fn marked(plan: Plan, defence: Defence, shown: bool) -> Marked {
    let steady = |gap: u64| {
        let at = (0..(plan.length() + LATEST) / gap).map(|k| k * gap + k * 7919 % 300_000);
        Trace::new(at.map(|at| Sight { at, length: 1360 }).collect())
    };
    let timetable = Timetable::drawn(plan, 0, &mut ChaCha8Rng::seed_from_u64(1));
    let mut marked = Marked { defence, plan, flows: Vec::new(), invalid: None, missed_slots: 0 };
    for (kind, marks) in &timetable.flows {
        let codes = marks.each_ref().map(|mark| mark.code().to_vec());
        let put = |end: usize| disturbed(&steady(400_000), &codes[end], *kind);
        let further = [0, 1].map(|end| if shown { put(end) } else { steady(500_000) });
        let beyond = if shown { put(0) } else { steady(1_200_000) };
        let flow = Flow { kind: *kind, codes: codes.clone(), further, behind: [put(0), put(1)], beyond };
        marked.invalid = marked.invalid.take().or_else(|| marked.complaint(&flow, 0));
        marked.flows.push(flow);
    }
    marked
}

/// What the box makes of a flow that begins with its code.
fn disturbed(trace: &Trace, code: &[bool], kind: Kind) -> Trace {
    let passed = trace.sights().iter().filter_map(|sight| {
        let chip = usize::try_from(sight.at / SECOND).unwrap_or(usize::MAX);
        let (half, into) = (sight.at % SECOND >= SECOND / 2, sight.at % (SECOND / 2));
        match (code.get(chip) == Some(&half), kind) {
            (true, Kind::Drop) if into < 150_000_000 => None,
            (true, Kind::Delay) => {
                Some(Sight { at: sight.at + 120_000_000.min(SECOND / 2 - into), ..*sight })
            }
            _ => Some(*sight),
        }
    });
    Trace::new(passed.collect())
}

fn status(rows: &[Row], start: &str) -> Vec<Status> {
    let mut of: Vec<Status> =
        rows.iter().filter(|row| row.statistic.starts_with(start)).map(|row| row.status).collect();
    of.dedup();
    of
}

#[test]
fn a_mark_that_goes_on_is_found_and_one_that_ends_at_the_box_is_not() {
    let plan = Plan { each: 10, bits: 10, together: false };
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let rows = marked(plan, Defence::PLAIN, true).rows(&mut rng);
    assert_eq!(status(&rows, "AUC, two links further"), [Status::Met], "{rows:?}");
    assert_eq!(status(&rows, "AUC, behind the box"), [Status::Met]);
    let rows = marked(plan, Defence::schedule("constant"), true).rows(&mut rng);
    assert_eq!(status(&rows, "AUC, two links further"), [Status::Missed], "a leak");
    let rows = marked(plan, Defence::schedule("constant"), false).rows(&mut rng);
    assert!(!status(&rows, "AUC, two links further").contains(&Status::Missed), "{rows:?}");
    assert_eq!(status(&rows, "AUC, behind the box"), [Status::Met], "and the mark was there");
    let rows = marked(plan, Defence::PLAIN, false).rows(&mut rng);
    assert_eq!(status(&rows, "AUC, two links further"), [Status::Missed], "a control that shows nothing");
}

#[test]
fn a_few_flows_are_judged_together() {
    let plan = Plan::of(true, false);
    let rows = marked(plan, Defence::PLAIN, true).rows(&mut ChaCha8Rng::seed_from_u64(3));
    assert_eq!(status(&rows, "AUC, two links further, both ways"), [Status::Met]);
    assert!(rows.iter().all(|row| row.scenario == "mark"));
}

#[test]
fn what_lacks_cells_or_payload_is_not_judged() {
    let plan = Plan::of(true, true);
    let mut few = marked(plan, Defence::schedule("constant"), false);
    assert_eq!(few.invalid, None);
    let flow = few.flows.pop().expect("a flow");
    assert!(few.complaint(&flow, 1).is_some(), "packets lost");
    assert!(few.complaint(&Flow { beyond: Trace::default(), ..flow }, 0).is_some(), "no payload");
    let flow = few.flows.pop().expect("a flow");
    let silent = Flow { further: [Trace::default(), Trace::default()], ..flow };
    assert!(few.complaint(&silent, 0).is_some_and(|why| why.contains("middle to exit")));
    assert!(spoilt([Passage { passed: 5000, full: 6, ..Passage::default() }; 2]).is_some());
    assert!(spoilt([Passage { passed: 5000, lost: 900, full: 4, ..Passage::default() }; 2]).is_none());
    few.invalid = Some("x".into());
    let rows = few.rows(&mut ChaCha8Rng::seed_from_u64(4));
    assert!(rows.iter().all(|row| row.status == Status::Invalid));
}
