//! What passes between the control plane and a worker's engine, over bounded queues.

use super::circuit::Side;
use super::extra::Extra;
use super::link::Session;
use super::schedule::Schedule;
use super::time::Nanos;
use crate::crypto::HopKeys;
use crate::xsk::Frame;
use relay_common::wire::{Command as CellCommand, DestroyReason, HopCommand};

/// From the control plane to the engine. A frame's bytes from `BODY_OFFSET` on hold the body to send.
#[derive(Debug)]
pub enum Command {
    /// Prepares link `link`; it stays silent until a session may send. A link that has the number is removed first.
    AddLink {
        /// Link number, below the engine's capacity.
        link: u32,
        /// Its slots.
        schedule: Box<Schedule>,
    },
    /// Lets machines send beyond a link's schedule, which then no longer is the same with and without payload.
    SetExtra {
        /// Link number.
        link: u32,
        /// The machines.
        extra: Box<Extra>,
    },
    /// Lets a link go over to other slots: those that come due before `from` follow the old law, later ones the new.
    /// A change that still waits is replaced. Where `from` is nearer than the engine seals ahead, the change comes with
    /// the first slot that is not sealed yet.
    SetSchedule {
        /// Link number.
        link: u32,
        /// The last of the old slots comes before.
        from: Nanos,
        /// The new slots, laid down from `from` on.
        schedule: Box<Schedule>,
    },
    /// Makes room for the slots of a class that a link may come to have, so that nothing is allocated when it does; the
    /// peer may have it as well, so that the link is silent only after some of its slots. Only its length counts.
    Expect {
        /// Link number.
        link: u32,
        /// Slots of the class.
        schedule: Box<Schedule>,
    },
    /// Sends the peer how many of its cells were expected and came since the link was added, in the next slot.
    ReportLoss {
        /// Link number.
        link: u32,
    },
    /// Adds a session to a link. `send_now` is the initiator's side: it is sure of the peer. The other side sends
    /// once the peer's first cell confirms the keys.
    InstallSession {
        /// The session; its link must exist.
        session: Box<Session>,
        /// Seal with it from the next slot on.
        send_now: bool,
    },
    /// Forgets a session that was replaced.
    RemoveSession {
        /// Its receive index.
        receive_index: u32,
    },
    /// Takes a link down: its sessions and sealed cells go, its circuits close, their other sides are told.
    RemoveLink {
        /// Link number.
        link: u32,
    },
    /// Sends a cell with a clear body (rekey, CREATE, CREATED) over a link.
    SendCell {
        /// Link number.
        link: u32,
        /// Circuit name on that link, zero for the link itself.
        circ_id: u32,
        /// The cell's command.
        command: CellCommand,
        /// The number in the circuit header; CREATE carries where numbering starts.
        hop_seq: u64,
        /// Holds the body.
        frame: Frame,
    },
    /// Starts to carry a circuit whose CREATE came over `back`.
    AddCarried {
        /// Circuit number, below the engine's capacity, unused.
        circuit: u32,
        /// The side towards the client.
        back: Side,
        /// 0 for the entry.
        depth: usize,
        /// This relay's keys.
        keys: Box<HopKeys>,
        /// The number that CREATE came with.
        seq: u64,
    },
    /// Sends CREATE for a carried circuit to its next relay. Only between [`Event::Extend`] and its [`Command::Answer`];
    /// otherwise, and where the name is taken, [`Event::CreateRefused`] comes back and nothing is sent.
    Extend {
        /// Circuit number.
        circuit: u32,
        /// The side towards the exit.
        ahead: Side,
        /// Holds the CREATE body.
        frame: Frame,
    },
    /// Answers EXTEND towards the client in this relay's own layer, once per [`Event::Extend`]: a further answer would
    /// take a number that a cell from ahead may have, so it is dropped and counted. REFUSED forgets the side ahead.
    Answer {
        /// Circuit number.
        circuit: u32,
        /// EXTENDED or REFUSED.
        command: HopCommand,
        /// Bytes of the body in use.
        length: u16,
        /// Holds the body.
        frame: Frame,
    },
    /// Starts a circuit of this client; its CREATE went out with number `seq`.
    AddOrigin {
        /// Circuit number, below the engine's capacity, unused.
        circuit: u32,
        /// The side towards the exit.
        ahead: Side,
        /// The entry's keys.
        keys: Box<HopKeys>,
        /// The number that CREATE was sent with.
        seq: u64,
        /// Fill every free slot.
        cover: bool,
    },
    /// Sends EXTEND to the last hop of a circuit of this client.
    SendExtend {
        /// Circuit number.
        circuit: u32,
        /// Bytes of the body in use.
        length: u16,
        /// Holds relay id and handshake message.
        frame: Frame,
    },
    /// Adds the next hop of a circuit of this client; `open` lets data flow.
    AddHop {
        /// Circuit number.
        circuit: u32,
        /// The new hop's keys.
        keys: Box<HopKeys>,
        /// This was the last hop.
        open: bool,
    },
    /// Makes a circuit of this client fill every free slot from now on, or none but for packets.
    SetCover {
        /// Circuit number.
        circuit: u32,
        /// Fill every free slot.
        cover: bool,
    },
    /// Gives a circuit of this client one slot in so many of its link, whatever other circuits have to send: what it has
    /// tells nothing of theirs. Where it does not fill its slot, that is theirs. 0 and 1 let it take turns with them.
    SetShare {
        /// Circuit number.
        circuit: u32,
        /// One slot in so many.
        one_in: u32,
    },
    /// Closes a circuit and tells both neighbours.
    CloseCircuit {
        /// Circuit number.
        circuit: u32,
        /// Why.
        reason: DestroyReason,
    },
}

/// Whose a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// The engine that has this link.
    Link(u32),
    /// The engine that has this circuit.
    Circuit(u32),
    /// The engine that has the session with this receive index.
    Session(u32),
}

impl Command {
    /// Whose the command is, where there are several engines.
    pub fn home(&self) -> Home {
        match self {
            Self::AddLink { link, .. }
            | Self::SetExtra { link, .. }
            | Self::SetSchedule { link, .. }
            | Self::Expect { link, .. }
            | Self::ReportLoss { link }
            | Self::RemoveLink { link }
            | Self::SendCell { link, .. } => Home::Link(*link),
            Self::InstallSession { session, .. } => Home::Link(session.link),
            Self::RemoveSession { receive_index } => Home::Session(*receive_index),
            Self::AddCarried { circuit, .. }
            | Self::Extend { circuit, .. }
            | Self::Answer { circuit, .. }
            | Self::AddOrigin { circuit, .. }
            | Self::SendExtend { circuit, .. }
            | Self::AddHop { circuit, .. }
            | Self::SetCover { circuit, .. }
            | Self::SetShare { circuit, .. }
            | Self::CloseCircuit { circuit, .. } => Home::Circuit(*circuit),
        }
    }
}

/// From the engine to the control plane. A frame's bytes from `BODY_OFFSET` on hold the opened body.
#[derive(Debug)]
pub enum Event {
    /// The first authenticated cell of a session that did not send yet: the peer holds its keys, and slots are sealed
    /// with them from now on. Not raised for sessions installed to send at once.
    SessionConfirmed {
        /// Link number.
        link: u32,
        /// The session's receive index.
        receive_index: u32,
    },
    /// Nothing authenticated came over a link for longer than the limit.
    LinkSilent {
        /// Link number.
        link: u32,
    },
    /// A message of a link's peer about the link itself.
    LinkControl {
        /// Link number.
        link: u32,
        /// REKEY_INIT, REKEY_RESP, RATE or LOSS.
        command: CellCommand,
        /// Holds the body.
        frame: Frame,
    },
    /// A peer wants a circuit.
    Create {
        /// Where it came from and its name there.
        back: Side,
        /// Where its numbering starts.
        seq: u64,
        /// Holds the body.
        frame: Frame,
    },
    /// A peer answered CREATE.
    Created {
        /// Where it came from and its name there.
        ahead: Side,
        /// Holds the body.
        frame: Frame,
    },
    /// A client asks this relay to extend its circuit.
    Extend {
        /// Circuit number.
        circuit: u32,
        /// Bytes of the body in use.
        length: u16,
        /// Holds the body.
        frame: Frame,
    },
    /// A relay answered EXTEND of a circuit of this client.
    Extended {
        /// Circuit number.
        circuit: u32,
        /// The relay that answered; 0 is the entry.
        depth: usize,
        /// EXTENDED or REFUSED.
        command: HopCommand,
        /// Bytes of the body in use.
        length: u16,
        /// Holds the body.
        frame: Frame,
    },
    /// A circuit is gone; its number may be used again.
    CircuitClosed {
        /// Circuit number.
        circuit: u32,
        /// Why.
        reason: DestroyReason,
    },
    /// DESTROY for a name that no circuit has: a CREATE was refused, or an old circuit's end came late.
    CreateRefused {
        /// Where it came from and its name there.
        ahead: Side,
        /// Why.
        reason: DestroyReason,
    },
}
