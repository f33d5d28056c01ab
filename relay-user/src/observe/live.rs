//! A worker's test of itself: are its cells of payload later, or earlier, than its cells of cover? In bounded memory, for
//! as long as it runs.
//!
//! ```text
//!   cell -> its link's stratum: two histograms of lateness, over 32 cells
//!             full -> payload less cover, share by share          (0 on average, whatever the load was)
//!                       summed over 1024 cells: a cluster          (of one link: 256)
//!                         summed over 2^17 cells and a minute: an epoch -> one look -> breach or not
//!                         (of one link: 2^15 and a minute)
//! ```
//!
//! Links are summed together, which sees a little of something that all of them tell, and each by itself: of what one link
//! in sixty tells, a sixtieth is left among all.
//!
//! Lateness moves with the load, and so does the share of payload: over an hour the two go together without any cell
//! telling what it is. So only cells of the same link that leave close together are compared, and sums over strata count
//! what is left (as Mantel and Haenszel did). Stalls hit many cells and links at once, and payload comes in bursts; so how
//! much the sums stray by chance is taken from the clusters, and not from a formula for independent cells.
//!
//! A breach is both sure and large. Sure: the sum lies seven of its own standard deviations from zero, that of a single link
//! eight. For clusters that fall to either side alike the chance of that is below 2·exp(-7²/2) = 4.6e-11 and
//! 2·exp(-8²/2) = 2.6e-14, without any normal approximation (Hoeffding's bound for self-normalised sums). There are
//! [`STATISTICS`] sums in an epoch and 525,600 epochs in a year at most, of all together and of each of 256 links: less than
//! 1e-3 false alarms a year and worker. Large: beyond what the design lets pass, AUC 0.5 ± 0.02, or a
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
/// Standard deviations, of all links together and of one by itself.
const SURE: f64 = 7.0;
const SURE_OF_ONE: f64 = 8.0;
/// A link's clusters and epochs have so much fewer cells: enough clusters that eight deviations can be reached.
const OF_ONE: u32 = 4;
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
    /// Epochs of all links together since start. One with hardly any payload, or hardly any cover, shows nothing.
    pub epochs: u64,
    /// Looks that found a breach, of all links together or of one.
    pub breaches: u64,
    /// The latest breach, and when it was found, in nanoseconds of the worker's clock.
    pub last: Option<(u64, Breach)>,
}

impl AuditState {
    /// Two workers' together, who have one clock.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let breaches = self.last.into_iter().chain(other.last);
        Self {
            epochs: self.epochs + other.epochs,
            breaches: self.breaches + other.breaches,
            last: breaches.max_by_key(|(found, _)| *found),
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

/// What strata say, summed over clusters and an epoch.
#[derive(Clone, Debug)]
struct Sums {
    /// Cells of a cluster, and of an epoch at least.
    pace: [u32; 2],
    /// Sums of the cluster that runs.
    cluster: [f64; STATISTICS],
    cluster_cells: u32,
    scores: [Score; STATISTICS],
    /// Of all strata: what a difference of shares counts in the sums.
    weight: f64,
    cells: u32,
    /// 0 before anybody looked.
    began: u64,
}

impl Sums {
    const fn new(pace: [u32; 2]) -> Self {
        let none = Score { sum: 0.0, squares: 0.0 };
        Self {
            pace,
            cluster: [0.0; STATISTICS],
            cluster_cells: 0,
            scores: [none; STATISTICS],
            weight: 0.0,
            cells: 0,
            began: 0,
        }
    }

    /// Takes a cell in, and what its stratum says where it was the last of one.
    #[inline]
    fn note(&mut self, stratum: Option<&(Differences, f64)>) {
        if let Some((differences, weight)) = stratum {
            for (sum, difference) in self.cluster.iter_mut().zip(differences) {
                *sum += difference;
            }
            self.weight += weight;
        }
        self.cells = self.cells.saturating_add(1);
        self.cluster_cells += 1;
        if self.cluster_cells >= self.pace[0] {
            self.end_cluster();
        }
    }

    fn end_cluster(&mut self) {
        self.cluster_cells = 0;
        for (score, sum) in self.scores.iter_mut().zip(&mut self.cluster) {
            score.sum += *sum;
            score.squares += *sum * *sum;
            *sum = 0.0;
        }
    }

    /// Ends an epoch that has lasted long enough: whether it did, and whether it was a breach.
    fn look(&mut self, now: u64, span: u64, sure: f64) -> (bool, Option<Breach>) {
        if self.began == 0 {
            self.began = now;
        }
        if self.cells < self.pace[1] || now.saturating_sub(self.began) < span {
            return (false, None);
        }
        self.end_cluster();
        let breach = self.judge(sure);
        *self = Self { began: now, ..Self::new(self.pace) };
        (true, breach)
    }

    /// The largest of what is sure, measured by what passes.
    fn judge(&self, sure: f64) -> Option<Breach> {
        let sure = self.scores.iter().enumerate().filter(|(_, score)| score.deviations() >= sure);
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

/// The audit of one worker.
#[derive(Debug)]
pub struct SelfAudit {
    /// Of each link, the stratum that fills, and what those before it say.
    links: Box<[(Stratum, Sums)]>,
    all: Sums,
    span: u64,
    state: AuditState,
}

impl SelfAudit {
    /// An audit of links numbered below `links`; `pace` is [`Pace::default`] but in tests.
    pub fn new(links: u32, Pace { cluster, cells, span }: Pace) -> Self {
        let of_one = Sums::new([cluster / OF_ONE, cells / OF_ONE]);
        Self {
            links: vec![(EMPTY, of_one); links as usize].into_boxed_slice(),
            all: Sums::new([cluster, cells]),
            span,
            state: AuditState::default(),
        }
    }

    /// Notes a cell: `lateness` in nanoseconds after its slot, `u64::MAX` for one that missed it.
    #[inline]
    pub fn note(&mut self, link: u32, payload: bool, lateness: u64) {
        let Some((stratum, sums)) = self.links.get_mut(link as usize) else { return };
        if let Some(count) = stratum.counts[usize::from(payload)].get_mut(bin(lateness)) {
            *count += 1;
        }
        stratum.noted += 1;
        let said = if stratum.noted == STRATUM { std::mem::replace(stratum, EMPTY).says() } else { None };
        sums.note(said.as_ref());
        self.all.note(said.as_ref());
    }

    /// A link of this number begins: cells of one that had it before are not compared with its own.
    pub fn begin_link(&mut self, link: u32) {
        if let Some((stratum, sums)) = self.links.get_mut(link as usize) {
            *stratum = EMPTY;
            *sums = Sums::new(sums.pace);
        }
    }

    /// Ends epochs that have lasted long enough. To be called now and then; `now` in nanoseconds of any one clock.
    /// Returns whether there was a breach.
    pub fn look(&mut self, now: u64) -> bool {
        let (ended, of_all) = self.all.look(now, self.span, SURE);
        self.state.epochs += u64::from(ended);
        let span = self.span;
        let of_links = self.links.iter_mut().filter_map(|(_, sums)| sums.look(now, span, SURE_OF_ONE).1);
        let largest = of_all.into_iter().chain(of_links).max_by(|a, b| a.at_least.total_cmp(&b.at_least));
        let Some(breach) = largest else { return false };
        self.state.breaches += 1;
        self.state.last = Some((now, breach));
        true
    }

    /// What may be told.
    pub const fn state(&self) -> AuditState {
        self.state
    }
}

/// Of one stratum: payload less cover, in the shares up to each bin but the last, and in rank.
type Differences = [f64; STATISTICS];

impl Stratum {
    /// The differences, and what they count; nothing where it holds one kind of cell only.
    fn says(&self) -> Option<(Differences, f64)> {
        let [cover, payload] = &self.counts;
        let total = |counts: &[u8; BINS]| counts.iter().map(|&count| f64::from(count)).sum::<f64>();
        let (covers, payloads) = (total(cover), total(payload));
        if covers == 0.0 || payloads == 0.0 {
            return None;
        }
        let cells = covers + payloads;
        let (mut cover_below, mut payload_below) = (0.0, 0.0);
        let mut differences = [0.0; STATISTICS];
        for ((difference, &c), &p) in differences.iter_mut().zip(cover).zip(payload) {
            let (c, p) = (f64::from(c), f64::from(p));
            cover_below += c;
            payload_below += p;
            *difference = (payload_below * covers - cover_below * payloads) / cells;
        }
        let (wins, pairs) = crate::observe::stats::ranked(
            cover.iter().zip(payload).map(|(&c, &p)| [f64::from(c), f64::from(p)]),
        );
        // In the last bin both shares are 1, and its place is the ranks'.
        differences[RANKS] = (wins - pairs / 2.0) / cells;
        Some((differences, payloads * covers / cells))
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
