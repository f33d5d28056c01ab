//! Retry tokens, which make a source prove its address before a relay works for it, and the guard against replays of
//! what they once let in.

use std::collections::HashSet;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rand_core::CryptoRng;
use siphasher::sip128::{Hasher128, SipHasher24};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::datagram::CLIENT_NONCE_LEN;
use super::handshake::RETRY_TOKEN_LEN;

/// Nanoseconds that one token key serves; a token lives at least this long and at most twice as long.
pub const EPOCH_NANOS: u64 = 60_000_000_000;

/// What a token is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSubject {
    /// Where the HS_INIT came from.
    pub source: SocketAddr,
    /// The relay's UDP port that it came to.
    pub destination_port: u16,
    /// The nonce in the HS_INIT.
    pub client_nonce: [u8; CLIENT_NONCE_LEN],
}

/// A key and the only epoch that it serves.
#[derive(Clone, Copy, PartialEq, Eq, Zeroize)]
pub struct TokenKey {
    /// `now / EPOCH_NANOS` while the key was fresh.
    pub epoch: u64,
    /// SipHash-2-4-128 key.
    pub key: [u8; 16],
}

/// The keys of this epoch and of the one before. Erased on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TokenKeys {
    current: TokenKey,
    previous: Option<TokenKey>,
}

impl TokenKeys {
    /// A first key. `now` is monotonic, in nanoseconds.
    pub fn new(now: u64, rng: &mut impl CryptoRng) -> Self {
        Self { current: TokenKey::fresh(now / EPOCH_NANOS, rng), previous: None }
    }

    /// Makes a new key if the current one's epoch is over, and says whether it did. Without this call no token is issued
    /// or accepted past the epochs of the keys at hand.
    pub fn refresh(&mut self, now: u64, rng: &mut impl CryptoRng) -> bool {
        let epoch = now / EPOCH_NANOS;
        if epoch <= self.current.epoch {
            return false;
        }
        self.previous = (self.current.epoch + 1 == epoch).then_some(self.current);
        self.current = TokenKey::fresh(epoch, rng);
        true
    }

    /// The token for `subject` under the current key.
    pub fn issue(&self, subject: &TokenSubject) -> [u8; RETRY_TOKEN_LEN] {
        self.current.token(subject)
    }

    /// Whether `token` was issued for `subject` in the epoch of `now` or in the one before.
    pub fn accepts(&self, now: u64, subject: &TokenSubject, token: &[u8; RETRY_TOKEN_LEN]) -> bool {
        let epoch = now / EPOCH_NANOS;
        [Some(self.current), self.previous]
            .into_iter()
            .flatten()
            .filter(|key| key.epoch == epoch || key.epoch + 1 == epoch)
            .any(|key| verify_slices_are_equal(&key.token(subject), token).is_ok())
    }

    /// The current key and the one before it, for the program that answers in front of the socket.
    pub fn keys(&self) -> (TokenKey, Option<TokenKey>) {
        (self.current, self.previous)
    }
}

impl std::fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKeys").field("epoch", &self.current.epoch).finish_non_exhaustive()
    }
}

impl TokenKey {
    fn fresh(epoch: u64, rng: &mut impl CryptoRng) -> Self {
        let mut key = [0; 16];
        rng.fill_bytes(&mut key);
        Self { epoch, key }
    }

    /// SipHash-2-4-128 over source address 16 (IPv4 mapped), source port 2, destination port 2, client nonce 8,
    /// epoch 8; integers big-endian.
    fn token(&self, subject: &TokenSubject) -> [u8; RETRY_TOKEN_LEN] {
        let address = match subject.source.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut input = [0; 36];
        input[..16].copy_from_slice(&address.octets());
        input[16..18].copy_from_slice(&subject.source.port().to_be_bytes());
        input[18..20].copy_from_slice(&subject.destination_port.to_be_bytes());
        input[20..28].copy_from_slice(&subject.client_nonce);
        input[28..].copy_from_slice(&self.epoch.to_be_bytes());
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&input);
        hasher.finish128().as_bytes()
    }
}

/// Why a handshake that authenticated was refused all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitRefused {
    /// Its ephemeral key was accepted before.
    #[error("this HS_INIT was accepted before; drop the replay")]
    Replayed,
    /// So many handshakes were accepted in this epoch that replays could no longer be told.
    #[error("too many handshakes in this minute; the initiator will try again")]
    Full,
}

/// Remembers the ephemeral keys of accepted HS_INITs as long as their tokens can live.
///
/// The ephemeral key alone is the mark: sender index and padding are not authenticated, so a replay may change them.
#[derive(Debug)]
pub struct InitGuard {
    epoch: u64,
    current: HashSet<[u8; 32]>,
    previous: HashSet<[u8; 32]>,
    capacity: usize,
}

impl InitGuard {
    /// A guard for at most `capacity` handshakes in each epoch of [`EPOCH_NANOS`].
    pub fn new(capacity: usize) -> Self {
        Self {
            epoch: 0,
            current: HashSet::with_capacity(capacity),
            previous: HashSet::with_capacity(capacity),
            capacity,
        }
    }

    /// Remembers message 1 of a handshake whose token and authenticity were checked. `now` is monotonic, in nanoseconds.
    ///
    /// # Errors
    /// [`InitRefused::Replayed`] in the epochs in which a token for it can be valid; [`InitRefused::Full`].
    ///
    /// # Panics
    /// If `message` is shorter than an ephemeral key, which no handshake message is.
    pub fn admit(&mut self, now: u64, message: &[u8]) -> Result<(), InitRefused> {
        self.advance(now / EPOCH_NANOS);
        let ephemeral = *message.first_chunk().expect("a handshake message begins with an ephemeral key");
        if self.current.contains(&ephemeral) || self.previous.contains(&ephemeral) {
            return Err(InitRefused::Replayed);
        }
        if self.current.len() >= self.capacity {
            return Err(InitRefused::Full);
        }
        self.current.insert(ephemeral);
        Ok(())
    }

    fn advance(&mut self, epoch: u64) {
        if epoch <= self.epoch {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.clear();
        if epoch > self.epoch + 1 {
            self.previous.clear();
        }
        self.epoch = epoch;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::datagram::{HsInit, Mac1Key};
    use crate::crypto::handshake::{HandshakeRole, Initiator, Prologue, respond};
    use crate::crypto::{StaticKey, Suite};
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::seed_from_u64(1)
    }

    fn subject() -> TokenSubject {
        TokenSubject {
            source: "192.0.2.10:4000".parse().unwrap(),
            destination_port: 7443,
            client_nonce: [1; 8],
        }
    }

    #[test]
    fn a_token_holds_for_its_subject_only() {
        let keys = TokenKeys::new(0, &mut rng());
        let token = keys.issue(&subject());
        assert!(keys.accepts(0, &subject(), &token));
        for other in [
            TokenSubject { source: "192.0.2.11:4000".parse().unwrap(), ..subject() },
            TokenSubject { source: "192.0.2.10:4001".parse().unwrap(), ..subject() },
            TokenSubject { source: "[2001:db8::1]:4000".parse().unwrap(), ..subject() },
            TokenSubject { destination_port: 7444, ..subject() },
            TokenSubject { client_nonce: [2; 8], ..subject() },
        ] {
            assert!(!keys.accepts(0, &other, &token), "{other:?}");
        }
        for bit in 0..RETRY_TOKEN_LEN * 8 {
            let mut tampered = token;
            tampered[bit / 8] ^= 1 << (bit % 8);
            assert!(!keys.accepts(0, &subject(), &tampered));
        }
    }

    #[test]
    fn a_mapped_address_is_the_address_it_maps() {
        let keys = TokenKeys::new(0, &mut rng());
        let mapped = TokenSubject { source: "[::ffff:192.0.2.10]:4000".parse().unwrap(), ..subject() };
        assert_eq!(keys.issue(&mapped), keys.issue(&subject()));
    }

    #[test]
    fn a_token_lives_for_its_epoch_and_the_next() {
        let mut keys = TokenKeys::new(0, &mut rng());
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let token = keys.issue(&subject());
        assert!(!keys.refresh(EPOCH_NANOS - 1, &mut rng));
        assert!(keys.refresh(EPOCH_NANOS, &mut rng));
        assert!(keys.accepts(2 * EPOCH_NANOS - 1, &subject(), &token));
        assert!(!keys.accepts(2 * EPOCH_NANOS, &subject(), &token), "even if nobody refreshed the keys");
        assert!(keys.refresh(2 * EPOCH_NANOS, &mut rng));
        assert!(!keys.accepts(2 * EPOCH_NANOS, &subject(), &token));
        let token = keys.issue(&subject());
        assert!(keys.refresh(9 * EPOCH_NANOS, &mut rng));
        assert_eq!(keys.keys().1.map(|key| key.epoch), None);
        assert!(!keys.accepts(9 * EPOCH_NANOS, &subject(), &token));
    }

    #[test]
    fn a_replayed_init_is_refused_even_under_another_sender_index() {
        let responder = StaticKey::generate();
        let mac1 = Mac1Key::new(responder.public());
        let keys = TokenKeys::new(0, &mut rng());
        let retry_token = keys.issue(&subject());
        let prologue = Prologue::new(Suite::Aes256Gcm, HandshakeRole::Client, &[0; 16], &retry_token);
        let (_, message) =
            Initiator::start(HandshakeRole::Client, None, responder.public(), &prologue).unwrap();
        let mut guard = InitGuard::new(8);
        let mut accept = |now: u64, sender_index: u32| {
            let init = HsInit {
                role: HandshakeRole::Client,
                sender_index,
                client_nonce: subject().client_nonce,
                message: &message,
                retry_token,
            };
            let datagram = init.encode(&mac1, &mut rng());
            let init = HsInit::decode(&datagram, &mac1).unwrap();
            assert!(keys.accepts(now, &subject(), &init.retry_token));
            respond(init.role, &responder, init.message, &prologue).unwrap();
            guard.admit(now, init.message)
        };
        assert_eq!(accept(0, 1), Ok(()));
        assert_eq!(accept(0, 1), Err(InitRefused::Replayed));
        assert_eq!(accept(EPOCH_NANOS + 5, 2), Err(InitRefused::Replayed));
        assert_eq!(accept(2 * EPOCH_NANOS - 1, 2), Err(InitRefused::Replayed));
    }

    #[test]
    fn a_full_guard_refuses_until_the_next_epoch() {
        let mut guard = InitGuard::new(2);
        assert_eq!(guard.admit(0, &[1; 32]), Ok(()));
        assert_eq!(guard.admit(0, &[2; 32]), Ok(()));
        assert_eq!(guard.admit(0, &[3; 32]), Err(InitRefused::Full));
        assert_eq!(guard.admit(EPOCH_NANOS, &[3; 32]), Ok(()));
        assert_eq!(guard.admit(EPOCH_NANOS, &[2; 32]), Err(InitRefused::Replayed));
    }

    proptest! {
        /// Against a plain list of everything that was ever accepted.
        #[test]
        fn nothing_is_admitted_twice_within_two_epochs(steps in prop::collection::vec((0_u64..EPOCH_NANOS, 0_u8..6), 0..60)) {
            let mut guard = InitGuard::new(1000);
            let mut accepted: Vec<(u64, u8)> = Vec::new();
            let mut now = 0;
            for (pause, mark) in steps {
                now += pause;
                let epoch = now / EPOCH_NANOS;
                let known = accepted.iter().any(|(then, seen)| *seen == mark && epoch - then <= 1);
                let expected = if known { Err(InitRefused::Replayed) } else { Ok(()) };
                prop_assert_eq!(guard.admit(now, &[mark; 32]), expected);
                if !known {
                    accepted.push((epoch, mark));
                }
            }
        }
    }
}
