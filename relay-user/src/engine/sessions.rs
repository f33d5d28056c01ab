//! The sessions of all links: found by receive index for each cell that comes in, by place for each that goes out.

use super::link::Session;
use crate::xsk::prefetch;
use std::collections::HashMap;

#[derive(Debug)]
struct Entry {
    session: Box<Session>,
    /// The next of the same link's sessions.
    next: Option<u32>,
}

/// Sessions by place; places are used again. Grows only when the control plane installs a session.
#[derive(Debug)]
pub(super) struct Sessions {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_index: HashMap<u32, u32, foldhash::fast::RandomState>,
}

impl Sessions {
    /// An empty table with room for `capacity` sessions.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            by_index: HashMap::with_capacity_and_hasher(capacity, foldhash::fast::RandomState::default()),
        }
    }

    /// Where the session with receive index `index` is.
    pub(super) fn find(&self, index: u32) -> Option<u32> {
        self.by_index.get(&index).copied()
    }

    /// Begins to load a session.
    pub(super) fn prefetch(&self, place: u32) {
        if let Some(session) = self.get(place) {
            prefetch(&session.keys);
            prefetch(&session.source);
        }
    }

    pub(super) fn get(&self, place: u32) -> Option<&Session> {
        self.entries.get(place as usize)?.as_ref().map(|entry| &*entry.session)
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Session> {
        self.entries.get_mut(place as usize)?.as_mut().map(|entry| &mut *entry.session)
    }

    /// Puts a session in front of its link's chain. Its receive index must be free.
    pub(super) fn insert(&mut self, session: Box<Session>, chain: &mut Option<u32>) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).expect("no more sessions than receive indices")
        });
        self.by_index.insert(session.receive_index, place);
        self.entries[place as usize] = Some(Entry { session, next: chain.replace(place) });
        place
    }

    /// Takes the session at `place` out of its link's chain.
    pub(super) fn remove(&mut self, place: u32, chain: &mut Option<u32>) {
        let Some(entry) = self.entries.get_mut(place as usize).and_then(Option::take) else { return };
        self.by_index.remove(&entry.session.receive_index);
        self.free.push(place);
        if *chain == Some(place) {
            *chain = entry.next;
            return;
        }
        let mut at = *chain;
        while let Some(Some(before)) = at.and_then(|at| self.entries.get_mut(at as usize)) {
            if before.next == Some(place) {
                before.next = entry.next;
                return;
            }
            at = before.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{LinkKeys, Split, Suite};
    use crate::engine::time::Nanos;

    fn session(index: u32) -> Box<Session> {
        let split = Split { initiator_to_responder: [1; 32], responder_to_initiator: [2; 32] };
        let keys = LinkKeys::derive(&split, Suite::Aes256Gcm, true);
        let source = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
        Box::new(Session::new(0, index, index, keys, source, Nanos(0)))
    }

    #[test]
    fn a_chain_loses_any_of_its_sessions_and_places_are_used_again() {
        for removed in 0..3 {
            let mut table = Sessions::new(1);
            let mut chain = None;
            let places: Vec<u32> = (10..13).map(|index| table.insert(session(index), &mut chain)).collect();
            table.remove(places[removed], &mut chain);
            assert_eq!(table.find(10 + u32::try_from(removed).unwrap()), None);
            let mut left = Vec::new();
            while let Some(place) = chain {
                left.push(table.get(place).unwrap().receive_index);
                table.remove(place, &mut chain);
            }
            assert_eq!(left.len(), 2);
            assert!(!left.contains(&(10 + u32::try_from(removed).unwrap())));
            assert!(table.insert(session(20), &mut chain) < 3);
            assert_eq!(table.find(20), chain);
        }
    }
}
