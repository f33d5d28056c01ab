//! Datagram and cell formats, protocol version 1. Every integer on the wire is big-endian.
//!
//! ```text
//! CELL      | type 1 | zero 3 | receiver index 4 | counter 8 |   sealed 1328   | tag 16 |      = 1360
//! sealed    | circ_id 4 | command 1 | key epoch 1 | zero 2 | hop_seq 8 |   body 1312   |       = 1328
//! body      | inner 1292 | hop command 1 | flags 1 | block offset or length 2 | tag 16 |       = 1312
//! HS_INIT   | type 1 | role 1 | zero 2 | sender index 4 | client nonce 8 | Noise message | random pad | mac1 8 | retry token 16 |
//! HS_RESP   | type 1 | zero 3 | sender index 4 | receiver index 4 | zero 4 | ML-KEM ciphertext 1088 | Noise message | random pad |
//! RETRY     | type 1 | zero 7 | client nonce 8 | retry token 16 | zero 32 |                  = 64
//! ```
//!
//! A layer's fields stand *behind* what they describe, so that a hop peels or adds its layer in place and never moves
//! the inner bytes.

/// Bytes of UDP payload of a cell and of both handshake datagrams. One size for the whole network.
pub const CELL_LEN: usize = 1360;
/// Bytes of UDP payload of a RETRY datagram, the single exception in size.
pub const RETRY_LEN: usize = 64;
/// Bytes of the clear link header in front of a cell; also the link AEAD's associated data.
pub const LINK_HEADER_LEN: usize = 16;
/// Bytes of an AES-256-GCM or ChaCha20-Poly1305 tag.
pub const TAG_LEN: usize = 16;
/// Bytes that the link AEAD seals: circuit header and body.
pub const SEALED_LEN: usize = CELL_LEN - LINK_HEADER_LEN - TAG_LEN;
/// Bytes of the circuit header.
pub const CIRCUIT_HEADER_LEN: usize = 16;
/// Bytes of a cell's body, the part that travels over several hops.
pub const BODY_LEN: usize = SEALED_LEN - CIRCUIT_HEADER_LEN;
/// Offset of the body in the datagram.
pub const BODY_OFFSET: usize = LINK_HEADER_LEN + CIRCUIT_HEADER_LEN;
/// Bytes of a layer's own fields: hop command 1, flags 1, length or block offset 2.
pub const LAYER_FIELDS_LEN: usize = 4;
/// Bytes that each hop layer takes from the body.
pub const LAYER_OVERHEAD: usize = LAYER_FIELDS_LEN + TAG_LEN;
/// Relays on a circuit, at most.
pub const MAX_HOPS: usize = 3;
/// Bytes of IP traffic that a cell over three hops carries, blocks' own headers included.
pub const DATA_LEN: usize = layer_inner_len(MAX_HOPS - 1) - RX_COUNT_LEN;
/// Bytes of the count of received cells that follows the data of an end-to-end cell.
pub const RX_COUNT_LEN: usize = 4;
/// Bytes of a relay's id in the network document and in EXTEND.
pub const RELAY_ID_LEN: usize = 16;

/// Bytes of the sealed layer (tag included) that the hop at `depth` (0 = entry) opens.
pub const fn layer_len(depth: usize) -> usize {
    BODY_LEN - depth * LAYER_OVERHEAD
}

/// Bytes inside the layer of the hop at `depth`, its own fields and tag taken off.
pub const fn layer_inner_len(depth: usize) -> usize {
    layer_len(depth) - LAYER_OVERHEAD
}

const _: () = {
    assert!(SEALED_LEN == 1328);
    assert!(BODY_LEN == 1312);
    assert!(layer_len(0) == 1312 && layer_len(1) == 1292 && layer_len(2) == 1272);
    assert!(DATA_LEN == 1248);
};

/// First byte of every datagram.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramType {
    /// One link cell, [`CELL_LEN`] bytes.
    Cell = 1,
    /// First handshake message, [`CELL_LEN`] bytes.
    HsInit = 2,
    /// Second handshake message, [`CELL_LEN`] bytes.
    HsResp = 3,
    /// Demand for a retry token, [`RETRY_LEN`] bytes.
    Retry = 4,
}

impl DatagramType {
    /// The type that `byte` names, if any.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Cell),
            2 => Some(Self::HsInit),
            3 => Some(Self::HsResp),
            4 => Some(Self::Retry),
            _ => None,
        }
    }

    /// Bytes of UDP payload that a datagram of this type has, exactly.
    pub const fn datagram_len(self) -> usize {
        match self {
            Self::Cell | Self::HsInit | Self::HsResp => CELL_LEN,
            Self::Retry => RETRY_LEN,
        }
    }
}

/// The clear header of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkHeader {
    /// Names the receiver's session; random, chosen by the receiver.
    pub receiver_index: u32,
    /// Counts the cells sealed under one key; never repeats.
    pub counter: u64,
}

impl LinkHeader {
    /// Reads the header of a datagram already known to be a cell. `None` where a reserved byte is set.
    pub fn decode(bytes: &[u8; LINK_HEADER_LEN]) -> Option<Self> {
        const START: u32 = u32::from_ne_bytes([DatagramType::Cell as u8, 0, 0, 0]);
        let [kind, r0, r1, r2, i0, i1, i2, i3, counter @ ..] = *bytes;
        // One comparison: the XDP program makes it for every cell.
        if u32::from_ne_bytes([kind, r0, r1, r2]) != START {
            return None;
        }
        Some(Self {
            receiver_index: u32::from_be_bytes([i0, i1, i2, i3]),
            counter: u64::from_be_bytes(counter),
        })
    }

    /// The header's bytes.
    pub fn encode(self) -> [u8; LINK_HEADER_LEN] {
        let mut out = [0; LINK_HEADER_LEN];
        out[0] = DatagramType::Cell as u8;
        out[4..8].copy_from_slice(&self.receiver_index.to_be_bytes());
        out[8..].copy_from_slice(&self.counter.to_be_bytes());
        out
    }
}

/// What a cell is for, as the link peer reads it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Link cover: ends at the link peer. `circ_id` is zero.
    Cover = 0,
    /// First message of a rekey handshake inside the link. `circ_id` is zero.
    RekeyInit = 1,
    /// Second message of a rekey handshake inside the link. `circ_id` is zero.
    RekeyResp = 2,
    /// A [`RateChoice`] for the coming epoch. `circ_id` is zero.
    Rate = 3,
    /// [`LossTotals`] of the link's other direction. `circ_id` is zero.
    Loss = 4,
    /// A cell in hop layers.
    Relay = 16,
    /// Opens a circuit to the link peer.
    Create = 17,
    /// The answer to [`Command::Create`].
    Created = 18,
    /// Closes the circuit; the body's first byte is a [`DestroyReason`].
    Destroy = 19,
}

impl Command {
    /// The command that `byte` names, if any.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Cover,
            1 => Self::RekeyInit,
            2 => Self::RekeyResp,
            3 => Self::Rate,
            4 => Self::Loss,
            16 => Self::Relay,
            17 => Self::Create,
            18 => Self::Created,
            19 => Self::Destroy,
            _ => return None,
        })
    }

    /// Whether the command belongs to the link itself (`circ_id` zero) and not to a circuit.
    pub const fn is_link(self) -> bool {
        matches!(self, Self::Cover | Self::RekeyInit | Self::RekeyResp | Self::Rate | Self::Loss)
    }
}

/// The class that a link's initiator chose for an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateChoice {
    /// Number of the epoch: its start in Unix time over the length of epochs.
    pub epoch: u64,
    /// The class's place in the network document, from 0, in the order of names.
    pub class: u16,
}

impl RateChoice {
    /// Bytes of the encoding, at the start of a body.
    pub const LEN: usize = 10;

    /// Reads the choice at the start of a body.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let [epoch @ .., c0, c1] = *bytes;
        Self { epoch: u64::from_be_bytes(epoch), class: u16::from_be_bytes([c0, c1]) }
    }

    /// The choice's bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.epoch.to_be_bytes());
        out[8..].copy_from_slice(&self.class.to_be_bytes());
        out
    }
}

/// What a receiver knows of a link's cells since the link came up, under all sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossTotals {
    /// Cells that were sent, as counters tell.
    pub expected: u64,
    /// Cells that came.
    pub received: u64,
}

impl LossTotals {
    /// Bytes of the encoding, at the start of a body.
    pub const LEN: usize = 16;

    /// Reads the totals at the start of a body.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let [e0, e1, e2, e3, e4, e5, e6, e7, received @ ..] = *bytes;
        let expected = u64::from_be_bytes([e0, e1, e2, e3, e4, e5, e6, e7]);
        Self { expected, received: u64::from_be_bytes(received) }
    }

    /// The totals' bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.expected.to_be_bytes());
        out[8..].copy_from_slice(&self.received.to_be_bytes());
        out
    }
}

/// The header in front of a cell's body, sealed by the link AEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitHeader {
    /// Names the circuit on this link only; zero for the link itself.
    pub circ_id: u32,
    /// A [`Command`]; kept as the byte, since an unknown one must close its circuit.
    pub command: u8,
    /// Generation of the hop keys, modulo 256.
    pub key_epoch: u8,
    /// Sequence number that the hop layer's nonce is made from.
    pub hop_seq: u64,
}

impl CircuitHeader {
    /// Reads the header. `None` where a reserved byte is set.
    pub fn decode(bytes: &[u8; CIRCUIT_HEADER_LEN]) -> Option<Self> {
        let [c0, c1, c2, c3, command, key_epoch, r0, r1, seq @ ..] = *bytes;
        if (r0 | r1) != 0 {
            return None;
        }
        Some(Self {
            circ_id: u32::from_be_bytes([c0, c1, c2, c3]),
            command,
            key_epoch,
            hop_seq: u64::from_be_bytes(seq),
        })
    }

    /// The header's bytes.
    pub fn encode(self) -> [u8; CIRCUIT_HEADER_LEN] {
        let mut out = [0; CIRCUIT_HEADER_LEN];
        out[..4].copy_from_slice(&self.circ_id.to_be_bytes());
        out[4] = self.command;
        out[5] = self.key_epoch;
        out[8..].copy_from_slice(&self.hop_seq.to_be_bytes());
        out
    }
}

/// What a hop is to do with a layer it has opened.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopCommand {
    /// Pass the inner bytes on to the next hop, or back towards the client.
    Forward = 1,
    /// Extend the circuit by one relay: relay id 16, then the first handshake message.
    Extend = 2,
    /// The answer to [`HopCommand::Extend`]: the second handshake message.
    Extended = 3,
    /// The extension was refused; the first inner byte is a [`DestroyReason`].
    Refused = 4,
    /// End-to-end data, [`DATA_LEN`] bytes and the count of received cells. Cover when every block is padding.
    Data = 5,
}

impl HopCommand {
    /// The command that `byte` names, if any.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Forward,
            2 => Self::Extend,
            3 => Self::Extended,
            4 => Self::Refused,
            5 => Self::Data,
            _ => return None,
        })
    }
}

/// Flag of a [`HopCommand::Data`] layer: the client fills every slot, so the exit answers each cell with one.
pub const FLAG_CIRCUIT_COVER: u8 = 1;

/// A layer's own fields, between its inner bytes and its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerFields {
    /// A [`HopCommand`]; kept as the byte, since an unknown one must close its circuit.
    pub command: u8,
    /// [`FLAG_CIRCUIT_COVER`] or zero.
    pub flags: u8,
    /// Bytes of the inner part in use; for [`HopCommand::Data`], where the first new block starts.
    pub length: u16,
}

impl LayerFields {
    /// Reads the fields.
    pub const fn decode(bytes: [u8; LAYER_FIELDS_LEN]) -> Self {
        let [command, flags, l0, l1] = bytes;
        Self { command, flags, length: u16::from_be_bytes([l0, l1]) }
    }

    /// The fields' bytes.
    pub const fn encode(self) -> [u8; LAYER_FIELDS_LEN] {
        let [l0, l1] = self.length.to_be_bytes();
        [self.command, self.flags, l0, l1]
    }
}

/// Why a circuit was closed or an extension refused.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestroyReason {
    /// The client has no more use for it, or the relay stops.
    Finished = 1,
    /// A cell broke the protocol.
    Protocol = 2,
    /// The link behind or ahead went down.
    LinkDown = 3,
    /// The class's rate does not fit the out-link's free rate.
    NoCapacity = 4,
    /// The next relay is unknown, has no running link, or may not take this position.
    NoSuchRelay = 5,
    /// The handshake failed or took too long.
    Handshake = 6,
}

impl DestroyReason {
    /// The reason that `byte` names; an unknown byte counts as [`DestroyReason::Protocol`].
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Finished,
            3 => Self::LinkDown,
            4 => Self::NoCapacity,
            5 => Self::NoSuchRelay,
            6 => Self::Handshake,
            _ => Self::Protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_links_tell_each_other_survives_the_way() {
        let choice = RateChoice { epoch: 0x0102_0304_0506_0708, class: 0x090a };
        assert_eq!(choice.encode(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(RateChoice::decode(&choice.encode()), choice);
        let totals = LossTotals { expected: u64::MAX - 1, received: 258 };
        assert_eq!(totals.encode()[14..], [1, 2]);
        assert_eq!(LossTotals::decode(&totals.encode()), totals);
    }

    #[test]
    fn commands_of_the_link_are_known_as_such() {
        let of_link = (0..=u8::MAX).filter(|&byte| Command::from_byte(byte).is_some_and(Command::is_link));
        assert!(of_link.eq(0..=4));
    }
}
