//! Cells beyond the schedule: Maybenot machines, on top of a floor that stays as it is.
//!
//! A machine sees what leaves and what arrives and answers with cells of its own. When they leave depends on the payload,
//! so that egress no longer is the same with and without it: whoever uses machines trades the guarantee of the schedule
//! for their defence. Slots are never held back, so machines that block are refused.

use super::departure::Content;
use super::time::Nanos;
use maybenot::action::Action;
use maybenot::{Framework, Machine, Timer, TriggerAction, TriggerEvent};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// Machines of one link, at most.
pub const MAX_MACHINES: usize = 8;
/// Rounds of expired timers in one look, at most: a machine whose timer takes no time would turn for ever.
const MAX_ROUNDS: usize = 4;

/// Why machines cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtraError {
    /// Not a machine, or an invalid one.
    #[error("machine {0}: {1}")]
    Machine(usize, String),
    /// It blocks.
    #[error("machine {0} blocks what leaves, and a slot always sends its cell")]
    Blocks(usize),
    /// None, or more than [`MAX_MACHINES`].
    #[error("{0} machines, and 1 to {MAX_MACHINES} may run")]
    Count(usize),
    /// The fraction is none.
    #[error("the greatest share of extra cells is not from 0 to 1")]
    Fraction,
}

/// Checks machines without running them.
///
/// # Errors
/// [`ExtraError`] for the first that cannot run.
pub fn parse_machines(texts: &[String]) -> Result<Vec<Machine>, ExtraError> {
    if texts.is_empty() || texts.len() > MAX_MACHINES {
        return Err(ExtraError::Count(texts.len()));
    }
    let parse = |(index, text): (usize, &String)| {
        let number = index + 1;
        let machine: Machine =
            text.parse().map_err(|error: maybenot::Error| ExtraError::Machine(number, error.to_string()))?;
        let blocks =
            machine.states.iter().any(|state| matches!(state.action, Some(Action::BlockOutgoing { .. })));
        if blocks { Err(ExtraError::Blocks(number)) } else { Ok(machine) }
    };
    texts.iter().enumerate().map(parse).collect()
}

/// The worker's time as machines count it.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct At(Nanos);

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Span(Nanos);

impl maybenot::time::Instant for At {
    type Duration = Span;

    fn saturating_duration_since(&self, earlier: Self) -> Span {
        Span(self.0.since(earlier.0))
    }
}

impl std::ops::AddAssign for Span {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0 + other.0;
    }
}

impl maybenot::time::Duration for Span {
    fn zero() -> Self {
        Self(Nanos(0))
    }

    fn from_micros(micros: u64) -> Self {
        Self(Nanos(micros.saturating_mul(1000)))
    }

    fn is_zero(&self) -> bool {
        self.0.0 == 0
    }

    fn div_duration_f64(self, rhs: Self) -> f64 {
        self.0.0 as f64 / rhs.0.0 as f64
    }
}

/// The engine's generator for the machines, which know an older trait of the same numbers.
#[derive(Clone, Debug)]
struct Coins(ChaCha8Rng);

impl rand_core_09::RngCore for Coins {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

/// The machines of one link and what they have scheduled.
#[derive(Debug)]
pub struct Extra {
    framework: Framework<Vec<Machine>, Coins, At>,
    /// By machine: when its next cell is due.
    cells: Vec<Option<Nanos>>,
    /// By machine: when its timer ends.
    timers: Vec<Option<Nanos>>,
    /// Events that follow from actions; as many as machines, at most.
    follow_up: Vec<TriggerEvent>,
}

impl Extra {
    /// `max_share` bounds extra cells among all, 0 to 1; below it the machines' own budgets count too.
    ///
    /// # Errors
    /// [`ExtraError`] where a machine or the share cannot be used.
    pub fn new(
        machines: Vec<Machine>,
        max_share: f64,
        now: Nanos,
        seed: [u8; 32],
    ) -> Result<Self, ExtraError> {
        let count = machines.len();
        if count == 0 || count > MAX_MACHINES {
            return Err(ExtraError::Count(count));
        }
        let coins = Coins(ChaCha8Rng::from_seed(seed));
        let framework =
            Framework::new(machines, max_share, 0.0, At(now), coins).map_err(|_| ExtraError::Fraction)?;
        Ok(Self {
            framework,
            cells: vec![None; count],
            timers: vec![None; count],
            follow_up: Vec::with_capacity(count),
        })
    }

    /// A slot's cell was sealed.
    pub(super) fn on_slot(&mut self, content: Content, now: Nanos) {
        match content {
            Content::Payload => self.trigger(&[TriggerEvent::NormalSent, TriggerEvent::TunnelSent], now),
            Content::Cover | Content::Forgotten => self.trigger(&[TriggerEvent::TunnelSent], now),
        }
    }

    /// A cell of the link arrived.
    pub(super) fn on_arrival(&mut self, now: Nanos) {
        self.trigger(&[TriggerEvent::TunnelRecv], now);
    }

    /// When the next extra cell leaves that is due by `horizon`; counts it as sent.
    pub(super) fn next_cell(&mut self, horizon: Nanos, now: Nanos) -> Option<Nanos> {
        self.expire(now);
        let (number, due) = self
            .cells
            .iter()
            .enumerate()
            .filter_map(|(number, due)| Some((number, (*due)?)))
            .min_by_key(|&(_, due)| due)
            .filter(|&(_, due)| due <= horizon)?;
        self.cells[number] = None;
        let machine = maybenot::MachineId::from_raw(number);
        self.trigger(&[TriggerEvent::PaddingSent { machine }, TriggerEvent::TunnelSent], now);
        Some(due.max(now))
    }

    fn expire(&mut self, now: Nanos) {
        for _ in 0..MAX_ROUNDS {
            let Some(number) = self.timers.iter().position(|end| end.is_some_and(|end| end <= now)) else {
                return;
            };
            self.timers[number] = None;
            self.trigger(&[TriggerEvent::TimerEnd { machine: maybenot::MachineId::from_raw(number) }], now);
        }
    }

    fn trigger(&mut self, events: &[TriggerEvent], now: Nanos) {
        let Self { framework, cells, timers, follow_up } = self;
        for action in framework.trigger_events(events, At(now)) {
            take(action, cells, timers, now).into_iter().for_each(|event| follow_up.push(event));
        }
        if !follow_up.is_empty() {
            // Once: what a timer's begin sets off waits for the next event.
            for action in framework.trigger_events(follow_up, At(now)) {
                take(action, cells, timers, now);
            }
            follow_up.clear();
        }
    }
}

/// Does what a machine asks for; returns the event that follows from it.
fn take(
    action: &TriggerAction<At>,
    cells: &mut [Option<Nanos>],
    timers: &mut [Option<Nanos>],
    now: Nanos,
) -> Option<TriggerEvent> {
    match *action {
        TriggerAction::Cancel { machine, timer } => {
            let number = machine.into_raw();
            if matches!(timer, Timer::Action | Timer::All) {
                cells[number] = None;
            }
            if matches!(timer, Timer::Internal | Timer::All) {
                timers[number] = None;
            }
        }
        TriggerAction::SendPadding { timeout, machine, .. } => {
            cells[machine.into_raw()] = Some(now + timeout.0);
        }
        // Refused when the machine was read.
        TriggerAction::BlockOutgoing { .. } => {}
        TriggerAction::UpdateTimer { duration, replace, machine } => {
            let timer = &mut timers[machine.into_raw()];
            let end = now + duration.0;
            if replace || timer.is_none_or(|current| current < end) {
                *timer = Some(end);
                return Some(TriggerEvent::TimerBegin { machine });
            }
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use maybenot::dist::{Dist, DistType};
    use maybenot::event::Event;
    use maybenot::state::{State, Trans};

    fn fixed(micros: f64) -> Dist {
        Dist::new(DistType::Uniform { low: micros, high: micros }, 0.0, 0.0)
    }

    fn state(on: Event, to: usize) -> State {
        let mut transitions = enum_map::EnumMap::default();
        transitions[on] = vec![Trans(to, 1.0)];
        State::new(transitions)
    }

    /// Answers each payload cell with one more, 700 µs later.
    pub(crate) fn echo() -> Machine {
        let wait = state(Event::NormalSent, 1);
        let mut answer = state(Event::NormalSent, 1);
        answer.action =
            Some(Action::SendPadding { bypass: false, replace: false, timeout: fixed(700.0), limit: None });
        Machine::new(u64::MAX, 1.0, 0, 0.0, vec![wait, answer]).unwrap()
    }

    /// Sends a cell every 2 ms from the first cell on, whatever goes on.
    fn clock() -> Machine {
        let wait = state(Event::TunnelSent, 1);
        let mut beat = state(Event::TimerEnd, 1);
        beat.action = Some(Action::UpdateTimer { replace: true, duration: fixed(2000.0), limit: None });
        Machine::new(u64::MAX, 1.0, 0, 0.0, vec![wait, beat]).unwrap()
    }

    fn extra(machine: Machine) -> Extra {
        Extra::new(vec![machine], 1.0, Nanos(0), [1; 32]).unwrap()
    }

    #[test]
    fn payload_is_answered_and_cover_is_not() {
        let mut extra = extra(echo());
        extra.on_slot(Content::Cover, Nanos(1000));
        assert_eq!(extra.next_cell(Nanos(u64::MAX), Nanos(1000)), None);
        extra.on_slot(Content::Payload, Nanos(2000));
        assert_eq!(extra.next_cell(Nanos(700_000), Nanos(3000)), None, "not yet due");
        assert_eq!(extra.next_cell(Nanos(702_000), Nanos(3000)), Some(Nanos(702_000)));
        assert_eq!(extra.next_cell(Nanos(u64::MAX), Nanos(3000)), None, "one each");
    }

    #[test]
    fn the_share_of_extra_cells_is_bounded() {
        let mut extra =
            Extra::new(vec![Machine { allowed_padding_packets: 0, ..echo() }], 0.25, Nanos(0), [1; 32])
                .unwrap();
        let mut sent = 0;
        for slot in 0..1000 {
            let now = Nanos(slot * 1_000_000);
            extra.on_slot(Content::Payload, now);
            sent += u32::from(extra.next_cell(Nanos(u64::MAX), now).is_some());
        }
        assert!((300..=334).contains(&sent), "{sent} beside 1000: a quarter of all");
    }

    #[test]
    fn a_timer_that_never_rests_ends_a_look_all_the_same() {
        let mut beat = state(Event::TimerEnd, 0);
        beat.action = Some(Action::UpdateTimer { replace: true, duration: fixed(0.0), limit: None });
        let mut start = state(Event::TunnelSent, 1);
        start.action = None;
        let machine = Machine::new(0, 0.0, 0, 0.0, vec![start, beat]).unwrap();
        let mut extra = extra(machine);
        extra.on_slot(Content::Cover, Nanos(5));
        assert_eq!(extra.next_cell(Nanos(10), Nanos(5)), None);
        let mut steady = Extra::new(vec![clock()], 1.0, Nanos(0), [1; 32]).unwrap();
        steady.on_slot(Content::Cover, Nanos(5));
        assert_eq!(steady.timers, [Some(Nanos(2_000_005))]);
    }

    #[test]
    fn machines_are_checked_before_they_run() {
        let echo = echo().serialize();
        assert_eq!(parse_machines(std::slice::from_ref(&echo)).unwrap().len(), 1);
        assert_eq!(parse_machines(&[]).unwrap_err(), ExtraError::Count(0));
        assert_eq!(parse_machines(&vec![echo.clone(); 9]).unwrap_err(), ExtraError::Count(9));
        let error = parse_machines(&[echo.clone(), "02junk".to_owned()]).unwrap_err();
        assert!(matches!(error, ExtraError::Machine(2, _)), "{error}");
        let mut block = state(Event::NormalSent, 0);
        block.action = Some(Action::BlockOutgoing {
            bypass: false,
            replace: false,
            timeout: fixed(0.0),
            duration: fixed(1.0),
            limit: None,
        });
        let block = Machine::new(0, 0.0, u64::MAX, 1.0, vec![block]).unwrap().serialize();
        assert_eq!(parse_machines(&[echo, block]).unwrap_err(), ExtraError::Blocks(2));
    }
}
