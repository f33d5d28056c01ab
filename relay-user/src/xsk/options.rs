//! Options of a socket that the wrapping crate does not know.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};

/// `XDP_MAX_TX_SKB_BUDGET` of uapi/linux/if_xdp.h, since 6.17: descriptors that copy mode sends per system call.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Descriptors that copy mode sends per system call where nothing else was set: `TX_BATCH_SIZE` of net/xdp/xsk.c.
const DEFAULT_TX_BUDGET: u32 = 32;

/// Send buffer asked for, in bytes. Copy mode accounts each packet in flight to it, about 2.3 KiB for a cell, and the
/// usual default stops at about 90 of them.
const SEND_BUFFER: usize = 32 << 20;

/// Microseconds that one call may poll the driver for, and packets that it may take: the values of the sample that
/// came with busy polling for AF_XDP (samples/bpf/xdpsock_user.c of Linux 5.11).
const BUSY_POLL_MICROS: u32 = 20;
const BUSY_POLL_PACKETS: u32 = 64;

/// Whether the worker's own system calls run the driver's receive loop, in place of interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BusyPoll {
    /// Not asked for, or refused.
    #[default]
    Off,
    /// Asked for, and of no effect: the kernel knows no receive loop (NAPI) for the queue, as on a veth, or before the
    /// first packet.
    NoNapi,
    /// They do.
    Active,
}

impl BusyPoll {
    /// The words that status uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NoNapi => "no NAPI",
            Self::Active => "active",
        }
    }
}

/// Has the kernel run the driver's receive loop within calls on `socket`.
///
/// # Errors
/// `PERM` without CAP_NET_ADMIN, `NOPROTOOPT` on a kernel without busy polling.
pub(super) fn prefer_busy_poll(socket: &OwnedFd) -> Result<(), Errno> {
    // What changes when interrupts come stands last: a refusal leaves everything as it was.
    for (option, value) in [
        (libc::SO_BUSY_POLL, BUSY_POLL_MICROS),
        (libc::SO_BUSY_POLL_BUDGET, BUSY_POLL_PACKETS),
        (libc::SO_PREFER_BUSY_POLL, 1),
    ] {
        set(socket, libc::SOL_SOCKET, option, value)?;
    }
    Ok(())
}

/// The number of the receive loop that the kernel knows for the queue of `socket`.
pub(super) fn napi(socket: &OwnedFd) -> Option<u32> {
    get(socket, libc::SOL_SOCKET, libc::SO_INCOMING_NAPI_ID).ok().filter(|number| *number != 0)
}

/// Lets copy mode send a whole ring per system call. Returns what it sends, in descriptors: kernels before 6.17 keep
/// to their own number.
pub(super) fn raise_tx_budget(socket: &OwnedFd, ring: u32) -> u32 {
    match set(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, ring) {
        Ok(()) => ring,
        Err(_) => DEFAULT_TX_BUDGET,
    }
}

/// Without the privilege to go beyond the system's limit, the limit has to do.
pub(super) fn raise_send_buffer(socket: &OwnedFd) {
    if set_socket_send_buffer_size_force(socket, SEND_BUFFER).is_err()
        && let Err(error) = set_socket_send_buffer_size(socket, SEND_BUFFER)
    {
        log::warn!("AF_XDP socket keeps its small send buffer, sending may be throttled: {error}");
    }
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: u32) -> Result<(), Errno> {
    let place = std::ptr::from_ref(&value).cast();
    // SAFETY: `place` is `value`, four bytes that live through the call, and their length is passed.
    outcome(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, place, length()) })
}

fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int) -> Result<u32, Errno> {
    let (mut value, mut length) = (0u32, length());
    let place = std::ptr::from_mut(&mut value).cast();
    // SAFETY: `place` is `value`, `length` its length, and both live through the call.
    outcome(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, place, &raw mut length) })?;
    Ok(value)
}

fn outcome(returned: libc::c_int) -> Result<(), Errno> {
    if returned == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

/// Bytes of a number as an option's value.
fn length() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<u32>()).expect("four")
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;

    #[test]
    fn busy_polling_is_set_as_a_whole_or_refused() {
        // The options are the same for every family, and this one needs no privilege to open.
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        match prefer_busy_poll(&socket) {
            Ok(()) => {
                for (option, value) in [
                    (libc::SO_BUSY_POLL, BUSY_POLL_MICROS),
                    (libc::SO_BUSY_POLL_BUDGET, BUSY_POLL_PACKETS),
                    (libc::SO_PREFER_BUSY_POLL, 1),
                ] {
                    // The kernel sets the budget and does not tell it.
                    match get(&socket, libc::SOL_SOCKET, option) {
                        Ok(told) => assert_eq!(told, value),
                        Err(error) => {
                            assert_eq!((option, error), (libc::SO_BUSY_POLL_BUDGET, Errno::NOPROTOOPT))
                        }
                    }
                }
            }
            Err(error) => assert!(matches!(error, Errno::PERM | Errno::NOPROTOOPT), "{error}"),
        }
        assert_eq!(napi(&socket), None, "nothing has come in through any driver");
    }

    #[test]
    fn an_option_of_another_family_is_refused() {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        assert_eq!(raise_tx_budget(&socket, 4096), DEFAULT_TX_BUDGET);
    }
}
