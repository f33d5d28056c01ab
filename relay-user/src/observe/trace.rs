//! What an observer has: packets of one direction of one flow, each a time and a length.

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sight {
    /// Nanoseconds since an instant that all traces of a run share.
    pub at: u64,
    /// Bytes of the UDP payload.
    pub length: u16,
}

/// The packets of one direction of one flow, in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    sights: Vec<Sight>,
}

impl Trace {
    /// A trace of these packets, in whatever order they come.
    pub fn new(mut sights: Vec<Sight>) -> Self {
        sights.sort_unstable();
        Self { sights }
    }

    /// All packets.
    pub fn sights(&self) -> &[Sight] {
        &self.sights
    }

    /// What was seen from `from` up to, not including, `to`.
    pub fn window(&self, from: u64, to: u64) -> Window<'_> {
        let first = self.sights.partition_point(|sight| sight.at < from);
        let end = self.sights.partition_point(|sight| sight.at < to).max(first);
        Window { from, to, sights: &self.sights[first..end] }
    }
}

/// A stretch of a trace. An empty one is an observation too: nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<'a> {
    from: u64,
    to: u64,
    sights: &'a [Sight],
}

impl<'a> Window<'a> {
    /// Its packets.
    pub const fn sights(self) -> &'a [Sight] {
        self.sights
    }

    /// Its first nanosecond.
    pub const fn from(self) -> u64 {
        self.from
    }

    /// Nanoseconds that it lasts.
    pub const fn width(self) -> u64 {
        self.to.saturating_sub(self.from)
    }

    /// Packets per second.
    pub fn rate(self) -> f64 {
        self.sights.len() as f64 * SECOND as f64 / self.width().max(1) as f64
    }

    /// Microseconds between each packet and the next.
    pub fn gaps(self) -> impl Iterator<Item = f64> + 'a {
        self.sights.windows(2).map(|pair| (pair[1].at - pair[0].at) as f64 / 1e3)
    }

    /// Packets in each of its whole bins of `width` nanoseconds (at least 1).
    pub fn counts(self, width: u64) -> Vec<u32> {
        let width = width.max(1);
        let mut counts = vec![0; usize::try_from(self.width() / width).unwrap_or(0)];
        for sight in self.sights {
            let bin = usize::try_from((sight.at - self.from) / width).unwrap_or(usize::MAX);
            if let Some(count) = counts.get_mut(bin) {
                *count += 1;
            }
        }
        counts
    }

    /// Bytes in each of its whole bins of `width` nanoseconds (at least 1).
    pub fn bytes(self, width: u64) -> Vec<u64> {
        let width = width.max(1);
        let mut bytes = vec![0; usize::try_from(self.width() / width).unwrap_or(0)];
        for sight in self.sights {
            let bin = usize::try_from((sight.at - self.from) / width).unwrap_or(usize::MAX);
            if let Some(sum) = bytes.get_mut(bin) {
                *sum += u64::from(sight.length);
            }
        }
        bytes
    }
}

/// A window whose truth is known, as those that train and test an attack are.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// What the observer sees.
    pub window: Window<'a>,
    /// What went on: 0 is idle, others are activities.
    pub label: u16,
    /// Windows of one block were taken side by side and share its state and the machine's: they are resampled, shuffled
    /// and held out together.
    pub block: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let at = [50, 10, 20, 30, 40];
        Trace::new(at.iter().map(|&at| Sight { at: at * 1000, length: 1360 }).collect())
    }

    #[test]
    fn a_window_is_half_open_and_may_be_empty() {
        let trace = trace();
        assert_eq!(trace.window(10_000, 30_000).sights().len(), 2);
        assert_eq!(trace.window(10_001, 20_000).sights().len(), 0);
        assert_eq!(trace.window(60_000, 10_000).sights().len(), 0);
        assert_eq!(trace.window(60_000, 10_000).counts(10), Vec::<u32>::new());
    }

    #[test]
    fn gaps_and_bins_are_those_of_the_packets() {
        let trace = trace();
        let window = trace.window(10_000, 60_000);
        assert_eq!(window.gaps().collect::<Vec<_>>(), [10.0; 4]);
        assert_eq!(window.counts(20_000), [2, 2], "the last bin is not whole");
        assert_eq!(window.bytes(25_000), [3 * 1360, 2 * 1360]);
        assert!((window.rate() - 100_000.0).abs() < 1e-6);
    }
}
