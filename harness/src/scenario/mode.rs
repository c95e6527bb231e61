//! The mode of an update, and what the new VMM in another process is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::command_kind::CommandKind;

/// The migration mode of an update.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The VMM's process executes the new VMM.
    #[default]
    CprExec,
    /// A new VMM in another process takes over through two sockets.
    CprTransfer,
    /// The VMM saves the state and ends; a VMM that is started later continues the guest in its RAM,
    /// which is in a file.
    CprReboot,
    /// RAM is copied: to a new VMM through a socket, or to a file from which a VMM that is started
    /// later continues the guest.
    Normal,
}

impl Mode {
    /// The value of the migration parameter `mode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::CprExec => "cpr-exec",
            Self::CprTransfer => "cpr-transfer",
            Self::CprReboot => "cpr-reboot",
            Self::Normal => "normal",
        }
    }

    /// Whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the VM moves to another process.
    pub fn moves(self) -> bool {
        self != Self::CprExec
    }
}

/// The new VMM in another process, and what happens to it. If it is started after the old one has
/// ended, any other than `good` must fail, and a good one follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NewVmm {
    /// The same VMM with the same arguments, which waits to take over.
    #[default]
    Good,
    /// There is none: no process listens on the channel.
    None,
    /// It is killed while it listens, before `migrate` is sent.
    KilledListening,
    /// It is stopped while it listens, and killed once the old VMM has connected to it.
    KilledConnected,
    /// It is stopped while it listens, and the update is cancelled.
    Held,
    /// It has 32 MiB of RAM.
    OtherMemory,
    /// It has seven vCPUs.
    OtherCpus,
    /// It has an option that it does not know.
    UnknownOption,
}

impl NewVmm {
    /// Whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The update command whose arguments are wrong in the same way.
    pub fn arguments(self) -> CommandKind {
        match self {
            Self::OtherMemory => CommandKind::OtherMemory,
            Self::OtherCpus => CommandKind::OtherCpus,
            Self::UnknownOption => CommandKind::UnknownOption,
            _ => CommandKind::Good,
        }
    }

    /// Whether it listens when the update is requested, or was stopped or killed while it did.
    pub fn listens(self) -> bool {
        !matches!(self, Self::None | Self::UnknownOption)
    }

    /// Whether it is stopped while it listens, so that it reads nothing.
    pub fn is_stopped(self) -> bool {
        matches!(self, Self::KilledConnected | Self::Held)
    }

    /// Whether the old VMM cannot connect to it.
    pub fn is_unreachable(self) -> bool {
        matches!(self, Self::None | Self::KilledListening | Self::UnknownOption)
    }
}
