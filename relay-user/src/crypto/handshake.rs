//! The handshake of links, circuits and rekeys: a Noise pattern whose psk2 is an ML-KEM-768 shared secret.
//!
//! ```text
//! message 1   Noise(e, es [, s, ss], encapsulation key 1184)        NK 1232, IK 1280
//! message 2   ML-KEM ciphertext 1088, Noise(e, ee, psk, zero 16)    1152
//! ```
//!
//! Secrecy is hybrid; authentication is X25519's alone. The ciphertext needs no tag of its own: a changed one yields
//! another shared secret, and message 2 fails.

use aws_lc_rs::kem::{self, Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use relay_common::wire::{BODY_LEN, CELL_LEN, RELAY_ID_LEN};
use snow::{Builder, HandshakeState};
use zeroize::Zeroize;

use super::aead::Suite;
use super::keys::StaticKey;
use super::split::Split;

/// Version of the protocol.
pub const PROTOCOL_VERSION: u8 = 1;
/// Bytes of a retry token.
pub const RETRY_TOKEN_LEN: usize = 16;
/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203, table 3).
pub const ENCAPSULATION_KEY_LEN: usize = 1184;
/// Bytes of an ML-KEM-768 ciphertext (FIPS 203, table 3).
pub const CIPHERTEXT_LEN: usize = 1088;
/// Bytes of message 2, in both roles.
pub const RESPONSE_LEN: usize = CIPHERTEXT_LEN + NOISE_RESPONSE_LEN;
/// Bytes of the Noise part of message 2: ephemeral key, zeros, tag.
const NOISE_RESPONSE_LEN: usize = DH_LEN + RESERVED_LEN + NOISE_TAG_LEN;
/// Zero bytes inside message 2 that a later version may use.
const RESERVED_LEN: usize = 16;
const DH_LEN: usize = 32;
const NOISE_TAG_LEN: usize = 16;
const PROLOGUE_LEN: usize = 1 + 1 + 2 + 1 + RELAY_ID_LEN + RETRY_TOKEN_LEN;
const PSK_LOCATION: u8 = 2;

const _: () = {
    assert!(HandshakeRole::Client.init_len() == 1232);
    assert!(HandshakeRole::Relay.init_len() == 1280);
    assert!(RESPONSE_LEN == 1152);
    // A rekey travels in a link cell's body.
    assert!(HandshakeRole::Relay.init_len() <= BODY_LEN);
};

/// Who begins the handshake; the second byte of HS_INIT.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeRole {
    /// A client, for a link or for a circuit's hop: it has no static key (`NKpsk2`), since that would link its sessions.
    Client = 1,
    /// A relay, for a link to another relay: both static keys are known (`IKpsk2`).
    Relay = 2,
}

impl HandshakeRole {
    /// The role that `byte` names, if any.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Client),
            2 => Some(Self::Relay),
            _ => None,
        }
    }

    /// Bytes of message 1.
    pub const fn init_len(self) -> usize {
        let payload = ENCAPSULATION_KEY_LEN + NOISE_TAG_LEN;
        match self {
            Self::Client => DH_LEN + payload,
            Self::Relay => DH_LEN + (DH_LEN + NOISE_TAG_LEN) + payload,
        }
    }

    fn pattern(self) -> &'static str {
        match self {
            Self::Client => "Noise_NKpsk2_25519_AESGCM_SHA256",
            Self::Relay => "Noise_IKpsk2_25519_AESGCM_SHA256",
        }
    }
}

/// What both ends must agree on before the first byte; a difference makes the handshake fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prologue([u8; PROLOGUE_LEN]);

impl Prologue {
    /// The prologue of a handshake with the relay `responder`. `retry_token` is zero inside links and circuits, where
    /// the source needs no proof.
    pub fn new(
        suite: Suite,
        role: HandshakeRole,
        responder: &[u8; RELAY_ID_LEN],
        retry_token: &[u8; RETRY_TOKEN_LEN],
    ) -> Self {
        let cell_len = u16::try_from(CELL_LEN).expect("a UDP payload's length fits 16 bits");
        let mut bytes = [0; PROLOGUE_LEN];
        bytes[0] = PROTOCOL_VERSION;
        bytes[1] = suite.number();
        bytes[2..4].copy_from_slice(&cell_len.to_be_bytes());
        bytes[4] = role as u8;
        bytes[5..5 + RELAY_ID_LEN].copy_from_slice(responder);
        bytes[5 + RELAY_ID_LEN..].copy_from_slice(retry_token);
        Self(bytes)
    }
}

/// Why a handshake ended without keys. The reasons are coarse: a peer must not learn more than that it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A message has not the length of its role.
    #[error("handshake message of {got} bytes instead of {expected}; the peer runs another version or role")]
    Length {
        /// Bytes that the role's message has.
        expected: usize,
        /// Bytes that came.
        got: usize,
    },
    /// A relay's handshake was begun without the relay's own key.
    #[error("a relay's handshake needs the relay's own key; give it, or take the client's role")]
    NoStaticKey,
    /// A message does not authenticate.
    #[error("handshake message does not authenticate; compare both sides' keys, roles and network documents")]
    Refused,
    /// A cryptographic library refused what it never refuses.
    #[error("a cryptographic operation failed; the host's random generator or memory is in doubt")]
    Library,
}

/// The side that has sent message 1 and waits for message 2.
pub struct Initiator {
    noise: HandshakeState,
    decapsulation: DecapsulationKey,
}

impl Initiator {
    /// Begins a handshake; also gives message 1, [`HandshakeRole::init_len`] bytes.
    ///
    /// # Errors
    /// [`HandshakeError::NoStaticKey`] if `role` is a relay's and `our_static` is missing.
    pub fn start(
        role: HandshakeRole,
        our_static: Option<&StaticKey>,
        responder_public: &[u8; 32],
        prologue: &Prologue,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let decapsulation = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| HandshakeError::Library)?;
        let encapsulation = decapsulation
            .encapsulation_key()
            .and_then(|key| key.key_bytes())
            .map_err(|_| HandshakeError::Library)?;
        let mut builder = builder(role, prologue)?
            .remote_public_key(responder_public)
            .map_err(|_| HandshakeError::Library)?;
        if role == HandshakeRole::Relay {
            let secret = our_static.ok_or(HandshakeError::NoStaticKey)?.secret();
            builder = builder.local_private_key(secret).map_err(|_| HandshakeError::Library)?;
        }
        let mut noise = builder.build_initiator().map_err(|_| HandshakeError::Library)?;
        let mut message = vec![0; role.init_len()];
        let len =
            noise.write_message(encapsulation.as_ref(), &mut message).map_err(|_| HandshakeError::Library)?;
        assert_eq!(len, role.init_len(), "message 1 has one length per role");
        Ok((Self { noise, decapsulation }, message))
    }

    /// Ends the handshake with message 2.
    ///
    /// # Errors
    /// [`HandshakeError::Length`] or [`HandshakeError::Refused`]; the attempt is over then, since a second try with the
    /// same ephemeral key would let a forger guess again.
    pub fn finish(mut self, response: &[u8]) -> Result<Split, HandshakeError> {
        check_len(response, RESPONSE_LEN)?;
        let (ciphertext, message) = response.split_at(CIPHERTEXT_LEN);
        let shared = self
            .decapsulation
            .decapsulate(Ciphertext::from(ciphertext))
            .map_err(|_| HandshakeError::Refused)?;
        set_psk(&mut self.noise, &shared)?;
        let mut reserved = [0; NOISE_RESPONSE_LEN];
        let len = self.noise.read_message(message, &mut reserved).map_err(|_| HandshakeError::Refused)?;
        if reserved[..len] != [0; RESERVED_LEN] {
            return Err(HandshakeError::Refused);
        }
        Ok(split(&mut self.noise))
    }
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initiator").finish_non_exhaustive()
    }
}

/// What the responder has once it answered.
#[derive(Debug)]
pub struct Answer {
    /// Message 2, [`RESPONSE_LEN`] bytes.
    pub message: Vec<u8>,
    /// The session's secrets.
    pub split: Split,
    /// The initiator's static key, in a relay's handshake. The caller must look it up in the network document.
    pub peer: Option<[u8; 32]>,
}

/// Answers message 1.
///
/// # Errors
/// [`HandshakeError::Length`] or [`HandshakeError::Refused`].
pub fn respond(
    role: HandshakeRole,
    our_static: &StaticKey,
    init: &[u8],
    prologue: &Prologue,
) -> Result<Answer, HandshakeError> {
    check_len(init, role.init_len())?;
    let mut noise = builder(role, prologue)?
        .local_private_key(our_static.secret())
        .and_then(Builder::build_responder)
        .map_err(|_| HandshakeError::Library)?;
    let mut payload = vec![0; init.len()];
    let len = noise.read_message(init, &mut payload).map_err(|_| HandshakeError::Refused)?;
    let (ciphertext, shared) = EncapsulationKey::new(&ML_KEM_768, &payload[..len])
        .map_err(|_| HandshakeError::Refused)?
        .encapsulate()
        .map_err(|_| HandshakeError::Refused)?;
    set_psk(&mut noise, &shared)?;

    let mut message = vec![0; RESPONSE_LEN];
    message[..CIPHERTEXT_LEN].copy_from_slice(ciphertext.as_ref());
    let len = noise
        .write_message(&[0; RESERVED_LEN], &mut message[CIPHERTEXT_LEN..])
        .map_err(|_| HandshakeError::Library)?;
    assert_eq!(len, NOISE_RESPONSE_LEN, "message 2 has one length");
    let peer = noise.get_remote_static().and_then(|key| key.try_into().ok());
    Ok(Answer { message, split: split(&mut noise), peer })
}

fn builder(role: HandshakeRole, prologue: &Prologue) -> Result<Builder<'_>, HandshakeError> {
    let parameters = role.pattern().parse().map_err(|_| HandshakeError::Library)?;
    Builder::new(parameters).prologue(&prologue.0).map_err(|_| HandshakeError::Library)
}

fn check_len(message: &[u8], expected: usize) -> Result<(), HandshakeError> {
    if message.len() == expected {
        return Ok(());
    }
    Err(HandshakeError::Length { expected, got: message.len() })
}

fn set_psk(noise: &mut HandshakeState, shared: &kem::SharedSecret) -> Result<(), HandshakeError> {
    noise.set_psk(usize::from(PSK_LOCATION), shared.as_ref()).map_err(|_| HandshakeError::Library)
}

fn split(noise: &mut HandshakeState) -> Split {
    let (mut first, mut second) = noise.dangerously_get_raw_split();
    let split = Split { initiator_to_responder: first, responder_to_initiator: second };
    first.zeroize();
    second.zeroize();
    split
}

#[cfg(test)]
mod tests;
