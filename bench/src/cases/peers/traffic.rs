//! Numbered datagrams at a constant rate from client A to client B, counted at both ends.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use relay_tests::Netns;

/// Bytes of UDP payload in a datagram.
pub(super) const PAYLOAD: usize = 1240;

/// Receive buffer of client B in bytes: a second of 1240-byte datagrams at 5000 per second, so that a stalled receiver
/// is not taken for a hub that loses.
const RECEIVE_BUFFER: usize = 16 << 20;
/// How long the receiver looks at most before it asks whether to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Datagrams that one awakening of the sender makes up for, at most.
const MAKE_UP: u64 = 16;
/// Time for what is under way to arrive.
const DRAIN: Duration = Duration::from_millis(200);

/// What both ends counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Datagrams that the sender's kernel took.
    pub(super) sent: u64,
    /// Different datagrams that arrived whole.
    pub(super) received: u64,
    /// Datagrams that arrived a second time, or that nobody sent.
    pub(super) strange: u64,
}

impl Tally {
    /// Those that did not arrive.
    pub(super) const fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// Share of those sent that did not arrive.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 datagrams")]
    pub(super) fn loss(&self) -> f64 {
        self.lost() as f64 / self.sent as f64
    }

    /// What is wrong where the two ends contradict each other.
    pub(super) fn contradiction(&self) -> Option<String> {
        let Self { sent, received, strange } = *self;
        (received > sent || strange > 0 || sent == 0)
            .then(|| format!("{sent} sent, {received} received, {strange} twice or from nobody"))
    }
}

/// Counters of a flow that runs.
#[derive(Debug, Default)]
struct Shared {
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    strange: AtomicU64,
}

/// A flow that runs until [`Flow::finish`].
#[derive(Debug)]
pub(super) struct Flow {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Flow {
    /// Begins to send `rate` datagrams a second from `from` in `a` to `to` in `b`.
    ///
    /// # Errors
    /// Where the sockets cannot be had.
    pub(super) fn start(a: &Netns, b: &Netns, from: SocketAddr, to: SocketAddr, rate: u32) -> Result<Self> {
        let sender = a.run(|| {
            let socket = UdpSocket::bind(from).with_context(|| format!("cannot bind {from}"))?;
            socket.connect(to).with_context(|| format!("no way to {to}"))?;
            Ok(socket)
        })?;
        let receiver = b.run(|| {
            let socket = UdpSocket::bind(to).with_context(|| format!("cannot bind {to}"))?;
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
            socket.set_read_timeout(Some(LOOK))?;
            Ok(socket)
        })?;
        let shared = Arc::new(Shared::default());
        let (sending, receiving) = (Arc::clone(&shared), Arc::clone(&shared));
        let mut flow = Self { shared, threads: Vec::new() };
        for (name, work) in [
            ("receiver", Box::new(move || receive(&receiver, &receiving)) as Box<dyn FnOnce() -> _ + Send>),
            ("sender", Box::new(move || send(&sender, rate, &sending))),
        ] {
            flow.threads.push(std::thread::Builder::new().name(name.into()).spawn(work)?);
        }
        Ok(flow)
    }

    /// Different datagrams that have arrived so far.
    pub(super) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Stops sending, waits for what is under way, and tells what was counted.
    ///
    /// # Errors
    /// What a socket said.
    pub(super) fn finish(mut self) -> Result<Tally> {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        std::thread::sleep(DRAIN);
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a thread of the traffic panicked"))??;
        }
        let Shared { sent, received, strange, .. } = &*self.shared;
        let [sent, received, strange] = [sent, received, strange].map(|count| count.load(Ordering::Relaxed));
        Ok(Tally { sent, received, strange })
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its error belongs to a measurement that is given up anyway.
            thread.join().ok();
        }
    }
}

/// Times at a constant rate; those that lie more than [`MAKE_UP`] behind are left out.
#[derive(Debug)]
pub(super) struct Pace {
    period: Duration,
    next: Instant,
}

impl Pace {
    /// `rate` times a second from now on.
    pub(super) fn new(rate: u32) -> Self {
        Self { period: Duration::from_secs(1) / rate, next: Instant::now() }
    }

    /// How many are due at `now`.
    pub(super) fn due(&mut self, now: Instant) -> u64 {
        let mut due = 0;
        while self.next <= now && due < MAKE_UP {
            self.next += self.period;
            due += 1;
        }
        if self.next <= now {
            self.next = now + self.period;
        }
        due
    }

    /// Time until the next.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }
}

fn send(socket: &UdpSocket, rate: u32, shared: &Shared) -> Result<()> {
    precise_sleep()?;
    let mut pace = Pace::new(rate);
    let mut datagram = [0x5a; PAYLOAD];
    let mut number = 0u64;
    while !shared.stop_sending.load(Ordering::Relaxed) {
        for _ in 0..pace.due(Instant::now()) {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            // A full queue of the TUN loses silently, as it would anybody's datagrams; an error is one not sent.
            if socket.send(&datagram).is_ok() {
                number += 1;
                shared.sent.store(number, Ordering::Relaxed);
            }
        }
        std::thread::sleep(pace.wait(Instant::now()));
    }
    Ok(())
}

fn receive(socket: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut datagram = [0; PAYLOAD + 1];
    let mut seen = Seen::default();
    while !shared.stop_receiving.load(Ordering::Relaxed) {
        let length = match socket.recv(&mut datagram) {
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error).context("client B cannot receive"),
        };
        let whole = length == PAYLOAD && datagram[8..PAYLOAD].iter().all(|&byte| byte == 0x5a);
        let number = datagram.first_chunk().map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes));
        let counter = if whole && seen.first_time(number) { &shared.received } else { &shared.strange };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Numbers that have been seen, below 2^24.
#[derive(Debug, Default)]
pub(super) struct Seen {
    words: Vec<u64>,
}

impl Seen {
    const BOUND: u64 = 1 << 24;

    /// Whether `number` is below the bound and new.
    pub(super) fn first_time(&mut self, number: u64) -> bool {
        if number >= Self::BOUND {
            return false;
        }
        let Ok(word) = usize::try_from(number / 64) else { return false };
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }
}

/// Without this, 50 µs are added to every sleep.
pub(super) fn precise_sleep() -> Result<()> {
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).context("timer slack")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_twice_or_from_nobody_is_a_contradiction() {
        let mut seen = Seen::default();
        assert!(seen.first_time(70) && seen.first_time(3) && !seen.first_time(70));
        assert!(!seen.first_time(Seen::BOUND));
        let tally = Tally { sent: 10, received: 9, strange: 0 };
        assert_eq!((tally.lost(), tally.contradiction()), (1, None));
        assert!(Tally { strange: 1, ..tally }.contradiction().is_some());
        assert!(Tally { received: 11, ..tally }.contradiction().is_some());
        assert!(Tally::default().contradiction().is_some());
    }

    #[test]
    fn a_pace_makes_up_for_a_little_and_leaves_out_the_rest() {
        let mut pace = Pace::new(1000);
        let start = pace.next;
        assert_eq!(pace.due(start), 1);
        assert_eq!(pace.due(start + Duration::from_millis(3)), 3);
        assert_eq!(pace.due(start + Duration::from_secs(1)), MAKE_UP);
        assert_eq!(pace.due(start + Duration::from_secs(1)), 0);
    }
}
