//! The steps of a case.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fault::Inject;
use super::interrupt::{Interrupt, Interruption};
use super::kill::{EndBy, KillOutcome, KillVmm};
use super::kill_in_update::KillInUpdate;
use super::limit::Limit;
use super::mode::Mode;
use super::signal::SignalAt;
use super::soak::Soak;
use super::update::{Expect, Migrate};

/// One step of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Start the VMM and wait until the guest's body runs.
    Boot,
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// `system_reset`, then wait for the next boot of the guest.
    Reset,
    /// `quit`: the VMM exits.
    Quit,
    /// SIGKILL to the VMM.
    Kill,
    /// `stop` or `cont`, whichever leads to this state; nothing if the guest is already in it.
    Bring(RunTarget),
    /// Wait until the guest makes progress.
    Wait(Wait),
    /// Let the guest continue from this marker.
    Go(u32),
    /// At each of the guest's markers up to this one: wait for it, update, let the guest continue.
    EachMarker(u32),
    /// Connect a client to the serial port's socket, or disconnect it.
    Serial(SerialAction),
    /// Update the VMM.
    Migrate(Migrate),
    /// Save the VM with mode `cpr-reboot`, restart the host, and continue the guest in its RAM, which outlived
    /// that.
    RestartHost(HostRestart),
    /// Update the VMM in this mode, and watch the guest meanwhile.
    Measure(Mode),
    /// Inject a fault into the next update.
    Inject(Inject),
    /// Send an NMI to every vCPU.
    Nmi,
    /// Trigger the interrupt line that the VMM connects to an eventfd (`KVM_IRQFD`).
    Irqfd,
    /// Send INIT and SIPI to a vCPU.
    InitSipi(StartAt),
    /// Inject every fault at this point, each into its own update and followed by a good update.
    Faults(String),
    /// Kill the VMM's process at this point of an update; the VM must survive.
    KillAt(String),
    /// Repeat these steps.
    Repeat(Repeat),
    /// Updates at random times, drawn from the case's seed; checked after each of them.
    Soak(Soak),
    /// Send the VMM a signal at this point of an update; the VMM must end.
    Signal(SignalAt),
    /// Interrupt an update while it is held at a point.
    Interrupt(Interrupt),
    /// Interrupt updates held at this point in every way; `quit` comes last.
    Interrupts(String),
    /// Interrupt updates with a signal; a VM that is gone is started again in the same folder.
    KillInUpdate(KillInUpdate),
    /// SIGKILL to the main process of the VMM, outside updates.
    KillVmm(KillVmm),
    /// End the VMM with a signal or through its cgroup, outside updates.
    EndBy(EndBy),
    /// Send these commands in one write, so that each arrives while earlier ones are in progress.
    Race(Vec<RaceCommand>),
    /// Set a soft limit of the VMM.
    Limit(Limit),
    /// Change the file that the VMM was started from.
    Binary(BinaryChange),
}

/// The place where a vCPU must start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartAt {
    /// The vCPU.
    pub cpu: u8,
    /// The number of the start page, below 1 MiB.
    pub page: u8,
}

/// A restart of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostRestart {
    /// The series of the host's next kernel, such as `6` or `7.3`; none: the same kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// A sequence of steps to run several times in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// Number of rounds.
    pub times: u32,
    /// The steps of one round.
    pub steps: Vec<Step>,
}

impl Step {
    /// Whether the step ends the VMM, so that no step can follow it.
    pub fn ends(&self) -> bool {
        match self {
            Self::Quit | Self::Kill | Self::EndBy(_) => true,
            Self::KillVmm(kill) => kill.expect == KillOutcome::Gone,
            Self::Migrate(migrate) => migrate.expect == Expect::Ended,
            Self::Interrupt(interrupt) => interrupt.with == Interruption::Quit,
            _ => false,
        }
    }
}

/// A change to the file that the VMM was started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BinaryChange {
    /// The file is removed.
    Deleted,
    /// Another file is renamed over it.
    Replaced,
    /// The file is opened for writing, and overwritten unless a process is executing it.
    Overwritten,
}

/// A state to bring the guest to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunTarget {
    /// The vCPUs run.
    Running,
    /// The vCPUs are stopped.
    Stopped,
}

/// What a client of the serial port does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SerialAction {
    /// It connects, then sends numbered lines and checks those it receives.
    Connect,
    /// It closes the connection.
    Leave,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    /// This many more heartbeats of every vCPU.
    Heartbeats(u64),
    /// This many more sweeps over RAM by every vCPU.
    Sweeps(u64),
    /// The guest reaches this marker.
    Marker(u32),
    /// The serial port's client receives this many more lines.
    SerialLines(u64),
}
/// A command of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RaceCommand {
    /// A good update.
    Migrate,
    /// `system_reset`.
    Reset,
    /// `quit`.
    Quit,
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// The guest, waiting at a marker with `end=reset` on its command line, continues and resets.
    GuestReset,
    /// The guest, waiting at a marker with `end=exit` on its command line, continues and exits.
    GuestExit,
}

impl RaceCommand {
    /// Whether the guest boots again.
    pub fn resets(self) -> bool {
        matches!(self, Self::Reset | Self::GuestReset)
    }

    /// Whether the VMM ends.
    pub fn ends(self) -> bool {
        matches!(self, Self::Quit | Self::GuestExit)
    }
}
