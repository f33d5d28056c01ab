//! How long this machine takes the processor away, so that other figures can be read beside it.

use std::time::{Duration, Instant};

/// The longest time between two readings of the clock in a loop that does nothing else for `duration`.
pub fn longest_gap(duration: Duration) -> Duration {
    let start = Instant::now();
    let mut last = start;
    let mut longest = Duration::ZERO;
    while last - start < duration {
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
    }
    longest
}
