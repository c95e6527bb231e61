//! `RunState` and what goes with it (QEMU `qapi/run-state.json`).

use serde::{Deserialize, Serialize};

/// Whether and why a guest runs or stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Built, told not to start (`--paused`).
    Prelaunch,
    /// Waiting for or loading an incoming state.
    Inmigrate,
    /// Stopped by `stop`.
    Paused,
    /// Stopped to finish a migration.
    FinishMigrate,
    /// Stopped because a migration took the guest's state away.
    Postmigrate,
    /// The vCPUs run.
    Running,
    /// The guest powered off and the VMM was told to stay.
    Shutdown,
    /// KVM could not go on with a vCPU.
    InternalError,
    /// The guest reported a panic.
    GuestPanicked,
}

impl RunState {
    /// True while the vCPUs run.
    pub fn is_running(self) -> bool {
        self == Self::Running
    }
}

/// The answer to `query-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// True while the vCPUs run.
    pub running: bool,
    /// The run state.
    pub status: RunState,
}

/// Why a guest was reset or shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownCause {
    /// None.
    None,
    /// An error of the host.
    HostError,
    /// QMP `quit`.
    HostQmpQuit,
    /// QMP `system_reset`.
    HostQmpSystemReset,
    /// A signal to the VMM.
    HostSignal,
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked for a reset.
    GuestReset,
    /// The guest panicked.
    GuestPanic,
}
