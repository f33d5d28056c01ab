//! Doubly linked lists of small numbers, over places that are allocated once: a number is in one list of its set at
//! most, and every step takes constant time.

const NIL: u32 = u32::MAX;
/// What stands in `before` where a number is in no list.
const UNLISTED: u32 = u32::MAX - 1;

/// The first and last of one list.
#[derive(Debug)]
pub(super) struct List {
    first: u32,
    last: u32,
    len: u32,
}

impl List {
    pub(super) const fn new() -> Self {
        Self { first: NIL, last: NIL, len: 0 }
    }

    pub(super) const fn first(&self) -> Option<u32> {
        if self.first == NIL { None } else { Some(self.first) }
    }

    pub(super) const fn len(&self) -> u32 {
        self.len
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    before: u32,
    behind: u32,
}

/// The places of numbers `0..capacity`, for as many lists as the caller keeps.
#[derive(Debug)]
pub(super) struct Places(Vec<Place>);

impl Places {
    pub(super) fn new(capacity: usize) -> Self {
        Self(vec![Place { before: UNLISTED, behind: NIL }; capacity])
    }

    /// Whether `number` is in a list.
    pub(super) fn is_listed(&self, number: u32) -> bool {
        self.0[number as usize].before != UNLISTED
    }

    /// Puts `number` at the end of `list`; no effect where it is in a list already.
    #[inline]
    pub(super) fn push_back(&mut self, list: &mut List, number: u32) {
        if self.is_listed(number) {
            return;
        }
        self.0[number as usize] = Place { before: list.last, behind: NIL };
        match list.last {
            NIL => list.first = number,
            last => self.0[last as usize].behind = number,
        }
        list.last = number;
        list.len += 1;
    }

    /// Takes the first out.
    #[inline]
    pub(super) fn pop_front(&mut self, list: &mut List) -> Option<u32> {
        let first = list.first()?;
        self.remove(list, first);
        Some(first)
    }

    /// Takes the first out, or puts it behind all others where it shall `stay`.
    #[inline]
    pub(super) fn end_turn(&mut self, list: &mut List, stay: bool) {
        if stay && list.len == 1 {
            return;
        }
        if let Some(first) = self.pop_front(list)
            && stay
        {
            self.push_back(list, first);
        }
    }

    /// Takes `number` out of `list`, the one it is in; no effect where it is in none.
    #[inline]
    pub(super) fn remove(&mut self, list: &mut List, number: u32) {
        let place = &mut self.0[number as usize];
        let (before, behind) = (std::mem::replace(&mut place.before, UNLISTED), place.behind);
        if before == UNLISTED {
            return;
        }
        match before {
            NIL => list.first = behind,
            before => self.0[before as usize].behind = behind,
        }
        match behind {
            NIL => list.last = before,
            behind => self.0[behind as usize].before = before,
        }
        list.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn agrees_with_queues(steps in prop::collection::vec((0u8..4, 0u32..12, 0usize..3), 0..200)) {
            let mut places = Places::new(12);
            let mut lists = [List::new(), List::new(), List::new()];
            let mut queues: [VecDeque<u32>; 3] = Default::default();
            for (step, number, at) in steps {
                let holder = queues.iter().position(|queue| queue.contains(&number));
                match step {
                    0 => {
                        places.push_back(&mut lists[at], number);
                        if holder.is_none() {
                            queues[at].push_back(number);
                        }
                    }
                    3 => {
                        places.end_turn(&mut lists[at], number % 2 == 0);
                        let first = queues[at].pop_front();
                        queues[at].extend(first.filter(|_| number % 2 == 0));
                    }
                    1 => prop_assert_eq!(places.pop_front(&mut lists[at]), queues[at].pop_front()),
                    _ => {
                        let at = holder.unwrap_or(at);
                        places.remove(&mut lists[at], number);
                        queues[at].retain(|&other| other != number);
                    }
                }
                for (list, queue) in lists.iter().zip(&queues) {
                    prop_assert_eq!(list.first(), queue.front().copied());
                    prop_assert_eq!(list.len() as usize, queue.len());
                }
                let listed = queues.iter().any(|queue| queue.contains(&number));
                prop_assert_eq!(places.is_listed(number), listed);
            }
        }
    }
}
