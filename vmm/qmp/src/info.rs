//! The answers to queries (QEMU `qapi/machine.json`, `qapi/control.json`, `qapi/misc.json`).

use serde::{Deserialize, Serialize};

/// One vCPU, in the answer to `query-cpus-fast`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfoFast {
    /// Its number, from 0.
    pub cpu_index: i64,
    /// QEMU's name for the model.
    pub qom_type: String,
    /// Its path in QEMU's object tree; only a name here.
    pub qom_path: String,
    /// The host thread that runs it.
    pub thread_id: i64,
    /// The architecture.
    pub target: SysEmuTarget,
}

/// Guest architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SysEmuTarget {
    /// x86, 64 bit.
    #[serde(rename = "x86_64")]
    X86_64,
}

/// The answer to `query-memory-size-summary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryInfo {
    /// Bytes of RAM the VM started with.
    pub base_memory: u64,
    /// Bytes of RAM plugged in since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugged_memory: Option<u64>,
}

/// The answer to `query-name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameInfo {
    /// The VM's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// One command, in the answer to `query-commands`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// Its name.
    pub name: String,
}

/// The empty answer of a command without a result: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// One value, in the answer to `x-audit`.
#[cfg(feature = "failpoints")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditValue {
    /// Its name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// One fail point, in the answer to `query-failpoints`.
#[cfg(feature = "failpoints")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FailpointInfo {
    /// Its name.
    pub name: String,
    /// True if it is in the new process of an update.
    pub in_new: bool,
    /// True if a write there can be made too short.
    pub short_write: bool,
    /// True if it is armed.
    pub armed: bool,
}
