//! The relay's neighbours, all on one socket: they send each link its cells, payload or cover, and open what comes back.

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, recvmmsg, setsockopt};
use nix::sys::time::TimeSpec;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use relay_common::wire::{CELL_LEN, LINK_HEADER_LEN, LinkHeader};
use relay_user::engine::time::Nanos;
use relay_user::worker::Clock;

use super::Plan;
use crate::cells::{Downstream, Opened, Pair, Upstream};
use crate::rig::{End, Rig, pin};

/// Datagrams of one receiving system call.
const BATCH: usize = 64;
/// Bytes that may wait: what some tenths of a second bring.
const RECEIVE_BUFFER: usize = 128 << 20;
/// Cells sent between two looks at what came.
const SEND_PIECE: usize = 32;
/// A neighbour that is further behind than this leaves cells out, as a relay would.
const BEHIND: Nanos = Nanos(20 * Nanos::MILLISECOND.0);
/// Cells of a burst of payload, on average, and the share of them that carry it: so long that many slots of a link look
/// alike, so short that a run has thousands.
const BURST: f64 = 40.0;
const DENSE: f64 = 0.95;
/// Bounds how long arrivals are waited for after the last slot.
const LINGER: Nanos = Nanos(100 * Nanos::MILLISECOND.0);
const IDLE: Duration = Duration::from_micros(20);

/// A cell that came from the relay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) pair: u32,
    pub(super) counter: u32,
    /// By the kernel's stamp, on the worker's clock.
    pub(super) at: Nanos,
    pub(super) payload: bool,
}

/// Makes `cell` the one that a circuit is extended with: the first of its link.
pub(super) fn first_cell(pair: Pair, cell: &mut [u8; CELL_LEN]) {
    Upstream::new(pair).extend(cell);
}

/// All neighbours.
pub(super) struct Neighbours {
    socket: UdpSocket,
    feeds: Vec<Feed>,
    ends: Vec<Downstream>,
    period: Nanos,
    rng: ChaCha8Rng,
    /// Of cells of payload in a burst, and of bursts beginning.
    begin: f64,
    room: usize,
}

/// What one link is sent.
struct Feed {
    upstream: Upstream,
    phase: Nanos,
    on: bool,
}

impl Neighbours {
    /// Binds the loader's end.
    ///
    /// # Errors
    /// Where the kernel refuses the socket or its options.
    pub(super) fn open(rig: &Rig, plan: &Plan) -> Result<Self> {
        let _inside = rig.enter(End::Loader)?;
        let socket = UdpSocket::bind(End::Loader.address()).context("the neighbours' socket")?;
        socket.connect(End::Relay.address())?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("cannot enlarge the receive buffer")?;
        setsockopt(&socket, ReceiveTimestampns, &true).context("cannot ask for times of arrival")?;
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let period = Nanos(Nanos::SECOND.0 / u64::from(plan.rate));
        let mut feeds: Vec<Feed> = (0..plan.links)
            .map(|pair| {
                let mut upstream = Upstream::new(Pair(pair));
                // Its first number went into the circuit's first cell.
                upstream.extend(&mut [0; CELL_LEN]);
                Feed { upstream, phase: Nanos(rng.next_u64() % period.0), on: false }
            })
            .collect();
        feeds.sort_by_key(|feed| feed.phase);
        // In a burst for `share` of the time: bursts end once in BURST cells, and begin so often.
        let within = (plan.share / DENSE).min(0.99);
        let begin = within / (1.0 - within) / BURST;
        let ends = (0..plan.links).map(|pair| Downstream::new(Pair(pair))).collect();
        let room = usize::try_from(plan.cells + plan.cells / 4)?;
        Ok(Self { socket, feeds, ends, period, rng, begin, room })
    }

    /// Sends each link a cell per period from the window's beginning to its end, and takes what comes until shortly after.
    ///
    /// # Errors
    /// Where the processor is not to be had, or the socket fails.
    pub(super) fn run(
        mut self,
        cpu: usize,
        clock: Clock,
        (from, until): (Nanos, Nanos),
    ) -> Result<Vec<Arrival>> {
        pin(cpu)?;
        let mut arrivals = Vec::with_capacity(self.room);
        let mut buffers = vec![[0_u8; CELL_LEN]; BATCH];
        let (mut next, mut base) = (0, from);
        let begun = Origin::measure(clock);
        loop {
            let mut now = clock.now();
            if now >= until + LINGER {
                break;
            }
            let mut sent = 0;
            while sent < SEND_PIECE && now < until {
                let due = base + self.feeds[next].phase;
                if due > now {
                    break;
                }
                if now.since(due) <= BEHIND {
                    self.send(next)?;
                    sent += 1;
                }
                next += 1;
                if next == self.feeds.len() {
                    (next, base) = (0, base + self.period);
                }
                now = clock.now();
            }
            let came = self.receive(&mut buffers, &mut arrivals)?;
            if sent == 0 && came == 0 {
                std::thread::sleep(IDLE);
            }
        }
        let ended = Origin::measure(clock);
        arrivals.iter_mut().for_each(|arrival| arrival.at = Origin::between(begun, ended, arrival.at));
        Ok(arrivals)
    }

    fn send(&mut self, number: usize) -> Result<()> {
        let feed = &mut self.feeds[number];
        let chance = |rng: &mut ChaCha8Rng| f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0);
        let turns = chance(&mut self.rng) < if feed.on { 1.0 / BURST } else { self.begin };
        feed.on = feed.on != turns;
        let mut cell = [0; CELL_LEN];
        if feed.on && chance(&mut self.rng) < DENSE {
            feed.upstream.forward(&mut cell);
        } else {
            feed.upstream.cover(&mut cell);
        }
        match self.socket.send(&cell) {
            Ok(_) => Ok(()),
            // What the relay's queue has no room for is lost, as on any wire.
            Err(error) if matches!(error.raw_os_error(), Some(code) if is_full(code)) => Ok(()),
            Err(error) => Err(error).context("the neighbours cannot send"),
        }
    }

    /// Opens what has come; returns how many datagrams. Times are the kernel's until the end.
    fn receive(&self, buffers: &mut [[u8; CELL_LEN]], arrivals: &mut Vec<Arrival>) -> Result<usize> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        // Made afresh each time: the kernel shortens each header's control length to what it used.
        let mut headers = MultiHeaders::<()>::preallocate(BATCH, Some(nix::cmsg_space!(TimeSpec)));
        let flags = MsgFlags::MSG_DONTWAIT;
        let mut stamps = [None; BATCH];
        let mut count = 0;
        match recvmmsg(self.socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => return Ok(0),
            Err(error) => return Err(error).context("the neighbours cannot receive"),
            Ok(messages) => {
                for (message, stamp) in messages.zip(&mut stamps) {
                    count += 1;
                    if message.bytes != CELL_LEN {
                        continue;
                    }
                    *stamp = message.cmsgs()?.find_map(|control| match control {
                        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                        _ => None,
                    });
                }
            }
        }
        for (cell, stamp) in buffers.iter_mut().zip(stamps).take(count) {
            let header = cell.first_chunk::<LINK_HEADER_LEN>().and_then(LinkHeader::decode);
            let pair = header.and_then(|header| Pair::ahead_of(header.receiver_index));
            let (Some(stamp), Some(Pair(pair))) = (stamp, pair) else { continue };
            let Some(end) = self.ends.get(pair as usize) else { continue };
            let (opened, counter) = end.open(cell);
            ensure!(opened != Opened::Unauthentic, "the relay sent a cell that does not open");
            if arrivals.len() < arrivals.capacity() {
                // CREATE is the circuit's too; a run has one for each.
                let payload = !matches!(opened, Opened::Cover);
                let at = Nanos(u64::try_from(stamp.as_nanos())?);
                arrivals.push(Arrival { pair, counter: u32::try_from(counter)?, at, payload });
            }
        }
        Ok(count)
    }
}

fn is_full(code: i32) -> bool {
    [Errno::ENOBUFS, Errno::EAGAIN, Errno::ECONNREFUSED].contains(&Errno::from_raw(code))
}

/// One instant on two clocks: the worker's, and the one that the kernel stamps with.
#[derive(Clone, Copy, Debug)]
struct Origin {
    worker: Nanos,
    stamps: Nanos,
}

impl Origin {
    fn measure(clock: Clock) -> Self {
        let attempt = |_| {
            let before = clock.now();
            let stamps = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let took = clock.now().since(before);
            let stamps = Nanos(u64::try_from(stamps.as_nanos()).unwrap_or(0));
            (took, Self { worker: before + Nanos(took.0 / 2), stamps })
        };
        // The quickest of some is the one that nothing interrupted.
        let quickest = (0..64).map(attempt).min_by_key(|(took, _)| *took);
        quickest.map_or(Self { worker: Nanos(0), stamps: Nanos(0) }, |(_, origin)| origin)
    }

    /// A stamp on the worker's clock, where the two drift apart evenly.
    fn between(begun: Self, ended: Self, stamp: Nanos) -> Nanos {
        let (span, of_stamps) = (ended.worker.since(begun.worker), ended.stamps.since(begun.stamps));
        let since = i128::from(stamp.0) - i128::from(begun.stamps.0);
        let since = since * i128::from(span.0) / i128::from(of_stamps.0.max(1));
        Nanos(u64::try_from(i128::from(begun.worker.0) + since).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_brought_to_the_workers_clock() {
        let origin = |worker, stamps| Origin { worker: Nanos(worker), stamps: Nanos(stamps) };
        let (begun, ended) = (origin(1_000, 50_000), origin(11_000, 60_010));
        let at = |stamp| Origin::between(begun, ended, Nanos(stamp)).0;
        assert_eq!((at(50_000), at(60_010)), (1_000, 11_000));
        assert_eq!(at(55_005), 6_000);
        assert_eq!(at(49_000), 1);
    }
}
