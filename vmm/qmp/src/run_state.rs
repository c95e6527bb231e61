//! `RunState` and related types (QEMU `qapi/run-state.json`).

use serde::{Deserialize, Serialize};

/// Whether a guest runs, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Created but not started (`--paused`).
    Prelaunch,
    /// Waiting for or loading an incoming state.
    Inmigrate,
    /// Stopped by `stop`.
    Paused,
    /// Stopped to finish a migration.
    FinishMigrate,
    /// Stopped because the guest was migrated away.
    Postmigrate,
    /// The vCPUs run.
    Running,
    /// The guest powered off and the VMM was told to stay.
    Shutdown,
    /// KVM failed to run a vCPU.
    InternalError,
    /// The guest reported a panic.
    GuestPanicked,
}

impl RunState {
    /// Returns whether the vCPUs run.
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
    /// A host error.
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
