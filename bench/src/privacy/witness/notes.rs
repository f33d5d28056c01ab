//! What a relay writes down that means harm: each cell of each circuit as it comes, waits and leaves.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use relay_common::wire::{CIRCUIT_HEADER_LEN, CircuitHeader, LINK_HEADER_LEN, LinkHeader};
use relay_user::config::RelayConfig;
use relay_user::control::run_watched_relay;
use relay_user::engine::time::Nanos;
use relay_user::engine::{Direction, Witness};
use relay_user::worker::Clock;
use relay_user::xsk::Frame;

use super::super::record::nanos;

/// The first argument that makes `relay-privacy` such a relay.
pub const WORD: &str = "as-witness";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A circuit's cell came, and waits for its slot.
    Arrived,
    /// A circuit's cell came, and went no further.
    Refused,
    /// A slot was given to a circuit's cell.
    Chosen,
    /// A slot's cell was handed to the port, whatever it holds.
    Left,
    /// A slot's cell came too late for it.
    Missed,
}

impl What {
    const ALL: [Self; 5] = [Self::Arrived, Self::Refused, Self::Chosen, Self::Left, Self::Missed];
}

/// One thing that happened. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) what: What,
    /// Which way a circuit's cell goes.
    pub(super) to: Direction,
    /// Cells in its queue: with one that came, behind one that was chosen.
    pub(super) waiting: u16,
    /// A circuit's cell: the circuit.
    pub(super) circuit: u32,
    /// What was chosen, left or was missed: the link.
    pub(super) link: u32,
    /// When it was written down.
    pub(super) at: u64,
    /// What came: its link's counter. Else: the slot's time.
    pub(super) slot: u64,
    /// What came: its number in the circuit.
    pub(super) seq: u64,
}

impl Note {
    /// Bytes in a file.
    const LEN: usize = 36;

    const BLANK: Self = Self {
        what: What::Left,
        to: Direction::Back,
        waiting: 0,
        circuit: 0,
        link: 0,
        at: 0,
        slot: 0,
        seq: 0,
    };

    fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.what as u8;
        bytes[1] = u8::from(self.to == Direction::Ahead);
        bytes[2..4].copy_from_slice(&self.waiting.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.circuit.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.link.to_le_bytes());
        for (place, number) in [(12, self.at), (20, self.slot), (28, self.seq)] {
            bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |place: usize| Some(u64::from_le_bytes(*bytes.get(place..)?.first_chunk()?));
        let short = |place: usize| Some(u32::from_le_bytes(*bytes.get(place..)?.first_chunk()?));
        Some(Self {
            what: *What::ALL.get(usize::from(*bytes.first()?))?,
            to: if *bytes.get(1)? == 0 { Direction::Back } else { Direction::Ahead },
            waiting: u16::from_le_bytes(*bytes.get(2..)?.first_chunk()?),
            circuit: short(4)?,
            link: short(8)?,
            at: number(12)?,
            slot: number(20)?,
            seq: number(28)?,
        })
    }
}

/// A worker's witness that writes everything down, and into a file when the worker ends.
struct Notebook {
    clock: Clock,
    /// When the worker's clock read zero, in nanoseconds since 1970.
    origin: u64,
    notes: Vec<Note>,
    /// Notes for which there was no room.
    lost: u64,
    /// The cell that came last, until it is known what became of it.
    pending: Option<Note>,
    slot: (u32, Nanos),
    file: PathBuf,
}

impl Notebook {
    /// All room is written once here, so that no note costs the worker a page fault.
    fn new(clock: Clock, room: usize, file: PathBuf) -> Self {
        let mut notes = vec![Note { link: 1, ..Note::BLANK }; room];
        notes.clear();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let origin = nanos(since_1970).saturating_sub(clock.now().0);
        Self { clock, origin, notes, lost: 0, pending: None, slot: (0, Nanos(0)), file }
    }

    fn now(&self) -> u64 {
        self.origin + self.clock.now().0
    }

    fn write(&mut self, note: Note) {
        if self.notes.len() < self.notes.capacity() {
            self.notes.push(note);
        } else {
            self.lost += 1;
        }
    }

    fn of_slot(&mut self, what: What, (link, slot): (u32, Nanos)) {
        let (at, slot) = (self.now(), self.origin + slot.0);
        self.write(Note { what, link, at, slot, ..Note::BLANK });
    }

    fn save(&self) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(&self.file)?);
        file.write_all(&self.lost.to_le_bytes())?;
        for note in &self.notes {
            file.write_all(&note.encode())?;
        }
        file.flush()
    }
}

impl Witness for Notebook {
    fn arrived(&mut self, circuit: u32, from: Direction, cell: &Frame) {
        if let Some(note) = self.pending.take() {
            self.write(note);
        }
        let to = match from {
            Direction::Back => Direction::Ahead,
            Direction::Ahead => Direction::Back,
        };
        let bytes = cell.data();
        let link = bytes.first_chunk::<LINK_HEADER_LEN>().and_then(LinkHeader::decode);
        let rest = bytes.get(LINK_HEADER_LEN..).and_then(|rest| rest.first_chunk::<CIRCUIT_HEADER_LEN>());
        self.pending = Some(Note {
            what: What::Refused,
            to,
            circuit,
            at: self.now(),
            slot: link.map_or(0, |header| header.counter),
            seq: rest.and_then(CircuitHeader::decode).map_or(0, |header| header.hop_seq),
            ..Note::BLANK
        });
    }

    fn queued(&mut self, _: u32, to: Direction, waiting: usize, taken: bool) {
        if let Some(note) = self.pending.take() {
            let what = if taken { What::Arrived } else { What::Refused };
            self.write(Note { what, to, waiting: u16::try_from(waiting).unwrap_or(u16::MAX), ..note });
        }
    }

    fn choosing(&mut self, link: u32, slot: Nanos) {
        self.slot = (link, slot);
    }

    fn chosen(&mut self, circuit: u32, to: Direction, waiting: usize) {
        let (link, slot) = self.slot;
        self.write(Note {
            what: What::Chosen,
            to,
            waiting: u16::try_from(waiting).unwrap_or(u16::MAX),
            circuit,
            link,
            at: self.now(),
            slot: self.origin + slot.0,
            seq: 0,
        });
    }

    fn left(&mut self, link: u32, slot: Nanos) {
        self.of_slot(What::Left, (link, slot));
    }

    fn missed(&mut self, link: u32, slot: Nanos) {
        self.of_slot(What::Missed, (link, slot));
    }
}

impl Drop for Notebook {
    fn drop(&mut self) {
        if let Err(error) = self.save() {
            eprintln!("{} cannot be written: {error}", self.file.display());
        }
    }
}

/// Runs a relay that takes notes until it is told to stop. `words` are its configuration, the file for its notes, and how
/// many there is room for.
///
/// # Errors
/// Where a word is missing, or as of any relay.
pub fn run_as_relay(mut words: impl Iterator<Item = OsString>) -> Result<()> {
    let (Some(config), Some(file), Some(room)) = (words.next(), words.next(), words.next()) else {
        bail!("{WORD} takes a configuration, a file and a number");
    };
    let room: usize = room.to_str().and_then(|room| room.parse().ok()).context("room is a number")?;
    let config = RelayConfig::load(Path::new(&config))?;
    let file = PathBuf::from(file);
    run_watched_relay(config, |clock| Notebook::new(clock, room, file.clone()))
}

/// The notes in a file, in the order in which they were taken.
///
/// # Errors
/// Where it cannot be read, or notes were lost.
pub(super) fn read(file: &Path) -> Result<Vec<Note>> {
    let bytes = std::fs::read(file).with_context(|| format!("the notes {}", file.display()))?;
    let (lost, rest) = bytes.split_first_chunk().context("the notes are cut off")?;
    let lost = u64::from_le_bytes(*lost);
    ensure!(lost == 0, "there was no room for {lost} notes");
    let notes = rest.chunks_exact(Note::LEN).map(Note::decode);
    notes.collect::<Option<_>>().context("the notes are damaged")
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_user::engine::blank_cell;
    use relay_user::xsk::Arena;

    #[test]
    fn notes_come_back_as_they_were_taken() {
        let file = std::env::temp_dir().join(format!("evenwire-notes-{}", std::process::id()));
        let arena = Arena::anonymous(4).expect("frames");
        let mut frame = arena.take().expect("a frame");
        let cell = blank_cell(&mut frame).expect("a cell");
        cell[..LINK_HEADER_LEN].copy_from_slice(&LinkHeader { receiver_index: 1, counter: 77 }.encode());
        let header = CircuitHeader { circ_id: 5, command: 1, key_epoch: 0, hop_seq: 1234 };
        cell[LINK_HEADER_LEN..LINK_HEADER_LEN + CIRCUIT_HEADER_LEN].copy_from_slice(&header.encode());
        let mut book = Notebook::new(Clock::start(), 5, file.clone());
        book.arrived(3, Direction::Back, &frame);
        book.queued(3, Direction::Ahead, 2, true);
        book.arrived(3, Direction::Back, &frame);
        book.queued(3, Direction::Ahead, 64, false);
        book.choosing(1, Nanos(500));
        book.chosen(3, Direction::Ahead, 1);
        book.left(1, Nanos(500));
        book.missed(0, Nanos(600));
        let origin = book.origin;
        drop(book);
        let notes = read(&file).expect("notes");
        std::fs::remove_file(&file).ok();
        let whats: Vec<What> = notes.iter().map(|note| note.what).collect();
        assert_eq!(whats, [What::Arrived, What::Refused, What::Chosen, What::Left, What::Missed]);
        assert_eq!((notes[0].slot, notes[0].seq, notes[0].waiting), (77, 1234, 2));
        assert_eq!((notes[0].to, notes[0].circuit), (Direction::Ahead, 3));
        assert_eq!((notes[2].link, notes[2].slot, notes[2].waiting), (1, origin + 500, 1));
        assert_eq!((notes[4].link, notes[4].slot), (0, origin + 600));
        assert!(notes[0].at <= notes[2].at);
    }

    #[test]
    fn what_there_was_no_room_for_is_told() {
        let file = std::env::temp_dir().join(format!("evenwire-few-notes-{}", std::process::id()));
        let mut book = Notebook::new(Clock::start(), 1, file.clone());
        book.left(1, Nanos(1));
        book.left(1, Nanos(2));
        drop(book);
        let told = read(&file).expect_err("a note was lost").to_string();
        std::fs::remove_file(&file).ok();
        assert!(told.contains("no room for 1"), "{told}");
    }
}
