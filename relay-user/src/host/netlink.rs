//! One question to the kernel over netlink, and its answer.

use rtnetlink::packet_core::{NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Time for one answer of the kernel; only a fault makes it take so long.
const ANSWER_LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Why the kernel did not tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// The kernel has no such family.
    #[error("the kernel does not tell what drivers do with XDP; Linux 6.3 and later do")]
    NoFamily,
    /// The kernel said no.
    #[error("netlink: {0}")]
    Refused(std::io::Error),
    /// No answer, or one that does not fit.
    #[error("netlink gave no answer that fits the question")]
    NoAnswer,
    /// The socket does not work.
    #[error("netlink: {0}")]
    Socket(#[from] std::io::Error),
}

impl NetlinkError {
    /// The error that an unexpected answer amounts to.
    pub(super) fn of<T>(answer: &NetlinkPayload<T>) -> Self {
        match answer {
            NetlinkPayload::Error(error) => Self::Refused(error.to_io()),
            _ => Self::NoAnswer,
        }
    }
}

/// Asks the kernel one thing over netlink and returns the first part of what it says.
///
/// # Errors
/// [`NetlinkError`].
pub(super) fn ask<T>(
    protocol: isize,
    mut question: NetlinkMessage<T>,
) -> Result<NetlinkPayload<T>, NetlinkError>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let ready = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&ANSWER_LIMIT));
    if ready.map_err(std::io::Error::from)? == 0 {
        return Err(NetlinkError::NoAnswer);
    }
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<T>::deserialize(&answer).map_err(|_| NetlinkError::NoAnswer)?;
    Ok(answer.payload)
}
