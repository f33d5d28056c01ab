//! Captures that a user took of his own wire: from the bytes of a file to the links in it.
//!
//! ```text
//! file -> container: packets with times -> frame: UDP datagrams -> links: cells and handshakes by direction
//! ```
//!
//! Nothing here looks into what is encrypted, and addresses are kept only to tell flows apart.

mod container;
mod frame;
mod links;
mod order;
mod sessions;

use std::io::Read;

pub use container::{Record, Records};
pub use frame::{Datagram, Endpoint, LinkType, Other, Seen, look};
pub use links::{Bytes, Capture, Direction, Limits, Link, Links, Totals};
pub use sessions::{Arrival, Sessions};

/// Why a capture cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be read.
    #[error("cannot be read")]
    Io(#[from] std::io::Error),
    /// It has no bytes.
    #[error("is empty; capture with `tcpdump -i INTERFACE -w FILE udp` while the link is up")]
    Empty,
    /// It is something else.
    #[error("is neither pcap nor pcapng; give a file that tcpdump, dumpcap or Wireshark wrote, uncompressed")]
    NotACapture,
    /// It ends inside a packet.
    #[error(
        "breaks off at byte {offset}, after {packets} whole packets; end the capture with Ctrl-C and copy the file \
         whole, or keep what is whole with `tcpdump -r FILE -w WHOLE`"
    )]
    Truncated {
        /// Bytes read.
        offset: u64,
        /// Whole packets before.
        packets: u64,
    },
    /// It contradicts itself.
    #[error("is damaged at byte {offset}, after {packets} packets: {what}; capture again")]
    Malformed {
        /// Bytes read.
        offset: u64,
        /// Whole packets before.
        packets: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// None of its packets has a header that is known.
    #[error(
        "has link type {0}, of which nothing is read; capture on an Ethernet, Linux cooked (`-i any`) or raw IP interface"
    )]
    LinkType(u32),
}

/// Reads a whole capture, in memory bounded by `limits`.
///
/// # Errors
/// [`CaptureError`] where it is no capture, not whole, or of another link type.
pub fn read(input: impl Read, limits: Limits) -> Result<Capture, CaptureError> {
    let mut records = Records::open(input)?;
    let mut links = Links::new(limits);
    let mut unknown = None;
    let mut known = false;
    while let Some(record) = records.record()? {
        match LinkType::from_number(record.link_type) {
            Some(link_type) => {
                known = true;
                links.take(record.at, &look(link_type, record.bytes));
            }
            None => {
                unknown = Some(record.link_type);
                links.take(record.at, &Seen::Other(Other::LinkType));
            }
        }
    }
    match unknown {
        Some(number) if !known => Err(CaptureError::LinkType(number)),
        _ => Ok(links.finish()),
    }
}
