//! Keys, handshakes and the AEAD layers of links and circuits.
//!
//! ```text
//! handshake (Noise, ML-KEM) -> Split -+-> LinkKeys   one AEAD pass per cell and link
//!                                     \-> HopKeys    one AEAD pass per cell and hop
//! ```
//!
//! Everything that the data plane calls per cell works in place and allocates nothing.

mod aead;
pub mod datagram;

pub mod handshake;
mod hop;
pub mod keys;
mod link;
pub mod retry;

mod split;

pub use aead::{AeadKey, Suite, Unauthentic, UnknownSuite};
pub use handshake::{HandshakeError, HandshakeRole, Initiator, respond};
pub use hop::HopKeys;
pub use keys::{OperatorKey, StaticKey};
pub use link::LinkKeys;
pub use split::Split;
