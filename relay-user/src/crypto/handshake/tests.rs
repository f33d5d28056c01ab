use super::*;
use crate::crypto::{HopKeys, LinkKeys};
use relay_common::wire::{LAYER_OVERHEAD, layer_inner_len};

const RESPONDER_ID: [u8; RELAY_ID_LEN] = [3; RELAY_ID_LEN];
const TOKEN: [u8; RETRY_TOKEN_LEN] = [4; RETRY_TOKEN_LEN];
const ROLES: [HandshakeRole; 2] = [HandshakeRole::Client, HandshakeRole::Relay];

fn prologue(role: HandshakeRole) -> Prologue {
    Prologue::new(Suite::Aes256Gcm, role, &RESPONDER_ID, &TOKEN)
}

struct Ends {
    initiator: StaticKey,
    responder: StaticKey,
}

fn ends() -> Ends {
    Ends { initiator: StaticKey::generate(), responder: StaticKey::generate() }
}

fn start(role: HandshakeRole, ends: &Ends) -> (Initiator, Vec<u8>) {
    Initiator::start(role, Some(&ends.initiator), ends.responder.public(), &prologue(role)).unwrap()
}

#[test]
fn both_ends_get_the_same_secrets_and_the_messages_their_sizes() {
    for (role, init_len) in [(HandshakeRole::Client, 1232), (HandshakeRole::Relay, 1280)] {
        let ends = ends();
        let (initiator, init) = start(role, &ends);
        assert_eq!(init.len(), init_len);
        let answer = respond(role, &ends.responder, &init, &prologue(role)).unwrap();
        assert_eq!(answer.message.len(), 1152);
        assert_eq!(answer.peer, (role == HandshakeRole::Relay).then_some(*ends.initiator.public()));
        let split = initiator.finish(&answer.message).unwrap();
        assert_eq!(split.initiator_to_responder, answer.split.initiator_to_responder);
        assert_eq!(split.responder_to_initiator, answer.split.responder_to_initiator);
        assert_ne!(split.initiator_to_responder, split.responder_to_initiator);

        let ours = LinkKeys::derive(&split, Suite::Aes256Gcm, true);
        let theirs = LinkKeys::derive(&answer.split, Suite::Aes256Gcm, false);
        let mut cell = [0; CELL_LEN];
        ours.send.seal_cell(&mut cell);
        theirs.receive.open_cell(&mut cell).unwrap();
        let hop = HopKeys::derive(&split, Suite::Aes256Gcm);
        assert_eq!(hop.forward_offset, HopKeys::derive(&answer.split, Suite::Aes256Gcm).forward_offset);
    }
}

#[test]
fn an_extension_fits_into_the_body_at_every_depth() {
    assert!(RELAY_ID_LEN + HandshakeRole::Client.init_len() <= layer_inner_len(1));
    assert!(RESPONSE_LEN <= layer_inner_len(1));
    assert_eq!(layer_inner_len(1) - layer_inner_len(2), LAYER_OVERHEAD);
}

#[test]
fn a_flip_of_any_bit_of_message_1_is_refused() {
    for role in ROLES {
        let ends = ends();
        let (_, init) = start(role, &ends);
        for byte in 0..init.len() {
            let mut tampered = init.clone();
            tampered[byte] ^= 1 << (byte % 8);
            let refused = respond(role, &ends.responder, &tampered, &prologue(role)).unwrap_err();
            assert_eq!(refused, HandshakeError::Refused, "{role:?}, byte {byte}");
        }
        // X25519 ignores this bit of a public key; the transcript must not.
        let mut tampered = init.clone();
        tampered[31] ^= 0x80;
        assert!(respond(role, &ends.responder, &tampered, &prologue(role)).is_err());
    }
}

#[test]
fn a_flip_of_any_byte_of_message_2_is_refused() {
    let ends = ends();
    let role = HandshakeRole::Client;
    for byte in 0..RESPONSE_LEN {
        let (initiator, init) = start(role, &ends);
        let mut answer = respond(role, &ends.responder, &init, &prologue(role)).unwrap();
        answer.message[byte] ^= 1 << (byte % 8);
        assert_eq!(initiator.finish(&answer.message).unwrap_err(), HandshakeError::Refused, "byte {byte}");
    }
}

#[test]
fn another_relay_can_neither_read_nor_answer() {
    for role in ROLES {
        let ends = ends();
        let other = StaticKey::generate();
        let (initiator, init) = start(role, &ends);
        assert_eq!(respond(role, &other, &init, &prologue(role)).unwrap_err(), HandshakeError::Refused);
        let (_, foreign) =
            Initiator::start(role, Some(&ends.initiator), other.public(), &prologue(role)).unwrap();
        let answer = respond(role, &other, &foreign, &prologue(role)).unwrap();
        assert_eq!(initiator.finish(&answer.message).unwrap_err(), HandshakeError::Refused);
    }
}

#[test]
fn a_difference_in_the_prologue_is_refused() {
    for role in ROLES {
        let ends = ends();
        let (_, init) = start(role, &ends);
        let other_role =
            if role == HandshakeRole::Client { HandshakeRole::Relay } else { HandshakeRole::Client };
        for prologue in [
            Prologue::new(Suite::ChaCha20Poly1305, role, &RESPONDER_ID, &TOKEN),
            Prologue::new(Suite::Aes256Gcm, other_role, &RESPONDER_ID, &TOKEN),
            Prologue::new(Suite::Aes256Gcm, role, &[0; RELAY_ID_LEN], &TOKEN),
            Prologue::new(Suite::Aes256Gcm, role, &RESPONDER_ID, &[0; RETRY_TOKEN_LEN]),
        ] {
            assert_eq!(
                respond(role, &ends.responder, &init, &prologue).unwrap_err(),
                HandshakeError::Refused
            );
        }
    }
}

#[test]
fn a_message_of_the_other_role_is_refused() {
    let ends = ends();
    let (_, client) = start(HandshakeRole::Client, &ends);
    let (_, relay) = start(HandshakeRole::Relay, &ends);
    for (role, init) in [(HandshakeRole::Relay, client), (HandshakeRole::Client, relay)] {
        assert_eq!(
            respond(role, &ends.responder, &init, &prologue(role)).unwrap_err(),
            HandshakeError::Length { expected: role.init_len(), got: init.len() }
        );
    }
}

#[test]
fn a_relay_needs_its_key() {
    let role = HandshakeRole::Relay;
    let refused = Initiator::start(role, None, StaticKey::generate().public(), &prologue(role)).unwrap_err();
    assert_eq!(refused, HandshakeError::NoStaticKey);
}

#[test]
fn an_answer_serves_only_the_attempt_it_answers() {
    let ends = ends();
    let role = HandshakeRole::Client;
    let (_, init) = start(role, &ends);
    let (second, _) = start(role, &ends);
    let answer = respond(role, &ends.responder, &init, &prologue(role)).unwrap();
    assert_eq!(second.finish(&answer.message).unwrap_err(), HandshakeError::Refused);
}

#[test]
fn messages_of_other_lengths_are_refused() {
    let ends = ends();
    let role = HandshakeRole::Client;
    for len in [0, 31, RESPONSE_LEN - 1, RESPONSE_LEN + 1] {
        let (initiator, _) = start(role, &ends);
        assert!(matches!(initiator.finish(&vec![0; len]), Err(HandshakeError::Length { .. })));
        assert!(matches!(
            respond(role, &ends.responder, &vec![0; len], &prologue(role)),
            Err(HandshakeError::Length { .. })
        ));
    }
}
