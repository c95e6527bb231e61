//! Kinds of steps, which swarms switch on and off, and which are the rows of the coverage table.

use std::fmt;

use super::possible::is_good;
use crate::model::reference::State;
use crate::scenario::{CommandKind, Expect, KillOutcome, Step, Wait};

/// A kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the name of each says it")]
pub enum StepKind {
    Stop,
    Cont,
    Bring,
    Reset,
    Wait,
    WaitMarker,
    Go,
    EachMarker,
    Nmi,
    Irqfd,
    SerialClient,
    GoodUpdate,
    BadCommand,
    BadChannel,
    Fault,
    Interrupt,
    Race,
    Soak,
    Limit,
    Binary,
    KillInUpdate,
    Signal,
    Quit,
    Kill,
}

impl StepKind {
    /// All kinds.
    pub const ALL: [Self; 24] = [
        Self::Stop,
        Self::Cont,
        Self::Bring,
        Self::Reset,
        Self::Wait,
        Self::WaitMarker,
        Self::Go,
        Self::EachMarker,
        Self::Nmi,
        Self::Irqfd,
        Self::SerialClient,
        Self::GoodUpdate,
        Self::BadCommand,
        Self::BadChannel,
        Self::Fault,
        Self::Interrupt,
        Self::Race,
        Self::Soak,
        Self::Limit,
        Self::Binary,
        Self::KillInUpdate,
        Self::Signal,
        Self::Quit,
        Self::Kill,
    ];

    /// Returns the kind of `step` in `state`; `None` for `boot`, `repeat` and steps that only
    /// prepare the next.
    pub fn of(state: &State, step: &Step) -> Option<Self> {
        Some(match step {
            Step::Boot | Step::Inject(_) => return None,
            Step::Stop => Self::Stop,
            Step::Cont => Self::Cont,
            Step::Bring(_) => Self::Bring,
            Step::Reset => Self::Reset,
            Step::Quit => Self::Quit,
            Step::Kill => Self::Kill,
            Step::KillVmm(kill) if kill.expect == KillOutcome::Gone => Self::Kill,
            Step::EndBy(_) => Self::Signal,
            Step::Wait(Wait::Marker(_)) => Self::WaitMarker,
            Step::Wait(_) => Self::Wait,
            Step::Go(_) => Self::Go,
            Step::EachMarker(_) => Self::EachMarker,
            Step::Serial(_) => Self::SerialClient,
            Step::Migrate(migrate) if migrate.expect == Expect::Ended => Self::Signal,
            Step::Migrate(_) if state.armed.is_some() => Self::Fault,
            Step::Measure(_) | Step::RestartHost(_) => Self::GoodUpdate,
            Step::Migrate(migrate) if is_good(migrate) => Self::GoodUpdate,
            Step::Migrate(migrate) if migrate.command == CommandKind::Good => Self::BadChannel,
            Step::Migrate(_) => Self::BadCommand,
            Step::Nmi => Self::Nmi,
            Step::Irqfd | Step::InitSipi(_) => Self::Irqfd,
            Step::Faults(_) | Step::KillAt(_) => Self::Fault,
            Step::Repeat(_) => return None,
            Step::Soak(_) => Self::Soak,
            Step::Signal(_) => Self::Signal,
            Step::Interrupt(_) | Step::Interrupts(_) => Self::Interrupt,
            Step::KillInUpdate(_) | Step::KillVmm(_) => Self::KillInUpdate,
            Step::Race(_) => Self::Race,
            Step::Limit(_) => Self::Limit,
            Step::Binary(_) => Self::Binary,
        })
    }

    /// Its relative frequency if no kind is switched off.
    pub fn weight(self) -> u32 {
        match self {
            // Few guests wait at markers, and those should reach their last one.
            Self::GoodUpdate | Self::WaitMarker | Self::Go => 12,
            Self::BadCommand | Self::Fault => 8,
            Self::Stop | Self::Cont | Self::Interrupt | Self::Race => 6,
            Self::Reset | Self::Wait | Self::BadChannel => 4,
            Self::EachMarker
            | Self::Nmi
            | Self::Irqfd
            | Self::SerialClient
            | Self::Limit
            | Self::Binary => 3,
            Self::Bring => 2,
            // They are slow.
            Self::Soak | Self::KillInUpdate => 2,
            // Drawn only as the last step.
            Self::Signal | Self::Quit | Self::Kill => 0,
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stop => "stop",
            Self::Cont => "cont",
            Self::Bring => "bring",
            Self::Reset => "reset",
            Self::Wait => "wait",
            Self::WaitMarker => "wait for a marker",
            Self::Go => "go",
            Self::EachMarker => "each-marker",
            Self::Nmi => "nmi",
            Self::Irqfd => "irqfd",
            Self::SerialClient => "serial client",
            Self::GoodUpdate => "good update",
            Self::BadCommand => "bad command",
            Self::BadChannel => "bad channel",
            Self::Fault => "fault",
            Self::Interrupt => "interrupt",
            Self::Race => "race",
            Self::Soak => "soak",
            Self::Limit => "limit",
            Self::Binary => "binary",
            Self::KillInUpdate => "kill-in-update",
            Self::Signal => "signal",
            Self::Quit => "quit",
            Self::Kill => "kill",
        })
    }
}
