//! Which class a link has in which epoch: policies, what a change of class may have told, and what lasting loss does.
//!
//! Pure: time comes in as an argument ([`Unix`] for what is common to all, [`crate::engine::time::Nanos`] for one
//! machine's clock), randomness as a generator. The control plane asks a [`Governor`] for each link shortly before each
//! boundary of an epoch, and tells the engine where the answer is another class.
//!
//! ```text
//! document, hour ---> Policy ----+
//! noised demand ----> Mechanism -+-> the slower of both ---> class of the coming epoch
//! loss by counter --> StepDown --+                     \--> Ledger: bits that this may have told
//!                \--> Breaker ---> the link stops for a while
//! ```

mod adaptive;
mod breaker;
mod demand;
mod epoch;
mod governor;
mod ledger;
mod loss;
mod policy;

pub use adaptive::{BadMechanism, MAX_EPSILON, Mechanism};
pub use breaker::Breaker;
pub use demand::DemandMeter;
pub use epoch::{Epochs, SECONDS_PER_DAY, TELLINGS, Unix};
pub use governor::{Decision, Governor, Plan};
pub use ledger::{Bound, Cause, Ledger, LedgerSummary};
pub use loss::{LossMeter, LossRules, LossWindow, StepDown};
pub use policy::{DayTable, Policy};

/// A class by its place in the network document, counted from 0 in the order of names: the same for all who have the
/// document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassNumber(pub u16);
