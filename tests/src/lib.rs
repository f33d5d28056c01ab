//! The lab that Evenwire's tests and `cargo xtask run` share: network namespaces joined by a bridge, and an observer
//! that watches that bridge as somebody on the wire would.
//!
//! ```text
//!  relay-client      relay-entry       relay-middle      relay-exit ---- out0 ---- relay-service
//!     wire0             wire0             wire0            wire0                      out0
//!       |                 |                 |                |
//!  =====+=================+=================+================+=====  bridge wire0, in relay-wire
//!                         ^ the observer sees every frame that enters a port
//! ```
//!
//! Everything is made over netlink; only `ethtool` is called as a program, because its ioctl has no safe wrapper.

pub mod chance;
pub mod delay_box;
pub mod interrupt;
pub mod lab;
pub mod netns;
pub mod nodes;
pub mod observer;
pub mod packet;
pub mod privilege;
pub mod processes;
pub mod program;
pub mod recorder;
mod tap;
pub mod tools;
pub mod tree;
pub mod veth;
mod wiring;

pub use delay_box::DelayBox;
pub use lab::{Host, Lab};
pub use netns::{Netns, NetnsGuard};
pub use nodes::Nodes;
pub use observer::{Flow, Observer, Snapshot};
pub use recorder::{Recorder, Recording};
