//! What a step did, and how an update ended.

use crate::scenario::{Expect, Interruption, Mode, RaceCommand};

/// How an update ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It completed.
    Completed,
    /// It was refused, with this error.
    Refused(String),
    /// It failed, with this error.
    Failed(String),
    /// It was cancelled.
    Cancelled,
}

impl Ending {
    /// Its name, in one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing that involved the VMM.
    Nothing,
    /// Started the VMM.
    Boot,
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// `system_reset`.
    Reset,
    /// An update.
    Update {
        /// Its mode.
        mode: Mode,
        /// How it was expected to end.
        expect: Expect,
        /// How it ended.
        ending: Ending,
        /// What an error must name: the command, or the channel if that is at fault.
        culprit: String,
        /// The errno an error must give.
        errno: Option<i32>,
    },
    /// Several commands in one write.
    Race {
        /// The commands.
        commands: Vec<RaceCommand>,
        /// Number of updates that were accepted.
        accepted: usize,
    },
    /// SIGKILL to the VMM, which the VM survived in another process.
    Killed {
        /// Whether an update had been requested.
        in_update: bool,
    },
    /// An update that was held at a point.
    Interrupted {
        /// What interrupted it.
        with: Interruption,
        /// Whether the interruption was handled before the guest stopped; otherwise after the
        /// update.
        early: bool,
        /// How the update ended.
        ending: Ending,
    },
}

impl Action {
    /// Whether an update was done and succeeded.
    pub fn updated(&self) -> bool {
        match self {
            Self::Update { ending, .. } | Self::Interrupted { ending, .. } => {
                *ending == Ending::Completed
            }
            Self::Race { accepted, .. } => *accepted > 0,
            _ => false,
        }
    }

    /// Whether an update may have been under way.
    pub fn may_update(&self) -> bool {
        match self {
            Self::Killed { in_update } => *in_update,
            Self::Update { .. } | Self::Race { .. } | Self::Interrupted { .. } => true,
            _ => false,
        }
    }

    /// How its update ended, if it is one.
    pub fn ending(&self) -> Option<&Ending> {
        match self {
            Self::Update { ending, .. } | Self::Interrupted { ending, .. } => Some(ending),
            _ => None,
        }
    }

    /// Whether the guest was rebooted.
    pub fn resets(&self) -> bool {
        match self {
            Self::Reset => true,
            Self::Race { commands, .. } => commands.iter().any(|c| c.resets()),
            Self::Interrupted { with, .. } => *with == Interruption::Reset,
            _ => false,
        }
    }
}
