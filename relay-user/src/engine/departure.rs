//! What leaves, as the worker sees it: told to nobody else.

use super::time::Nanos;
use crate::xsk::Frame;

/// What a sealed cell carries, as far as this node can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Something of somebody: a relayed cell, control, packets of the edge.
    Payload,
    /// Nothing.
    Cover,
    /// It missed a slot before this one, and is not known any more.
    Forgotten,
}

impl Content {
    /// Of a cell that begins here, from whether packets waited for it.
    pub(super) const fn of_own(data: bool) -> Self {
        if data { Self::Payload } else { Self::Cover }
    }
}

/// A cell whose slot has come. Stays inside the worker: what it says of a cell is what no observer may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Link number.
    pub link: u32,
    /// The slot.
    pub deadline: Nanos,
    /// What it carries.
    pub content: Content,
}

/// Where cells go at their slots.
pub trait Outlet {
    /// Takes a cell.
    ///
    /// # Errors
    /// The frame, where it cannot be taken.
    fn send(&mut self, departure: Departure, frame: Frame) -> Result<(), Frame>;

    /// A cell came too late for its slot and goes at a later one.
    fn missed(&mut self, departure: Departure);
}

/// An outlet that is told no more than where a cell goes.
pub(super) struct Plain<F>(pub(super) F);

impl<F: FnMut(u32, Frame) -> Result<(), Frame>> Outlet for Plain<F> {
    fn send(&mut self, departure: Departure, frame: Frame) -> Result<(), Frame> {
        (self.0)(departure.link, frame)
    }

    fn missed(&mut self, _: Departure) {}
}
