//! The user's own log of when he was active, and windows of the capture by what he did.

use std::collections::BTreeMap;

/// A stretch of time that the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Nanoseconds since 1970.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// 0 is idle; activities are numbered in the order of their names.
    pub(crate) label: u16,
}

/// A user's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// In order, none within another.
    pub(crate) marks: Vec<Mark>,
    /// Names of activities; the first has number 1.
    pub(crate) names: Vec<String>,
}

/// What is wrong with a log, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MarksError {
    /// A line is no mark.
    #[error("line {0}: want `START END LABEL`, two times in seconds since 1970 (`date +%s`) and a word")]
    Form(usize),
    /// It ends before it begins.
    #[error("line {0}: ends before it begins")]
    Backwards(usize),
    /// Two overlap.
    #[error("line {0}: overlaps the mark of line {1}; nobody can tell which it was then")]
    Overlap(usize, usize),
    /// No activity is named.
    #[error("names no activity; give at least one line `START END LABEL` whose label is not `idle`")]
    None,
}

/// A window of one activity, and the block of windows that it shares the machine's state with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) label: u16,
    pub(crate) block: u32,
}

impl Marks {
    /// Reads a log: a mark a line, `#` begins a comment, the label `idle` is what it says. Where no line says `idle`,
    /// all time outside of marks is.
    pub(crate) fn parse(text: &str) -> Result<Self, MarksError> {
        let mut read = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let mut words = line.split_whitespace();
            let (Some(from), Some(to), Some(label), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return Err(MarksError::Form(number));
            };
            let (Some(from), Some(to)) = (nanos(from), nanos(to)) else {
                return Err(MarksError::Form(number));
            };
            if to <= from {
                return Err(MarksError::Backwards(number));
            }
            read.push((from, to, label, number));
        }
        read.sort_unstable();
        for pair in read.windows(2) {
            if let [(_, to, _, first), (from, _, _, second)] = pair
                && from < to
            {
                return Err(MarksError::Overlap(*first.max(second), *first.min(second)));
            }
        }
        let activities = read.iter().map(|mark| mark.2).filter(|label| *label != "idle");
        let mut numbers: BTreeMap<&str, u16> = activities.map(|label| (label, 0)).collect();
        if numbers.is_empty() {
            return Err(MarksError::None);
        }
        for (number, at) in numbers.values_mut().zip(1..) {
            *number = at;
        }
        let marks = read
            .iter()
            .map(|&(from, to, label, _)| Mark { from, to, label: numbers.get(label).copied().unwrap_or(0) })
            .collect();
        Ok(Self { marks, names: numbers.into_keys().map(str::to_owned).collect() })
    }

    /// When the user was active, in order.
    pub(crate) fn busy(&self) -> impl Iterator<Item = &Mark> {
        self.marks.iter().filter(|mark| mark.label > 0)
    }

    /// Windows of `width` nanoseconds between `from` and `to`: those of each activity, and from just before and after it
    /// as many idle ones, all of one block. `guard` nanoseconds next to a mark's ends belong to neither side.
    pub(crate) fn windows(&self, from: u64, to: u64, width: u64, guard: u64) -> Vec<Span> {
        let busy: Vec<&Mark> = self.busy().filter(|mark| mark.from < to && mark.to > from).collect();
        let mut spans = Vec::new();
        for (place, mark) in busy.iter().enumerate() {
            let block = u32::try_from(place).unwrap_or(u32::MAX);
            let inside = tiles(mark.from.max(from), mark.to.min(to), width, mark.label, block);
            if inside.is_empty() {
                continue;
            }
            let before = place.checked_sub(1).and_then(|place| busy.get(place));
            let after = busy.get(place + 1);
            let start = before.map_or(from, |before| between(before.to, mark.from)).max(from);
            let end = after.map_or(to, |after| between(mark.to, after.from)).min(to);
            let early = self.idle(start, mark.from.saturating_sub(guard), width, block);
            let late = self.idle(mark.to.saturating_add(guard), end, width, block);
            let half = inside.len().div_ceil(2).max(inside.len().saturating_sub(late.len()));
            let taken = half.min(early.len());
            spans.extend(early.iter().rev().take(taken));
            spans.extend(late.iter().take(inside.len() - taken));
            spans.extend(inside);
        }
        spans.sort_unstable_by_key(|span| span.from);
        spans
    }

    /// Idle windows between two instants.
    fn idle(&self, from: u64, to: u64, width: u64, block: u32) -> Vec<Span> {
        let mut said = self.marks.iter().filter(|mark| mark.label == 0).peekable();
        if said.peek().is_none() {
            return tiles(from, to, width, 0, block);
        }
        said.flat_map(|mark| tiles(mark.from.max(from), mark.to.min(to), width, 0, block)).collect()
    }
}

fn tiles(from: u64, to: u64, width: u64, label: u16, block: u32) -> Vec<Span> {
    let count = to.saturating_sub(from) / width.max(1);
    let tile = |place| Span { from: from + place * width, to: from + (place + 1) * width, label, block };
    (0..count).map(tile).collect()
}

fn between(a: u64, b: u64) -> u64 {
    a / 2 + b / 2
}

fn nanos(seconds: &str) -> Option<u64> {
    // Exact for what a log says: a float would be off by a quarter of a microsecond.
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = format!("{fraction:0<9}");
    let fraction: u64 = scale.get(..9)?.parse().ok()?;
    let nanos = whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction)?;
    // What is computed with times must not overflow.
    (nanos <= i64::MAX as u64).then_some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_line_by_line() {
        let marks = Marks::parse("# mine\n\n100 110.5 web\n 50 60 call # long\n120 130 idle\n").unwrap();
        assert_eq!(marks.names, ["call", "web"]);
        let ends: Vec<(u64, u64, u16)> = marks
            .marks
            .iter()
            .map(|mark| (mark.from / 500_000_000, mark.to / 500_000_000, mark.label))
            .collect();
        assert_eq!(ends, [(100, 120, 1), (200, 221, 2), (240, 260, 0)]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, error) in [
            ("1 2", MarksError::Form(1)),
            ("\n1 2 a b", MarksError::Form(2)),
            ("1 -2 a", MarksError::Form(1)),
            ("nan 2 a", MarksError::Form(1)),
            ("1 1e99 a", MarksError::Form(1)),
            ("99999999999999 999999999999999 a", MarksError::Form(1)),
            ("1 2 a\n5 4 a", MarksError::Backwards(2)),
            ("1 9 a\n2 3 b", MarksError::Overlap(2, 1)),
            ("", MarksError::None),
            ("1 2 idle", MarksError::None),
        ] {
            assert_eq!(Marks::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn windows_come_in_blocks_of_both_kinds() {
        let marks = Marks::parse("100 110 a\n200 210 a\n").unwrap();
        let second = 1_000_000_000;
        let windows = marks.windows(50 * second, 400 * second, 2 * second, second);
        for block in 0..2 {
            let labels = |label| {
                windows.iter().filter(|span| span.block == block && span.label == label).collect::<Vec<_>>()
            };
            assert_eq!((labels(0).len(), labels(1).len()), (5, 5), "{windows:?}");
            let start = (100 + 100 * u64::from(block)) * second;
            assert!(labels(1).iter().all(|span| span.from >= start && span.to <= start + 10 * second));
            assert!(labels(0).iter().all(|span| span.to < start || span.from > start + 10 * second));
            assert!(
                labels(0).iter().all(|span| span.from > start - 20 * second && span.to < start + 30 * second)
            );
        }
        assert!(windows.windows(2).all(|pair| pair[0].to <= pair[1].from));
    }

    #[test]
    fn only_what_is_said_to_be_idle_is() {
        let marks = Marks::parse("100 110 a\n120 124 idle\n").unwrap();
        let second = 1_000_000_000;
        let windows = marks.windows(0, 400 * second, 2 * second, second);
        let idle: Vec<u64> =
            windows.iter().filter(|span| span.label == 0).map(|span| span.from / second).collect();
        assert_eq!(idle, [120, 122]);
        assert!(marks.windows(300 * second, 400 * second, second, 0).is_empty());
    }
}
