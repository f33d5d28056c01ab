//! What a slot costs the timing wheel: finding the earliest, taking it out, filing the next.

use relay_user::engine::time::Nanos;
use relay_user::engine::wheel::Wheel;
use std::time::Instant;

/// Mean time between two slots of a link; within the wheel's reach, so that each event is a slot.
const PERIOD: u64 = 100_000_000;

/// A wheel with links of one class at random phases, jittered.
pub(super) struct Links {
    wheel: Wheel,
    now: Nanos,
    random: u64,
}

impl Links {
    pub(super) fn new(count: u32) -> Self {
        let now = Nanos(Nanos::SECOND.0);
        let mut links = Self { wheel: Wheel::new(count as usize), now, random: 0x9e37_79b9_7f4a_7c15 };
        for link in 0..count {
            let phase = links.draw();
            links.wheel.insert(link, now + Nanos(phase), now);
        }
        links
    }

    /// Nanoseconds per event, over `events` of them.
    pub(super) fn run(&mut self, events: u32) -> f64 {
        let start = Instant::now();
        for _ in 0..events {
            let Some(at) = self.wheel.next_deadline() else { break };
            self.now = self.now.max(at);
            if let Some(link) = self.wheel.pop(self.now) {
                let next = self.now + Nanos(PERIOD / 2 + self.draw());
                self.wheel.insert(link, next, self.now);
            }
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(events)
    }

    /// Uniform below [`PERIOD`], by xorshift (Marsaglia 2003): a benchmark's jitter need not be secret, only cheap.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % PERIOD
    }
}
