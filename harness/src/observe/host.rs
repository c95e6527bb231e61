//! What a run's results depend on besides the VMM: CPU, memory and KVM of the host, and its load.

use std::arch::x86_64::__cpuid;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// The host of a run, without its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The CPU's model, as the kernel names it.
    pub cpu: String,
    /// Its memory in KiB.
    pub memory_kib: u64,
    /// Whether KVM runs the guest's kernel mode on the CPU.
    pub kernel_mode: KernelMode,
}

/// Where the guest's kernel mode runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelMode {
    /// On the CPU, by VMX or SVM.
    OnTheCpu,
    /// In an emulator in the kernel.
    Emulated,
    /// Not known: KVM is not a module.
    #[default]
    Unknown,
}

/// The environment variable that is set in a lab, where nothing may be measured, whatever the CPU.
pub const LAB: &str = "CPR_LAB";

/// What CPUID reports in an emulated host (QEMU, `target/i386/cpu.c`).
const TCG: &[u8; 12] = b"TCGTCGTCGTCG";

/// Whether QEMU's TCG executes this host's instructions.
static BELOW_TCG: LazyLock<bool> = LazyLock::new(|| hypervisor() == Some(*TCG));

/// Whether this host is emulated.
static EMULATED: LazyLock<bool> =
    LazyLock::new(|| is_below_tcg() || std::env::var_os(LAB).is_some());

/// Returns whether QEMU's TCG executes this host's instructions.
pub fn is_below_tcg() -> bool {
    *BELOW_TCG
}

/// Returns whether this host is emulated, as a lab is: everything takes 20 to 60 times longer, and
/// no time is a measurement.
pub fn is_emulated() -> bool {
    *EMULATED
}

/// The signature of the hypervisor that this host runs on, if it has one (leaf 0x40000000).
fn hypervisor() -> Option<[u8; 12]> {
    let is_guest = __cpuid(1).ecx & 1 << 31 != 0;
    let leaf = is_guest.then(|| __cpuid(0x4000_0000))?;
    let words = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    words.concat().try_into().ok()
}

/// This host.
static THIS: LazyLock<Host> = LazyLock::new(|| Host {
    cpu: field(&text("/proc/cpuinfo"), "model name").unwrap_or("unknown").to_owned(),
    memory_kib: kib(&text("/proc/meminfo"), "MemTotal"),
    kernel_mode: kernel_mode(Path::new("/sys/module")).0,
});

/// Describes this host; it is read once.
pub fn this() -> Host {
    THIS.clone()
}

/// Returns where the guest's kernel mode runs, and the module in `modules` that decides it.
pub fn kernel_mode(modules: &Path) -> (KernelMode, Option<&'static str>) {
    let known = [
        ("kvm_intel", KernelMode::OnTheCpu),
        ("kvm_amd", KernelMode::OnTheCpu),
        ("kvm_pvm", KernelMode::Emulated),
    ];
    let loaded = known.into_iter().find(|(name, _)| modules.join(name).exists());
    loaded.map_or((KernelMode::Unknown, None), |(name, mode)| (mode, Some(name)))
}

/// Returns the load average of the last minute.
pub fn load() -> Option<f64> {
    first_number(&text("/proc/loadavg"))
}

/// Returns the first number of the text.
fn first_number(text: &str) -> Option<f64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

impl std::fmt::Display for KernelMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OnTheCpu => "on the CPU",
            Self::Emulated => "emulated",
            Self::Unknown => "unknown",
        })
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Returns the value of the first line `NAME : VALUE`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn kib(text: &str, name: &str) -> u64 {
    let value = field(text, name).and_then(|value| value.strip_suffix(" kB"));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_files_of_proc() {
        let cpus = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.20GHz\n";
        assert_eq!(field(cpus, "model name"), Some("Some CPU @ 2.20GHz"));
        assert_eq!(kib("MemTotal:       24684032 kB\nMemFree: 1 kB\n", "MemTotal"), 24_684_032);
        assert_eq!(first_number("2.96 2.21 2.72 1/93 77\n"), Some(2.96));
        assert_eq!((field("", "model name"), first_number("")), (None, None));
    }

    #[test]
    fn this_host_is_known() {
        let host = this();
        assert!(host.memory_kib > 0 && !host.cpu.is_empty(), "{host:?}");
        assert!(load().is_some());
    }
}
