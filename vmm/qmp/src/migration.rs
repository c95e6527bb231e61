//! Migration on the wire (QEMU `qapi/migration.json`).

use serde::{Deserialize, Serialize};

/// `MigMode`: how a migration treats RAM and the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigMode {
    /// State and RAM go over the channel.
    #[default]
    Normal,
    /// State goes to storage that outlives a reboot of the host.
    CprReboot,
    /// State and descriptors go to another process of this host.
    CprTransfer,
    /// State goes to a file, descriptors stay open over `exec`.
    CprExec,
}

/// `MigrationStatus`: where a migration stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// There was none.
    #[default]
    None,
    /// It was accepted and is being set up.
    Setup,
    /// `migrate_cancel` was accepted.
    Cancelling,
    /// It was cancelled.
    Cancelled,
    /// It is going on.
    Active,
    /// It succeeded.
    Completed,
    /// It failed; the error says why.
    Failed,
    /// Device state is being written.
    Device,
}

/// `MigrationCapability`: those this project has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationCapability {
    /// Send a `MIGRATION` event at every change of status.
    Events,
}
