//! Whether a machine is fit for a relay, and what to do where it is not.
//!
//! ```text
//! host (reads) -> facts -> judgements (pure) -> findings -> table or JSON
//!                      \-> commands (pure)   -> printed as remedies, carried out by `--apply`
//! ```

pub(crate) mod apply;
mod device;
mod machine;
mod plan;
mod probe;
mod processor;
mod queues;
mod report;

pub(crate) use plan::Plan;
pub(crate) use report::{Report, Verdict};

use crate::host::link::Link;
use device::Interface;

/// Why nothing could be examined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoctorError {
    /// There is no such interface.
    #[error("no interface {0} in this network namespace; see `ip link`")]
    NoInterface(String),
    /// The kernel did not tell.
    #[error("cannot ask for interface {interface}: {error}")]
    Link {
        /// Its name.
        interface: String,
        /// What went wrong.
        error: crate::host::netlink::NetlinkError,
    },
}

/// Looks at everything that `plan` touches, and changes nothing; with `probe`, attaches the XDP program and binds a
/// socket for a moment.
///
/// # Errors
/// [`DoctorError`].
pub(crate) fn examine(plan: &Plan, probe: bool) -> Result<Report, DoctorError> {
    let mut report = Report::new(plan);
    machine::judge(&machine::Machine::read(), plan, &mut report);
    if let Some(name) = &plan.interface {
        let interface = Interface::read(name, find(name)?);
        device::judge(&interface, plan, &mut report);
        queues::judge(&interface, plan, &mut report);
        if probe {
            probe::run(&interface, plan, &mut report);
        }
        processor::judge_all(plan, Some(&interface), &mut report);
    } else {
        processor::judge_all(plan, None, &mut report);
    }
    Ok(report)
}

fn find(name: &str) -> Result<Link, DoctorError> {
    crate::host::link::find(name)
        .map_err(|error| DoctorError::Link { interface: name.to_owned(), error })?
        .ok_or_else(|| DoctorError::NoInterface(name.to_owned()))
}
