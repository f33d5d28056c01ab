//! Carries out what makes an interface fit.

use serde::Serialize;

use super::device::Interface;
use super::plan::Plan;
use super::queues::{command, commands};
use super::{DoctorError, find};
use crate::host::ethtool::run;

/// Rounds of reading, and of setting what the last one made possible: more queues, for one, before hashing is spread
/// over them.
const ROUNDS: usize = 3;

/// A command that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    /// As an operator would type it.
    pub(crate) command: String,
    /// What the device said where it did not do it.
    pub(crate) refused: Option<String>,
}

/// Why nothing was set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// No interface is used.
    #[error("there is no interface to set up: datapath.mode is \"udp\"")]
    NoInterface,
    /// Changing queues under a running relay cuts it off.
    #[error("an XDP program is attached to {0}; stop the relay (or the program's owner) first")]
    InUse(String),
    /// The interface cannot be looked at.
    #[error(transparent)]
    Doctor(#[from] DoctorError),
}

/// Sets queues, rings and steering of the plan's interface up, and returns what was done.
///
/// # Errors
/// [`ApplyError`]; nothing was changed then.
pub(crate) fn apply(plan: &Plan) -> Result<Vec<Step>, ApplyError> {
    let name = plan.interface.as_deref().ok_or(ApplyError::NoInterface)?;
    let mut steps: Vec<Step> = Vec::new();
    for _ in 0..ROUNDS {
        let link = find(name)?;
        if link.xdp.is_some() {
            return Err(ApplyError::InUse(name.to_owned()));
        }
        let mut changed = false;
        for arguments in commands(&Interface::read(name, link), plan) {
            let command = command(&arguments);
            if steps.iter().any(|step| step.command == command) {
                continue;
            }
            let refused = run(&arguments).err().map(|error| error.to_string());
            changed |= refused.is_none();
            steps.push(Step { command, refused });
        }
        if !changed {
            break;
        }
    }
    Ok(steps)
}
