//! What cannot be read is tried: the real program attached, and a real socket bound, for a moment.

use super::device::Interface;
use super::plan::Plan;
use super::report::{Report, Verdict};
use crate::config::{BindMode, DatapathMode};
use crate::port::AfXdpPort;
use crate::steering::{AttachMode, Steering};
use crate::xsk::{Arena, BindRequest, SocketConfig};

/// The UDP port that the program is attached for. No datagram goes to it, so none is missed.
const NO_PORT: u16 = 0;
/// Frames and ring entries, as few as a socket takes.
const FRAMES: u32 = 256;
const RING: u32 = 64;

/// Tries `interface` as `plan` would use it.
pub(super) fn run(interface: &Interface, plan: &Plan, report: &mut Report) {
    let part = interface.part();
    if interface.link.xdp.is_some() {
        let what = "not tried: a program is attached";
        report.unknown(
            &part,
            "probe: XDP",
            what,
            ["stop the relay (or the program's owner), and look again"],
        );
        return;
    }
    let attach = match plan.mode {
        DatapathMode::Native => AttachMode::Native,
        DatapathMode::Generic => AttachMode::Generic,
        DatapathMode::Auto | DatapathMode::Udp => AttachMode::Auto,
    };
    let mut steering = match Steering::attach(&interface.name, attach, NO_PORT) {
        Ok(steering) => steering,
        Err(error) => {
            let fix = ["see capabilities, MTU and queues above"];
            report.add(&part, "probe: XDP", Verdict::Problem, error.to_string(), fix);
            return;
        }
    };
    report.ok(&part, "probe: XDP", format!("attaches in {} mode", steering.mode().name()));
    for worker in &plan.workers {
        match open(interface, plan, worker.queue, &mut steering) {
            Ok(how) => report.ok(&part, "probe: socket", format!("queue {}: {how}", worker.queue)),
            Err(error) => {
                let fix = ["see queues and zero-copy above"];
                report.add(&part, "probe: socket", Verdict::Problem, error, fix);
            }
        }
    }
    steering.detach();
}

fn open(interface: &Interface, plan: &Plan, queue: u32, steering: &mut Steering) -> Result<String, String> {
    let arena = Arena::anonymous(FRAMES).map_err(|error| error.to_string())?;
    let bind = match plan.bind {
        BindMode::Auto => BindRequest::Auto,
        BindMode::Copy => BindRequest::Copy,
        BindMode::ZeroCopy => BindRequest::ZeroCopy,
    };
    let request = SocketConfig { interface: interface.name.clone(), queue, ring: RING, bind };
    let mut port = AfXdpPort::open(arena, &request, NO_PORT, None).map_err(|error| error.to_string())?;
    port.steer(steering).map_err(|error| error.to_string())?;
    Ok(crate::port::Port::mode(&port).bind.name().to_owned())
}
