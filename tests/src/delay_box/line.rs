//! Frames in a line: each leaves when it is due, and none before one that came earlier.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Fate, Passage};

/// Frames that wait at a time, for each way: half a second of the lab's busiest port, 6 MiB.
pub(super) const ROOM: usize = 4096;
/// Bytes of the longest frame of an ordinary Ethernet, without its checksum.
pub(super) const LONGEST: usize = 1514;

#[derive(Debug)]
struct Waiting {
    due: u64,
    length: usize,
    bytes: [u8; LONGEST],
}

/// The line of one way. Times are nanoseconds since 1970.
#[derive(Debug)]
pub(super) struct Line {
    waiting: VecDeque<Waiting>,
    last: u64,
}

impl Line {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::with_capacity(ROOM), last: 0 }
    }

    /// Takes a frame that came at `at`, or counts why not.
    pub(super) fn take(&mut self, at: u64, fate: Fate, frame: &[u8], counts: &mut Passage) {
        let Fate::After(delay) = fate else {
            counts.lost += 1;
            return;
        };
        let length = frame.len();
        if length > LONGEST {
            counts.long += 1;
            return;
        }
        if self.waiting.len() >= ROOM {
            counts.full += 1;
            return;
        }
        let due = at.saturating_add(nanos(delay)).max(self.last);
        self.last = due;
        let mut bytes = [0; LONGEST];
        bytes[..length].copy_from_slice(frame);
        self.waiting.push_back(Waiting { due, length, bytes });
    }

    /// When the next frame is due.
    pub(super) fn due(&self) -> Option<u64> {
        self.waiting.front().map(|first| first.due)
    }

    /// Hands out everything that is due at `now`, in order.
    pub(super) fn release(&mut self, now: u64, mut send: impl FnMut(&[u8])) {
        while let Some(first) = self.waiting.pop_front_if(|first| first.due <= now) {
            send(&first.bytes[..first.length]);
        }
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(line: &mut Line, now: u64) -> Vec<u8> {
        let mut out = Vec::new();
        line.release(now, |frame| out.push(frame[0]));
        out
    }

    #[test]
    fn a_frame_leaves_when_it_is_due_and_not_before() {
        let (mut line, mut counts) = (Line::new(), Passage::default());
        line.take(1000, Fate::After(Duration::from_nanos(500)), &[1; 60], &mut counts);
        assert_eq!(line.due(), Some(1500));
        assert_eq!(released(&mut line, 1499), [0_u8; 0]);
        assert_eq!(released(&mut line, 1500), [1]);
        assert_eq!((line.due(), counts), (None, Passage::default()));
    }

    #[test]
    fn none_overtakes_another() {
        let (mut line, mut counts) = (Line::new(), Passage::default());
        for (at, delay, byte) in [(0, 900, 1), (100, 0, 2), (200, 300, 3), (300, 900, 4)] {
            line.take(at, Fate::After(Duration::from_nanos(delay)), &[byte; 60], &mut counts);
        }
        assert_eq!(released(&mut line, 899), [0_u8; 0]);
        assert_eq!(released(&mut line, 900), [1, 2, 3]);
        assert_eq!(released(&mut line, u64::MAX), [4]);
    }

    #[test]
    fn what_is_not_taken_is_counted_by_reason() {
        let (mut line, mut counts) = (Line::new(), Passage::default());
        line.take(0, Fate::Lost, &[0; 60], &mut counts);
        line.take(0, Fate::After(Duration::ZERO), &[0; LONGEST + 1], &mut counts);
        line.take(0, Fate::After(Duration::ZERO), &[7; LONGEST], &mut counts);
        for _ in 1..ROOM + 3 {
            line.take(0, Fate::After(Duration::ZERO), &[0; 60], &mut counts);
        }
        assert_eq!(counts, Passage { lost: 1, long: 1, full: 3, ..Passage::default() });
        let mut lengths = Vec::new();
        line.release(0, |frame| lengths.push(frame.len()));
        assert_eq!((lengths.len(), lengths[0]), (ROOM, LONGEST));
    }
}
