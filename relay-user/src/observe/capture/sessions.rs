//! Counters of cells: what was lost before the capture, what was seen twice.

/// Counters below the highest that are told apart; captures hardly reorder at all.
const WINDOW: u64 = 1024;
/// Keys end with as many cells, so a counter beyond is no cell's.
const COUNTERS: u64 = 1 << 28;
/// Sessions of a direction that are followed at once: the one in use and those that just went out of use.
const FOLLOWED: usize = 8;

/// What a counter says about its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Ahead of all before.
    New,
    /// Behind another that was sent after it.
    Late,
    /// Seen before: the capture sees the wire at more than one place, or somebody repeats cells.
    Repeated,
    /// No key lives that long: not a cell.
    Impossible,
}

#[derive(Debug)]
struct Session {
    index: u32,
    first: u64,
    highest: u64,
    cells: u64,
    latest: u64,
    window: [u64; (WINDOW / 64) as usize],
}

/// The sessions of one direction, by receiver index.
#[derive(Debug, Default)]
pub struct Sessions {
    followed: Vec<Session>,
    lost: u64,
    begun: u64,
}

impl Sessions {
    /// Whether a cell may have this counter.
    pub const fn is_counter(counter: u64) -> bool {
        counter < COUNTERS
    }

    /// Takes a cell's header in; `at` is when it was seen.
    pub fn take(&mut self, at: u64, index: u32, counter: u64) -> Arrival {
        if !Self::is_counter(counter) {
            return Arrival::Impossible;
        }
        if let Some(session) = self.followed.iter_mut().find(|session| session.index == index) {
            session.latest = at;
            return session.take(counter);
        }
        if self.followed.len() >= FOLLOWED {
            let longest = self.followed.iter().enumerate().min_by_key(|(_, session)| session.latest);
            if let Some((place, _)) = longest {
                self.lost += self.followed.swap_remove(place).lost();
            }
        }
        self.begun += 1;
        let mut session =
            Session { index, first: counter, highest: counter, cells: 1, latest: at, window: [0; 16] };
        session.mark(counter);
        self.followed.push(session);
        Arrival::New
    }

    /// Cells whose counters are missing between others of their session.
    pub fn lost(&self) -> u64 {
        self.lost + self.followed.iter().map(Session::lost).sum::<u64>()
    }

    /// Sessions seen; each but the first is a rekey or a new handshake.
    pub const fn begun(&self) -> u64 {
        self.begun
    }
}

impl Session {
    fn take(&mut self, counter: u64) -> Arrival {
        if counter > self.highest {
            let steps = counter - self.highest;
            for passed in 1..=steps.min(WINDOW) {
                let (word, bit) = self.place(self.highest + passed);
                *word &= !bit;
            }
            self.highest = counter;
            self.mark(counter);
            self.cells += 1;
            return Arrival::New;
        }
        if self.highest - counter >= WINDOW {
            // Too far back to know. Counted as a repetition, so that no cell is counted twice.
            return Arrival::Repeated;
        }
        let (word, bit) = self.place(counter);
        if *word & bit != 0 {
            return Arrival::Repeated;
        }
        self.mark(counter);
        self.cells += 1;
        self.first = self.first.min(counter);
        Arrival::Late
    }

    fn lost(&self) -> u64 {
        (self.highest - self.first + 1).saturating_sub(self.cells)
    }

    fn mark(&mut self, counter: u64) {
        let (word, bit) = self.place(counter);
        *word |= bit;
    }

    fn place(&mut self, counter: u64) -> (&mut u64, u64) {
        let place = counter % WINDOW;
        (&mut self.window[(place / 64) as usize], 1 << (place % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_late_and_repeated_is_told_apart() {
        let mut sessions = Sessions::default();
        let counters = [5, 6, 9, 8, 9, 6, 4, 12];
        let arrivals: Vec<Arrival> = counters.iter().map(|&counter| sessions.take(1, 7, counter)).collect();
        use Arrival::{Late, New, Repeated};
        assert_eq!(arrivals, [New, New, New, Late, Repeated, Repeated, Late, New]);
        // 7, 10, 11.
        assert_eq!(sessions.lost(), 3);
        assert_eq!(sessions.take(1, 7, 1 << 40), Arrival::Impossible);
        assert_eq!(sessions.begun(), 1);
    }

    #[test]
    fn a_long_gap_empties_the_window() {
        let mut sessions = Sessions::default();
        for counter in (0..3000).chain(10_000..13_000) {
            assert_eq!(sessions.take(0, 1, counter), Arrival::New);
        }
        assert_eq!(sessions.lost(), 7000);
    }

    #[test]
    fn many_sessions_take_no_more_room_than_a_few() {
        let mut sessions = Sessions::default();
        for index in 0..100_000 {
            sessions.take(u64::from(index), index, 0);
            sessions.take(u64::from(index), index, 2);
        }
        assert_eq!((sessions.begun(), sessions.lost()), (100_000, 100_000));
        assert_eq!(sessions.followed.len(), FOLLOWED);
    }
}
