//! Frame memory, AF_XDP rings and AF_XDP sockets: the only room of the userspace code with `unsafe` in it.
//!
//! ```text
//!             Arena (one UMEM, chunks of 2048 bytes)         owner of a chunk at any instant, one of:
//!   +-------+-------+-------+-------+--- - - ---+-------+      a Frame          userspace, may read and write
//!   | chunk | chunk | chunk | chunk |           | chunk |      the arena's pool nobody
//!   +-------+-------+-------+-------+--- - - ---+-------+      a fill/TX ring   the kernel
//!
//!   fill ring   userspace -> kernel   empty chunks to receive into
//!   RX ring     kernel -> userspace   received packets
//!   TX ring     userspace -> kernel   packets to send
//!   completion  kernel -> userspace   chunks whose packet is gone
//! ```
//!
//! A [`Frame`] is the right to one chunk. It is neither `Copy` nor `Clone`, and it is given up when its chunk goes
//! into a ring, so a chunk that the kernel may write cannot be named by safe code.
#![expect(
    unsafe_code,
    reason = "memory shared with the kernel cannot be described to the compiler any other way"
)]

mod arena;
mod handover;
mod hint;
mod lent;
mod mapping;
mod options;
mod pages;
mod plain;
mod ring;
mod socket;

pub use arena::{Arena, Frame, FramePool};
pub use handover::{Giver, Taker, handover};
pub use hint::prefetch;
pub use options::BusyPoll;
pub use pages::{HugePages, Pages};
pub use socket::{BindRequest, Kick, SocketConfig, SocketError, XskSocket};
