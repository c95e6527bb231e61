//! Conditions on the host, for entries of data files that hold on some hosts only.

use std::path::Path;
use std::sync::LazyLock;

use kvm_bindings::{KVM_CAP_HYPERV, KVM_CAP_TSC_DEADLINE_TIMER};
use kvm_ioctls::Kvm;
use procfs::{CpuInfo, Current};
use serde::Deserialize;

/// A kind of host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum HostCondition {
    /// With this KVM module.
    KvmModule(String),
    /// On a CPU without this flag in `/proc/cpuinfo`.
    CpuWithout(String),
    /// On a KVM with this extension.
    KvmWith(Extension),
    /// On a KVM without this extension.
    KvmWithout(Extension),
}

/// A KVM extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extension {
    /// `KVM_CAP_TSC_DEADLINE_TIMER`.
    TscDeadlineTimer,
    /// `KVM_CAP_HYPERV`.
    HyperV,
}

/// The facts about a host that a condition may ask for.
#[derive(Clone, Copy)]
pub struct HostFacts<'a> {
    /// Whether this kernel module is loaded.
    pub has_module: &'a dyn Fn(&str) -> bool,
    /// The flags of the first CPU.
    pub cpu_flags: &'a [&'a str],
    /// Whether KVM has the extension.
    pub kvm_has: &'a dyn Fn(Extension) -> bool,
}

impl HostFacts<'_> {
    /// Calls `judge` with the facts about this host.
    pub fn with<T>(judge: impl FnOnce(HostFacts<'_>) -> T) -> T {
        static CPUS: LazyLock<Option<CpuInfo>> = LazyLock::new(|| CpuInfo::current().ok());
        let has_module = |name: &str| Path::new("/sys/module").join(name).exists();
        let flags = CPUS.as_ref().and_then(|cpus| cpus.flags(0)).unwrap_or_default();
        judge(HostFacts { has_module: &has_module, cpu_flags: &flags, kvm_has: &kvm_has })
    }
}

impl HostCondition {
    /// Whether the host is of this kind.
    pub fn holds(&self, host: HostFacts<'_>) -> bool {
        match self {
            Self::KvmModule(name) => (host.has_module)(name),
            Self::CpuWithout(flag) => !host.cpu_flags.contains(&flag.as_str()),
            Self::KvmWith(extension) => (host.kvm_has)(*extension),
            Self::KvmWithout(extension) => !(host.kvm_has)(*extension),
        }
    }
}

/// Returns whether KVM has the extension; assumes so if `/dev/kvm` cannot be opened.
fn kvm_has(extension: Extension) -> bool {
    let number = match extension {
        Extension::TscDeadlineTimer => KVM_CAP_TSC_DEADLINE_TIMER,
        Extension::HyperV => KVM_CAP_HYPERV,
    };
    Kvm::new().map_or(true, |kvm| kvm.check_extension_raw(number.into()) > 0)
}
