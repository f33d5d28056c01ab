//! A thread that reads and writes a TUN queue for a worker.
//!
//! ```text
//! worker -> pieces out -> porter -> write: the kernel routes, translates, and goes as far as the receiver's socket
//! worker <- pieces in  <- porter <- read
//! ```
//!
//! A write to a TUN returns when the kernel has carried the packet as far as it can, which takes some 10 µs to 100 µs. A
//! worker that wrote itself would miss the moment of its next cells, and for payload only. The porter comes by on its own
//! clock, so the worker does not even have to wake it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::SyncDevice;

use super::drops::{EdgeDrop, EdgeDrops};
use super::pieces::{Piece, Round};

/// How long a packet of a worker waits for the porter, at most.
const PERIOD: Duration = Duration::from_micros(250);
/// Pieces that may be on their way, in each direction: what comes in ten periods at 100,000 packets per second.
const PIECES: usize = 256;
/// A device that is of no more use is tried again after so long.
const RECOVERY: Duration = Duration::from_millis(20);

/// The worker's end. Dropping it ends the thread, within a period.
pub(super) struct Porter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    device: SyncDevice,
    /// From the worker to the kernel.
    out: Round,
    /// From the kernel to the worker.
    home: Round,
    /// Packets that the kernel had no room for.
    full: AtomicU64,
    /// Packets that it refused.
    refused: AtomicU64,
    /// The last read failed.
    broken: AtomicBool,
    stop: AtomicBool,
}

impl Porter {
    /// Starts the thread for `device`, of which one read gives up to `longest` bytes.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub(super) fn start(device: SyncDevice, longest: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            device,
            out: Round::new(PIECES, longest),
            home: Round::new(PIECES, longest),
            full: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("tun-porter".to_owned()).spawn(move || theirs.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Gives `bytes`, which are `packets` packets, to be written. False when too many wait already.
    pub(super) fn write(&self, bytes: &[u8], packets: u64) -> bool {
        self.shared.out.pass(bytes, packets)
    }

    /// Exchanges `buffer` for what was read next and returns its length; `None` when nothing waits.
    ///
    /// # Errors
    /// When the device is of no more use.
    pub(super) fn read(&self, buffer: &mut Box<[u8]>) -> io::Result<Option<usize>> {
        let Some(mut piece) = self.shared.home.take() else {
            let broken = self.shared.broken.swap(false, Ordering::Relaxed);
            return if broken { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(None) };
        };
        std::mem::swap(buffer, &mut piece.bytes);
        let len = piece.len;
        self.shared.home.give_back(piece);
        Ok(Some(len))
    }

    /// Adds what the kernel did not take since the last call.
    pub(super) fn count(&self, drops: &mut EdgeDrops) {
        for (count, reason) in
            [(&self.shared.full, EdgeDrop::TunFull), (&self.shared.refused, EdgeDrop::TunFailed)]
        {
            if count.load(Ordering::Relaxed) > 0 {
                drops.add(reason, count.swap(0, Ordering::Relaxed));
            }
        }
    }
}

impl Drop for Porter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of a TUN ended in a panic");
        }
    }
}

impl AsFd for Porter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.device.as_fd()
    }
}

impl Shared {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            // Where the worker has no room, what waits in the device stays there.
            let spare = self.home.spare();
            self.wait(spare.is_some());
            self.write_out();
            if let Some(piece) = spare {
                self.read_in(piece);
            }
        }
    }

    fn wait(&self, for_packets: bool) {
        let period = Timespec { tv_sec: 0, tv_nsec: i64::from(PERIOD.subsec_nanos()) };
        // A signal, which ends a wait early, is for another thread.
        if !for_packets || poll(&mut [PollFd::new(&self.device, PollFlags::IN)], Some(&period)).is_err() {
            thread::sleep(PERIOD);
        }
    }

    fn write_out(&self) {
        for _ in 0..PIECES {
            let Some(mut piece) = self.out.take() else { return };
            if let Err(error) = self.device.send(piece.content()) {
                let count = if is_transient(&error) { &self.full } else { &self.refused };
                count.fetch_add(piece.packets, Ordering::Relaxed);
            }
            self.out.give_back(piece);
        }
    }

    fn read_in(&self, first: Piece) {
        let mut spare = Some(first);
        for _ in 0..PIECES {
            let Some(mut piece) = spare.take().or_else(|| self.home.spare()) else { return };
            match self.device.recv(&mut piece.bytes) {
                Ok(len) => self.home.pass_piece(Piece { len, ..piece }),
                Err(error) => {
                    self.home.give_back(piece);
                    if !is_transient(&error) {
                        self.broken.store(true, Ordering::Relaxed);
                        thread::sleep(RECOVERY);
                    }
                    return;
                }
            }
        }
    }
}

/// Whether a device will do again what it would not do now.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
