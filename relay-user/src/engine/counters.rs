//! What the engine counts: totals only, never by peer.

/// Why the engine dropped a cell or left a slot empty.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Not a cell of the one size, or a reserved byte of its header was set.
    BadHeader,
    /// The receiver index names no session.
    UnknownSession,
    /// The session's peer sends from elsewhere.
    WrongSource,
    /// The session's keys are past their time or count.
    Expired,
    /// The link AEAD refused it.
    Unauthentic,
    /// The link counter was seen before or is too old to tell.
    Replayed,
    /// The circuit header is not one of this protocol.
    BadCircuitHeader,
    /// The circuit is not, or no longer, known on this link.
    UnknownCircuit,
    /// The hop layer's AEAD refused it.
    HopUnauthentic,
    /// The hop sequence number was seen before or is too old to tell.
    HopReplayed,
    /// A command that this protocol or this circuit does not know.
    UnknownCommand,
    /// A report of loss that cannot be true of the cells that were sealed.
    FalseReport,
    /// The circuit's queue towards its out-link was full.
    QueueFull,
    /// The queue of events towards the control plane was full.
    EventsFull,
    /// The link's queue of control cells was full.
    ControlFull,
    /// The arena had no free frame.
    NoFrame,
    /// The port did not take the cell.
    PortRefused,
    /// The cell waited for a circuit or a link that ended.
    Ended,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 18] = [
        Self::BadHeader,
        Self::UnknownSession,
        Self::WrongSource,
        Self::Expired,
        Self::Unauthentic,
        Self::Replayed,
        Self::BadCircuitHeader,
        Self::UnknownCircuit,
        Self::HopUnauthentic,
        Self::HopReplayed,
        Self::UnknownCommand,
        Self::FalseReport,
        Self::QueueFull,
        Self::EventsFull,
        Self::ControlFull,
        Self::NoFrame,
        Self::PortRefused,
        Self::Ended,
    ];

    /// The reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadHeader => "bad_header",
            Self::UnknownSession => "unknown_session",
            Self::WrongSource => "wrong_source",
            Self::Expired => "expired",
            Self::Unauthentic => "unauthentic",
            Self::Replayed => "replayed",
            Self::BadCircuitHeader => "bad_circuit_header",
            Self::UnknownCircuit => "unknown_circuit",
            Self::HopUnauthentic => "hop_unauthentic",
            Self::HopReplayed => "hop_replayed",
            Self::UnknownCommand => "unknown_command",
            Self::FalseReport => "false_report",
            Self::QueueFull => "queue_full",
            Self::EventsFull => "events_full",
            Self::ControlFull => "control_full",
            Self::NoFrame => "no_frame",
            Self::PortRefused => "port_refused",
            Self::Ended => "circuit_ended",
        }
    }
}

/// The engine's totals since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Cells handed to the port.
    pub sent: u64,
    /// Cells that a link AEAD authenticated.
    pub received: u64,
    /// Slots left empty because the worker came too late for them.
    pub missed_slots: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Counts one drop.
    #[cold]
    pub fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// Counts several.
    #[cold]
    pub fn drop_all(&mut self, reason: DropReason, cells: usize) {
        self.drops[reason as usize] += cells as u64;
    }

    /// Drops for `reason`.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }
}
