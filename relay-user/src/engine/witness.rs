//! Who looks on while an engine works. In every relay that runs, nobody: [`Unwatched`] has no size and does nothing, and
//! a program that is to look on has to be compiled with a witness of its own, as the privacy bench is for relays that are
//! taken to be hostile. There is no switch for it, so that a relay in use cannot be told to take notes.

use super::circuit::Direction;
use super::time::Nanos;
use crate::xsk::Frame;

/// Is told what a relay has of the circuits that it carries. Called by the worker's thread for each cell: nothing here
/// may wait or allocate.
pub trait Witness: Send + 'static {
    /// A cell of a circuit came from the side `from`, and its link layer is opened. Both headers stand in `cell`.
    #[inline]
    fn arrived(&mut self, _circuit: u32, _from: Direction, _cell: &Frame) {}

    /// The cell that arrived last was put behind others in the queue towards `to`, which holds `waiting` with it, or was
    /// dropped there where it was not `taken`.
    #[inline]
    fn queued(&mut self, _circuit: u32, _to: Direction, _waiting: usize, _taken: bool) {}

    /// A cell is about to be chosen for this slot of this link.
    #[inline]
    fn choosing(&mut self, _link: u32, _slot: Nanos) {}

    /// That slot goes to a cell of a circuit on its way towards `to`; `waiting` stay behind it in the queue.
    #[inline]
    fn chosen(&mut self, _circuit: u32, _to: Direction, _waiting: usize) {}

    /// The cell of a slot, whatever it holds, was handed to the port.
    #[inline]
    fn left(&mut self, _link: u32, _slot: Nanos) {}

    /// A slot's cell came too late for it.
    #[inline]
    fn missed(&mut self, _link: u32, _slot: Nanos) {}
}

/// Nobody looks on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unwatched;

impl Witness for Unwatched {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_no_room() {
        assert_eq!(size_of::<Unwatched>(), 0);
    }
}
