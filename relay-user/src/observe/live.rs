//! A worker's test of itself: are its cells of payload later, or earlier, than its cells of cover? In bounded memory, for
//! as long as it runs.
//!
//! ```text
//!   cell -> its link's stratum: two histograms of lateness, over 32 cells
//!             full -> payload less cover, share by share          (0 on average, whatever the load was)
//!                       summed over 1024 cells: a cluster
//!                         summed over 2^17 cells and a minute: an epoch -> one look -> breach or not
//! ```
//!
//! Lateness moves with the load, and so does the share of payload: over an hour the two go together without any cell
//! telling what it is. So only cells of the same link that leave close together are compared, and sums over strata count
//! what is left (as Mantel and Haenszel did). Stalls hit many cells and links at once, and payload comes in bursts; so how
//! much the sums stray by chance is taken from the clusters, and not from a formula for independent cells.
//!
//! A breach is both sure and large. Sure: the sum lies seven of its own standard deviations from zero. For clusters that
//! fall to either side alike the chance of that is below 2·exp(-7²/2) = 4.6e-11, without any normal approximation
//! (Hoeffding's bound for self-normalised sums). There are [`STATISTICS`] sums in an epoch and 525,600 epochs in a year at
//! most: less than 1e-3 false alarms a year and worker. Large: beyond what the design lets pass, AUC 0.5 ± 0.02, or a
//! distance of 0.05 between the distributions, since a worker that runs for long enough finds every nanosecond.

/// Bins of a histogram: below 512 ns, then half octaves, then all above 2 ms.
const BINS: usize = 26;
/// The least lateness of the second bin is 2 to this power, in nanoseconds.
const FIRST_OCTAVE: u32 = 9;
/// What is summed: the shares up to each bin but the last, and the rank of payload among cover.
pub const STATISTICS: usize = BINS;
/// The place of the ranks among the sums.
const RANKS: usize = BINS - 1;
/// Cells of a link that are compared with each other.
const STRATUM: u8 = 32;
/// Standard deviations.
const SURE: f64 = 7.0;
/// What is too little to be a breach: of the AUC's distance from one half, and of a distance between distributions.
const LARGE_AUC: f64 = 0.02;
pub(super) const LARGE_DISTANCE: f64 = 0.05;
/// What a breach tells of its size: the greatest of these that it reaches.
const SIZES: [f64; 5] = [0.02, 0.05, 0.1, 0.2, 0.4];

/// How often the audit looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Cells of a cluster.
    pub cluster: u32,
    /// Cells of an epoch, at least.
    pub cells: u32,
    /// Nanoseconds of an epoch, at least.
    pub span: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { cluster: 1 << 10, cells: 1 << 17, span: 60_000_000_000 }
    }
}

/// What gave payload away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// The chance that a cell of payload is later than one of cover, less one half.
    Auc,
    /// The greatest difference between the shares of payload and of cover that are no later than some lateness.
    Distance,
}

impl Statistic {
    /// Its name in status and log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auc => "auc",
            Self::Distance => "distance",
        }
    }
}

/// A breach, as roughly as it may be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breach {
    /// What was too large.
    pub statistic: Statistic,
    /// A size that it reaches: 0.02, 0.05, 0.1, 0.2 or 0.4.
    pub at_least: f64,
}

/// All that leaves the worker. When an epoch ends depends on all cells and the time, never on which carry payload.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AuditState {
    /// Epochs looked at since start. One with hardly any payload, or hardly any cover, shows nothing.
    pub epochs: u64,
    /// Epochs with a breach.
    pub breaches: u64,
    /// The latest breach.
    pub last: Option<Breach>,
}

impl AuditState {
    /// Two workers' together: of their latest breaches the larger.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let breaches = self.last.into_iter().chain(other.last);
        Self {
            epochs: self.epochs + other.epochs,
            breaches: self.breaches + other.breaches,
            last: breaches.max_by(|one, other| one.at_least.total_cmp(&other.at_least)),
        }
    }
}

/// One link's cells of late.
#[derive(Clone, Copy, Debug)]
struct Stratum {
    /// Cells by lateness: of cover, of payload.
    counts: [[u8; BINS]; 2],
    noted: u8,
}

const EMPTY: Stratum = Stratum { counts: [[0; BINS]; 2], noted: 0 };

/// One sum over an epoch.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    sum: f64,
    /// Of the clusters' sums, each squared.
    squares: f64,
}

/// The audit of one worker.
#[derive(Debug)]
pub struct SelfAudit {
    strata: Box<[Stratum]>,
    pace: Pace,
    /// Sums of the cluster that runs.
    cluster: [f64; STATISTICS],
    cluster_cells: u32,
    scores: [Score; STATISTICS],
    /// Of all strata: what a difference of shares counts in the sums.
    weight: f64,
    cells: u32,
    began: u64,
    state: AuditState,
}

impl SelfAudit {
    /// An audit of links numbered below `links`; `pace` is [`Pace::default`] but in tests.
    pub fn new(links: u32, pace: Pace) -> Self {
        Self {
            strata: vec![EMPTY; links as usize].into_boxed_slice(),
            pace,
            cluster: [0.0; STATISTICS],
            cluster_cells: 0,
            scores: [Score::default(); STATISTICS],
            weight: 0.0,
            cells: 0,
            began: 0,
            state: AuditState::default(),
        }
    }

    /// Notes a cell: `lateness` in nanoseconds after its slot, `u64::MAX` for one that missed it.
    #[inline]
    pub fn note(&mut self, link: u32, payload: bool, lateness: u64) {
        let Some(stratum) = self.strata.get_mut(link as usize) else { return };
        if let Some(count) = stratum.counts[usize::from(payload)].get_mut(bin(lateness)) {
            *count += 1;
        }
        stratum.noted += 1;
        if stratum.noted == STRATUM {
            let full = std::mem::replace(stratum, EMPTY);
            self.add(&full);
        }
        self.cells = self.cells.saturating_add(1);
        self.cluster_cells += 1;
        if self.cluster_cells >= self.pace.cluster {
            self.end_cluster();
        }
    }

    /// Ends an epoch that has lasted long enough. To be called now and then; `now` in nanoseconds of any one clock.
    /// Returns whether it was a breach.
    pub fn look(&mut self, now: u64) -> bool {
        if self.began == 0 {
            self.began = now;
        }
        if self.cells < self.pace.cells || now.saturating_sub(self.began) < self.pace.span {
            return false;
        }
        self.end_cluster();
        let breach = self.judge();
        self.state.epochs += 1;
        if breach.is_some() {
            self.state.breaches += 1;
            self.state.last = breach;
        }
        self.scores = [Score::default(); STATISTICS];
        self.weight = 0.0;
        self.cells = 0;
        self.began = now;
        breach.is_some()
    }

    /// What may be told.
    pub const fn state(&self) -> AuditState {
        self.state
    }

    /// Adds what one stratum says: nothing where it holds one kind of cell only.
    fn add(&mut self, stratum: &Stratum) {
        let [cover, payload] = &stratum.counts;
        let total = |counts: &[u8; BINS]| counts.iter().map(|&count| f64::from(count)).sum::<f64>();
        let (covers, payloads) = (total(cover), total(payload));
        if covers == 0.0 || payloads == 0.0 {
            return;
        }
        let cells = covers + payloads;
        let (mut cover_below, mut payload_below) = (0.0, 0.0);
        for ((sum, &c), &p) in self.cluster.iter_mut().zip(cover).zip(payload) {
            let (c, p) = (f64::from(c), f64::from(p));
            cover_below += c;
            payload_below += p;
            // In the last bin both shares are 1, and nothing is added.
            *sum += (payload_below * covers - cover_below * payloads) / cells;
        }
        let (wins, pairs) = crate::observe::stats::ranked(
            cover.iter().zip(payload).map(|(&c, &p)| [f64::from(c), f64::from(p)]),
        );
        if let Some(sum) = self.cluster.get_mut(RANKS) {
            *sum += (wins - pairs / 2.0) / cells;
        }
        self.weight += payloads * covers / cells;
    }

    fn end_cluster(&mut self) {
        self.cluster_cells = 0;
        for (score, sum) in self.scores.iter_mut().zip(&mut self.cluster) {
            score.sum += *sum;
            score.squares += *sum * *sum;
            *sum = 0.0;
        }
    }

    /// The largest of what is sure, measured by what passes.
    fn judge(&self) -> Option<Breach> {
        let sure = self.scores.iter().enumerate().filter(|(_, score)| score.deviations() >= SURE);
        let sizes = sure.map(|(place, score)| {
            let size = score.sum.abs() / self.weight;
            match place {
                RANKS => (Statistic::Auc, size, size / LARGE_AUC),
                _ => (Statistic::Distance, size, size / LARGE_DISTANCE),
            }
        });
        let (statistic, size, measure) = sizes.max_by(|a, b| a.2.total_cmp(&b.2))?;
        if measure < 1.0 {
            return None;
        }
        let at_least = SIZES.iter().rev().find(|&&step| step <= size).copied().unwrap_or(SIZES[0]);
        Some(Breach { statistic, at_least })
    }
}

impl Score {
    /// How far from zero, in what the clusters say of its spread.
    fn deviations(&self) -> f64 {
        if self.squares > 0.0 { self.sum.abs() / self.squares.sqrt() } else { 0.0 }
    }
}

/// The bin of a lateness.
#[inline]
fn bin(lateness: u64) -> usize {
    let octave = (lateness | 1).ilog2();
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let upper_half = (lateness >> (octave - 1)) & 1;
    let half_octave = 2 * u64::from(octave - FIRST_OCTAVE) + upper_half;
    usize::try_from(half_octave).map_or(BINS - 1, |at| (at + 1).min(BINS - 1))
}

#[cfg(test)]
mod tests;
