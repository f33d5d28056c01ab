//! Circuits as one node holds them: whose layers it peels and adds, and the cells that wait for a slot.

use super::queue::Queue;
use super::replay::CircuitWindow;
use crate::crypto::HopKeys;
use relay_common::wire::{
    BODY_LEN, DATA_LEN, HopCommand, LAYER_FIELDS_LEN, LayerFields, MAX_HOPS, layer_inner_len, layer_len,
};

/// Cells that may wait on one side of a circuit.
pub const QUEUE_CELLS: usize = 64;
/// Answers that an exit may owe a circuit under circuit cover.
const MAX_OWED: u32 = 64;
/// How far a peer may move a circuit's numbers ahead over its whole life.
const MAX_SEQ_ADVANCE: u64 = 1 << 40;

/// One side of a circuit: the link, and the circuit's name on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Link number.
    pub link: u32,
    /// The circuit's name on that link, never zero.
    pub circ_id: u32,
}

impl std::hash::Hash for Side {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // As one number: a hasher's work is by call, and this one is looked up for every relayed cell.
        state.write_u64(u64::from(self.link) << 32 | u64::from(self.circ_id));
    }
}

/// Which way a cell goes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the client.
    Back = 0,
    /// Towards the exit.
    Ahead = 1,
}

/// Why a layered cell could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerError {
    Replayed,
    Unauthentic,
    Protocol,
}

/// A circuit that a relay carries or ends.
#[derive(Debug)]
pub(super) struct Carried {
    depth: usize,
    keys: HopKeys,
    forward_window: CircuitWindow,
    backward_window: CircuitWindow,
    backward_floor: u64,
    backward_seq: u64,
    /// Cells this exit still has to send so that it sends as many as it gets.
    owed: u32,
    /// The client fills every slot: this exit sends what it owes and nothing else.
    covered: bool,
    /// Data came for this relay: the circuit ends here.
    pub(super) ends_here: bool,
    /// What became of the client's wish for one relay more.
    extension: Extension,
    pub(super) received: u32,
}

/// How far a relay is with the extension of a circuit. One number of its own stays free for the answer, and cells from
/// ahead pass only behind that answer: otherwise a relay ahead could make this one seal twice under one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    None,
    /// EXTEND came and has no answer yet.
    Asked,
    /// EXTENDED went out.
    Done,
}

impl Carried {
    /// `depth` 0 is the entry; `seq` is the number that CREATE came with: this relay's own cells count from it.
    pub(super) fn new(depth: usize, keys: HopKeys, seq: u64) -> Self {
        Self {
            depth,
            keys,
            forward_window: CircuitWindow::starting_at(0),
            backward_window: CircuitWindow::starting_at(0),
            backward_floor: 0,
            backward_seq: seq,
            owed: 0,
            covered: false,
            ends_here: false,
            extension: Extension::None,
            received: 0,
        }
    }

    /// Notes that the client asked for one relay more; false where it may not ask now.
    pub(super) fn ask(&mut self) -> bool {
        let may = self.extension == Extension::None && !self.ends_here && self.depth + 1 < MAX_HOPS;
        if may {
            self.extension = Extension::Asked;
        }
        may
    }

    /// Notes the answer to what the client asked; false where it asked nothing.
    pub(super) fn answered(&mut self, extended: bool) -> bool {
        if self.extension != Extension::Asked {
            return false;
        }
        self.extension = if extended { Extension::Done } else { Extension::None };
        true
    }

    /// Whether data may end here: at the circuit's last relay, which is not about to get one behind it.
    pub(super) fn may_end(&self) -> bool {
        self.extension == Extension::None
    }

    /// Whether CREATE may go to a next relay.
    pub(super) fn may_extend(&self) -> bool {
        self.extension == Extension::Asked
    }

    /// The number that CREATE to the next relay carries, so that numbers on the way back stay in one row. One number
    /// before it stays this relay's own, for its answer to EXTEND.
    pub(super) fn extend_seq(&mut self) -> u64 {
        let floor = self.backward_seq.wrapping_add(1).wrapping_sub(self.keys.backward_offset);
        self.backward_floor = floor;
        floor
    }

    /// Opens this relay's layer of a cell on its way to the exit.
    #[inline]
    pub(super) fn open_forward(
        &mut self,
        seq: u64,
        body: &mut [u8; BODY_LEN],
    ) -> Result<LayerFields, LayerError> {
        if !self.forward_window.is_new(seq) {
            return Err(LayerError::Replayed);
        }
        let layer = &mut body[..layer_len(self.depth)];
        self.keys.forward.open_layer(seq, layer).map_err(|_| LayerError::Unauthentic)?;
        self.forward_window.mark(seq);
        self.received = self.received.wrapping_add(1);
        Ok(fields_at(body, self.depth))
    }

    /// The number of a forwarded cell on the next link; clears what is left of this layer.
    #[inline]
    pub(super) fn pass_forward(&self, seq: u64, body: &mut [u8; BODY_LEN]) -> u64 {
        body[layer_inner_len(self.depth)..].fill(0);
        seq.wrapping_add(self.keys.forward_offset)
    }

    /// Adds this relay's layer to a cell on its way to the client; returns its number on the next link.
    pub(super) fn pass_backward(&mut self, seq: u64, body: &mut [u8; BODY_LEN]) -> Result<u64, LayerError> {
        if self.extension != Extension::Done {
            return Err(LayerError::Protocol);
        }
        // Relative to the floor, numbers never wrap. A number below it would repeat one of this relay's own.
        let relative = seq.wrapping_sub(self.backward_floor);
        if relative > MAX_SEQ_ADVANCE || !self.backward_window.accept(relative) {
            return Err(LayerError::Replayed);
        }
        let out = seq.wrapping_add(self.keys.backward_offset);
        self.seal_backward(
            out,
            HopCommand::Forward,
            0,
            u16::try_from(layer_len(self.depth + 1)).unwrap_or(0),
            body,
        );
        Ok(out)
    }

    /// Seals a cell of this relay's own towards the client; returns its number.
    pub(super) fn own_backward(
        &mut self,
        command: HopCommand,
        length: u16,
        body: &mut [u8; BODY_LEN],
    ) -> u64 {
        let seq = self.backward_seq;
        self.backward_seq = seq.wrapping_add(1);
        self.seal_backward(seq, command, 0, length, body);
        seq
    }

    fn seal_backward(
        &self,
        seq: u64,
        command: HopCommand,
        flags: u8,
        length: u16,
        body: &mut [u8; BODY_LEN],
    ) {
        put_fields(body, self.depth, LayerFields { command: command as u8, flags, length });
        self.keys.backward.seal_layer(seq, &mut body[..layer_len(self.depth)]);
        body[layer_len(self.depth)..].fill(0);
    }

    /// Owes the client one cell more, but for one in `spare`: counted by what came, never by what it was.
    pub(super) fn owe(&mut self, spare: u32) {
        self.covered = true;
        if !self.received.is_multiple_of(spare) {
            self.owed = (self.owed + 1).min(MAX_OWED);
        }
    }

    /// Whether a slot should get a cell that begins here.
    pub(super) fn wants_slot(&self, has_data: bool) -> bool {
        self.ends_here && (self.owed > 0 || (!self.covered && has_data))
    }

    /// Counts a cell that began here against what is owed.
    pub(super) fn pay(&mut self) {
        self.owed = self.owed.saturating_sub(1);
    }
}

/// A circuit that begins here: the client's end.
#[derive(Debug)]
pub(super) struct Origin {
    hops: [Option<HopKeys>; MAX_HOPS],
    seq: u64,
    backward_window: CircuitWindow,
    backward_floor: u64,
    pub(super) received: u32,
    /// All hops are there and slots may be filled.
    pub(super) open: bool,
    /// Fill every free slot with a cell of this circuit.
    pub(super) cover: bool,
    /// Have one slot in so many, and no other; 0 and 1: take turns.
    pub(super) one_in: u32,
}

impl Origin {
    /// `seq` is the number that CREATE was sent with: both directions count from it.
    pub(super) fn new(seq: u64, cover: bool) -> Self {
        Self {
            hops: [None, None, None],
            seq: seq.wrapping_add(1),
            backward_window: CircuitWindow::starting_at(0),
            backward_floor: seq,
            received: 0,
            open: false,
            cover,
            one_in: 1,
        }
    }

    /// Adds the next hop's keys; false when the circuit is at its full length.
    pub(super) fn add_hop(&mut self, keys: HopKeys) -> bool {
        match self.hops.iter_mut().find(|hop| hop.is_none()) {
            Some(free) => {
                *free = Some(keys);
                true
            }
            None => false,
        }
    }

    fn depth(&self) -> usize {
        self.hops.iter().flatten().count()
    }

    /// Seals `body` for the last hop with these fields and wraps it for every hop before; returns its number.
    pub(super) fn seal(&mut self, fields: LayerFields, body: &mut [u8; BODY_LEN]) -> u64 {
        let seq = self.seq;
        self.seq = seq.wrapping_add(1);
        let depth = self.depth();
        let mut numbers = [seq; MAX_HOPS];
        for hop in 1..depth {
            let offset = self.hops[hop - 1].as_ref().map_or(0, |keys| keys.forward_offset);
            numbers[hop] = numbers[hop - 1].wrapping_add(offset);
        }
        for (hop, keys) in self.hops.iter().enumerate().rev() {
            let Some(keys) = keys else { continue };
            let own = if hop + 1 == depth {
                fields
            } else {
                let length = u16::try_from(layer_len(hop + 1)).unwrap_or(0);
                LayerFields { command: HopCommand::Forward as u8, flags: 0, length }
            };
            put_fields(body, hop, own);
            keys.forward.seal_layer(numbers[hop], &mut body[..layer_len(hop)]);
        }
        seq
    }

    /// Opens an arrived cell down to the hop that made it: that hop's depth and fields.
    pub(super) fn open(
        &mut self,
        seq: u64,
        body: &mut [u8; BODY_LEN],
    ) -> Result<(usize, LayerFields), LayerError> {
        let relative = seq.wrapping_sub(self.backward_floor);
        if relative > MAX_SEQ_ADVANCE || !self.backward_window.is_new(relative) {
            return Err(LayerError::Replayed);
        }
        let hops = self.depth();
        let mut number = seq;
        for (depth, keys) in self.hops.iter().flatten().enumerate() {
            keys.backward
                .open_layer(number, &mut body[..layer_len(depth)])
                .map_err(|_| LayerError::Unauthentic)?;
            if depth == 0 {
                self.backward_window.accept(relative);
            }
            let fields = fields_at(body, depth);
            if HopCommand::from_byte(fields.command) != Some(HopCommand::Forward) {
                // Only the last hop speaks to the client: one on the way could otherwise make up data.
                if depth + 1 != hops {
                    return Err(LayerError::Protocol);
                }
                self.received = self.received.wrapping_add(1);
                return Ok((depth, fields));
            }
            number = number.wrapping_sub(keys.backward_offset);
        }
        Err(LayerError::Protocol)
    }
}

/// What a circuit is to this node.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is what relays have by the thousand, in a box already"
)]
pub(super) enum Role {
    Carried(Carried),
    /// Boxed: relays carry many circuits and begin none.
    Origin(Box<Origin>),
}

/// One circuit.
#[derive(Debug)]
pub(super) struct Circuit {
    pub(super) back: Option<Side>,
    pub(super) ahead: Option<Side>,
    pub(super) role: Role,
    /// Cells that wait for each side's link, by [`Direction`].
    pub(super) queues: [Queue; 2],
}

impl Circuit {
    pub(super) const fn new(back: Option<Side>, ahead: Option<Side>, role: Role) -> Self {
        Self { back, ahead, role, queues: [Queue::new(), Queue::new()] }
    }

    pub(super) const fn side(&self, direction: Direction) -> Option<Side> {
        match direction {
            Direction::Back => self.back,
            Direction::Ahead => self.ahead,
        }
    }
}

/// Splits an end-to-end body into its data and leaves the count of received cells.
pub(super) fn data_of(body: &[u8; BODY_LEN]) -> Option<&[u8; DATA_LEN]> {
    body.first_chunk()
}

fn fields_at(body: &[u8; BODY_LEN], depth: usize) -> LayerFields {
    let at = layer_inner_len(depth);
    let mut bytes = [0; LAYER_FIELDS_LEN];
    bytes.copy_from_slice(&body[at..at + LAYER_FIELDS_LEN]);
    LayerFields::decode(bytes)
}

fn put_fields(body: &mut [u8; BODY_LEN], depth: usize, fields: LayerFields) {
    let at = layer_inner_len(depth);
    body[at..at + LAYER_FIELDS_LEN].copy_from_slice(&fields.encode());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Split, Suite};

    #[test]
    fn an_exit_answers_all_cells_but_one_in_so_many() {
        let split = Split { initiator_to_responder: [1; 32], responder_to_initiator: [2; 32] };
        let mut exit = Carried::new(2, HopKeys::derive(&split, Suite::Aes256Gcm), 1);
        exit.ends_here = true;
        let mut answers = 0;
        for _ in 0..1024 {
            exit.received += 1;
            exit.owe(256);
            while exit.wants_slot(true) {
                exit.pay();
                answers += 1;
            }
        }
        assert_eq!(answers, 1020);
        // However many wait: the queue of a link that stood still holds no more.
        for _ in 0..1000 {
            exit.received += 1;
            exit.owe(256);
        }
        assert_eq!(exit.owed, MAX_OWED);
    }
}
