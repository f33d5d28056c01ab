//! What a configuration asks of its machine.

use std::net::SocketAddr;

use serde::Serialize;

use crate::config::{
    BindMode, BusyPoll, Config, ConfigError, Datapath, DatapathMode, HugePages, PollMode, Timestamp, Worker,
};

/// Entries of each AF_XDP ring where no file says otherwise.
const RING: u32 = 4096;

/// Where a worker is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WorkerPlace {
    /// The receive queue that it reads.
    pub(crate) queue: u32,
    /// The processor that it is pinned to.
    pub(crate) cpu: Option<usize>,
}

/// What is wanted, whoever wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The interface; `None` where cells take UDP sockets only.
    pub(crate) interface: Option<String>,
    /// The workers, in the order of their queues.
    pub(crate) workers: Vec<WorkerPlace>,
    /// How they wait.
    pub(crate) poll: PollMode,
    /// UDP address of worker 0; that of worker `i` has a port higher by `i`. `None` where it is not known.
    pub(crate) address: Option<SocketAddr>,
    /// Where the XDP program shall run.
    pub(crate) mode: DatapathMode,
    /// How sockets shall be bound.
    pub(crate) bind: BindMode,
    /// Entries of each AF_XDP ring.
    pub(crate) ring: u32,
    /// Frames of 2048 bytes.
    pub(crate) frames: u32,
    /// What pages they shall be in.
    pub(crate) huge_pages: HugePages,
    /// Whether workers that spin run the driver's receive loop.
    pub(crate) busy_poll: BusyPoll,
}

impl Plan {
    /// One worker that nothing is said of, on `interface`.
    pub(crate) fn of_interface(interface: &str) -> Self {
        Self {
            interface: Some(interface.to_owned()),
            workers: vec![WorkerPlace { queue: 0, cpu: None }],
            poll: PollMode::Adaptive,
            address: None,
            mode: DatapathMode::Auto,
            bind: BindMode::Auto,
            ring: RING,
            frames: 4 * RING,
            huge_pages: HugePages::Auto,
            busy_poll: BusyPoll::Auto,
        }
    }

    /// What a relay's or a client's file asks for, with the address that the network document gives a relay.
    ///
    /// # Errors
    /// [`ConfigError`] where the document is wrong or has no such relay.
    pub(crate) fn of_config(config: &Config, now: Timestamp) -> Result<Self, ConfigError> {
        match config {
            Config::Relay(relay) => {
                let network = relay.load_network(now)?;
                let address = network.relay(&relay.name).map(|relay| relay.address);
                Ok(Self::of(&relay.datapath, &relay.worker, address))
            }
            Config::Client(client) => {
                let address = client.datapath.listen.filter(|address| address.port() != 0);
                Ok(Self::of(&client.datapath, &client.worker, address))
            }
        }
    }

    fn of(datapath: &Datapath, worker: &Worker, address: Option<SocketAddr>) -> Self {
        Self {
            interface: datapath.interface.clone().filter(|_| datapath.mode != DatapathMode::Udp),
            workers: places(worker),
            poll: worker.poll,
            address,
            mode: datapath.mode,
            bind: datapath.bind,
            ring: datapath.ring,
            frames: datapath.frames,
            huge_pages: datapath.huge_pages,
            busy_poll: worker.busy_poll,
        }
    }

    /// Bytes of all frames.
    pub(crate) fn frame_bytes(&self) -> u64 {
        u64::from(self.frames) * crate::xsk::Arena::CHUNK as u64
    }

    /// How many receive queues the workers read.
    pub(crate) fn queues(&self) -> u32 {
        self.workers.iter().map(|worker| worker.queue + 1).max().unwrap_or(1)
    }

    /// The UDP port of worker `index`.
    pub(crate) fn port(&self, index: usize) -> Option<u16> {
        self.address?.port().checked_add(u16::try_from(index).ok()?)
    }
}

/// Where the workers of a file run.
fn places(worker: &Worker) -> Vec<WorkerPlace> {
    (0..u32::from(worker.count))
        .map(|queue| WorkerPlace { queue, cpu: worker.cpus.get(queue as usize).copied() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_have_ports_of_their_own() {
        let mut plan = Plan::of_interface("wire0");
        assert_eq!(plan.port(0), None);
        plan.address = Some(([192, 0, 2, 1], 65535).into());
        plan.workers = (0..3).map(|queue| WorkerPlace { queue, cpu: None }).collect();
        assert_eq!((plan.queues(), plan.port(0), plan.port(1)), (3, Some(65535), None));
    }
}
