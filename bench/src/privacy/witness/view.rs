//! What a relay's notes say of one circuit, with the kernel's time of each cell beside the worker's own.

use std::collections::{BTreeMap, HashMap, VecDeque};

use relay_tests::Host;
use relay_tests::recorder::Seen;
use relay_user::engine::Direction;

use super::notes::{Note, What};

/// A cell's time on the wire lies at most so far, in nanoseconds, from when the worker had it: another session's cell of
/// the same number lies a minute away.
const NEAR: u64 = 100_000_000;

/// A cell that came and was kept. Times are nanoseconds of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// On the wire, by the kernel; by the worker where the capture lacks it.
    pub(super) wire: u64,
    /// When the worker had it open.
    pub(super) opened: u64,
    /// Its number in the circuit.
    pub(super) seq: u64,
    /// Cells in its queue, with it.
    pub(super) waiting: u16,
}

/// A cell that went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Departure {
    /// When it was handed over.
    pub(super) at: u64,
    /// Its slot.
    pub(super) slot: u64,
    /// When the slot was given to it.
    pub(super) chosen: u64,
    /// When it had come, on the wire.
    pub(super) came: u64,
    /// Cells behind it in its queue.
    pub(super) waiting: u16,
}

/// One direction of a circuit at a relay, each list in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    pub(super) arrivals: Vec<Arrival>,
    pub(super) departures: Vec<Departure>,
    /// When cells came that went no further.
    pub(super) refused: Vec<u64>,
}

/// A circuit at a relay.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Towards the exit, and towards the client.
    pub(super) ways: [Way; 2],
    /// When slots were missed, on whichever link.
    pub(super) missed: Vec<u64>,
}

/// Which of a view's ways is which.
const fn number(to: Direction) -> usize {
    match to {
        Direction::Ahead => 0,
        Direction::Back => 1,
    }
}

/// Times of cells by their counter.
type Counted = HashMap<u64, Vec<u64>>;

/// What `host` has of its busiest circuit from `began` on, from its notes and all packets of the wire.
pub(super) fn of(notes: &[Note], seen: &[Seen], host: Host, began: u64) -> View {
    let mut cells: BTreeMap<u32, u64> = BTreeMap::new();
    for note in notes.iter().filter(|note| note.what == What::Arrived) {
        *cells.entry(note.circuit).or_default() += 1;
    }
    let Some((&circuit, _)) = cells.iter().max_by_key(|(_, cells)| **cells) else { return View::default() };
    let left: HashMap<(u32, u64), u64> = notes
        .iter()
        .filter(|note| note.what == What::Left)
        .map(|note| ((note.link, note.slot), note.at))
        .collect();
    let wires = wires(seen, host);
    let mut view = View::default();
    let mut inside: [VecDeque<u64>; 2] = Default::default();
    for note in notes {
        let since = |at: u64| at.saturating_sub(began);
        let way = number(note.to);
        match note.what {
            What::Arrived if note.circuit == circuit => {
                let wire = time_on_wire(&wires[way], note);
                inside[way].push_back(wire);
                let (wire, opened) = (since(wire), since(note.at));
                let arrival = Arrival { wire, opened, seq: note.seq, waiting: note.waiting };
                view.ways[way].arrivals.push(arrival);
            }
            What::Refused if note.circuit == circuit => view.ways[way].refused.push(since(note.at)),
            What::Chosen if note.circuit == circuit => {
                let came = inside[way].pop_front();
                // One that missed its slot goes at a later one, in no order that could be followed.
                let at = left.get(&(note.link, note.slot));
                if let (Some(came), Some(&at)) = (came, at) {
                    view.ways[way].departures.push(Departure {
                        at: since(at),
                        slot: since(note.slot),
                        chosen: since(note.at),
                        came: since(came),
                        waiting: note.waiting,
                    });
                }
            }
            What::Missed => view.missed.push(since(note.at)),
            _ => {}
        }
    }
    for way in &mut view.ways {
        way.arrivals.retain(|arrival| arrival.wire > 0);
        way.arrivals.sort_by_key(|arrival| arrival.wire);
        way.departures.retain(|departure| departure.came > 0);
        way.departures.sort_by_key(|departure| departure.at);
        way.refused.retain(|at| *at > 0);
    }
    view.missed.retain(|at| *at > 0);
    view
}

/// The wire's packets to `host`: those towards the exit, and those towards the client.
fn wires(seen: &[Seen], host: Host) -> [Counted; 2] {
    let mut wires: [Counted; 2] = Default::default();
    for packet in seen.iter().filter(|seen| Some(seen.destination) == host.address()) {
        let Some(from) = Host::by_address(packet.source) else { continue };
        // The hosts stand in the path's order.
        let way = usize::from(from > host && from != Host::Second);
        wires[way].entry(packet.counter).or_default().push(packet.at);
    }
    wires
}

fn time_on_wire(wire: &Counted, note: &Note) -> u64 {
    let times = wire.get(&note.slot).into_iter().flatten();
    let near = times.filter(|at| at.abs_diff(note.at) < NEAR);
    near.min_by_key(|at| at.abs_diff(note.at)).copied().unwrap_or(note.at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn note(what: What, at: u64, slot: u64) -> Note {
        Note { what, to: Direction::Ahead, waiting: 1, circuit: 4, link: 1, at, slot, seq: slot }
    }

    fn seen(from: Host, to: Host, counter: u64, at: u64) -> Seen {
        let address = |host: Host| host.address().unwrap_or(Ipv4Addr::UNSPECIFIED);
        Seen {
            at,
            source: address(from),
            destination: address(to),
            length: 1360,
            ports: [0; 2],
            first: 0,
            counter,
        }
    }

    #[test]
    fn a_cell_is_followed_from_the_wire_to_its_slot() {
        let notes = [
            Note { circuit: 9, ..note(What::Arrived, 1_010, 7) },
            note(What::Arrived, 1_500, 7),
            Note { to: Direction::Back, ..note(What::Arrived, 1_600, 7) },
            note(What::Chosen, 1_700, 1_900),
            note(What::Left, 1_910, 1_900),
            note(What::Refused, 1_920, 8),
            note(What::Arrived, 1_930, 9),
            note(What::Chosen, 1_940, 1_950),
            note(What::Missed, 1_960, 1_950),
        ];
        let packets = [
            seen(Host::Entry, Host::Middle, 7, 1_400),
            seen(Host::Exit, Host::Middle, 7, 1_450),
            // Of the session before, and of another relay.
            seen(Host::Entry, Host::Middle, 7, 1_400 + 60_000_000_000),
            seen(Host::Client, Host::Entry, 7, 1_499),
        ];
        let view = of(&notes, &packets, Host::Middle, 1_000);
        let [ahead, back] = &view.ways;
        let first = Arrival { wire: 400, opened: 500, seq: 7, waiting: 1 };
        assert_eq!(ahead.arrivals, [first, Arrival { wire: 930, opened: 930, seq: 9, waiting: 1 }]);
        assert_eq!(back.arrivals, [Arrival { wire: 450, opened: 600, seq: 7, waiting: 1 }]);
        let gone = Departure { at: 910, slot: 900, chosen: 700, came: 400, waiting: 1 };
        assert_eq!(ahead.departures, [gone], "what missed its slot cannot be followed");
        assert_eq!((&ahead.refused, &view.missed), (&vec![920], &vec![960]));
    }

    #[test]
    fn nothing_written_is_nothing_seen() {
        assert!(of(&[], &[], Host::Entry, 0).ways.iter().all(|way| way.arrivals.is_empty()));
    }
}
