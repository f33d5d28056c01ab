//! How the class of an epoch comes about.

use super::{ClassNumber, Mechanism, SECONDS_PER_DAY, Unix};

/// A class for each time of the day, fixed ahead and the same every day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayTable {
    /// Seconds since midnight (UTC) and the class from then on, in order; never empty.
    entries: Vec<(u32, ClassNumber)>,
}

impl DayTable {
    /// A table of `entries`, seconds since midnight and the class from then on. `None` where there are none, one lies
    /// beyond the day, or two are of the same time.
    pub fn new(mut entries: Vec<(u32, ClassNumber)>) -> Option<Self> {
        entries.sort_unstable();
        let distinct = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let within = entries.iter().all(|&(second, _)| second < SECONDS_PER_DAY);
        (!entries.is_empty() && distinct && within).then_some(Self { entries })
    }

    /// The class at a moment: that of the last entry before it, of the evening before where the day has had none yet.
    pub fn class_at(&self, at: Unix) -> ClassNumber {
        let second = at.second_of_day();
        let past = self.entries.iter().rev().find(|&&(from, _)| from <= second);
        past.or(self.entries.last()).map_or(ClassNumber(0), |&(_, class)| class)
    }

    /// Times of the day at which another class begins.
    pub fn changes(&self) -> usize {
        let before = self.entries.iter().cycle().skip(self.entries.len() - 1);
        self.entries.iter().zip(before).filter(|((_, class), (_, before))| class != before).count()
    }

    /// The classes in the table, repeats included.
    pub fn classes(&self) -> impl Iterator<Item = ClassNumber> {
        self.entries.iter().map(|&(_, class)| class)
    }
}

/// How the class of a link comes about, before loss has its say.
#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    /// One class for ever. Tells nothing.
    Fixed(ClassNumber),
    /// By the time of day. Whoever has the document knows it beforehand, so it tells nothing.
    Scheduled(DayTable),
    /// By the noised demand of the epoch before. Tells what its ε admits.
    Adaptive {
        /// The class until the first choice is made.
        base: ClassNumber,
        /// Chooses.
        mechanism: Mechanism,
    },
}

impl Policy {
    /// The class of the epoch that begins at `start`, where `chosen` is the last choice of an adaptive policy.
    pub fn class_at(&self, start: Unix, chosen: Option<ClassNumber>) -> ClassNumber {
        match self {
            Self::Fixed(class) => *class,
            Self::Scheduled(table) => table.class_at(start),
            Self::Adaptive { base, .. } => chosen.unwrap_or(*base),
        }
    }

    /// All classes that the policy may give, repeats included.
    pub fn classes(&self) -> Vec<ClassNumber> {
        match self {
            Self::Fixed(class) => vec![*class],
            Self::Scheduled(table) => table.classes().collect(),
            Self::Adaptive { base, mechanism } => {
                mechanism.classes().iter().copied().chain([*base]).collect()
            }
        }
    }

    /// The policy's name in configuration and status.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Fixed(_) => "fixed",
            Self::Scheduled(_) => "scheduled",
            Self::Adaptive { .. } => "adaptive",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: ClassNumber = ClassNumber(1);
    const NIGHT: ClassNumber = ClassNumber(0);

    fn at(hour: u64, minute: u64, second: u64) -> Unix {
        Unix::from_seconds(20_000 * 86_400 + hour * 3600 + minute * 60 + second)
    }

    #[test]
    fn a_day_goes_through_its_table_and_around() {
        let table = DayTable::new(vec![(23 * 3600, NIGHT), (7 * 3600, DAY)]).unwrap();
        for (moment, class) in [
            (at(0, 0, 0), NIGHT),
            (at(6, 59, 59), NIGHT),
            (at(7, 0, 0), DAY),
            (at(22, 59, 59), DAY),
            (at(23, 0, 0), NIGHT),
        ] {
            assert_eq!(table.class_at(moment), class, "{moment:?}");
        }
    }

    #[test]
    fn only_another_class_is_a_change() {
        let changes = |entries: &[(u32, ClassNumber)]| DayTable::new(entries.to_vec()).unwrap().changes();
        assert_eq!(changes(&[(0, DAY)]), 0);
        assert_eq!(changes(&[(0, DAY), (60, NIGHT)]), 2);
        assert_eq!(changes(&[(0, DAY), (60, DAY), (120, NIGHT), (180, DAY)]), 2);
    }

    #[test]
    fn no_table_without_one_class_for_each_time() {
        assert_eq!(DayTable::new(vec![]), None);
        assert_eq!(DayTable::new(vec![(60, DAY), (60, NIGHT)]), None);
        assert_eq!(DayTable::new(vec![(86_400, DAY)]), None);
        assert!(DayTable::new(vec![(86_399, DAY)]).is_some());
    }

    #[test]
    fn only_an_adaptive_policy_heeds_a_choice() {
        assert_eq!(Policy::Fixed(DAY).class_at(at(1, 0, 0), Some(NIGHT)), DAY);
        let scheduled = Policy::Scheduled(DayTable::new(vec![(0, DAY)]).unwrap());
        assert_eq!(scheduled.class_at(at(1, 0, 0), Some(NIGHT)), DAY);
        let mechanism = Mechanism::new(vec![(NIGHT, 10), (DAY, 20)], 1.0).unwrap();
        let adaptive = Policy::Adaptive { base: DAY, mechanism };
        assert_eq!(adaptive.class_at(at(1, 0, 0), None), DAY);
        assert_eq!(adaptive.class_at(at(1, 0, 0), Some(NIGHT)), NIGHT);
    }

    proptest! {
        #[test]
        fn the_table_depends_on_the_time_of_day_alone(day in 0u64..40_000, second in 0u64..86_400) {
            let table = DayTable::new(vec![(3600, DAY), (7200, NIGHT), (50_000, DAY)]).unwrap();
            let today = Unix::from_seconds(day * 86_400 + second);
            let expected = if (7200..50_000).contains(&second) { NIGHT } else { DAY };
            prop_assert_eq!(table.class_at(today), expected);
        }
    }
}
