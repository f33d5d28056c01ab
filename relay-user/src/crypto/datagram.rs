//! The datagrams before a session: HS_INIT, HS_RESP, RETRY.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use rand_core::Rng;
use relay_common::wire::{CELL_LEN, DatagramType, RETRY_LEN};
use siphasher::sip::SipHasher24;

use super::handshake::{HandshakeRole, RESPONSE_LEN, RETRY_TOKEN_LEN};

/// Bytes of the client nonce.
pub const CLIENT_NONCE_LEN: usize = 8;
/// Bytes of mac1.
pub const MAC1_LEN: usize = 8;
/// Bytes at the front of HS_INIT that mac1 covers: the header and the ephemeral key.
pub const MAC1_COVERED_LEN: usize = 48;

const HEADER_LEN: usize = 16;
const TOKEN_OFFSET: usize = CELL_LEN - RETRY_TOKEN_LEN;
const MAC1_OFFSET: usize = TOKEN_OFFSET - MAC1_LEN;
const RETRY_TOKEN_OFFSET: usize = 16;

const _: () = {
    assert!(HEADER_LEN + HandshakeRole::Relay.init_len() <= MAC1_OFFSET);
    assert!(HEADER_LEN + RESPONSE_LEN <= CELL_LEN);
};

/// Why a datagram was refused. It is dropped in silence; the reason is for the relay's own counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Not the one length of its type.
    #[error("datagram of {0} bytes has not its type's length")]
    Length(usize),
    /// The first byte names another type.
    #[error("datagram of type {0}, which does not belong here")]
    Type(u8),
    /// A reserved byte is not zero.
    #[error("a reserved byte is set; the peer runs another version")]
    Reserved,
    /// The role byte names no role.
    #[error("role {0} is unknown; the peer runs another version")]
    Role(u8),
    /// mac1 was not made with this relay's public key.
    #[error("mac1 does not fit this relay's public key; the sender does not know the relay")]
    Mac1,
}

/// The key of mac1, which anyone who knows the responder's public key can make. It only keeps scanners in silence.
#[derive(Clone)]
pub struct Mac1Key([u8; 16]);

impl Mac1Key {
    /// The key for the relay with this public key: the first half of SHA-256 over a label and the public key.
    pub fn new(responder_public: &[u8; 32]) -> Self {
        let label = b"evenwire1 mac1";
        let mut input = [0; 14 + 32];
        input[..label.len()].copy_from_slice(label);
        input[label.len()..].copy_from_slice(responder_public);
        let hash = digest(&SHA256, &input);
        Self(*hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
    }

    /// The SipHash-2-4 key, for the program that filters in front of the socket.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// SipHash-2-4 over what it covers, in SipHash's own byte order (little-endian).
    fn mac1(&self, covered: &[u8]) -> [u8; MAC1_LEN] {
        SipHasher24::new_with_key(&self.0).hash(covered).to_le_bytes()
    }
}

/// The first datagram of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HsInit<'a> {
    /// Who begins.
    pub role: HandshakeRole,
    /// The initiator's receiver index: the responder's cells carry it.
    pub sender_index: u32,
    /// Fresh for each datagram.
    pub client_nonce: [u8; CLIENT_NONCE_LEN],
    /// Message 1, [`HandshakeRole::init_len`] bytes.
    pub message: &'a [u8],
    /// The token of the last RETRY, zero in the first attempt.
    pub retry_token: [u8; RETRY_TOKEN_LEN],
}

impl<'a> HsInit<'a> {
    /// The datagram; `rng` fills the padding.
    ///
    /// # Panics
    /// If `message` has not its role's length.
    pub fn encode(&self, mac1: &Mac1Key, rng: &mut impl Rng) -> [u8; CELL_LEN] {
        assert_eq!(self.message.len(), self.role.init_len(), "message 1 has one length per role");
        let mut out = [0; CELL_LEN];
        out[0] = DatagramType::HsInit as u8;
        out[1] = self.role as u8;
        out[4..8].copy_from_slice(&self.sender_index.to_be_bytes());
        out[8..HEADER_LEN].copy_from_slice(&self.client_nonce);
        let message_end = HEADER_LEN + self.message.len();
        out[HEADER_LEN..message_end].copy_from_slice(self.message);
        rng.fill_bytes(&mut out[message_end..MAC1_OFFSET]);
        let mac = mac1.mac1(&out[..MAC1_COVERED_LEN]);
        out[MAC1_OFFSET..TOKEN_OFFSET].copy_from_slice(&mac);
        out[TOKEN_OFFSET..].copy_from_slice(&self.retry_token);
        out
    }

    /// Reads the datagram. Nothing in it is authentic yet.
    ///
    /// # Errors
    /// [`DatagramError`], in the order of its variants.
    pub fn decode(datagram: &'a [u8], mac1: &Mac1Key) -> Result<Self, DatagramError> {
        let datagram: &[u8; CELL_LEN] = exactly(datagram)?;
        let [kind, role, r0, r1, i0, i1, i2, i3, ..] = *datagram;
        if kind != DatagramType::HsInit as u8 {
            return Err(DatagramError::Type(kind));
        }
        if (r0 | r1) != 0 {
            return Err(DatagramError::Reserved);
        }
        let role = HandshakeRole::from_byte(role).ok_or(DatagramError::Role(role))?;
        let expected = mac1.mac1(&datagram[..MAC1_COVERED_LEN]);
        verify_slices_are_equal(&expected, &datagram[MAC1_OFFSET..TOKEN_OFFSET])
            .map_err(|_| DatagramError::Mac1)?;
        Ok(Self {
            role,
            sender_index: u32::from_be_bytes([i0, i1, i2, i3]),
            client_nonce: array(&datagram[8..HEADER_LEN]),
            message: &datagram[HEADER_LEN..HEADER_LEN + role.init_len()],
            retry_token: array(&datagram[TOKEN_OFFSET..]),
        })
    }
}

/// The second datagram of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HsResp<'a> {
    /// The responder's receiver index: the initiator's cells carry it.
    pub sender_index: u32,
    /// The initiator's receiver index, from HS_INIT.
    pub receiver_index: u32,
    /// Message 2, [`RESPONSE_LEN`] bytes.
    pub message: &'a [u8; RESPONSE_LEN],
}

impl<'a> HsResp<'a> {
    /// The datagram; `rng` fills the padding.
    pub fn encode(&self, rng: &mut impl Rng) -> [u8; CELL_LEN] {
        let mut out = [0; CELL_LEN];
        out[0] = DatagramType::HsResp as u8;
        out[4..8].copy_from_slice(&self.sender_index.to_be_bytes());
        out[8..12].copy_from_slice(&self.receiver_index.to_be_bytes());
        let message_end = HEADER_LEN + RESPONSE_LEN;
        out[HEADER_LEN..message_end].copy_from_slice(self.message);
        rng.fill_bytes(&mut out[message_end..]);
        out
    }

    /// Reads the datagram. Nothing in it is authentic yet.
    ///
    /// # Errors
    /// [`DatagramError::Length`], [`DatagramError::Type`] or [`DatagramError::Reserved`].
    pub fn decode(datagram: &'a [u8]) -> Result<Self, DatagramError> {
        let datagram: &[u8; CELL_LEN] = exactly(datagram)?;
        let [kind, r0, r1, r2, s0, s1, s2, s3, i0, i1, i2, i3, r3, r4, r5, r6, rest @ ..] = datagram;
        if *kind != DatagramType::HsResp as u8 {
            return Err(DatagramError::Type(*kind));
        }
        if (r0 | r1 | r2 | r3 | r4 | r5 | r6) != 0 {
            return Err(DatagramError::Reserved);
        }
        Ok(Self {
            sender_index: u32::from_be_bytes([*s0, *s1, *s2, *s3]),
            receiver_index: u32::from_be_bytes([*i0, *i1, *i2, *i3]),
            message: rest.first_chunk().expect("the datagram has room for message 2"),
        })
    }
}

/// The demand to repeat HS_INIT with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The nonce of the HS_INIT that it answers; the token holds for this nonce.
    pub client_nonce: [u8; CLIENT_NONCE_LEN],
    /// The token to send back.
    pub token: [u8; RETRY_TOKEN_LEN],
}

impl Retry {
    /// The datagram.
    pub fn encode(&self) -> [u8; RETRY_LEN] {
        let mut out = [0; RETRY_LEN];
        out[0] = DatagramType::Retry as u8;
        out[8..RETRY_TOKEN_OFFSET].copy_from_slice(&self.client_nonce);
        out[RETRY_TOKEN_OFFSET..RETRY_TOKEN_OFFSET + RETRY_TOKEN_LEN].copy_from_slice(&self.token);
        out
    }

    /// Reads the datagram. Nothing in it is authentic; only the nonce ties it to a question.
    ///
    /// # Errors
    /// [`DatagramError::Length`], [`DatagramError::Type`] or [`DatagramError::Reserved`].
    pub fn decode(datagram: &[u8]) -> Result<Self, DatagramError> {
        let datagram: &[u8; RETRY_LEN] = exactly(datagram)?;
        if datagram[0] != DatagramType::Retry as u8 {
            return Err(DatagramError::Type(datagram[0]));
        }
        let token_end = RETRY_TOKEN_OFFSET + RETRY_TOKEN_LEN;
        if datagram[1..8].iter().chain(&datagram[token_end..]).any(|byte| *byte != 0) {
            return Err(DatagramError::Reserved);
        }
        Ok(Self {
            client_nonce: array(&datagram[8..RETRY_TOKEN_OFFSET]),
            token: array(&datagram[RETRY_TOKEN_OFFSET..token_end]),
        })
    }
}

fn exactly<const N: usize>(datagram: &[u8]) -> Result<&[u8; N], DatagramError> {
    datagram.try_into().map_err(|_| DatagramError::Length(datagram.len()))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the slice was cut to N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    fn mac1() -> Mac1Key {
        Mac1Key::new(&[6; 32])
    }

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(1)
    }

    fn roles() -> impl Strategy<Value = HandshakeRole> {
        prop_oneof![Just(HandshakeRole::Client), Just(HandshakeRole::Relay)]
    }

    fn init(message: &[u8]) -> HsInit<'_> {
        HsInit {
            role: HandshakeRole::Client,
            sender_index: 0x0102_0304,
            client_nonce: [7; CLIENT_NONCE_LEN],
            message,
            retry_token: [8; RETRY_TOKEN_LEN],
        }
    }

    proptest! {
        #[test]
        fn inits_come_back(
            role in roles(), sender_index: u32, client_nonce: [u8; 8], fill: u8, retry_token: [u8; 16],
        ) {
            let message = vec![fill; role.init_len()];
            let init = HsInit { role, sender_index, client_nonce, message: &message, retry_token };
            let datagram = init.encode(&mac1(), &mut rng());
            prop_assert_eq!(HsInit::decode(&datagram, &mac1()), Ok(init));
        }

        #[test]
        fn responses_come_back(sender_index: u32, receiver_index: u32, fill: u8) {
            let response = HsResp { sender_index, receiver_index, message: &[fill; RESPONSE_LEN] };
            let datagram = response.encode(&mut rng());
            prop_assert_eq!(HsResp::decode(&datagram), Ok(response));
        }

        #[test]
        fn retries_come_back(client_nonce: [u8; 8], token: [u8; 16]) {
            let retry = Retry { client_nonce, token };
            prop_assert_eq!(Retry::decode(&retry.encode()), Ok(retry));
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same_header(
            mut bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), CELL_LEN..=CELL_LEN),
                prop::collection::vec(any::<u8>(), RETRY_LEN..=RETRY_LEN),
                prop::collection::vec(any::<u8>(), 0..CELL_LEN + 8),
            ],
            kind in 0_u8..6, role in 0_u8..4, reserved in 0_u8..2,
        ) {
            if bytes.len() >= HEADER_LEN {
                bytes[..4].copy_from_slice(&[kind, role, reserved, 0]);
            }
            if bytes.len() == CELL_LEN {
                let mac = mac1().mac1(&bytes[..MAC1_COVERED_LEN]);
                bytes[MAC1_OFFSET..TOKEN_OFFSET].copy_from_slice(&mac);
            }
            if let Ok(init) = HsInit::decode(&bytes, &mac1()) {
                let again = init.encode(&mac1(), &mut rng());
                prop_assert_eq!(&again[..HEADER_LEN], &bytes[..HEADER_LEN]);
                prop_assert_eq!(&again[MAC1_OFFSET..], &bytes[MAC1_OFFSET..]);
            }
            if let Ok(response) = HsResp::decode(&bytes) {
                prop_assert_eq!(&response.encode(&mut rng())[..HEADER_LEN], &bytes[..HEADER_LEN]);
            }
            if let Ok(retry) = Retry::decode(&bytes) {
                prop_assert_eq!(&retry.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn every_field_stands_where_the_format_says() {
        let message = [9; HandshakeRole::Client.init_len()];
        let datagram = init(&message).encode(&mac1(), &mut rng());
        assert_eq!(datagram[..16], [2, 1, 0, 0, 1, 2, 3, 4, 7, 7, 7, 7, 7, 7, 7, 7]);
        assert_eq!(datagram[16..1248], message);
        assert_eq!(datagram[1344..], [8; 16]);
        let response = HsResp { sender_index: 1, receiver_index: 2, message: &[5; RESPONSE_LEN] };
        assert_eq!(response.encode(&mut rng())[..17], [3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 5]);
        let retry = Retry { client_nonce: [1; 8], token: [2; 16] }.encode();
        assert_eq!((&retry[..8], &retry[32..]), (&[4, 0, 0, 0, 0, 0, 0, 0][..], &[0; 32][..]));
    }

    #[test]
    fn padding_is_random() {
        let message = [9; HandshakeRole::Client.init_len()];
        let mut rng = rng();
        let first = init(&message).encode(&mac1(), &mut rng);
        let second = init(&message).encode(&mac1(), &mut rng);
        assert_ne!(first[1248..MAC1_OFFSET], second[1248..MAC1_OFFSET]);
        assert_ne!(first[1248..MAC1_OFFSET], [0; MAC1_OFFSET - 1248]);
    }

    #[test]
    fn mac1_covers_the_header_and_the_ephemeral_key() {
        let message = [9; HandshakeRole::Client.init_len()];
        let datagram = init(&message).encode(&mac1(), &mut rng());
        for byte in 4..MAC1_COVERED_LEN {
            let mut tampered = datagram;
            tampered[byte] ^= 1;
            assert_eq!(HsInit::decode(&tampered, &mac1()), Err(DatagramError::Mac1), "byte {byte}");
        }
        assert_eq!(HsInit::decode(&datagram, &Mac1Key::new(&[7; 32])), Err(DatagramError::Mac1));
    }

    #[test]
    fn each_mistake_has_its_error() {
        let message = [9; HandshakeRole::Client.init_len()];
        let datagram = init(&message).encode(&mac1(), &mut rng());
        let with = |offset: usize, value: u8| {
            let mut changed = datagram;
            changed[offset] = value;
            HsInit::decode(&changed, &mac1()).unwrap_err()
        };
        assert_eq!(HsInit::decode(&datagram[1..], &mac1()), Err(DatagramError::Length(CELL_LEN - 1)));
        assert_eq!(with(0, 3), DatagramError::Type(3));
        assert_eq!(with(2, 1), DatagramError::Reserved);
        assert_eq!(with(1, 0), DatagramError::Role(0));
        assert_eq!(with(1, 3), DatagramError::Role(3));
        assert_eq!(with(1, 2), DatagramError::Mac1);
        let mut retry = Retry { client_nonce: [1; 8], token: [2; 16] }.encode();
        retry[63] = 1;
        assert_eq!(Retry::decode(&retry), Err(DatagramError::Reserved));
    }
}
