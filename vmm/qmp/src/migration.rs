//! Migration on the wire (QEMU `qapi/migration.json`).

use serde::{Deserialize, Serialize};

/// `MigMode`: how a migration treats RAM and the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigMode {
    /// State and RAM go over the channel.
    #[default]
    Normal,
    /// State goes to storage that survives a reboot of the host.
    CprReboot,
    /// State and descriptors go to another process of this host.
    CprTransfer,
    /// State goes to a file; descriptors stay open across `exec`.
    CprExec,
}

/// `MigrationStatus`: the status of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// There was no migration.
    #[default]
    None,
    /// It was accepted and is being set up.
    Setup,
    /// `migrate_cancel` was accepted.
    Cancelling,
    /// It was cancelled.
    Cancelled,
    /// It is in progress.
    Active,
    /// It succeeded.
    Completed,
    /// It failed; the error says why.
    Failed,
    /// Device state is being written.
    Device,
}

/// `MigrationCapability`: those that this project supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationCapability {
    /// Send a `MIGRATION` event at every change of status.
    Events,
}

/// The answer to `query-migrate`; QEMU's members that this project can fill.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// The status of the migration; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<MigrationStatus>,
    /// Milliseconds since it began or, once it is over, that it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_time: Option<u64>,
    /// Milliseconds of guest downtime, once it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime: Option<u64>,
    /// Expected milliseconds of guest downtime, while it is in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<u64>,
    /// What has been copied of RAM, where a mode copies it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<MigrationRamStats>,
    /// Milliseconds of set-up before anything was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_time: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    /// Why no migration can be started; never an empty list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_reasons: Option<Vec<String>>,
    /// Milliseconds since the rehearsal of a requested migration began, while it is running. Until
    /// it is over, that migration has no status, because no event has reported one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_rehearsal_time: Option<u64>,
}

/// `MigrationRAMStats`: what has been copied of RAM. All of QEMU's members are there; those of
/// features that this project lacks are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationRamStats {
    /// Bytes written.
    pub transferred: u64,
    /// Bytes of RAM that are left to copy.
    pub remaining: u64,
    /// Bytes of RAM.
    pub total: u64,
    /// Pages of zeros.
    pub duplicate: u64,
    /// Pages whose content was written.
    pub normal: u64,
    /// Bytes of those.
    pub normal_bytes: u64,
    /// Pages that the guest writes in a second.
    pub dirty_pages_rate: u64,
    /// Megabits written in a second.
    pub mbps: f64,
    /// Number of passes over RAM.
    pub dirty_sync_count: u64,
    /// Pages that the destination asked for, in post-copy.
    pub postcopy_requests: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes written by multifd.
    pub multifd_bytes: u64,
    /// Pages copied in a second.
    pub pages_per_second: u64,
    /// Bytes written while the guest ran.
    pub precopy_bytes: u64,
    /// Bytes written while the guest was stopped.
    pub downtime_bytes: u64,
    /// Bytes written in post-copy.
    pub postcopy_bytes: u64,
    /// Number of passes that could not use zero-copy.
    pub dirty_sync_missed_zero_copy: u64,
}

/// The arguments of `migrate-set-parameters` (absent: unchanged) and the answer to
/// `query-migrate-parameters` (all present).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationParameters {
    /// How to treat RAM and the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<MigMode>,
    /// For `normal`: bytes to write in a second while the guest runs; 0 for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// For `normal`: how many milliseconds the rest of RAM may take, for which the guest stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// For `cpr-exec`: the new binary, then its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpr_exec_command: Option<Vec<String>>,
    /// For `cpr-exec`: whether the command is rehearsed before the guest stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_cpr_exec_rehearsal: Option<bool>,
    /// Time limit of a rehearsal in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_cpr_exec_rehearsal_timeout: Option<u64>,
    /// For `cpr-exec`: time limit in milliseconds for the new binary to resume the guest, after
    /// which the old binary takes over again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_cpr_exec_deadline: Option<u64>,
    /// For `cpr-exec`: how many milliseconds the guest may be stopped, after which the old binary
    /// takes over again; an update that is expected to take longer is refused. 0 for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_max_downtime: Option<u64>,
}

/// Whether a capability is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationCapabilityStatus {
    /// The capability.
    pub capability: MigrationCapability,
    /// True if it is on.
    pub state: bool,
}
