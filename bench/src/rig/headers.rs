//! Ethernet, IPv4 and UDP in front of a cell, for load that does not pass through a port.

use relay_common::wire::CELL_LEN;
use relay_user::xsk::Frame;

use super::End;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
const LEN: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
const LEN_U16: u16 = 42;
const _: () = assert!(LEN == LEN_U16 as usize);

/// The headers of all cells from one end of the rig to the other.
#[derive(Clone, Debug)]
pub struct Route([u8; LEN]);

impl Route {
    /// Bytes in front of a cell.
    pub const LEN: usize = LEN;

    /// The headers of cells that leave `from`.
    ///
    /// # Panics
    /// Never: a cell's datagram is far shorter than IPv4 allows.
    pub fn from(from: End) -> Self {
        let to = from.other();
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&to.mac());
        bytes[6..12].copy_from_slice(&from.mac());
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        let length = |bytes: usize| u16::try_from(bytes).expect("short").to_be_bytes();
        let ip = &mut bytes[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
        // Version 4, five words of header; do not fragment; TTL 64; UDP.
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&length(IPV4_LEN + UDP_LEN + CELL_LEN));
        ip[6] = 0x40;
        ip[8] = 64;
        ip[9] = 17;
        ip[12..16].copy_from_slice(&from.address().ip().octets());
        ip[16..].copy_from_slice(&to.address().ip().octets());
        let sum: u32 = ip.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice");
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let udp = &mut bytes[ETHERNET_LEN + IPV4_LEN..];
        udp[..2].copy_from_slice(&from.address().port().to_be_bytes());
        udp[2..4].copy_from_slice(&to.address().port().to_be_bytes());
        udp[4..6].copy_from_slice(&length(UDP_LEN + CELL_LEN));
        Self(bytes)
    }

    /// Puts the headers in front of the cell in `frame`.
    ///
    /// # Panics
    /// Where the frame has no room in front of its data.
    pub fn prepend(&self, frame: &mut Frame) {
        frame.reset(frame.offset() - LEN_U16, frame.len() + LEN_U16);
        frame.data_mut()[..LEN].copy_from_slice(&self.0);
    }

    /// Takes the headers in front of a cell off; `false` where the frame does not hold as many bytes as both.
    pub fn strip(frame: &mut Frame) -> bool {
        let whole = usize::from(frame.len()) == LEN + CELL_LEN;
        if whole {
            frame.reset(frame.offset() + LEN_U16, frame.len() - LEN_U16);
        }
        whole
    }

    /// Sends a packet back where it came from: addresses and ports change places, and no checksum changes by that.
    pub fn turn(frame: &mut Frame) {
        let Some(headers) = frame.data_mut().first_chunk_mut::<LEN>() else { return };
        let (to, from) = headers[..12].split_at_mut(6);
        to.swap_with_slice(from);
        let (from, to) = headers[ETHERNET_LEN + 12..ETHERNET_LEN + IPV4_LEN].split_at_mut(4);
        from.swap_with_slice(to);
        let (from, to) = headers[ETHERNET_LEN + IPV4_LEN..ETHERNET_LEN + IPV4_LEN + 4].split_at_mut(2);
        from.swap_with_slice(to);
    }
}

#[cfg(test)]
mod tests {
    use relay_common::classify::locate;
    use relay_common::cursor::SliceCursor;

    use super::*;
    use crate::rig::UDP_PORT;
    use relay_user::xsk::Arena;

    #[test]
    fn the_relay_finds_the_cell_and_a_turned_packet_is_one_of_the_other_end() {
        let mut frame = Arena::anonymous(1).unwrap().take().unwrap();
        frame.data_mut().fill(1);
        Route::from(End::Loader).prepend(&mut frame);
        let header = &frame.data()[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
        let sum: u32 =
            header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        let found = locate(&mut SliceCursor::new(frame.data()), UDP_PORT.into()).unwrap();
        assert_eq!((usize::from(found.payload_offset), usize::from(found.payload_len)), (LEN, CELL_LEN));
        Route::turn(&mut frame);
        assert_eq!(frame.data()[..LEN], Route::from(End::Relay).0);
        assert!(Route::strip(&mut frame));
        assert!(frame.cell().unwrap().iter().all(|byte| *byte == 1));
        assert!(!Route::strip(&mut frame));
    }
}
