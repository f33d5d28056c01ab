//! The links between the nodes, and what their directions are called.

use relay_tests::Host;
use relay_tests::nodes::{CLIENT_RATE, TRUNK_RATE};

/// The client's link, from the client and to it.
pub(super) const CLIENT: [(Host, Host); 2] = [(Host::Client, Host::Entry), (Host::Entry, Host::Client)];
/// Both trunks, both ways.
pub(super) const TRUNKS: [(Host, Host); 4] = [
    (Host::Entry, Host::Middle),
    (Host::Middle, Host::Entry),
    (Host::Middle, Host::Exit),
    (Host::Exit, Host::Middle),
];
/// Both kinds of links, and the cells per second of each of their directions.
pub(super) const LINKS: [(&[(Host, Host)], u32); 2] = [(&CLIENT, CLIENT_RATE), (&TRUNKS, TRUNK_RATE)];

/// A direction in words.
pub(super) fn name_of((from, to): (Host, Host)) -> String {
    format!("{} to {}", from.name(), to.name())
}
