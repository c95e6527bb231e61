//! An update: what is executed, where the state goes, and how it must end.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::command_kind::{CommandKind, Errno};
use super::fault::Inject;
use super::mode::{Mode, NewVmm};
use super::size::Size;

/// An update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Migrate {
    /// The migration mode.
    #[serde(default, skip_serializing_if = "Mode::is_default")]
    pub mode: Mode,
    /// The new VMM in another process.
    #[serde(default, skip_serializing_if = "NewVmm::is_default")]
    pub new_vmm: NewVmm,
    /// A fault of the new VMM in another process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_vmm_fault: Option<Inject>,
    /// The command to execute.
    #[serde(default)]
    pub command: CommandKind,
    /// The migration channel.
    #[serde(default)]
    pub channel: Channel,
    /// How many bytes of RAM are copied per second at most (mode `normal`); none: as many as possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<Size>,
    /// Whether the VMM rehearses the command before the guest stops; none: the VMM's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<bool>,
    /// The deadline of the update, in milliseconds; none: the VMM's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// How long the update may stop the guest, in milliseconds; 0 for any, none: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_downtime_ms: Option<u64>,
    /// How the update must end.
    #[serde(default)]
    pub expect: Expect,
    /// How many updates, one after the other.
    #[serde(default = "one", rename = "times")]
    pub repeat: u32,
}

impl Default for Migrate {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            new_vmm: NewVmm::default(),
            new_vmm_fault: None,
            command: CommandKind::default(),
            channel: Channel::default(),
            max_bandwidth: None,
            rehearsal: None,
            deadline_ms: None,
            max_downtime_ms: None,
            expect: Expect::default(),
            repeat: one(),
        }
    }
}

impl Migrate {
    /// Whether the new VMM is started before the update, and waits for the VM; otherwise the command
    /// starts it, or it is started once the old one has ended.
    pub fn has_waiting_vmm(&self) -> bool {
        match self.mode {
            Mode::CprExec | Mode::CprReboot => false,
            Mode::CprTransfer => true,
            Mode::Normal => matches!(self.channel, Channel::Unix | Channel::Tcp),
        }
    }

    /// Whether it is cancelled while it copies RAM.
    pub fn is_cancelled_in_a_copy(&self) -> bool {
        let copies = self.mode == Mode::Normal && self.new_vmm.is_default();
        copies && self.expect == Expect::Cancelled
    }

    /// Whether the new VMM is not started by the update, but once the old one has ended.
    pub fn has_later_vmm(&self) -> bool {
        self.mode.moves() && !self.has_waiting_vmm()
    }
}

/// The channel that the state is saved to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// `file:` in the case's folder.
    #[default]
    File,
    /// `tcp:`.
    Tcp,
    /// `exec:`.
    Exec,
    /// `unix:`.
    Unix,
    /// `fd:`.
    Fd,
    /// `file:` in a directory that does not exist.
    MissingDirectory,
    /// `file:` with the path of a directory.
    Directory,
    /// `file:` on a full file system.
    Full,
    /// `file:` on a read-only file system.
    ReadOnly,
    /// A list of channels without a `main` channel.
    OnlyCpr,
}

/// How an update must end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// It succeeds.
    #[default]
    Completed,
    /// It is refused in the reply to `migrate` or to setting its parameters, before the guest
    /// stops; the error contains this text.
    Refused(String),
    /// It fails, and the guest continues as before.
    Failed(Failure),
    /// It is refused or fails, and the guest continues as before; the error contains this text.
    NotCompleted(String),
    /// It is cancelled, and the guest continues as before.
    Cancelled,
    /// It succeeds, is refused or fails; in any case the guest continues.
    Any,
    /// The VMM's process dies during the update, and the VM continues in the keeper's process.
    Revived,
    /// Whatever the outcome, the VM continues undamaged, in this process or in the keeper's.
    Survives,
    /// Whatever the outcome, the VMM shuts down in an orderly way, as a signal requested.
    Ended,
}

/// What the error of a failed update must contain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The errno; the default is that of the bad command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<Errno>,
    /// Additional text that the error must contain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

fn one() -> u32 {
    1
}
