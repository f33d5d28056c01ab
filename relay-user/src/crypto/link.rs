//! The keys of one link session.

use super::aead::{AeadKey, Suite};
use super::split::{Secret, Split};

/// One side's keys of a link session, good for one handshake or rekey.
#[derive(Debug)]
pub struct LinkKeys {
    /// Seals what this side sends.
    pub send: AeadKey,
    /// Opens what this side receives.
    pub receive: AeadKey,
}

impl LinkKeys {
    /// The keys of the side that began the handshake (`initiator`) or of the one that answered.
    pub fn derive(split: &Split, suite: Suite, initiator: bool) -> Self {
        let (send, receive) = if initiator {
            (&split.initiator_to_responder, &split.responder_to_initiator)
        } else {
            (&split.responder_to_initiator, &split.initiator_to_responder)
        };
        Self { send: direction(send, suite), receive: direction(receive, suite) }
    }
}

fn direction(secret: &[u8; 32], suite: Suite) -> AeadKey {
    Secret::extract(secret, b"evenwire1 link").aead_key(suite, b"evenwire1 link key", b"evenwire1 link iv")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Unauthentic;
    use relay_common::wire::CELL_LEN;

    fn split() -> Split {
        Split { initiator_to_responder: [1; 32], responder_to_initiator: [2; 32] }
    }

    #[test]
    fn each_side_opens_only_what_the_other_sends() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let initiator = LinkKeys::derive(&split(), suite, true);
            let responder = LinkKeys::derive(&split(), suite, false);
            for (from, to) in [(&initiator, &responder), (&responder, &initiator)] {
                let mut cell = [0; CELL_LEN];
                from.send.seal_cell(&mut cell);
                assert_eq!(from.receive.open_cell(&mut cell.clone()), Err(Unauthentic));
                to.receive.open_cell(&mut cell).unwrap();
            }
        }
    }

    #[test]
    fn suites_share_no_keystream() {
        let mut first = [0; CELL_LEN];
        LinkKeys::derive(&split(), Suite::Aes256Gcm, true).send.seal_cell(&mut first);
        let other = LinkKeys::derive(&split(), Suite::ChaCha20Poly1305, false);
        assert_eq!(other.receive.open_cell(&mut first), Err(Unauthentic));
    }
}
