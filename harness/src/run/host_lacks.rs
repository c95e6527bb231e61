//! What a guest may find lacking on a host: `scenarios/host-lacks.toml`. All else that a guest finds
//! lacking is a failure of the VMM.

use std::path::Path;

use kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER;
use kvm_ioctls::Kvm;
use serde::Deserialize;

use crate::backend::Backend;
use crate::scenario::ScenarioError;

/// The file, as it was when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/host-lacks.toml");
const NAME: &str = "host-lacks.toml";

/// The name under which it is told that something lacks that must not.
pub const CHECK: &str = "available";

/// What a host may lack.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lack {
    /// In the guest's words.
    what: String,
    /// Where it may.
    on: On,
    /// Why it may.
    reason: String,
}

/// Where something may lack; a regression of the VMM shows everywhere else.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum On {
    /// Under this KVM.
    KvmModule(String),
    /// On a CPU without this flag in `/proc/cpuinfo`.
    CpuWithout(String),
    /// Where KVM lacks this.
    KvmWithout(Extension),
    /// On this VMM.
    Vmm(String),
    /// On this VMM, where it does without KVM.
    VmmWithoutKvm(String),
}

/// An extension of KVM.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Extension {
    /// `KVM_CAP_TSC_DEADLINE_TIMER`.
    TscDeadlineTimer,
}

/// What is known of this host and the VMM on it.
#[derive(Clone, Copy)]
struct Facts<'a> {
    vmm: &'a str,
    uses_kvm: bool,
    has_module: &'a dyn Fn(&str) -> bool,
    cpu_flags: &'a str,
    kvm_has: &'a dyn Fn(Extension) -> bool,
}

/// All that may lack.
pub struct HostLacks(Vec<Lack>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    lack: Vec<Lack>,
}

impl HostLacks {
    /// That of the file.
    pub fn embedded() -> Result<Self, ScenarioError> {
        Self::parse(EMBEDDED)
    }

    fn parse(text: &str) -> Result<Self, ScenarioError> {
        let file: File = toml::from_str(text).map_err(|e| ScenarioError::syntax(NAME, text, &e))?;
        match file.lack.iter().find(|lack| lack.reason.is_empty()) {
            Some(lack) => {
                let message = format!("\"{}\" has no reason", lack.what);
                Err(ScenarioError::sense(NAME, message))
            }
            None => Ok(Self(file.lack)),
        }
    }

    /// Whether a guest of `vmm` may find this lacking here; the error says why not.
    pub fn judge(&self, vmm: &dyn Backend, what: &str) -> Result<(), String> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let has_module = |name: &str| Path::new("/sys/module").join(name).exists();
        let facts = Facts {
            vmm: vmm.name(),
            uses_kvm: vmm.uses_kvm(),
            has_module: &has_module,
            cpu_flags: flags,
            kvm_has: &kvm_has,
        };
        self.judge_with(what, facts)
    }

    fn judge_with(&self, what: &str, facts: Facts<'_>) -> Result<(), String> {
        let listed: Vec<&Lack> = self.0.iter().filter(|lack| lack.what == what).collect();
        if listed.iter().any(|lack| lack.on.holds(facts)) {
            return Ok(());
        }
        let why = match listed.is_empty() {
            true => format!("scenarios/{NAME} does not list it"),
            false => format!("scenarios/{NAME} lists it, but not for this host and VMM"),
        };
        Err(format!("the guest does not find {what:?}, and {why}"))
    }
}

impl On {
    fn holds(&self, facts: Facts<'_>) -> bool {
        match self {
            Self::KvmModule(name) => (facts.has_module)(name),
            Self::CpuWithout(flag) => {
                !facts.cpu_flags.split_ascii_whitespace().any(|has| has == flag)
            }
            Self::KvmWithout(extension) => !(facts.kvm_has)(*extension),
            Self::Vmm(name) => facts.vmm == name,
            Self::VmmWithoutKvm(name) => facts.vmm == name && !facts.uses_kvm,
        }
    }
}

/// Whether this KVM has it; one that cannot be asked lacks nothing.
fn kvm_has(extension: Extension) -> bool {
    let number = match extension {
        Extension::TscDeadlineTimer => KVM_CAP_TSC_DEADLINE_TIMER,
    };
    Kvm::new().map_or(true, |kvm| kvm.check_extension_raw(number.into()) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const DEVICE: &str = "the test device of cpr-vmm";
    const SERVICE: &str =
        "an interrupt in service (the LAPIC ends each by itself when it is delivered)";

    fn facts(vmm: &str) -> Facts<'_> {
        let cpu_flags = "flags\t: fpu avx";
        let has_module = &|name: &str| name == "kvm_pvm";
        Facts { vmm, uses_kvm: true, has_module, cpu_flags, kvm_has: &|_| true }
    }

    #[rstest]
    #[case::ours_has_the_device("cpr-vmm", DEVICE, false)]
    #[case::another_need_not("qemu", DEVICE, true)]
    #[case::a_kvm_that_emulates("cpr-vmm", SERVICE, true)]
    #[case::a_cpu_without_it("cpr-vmm", "avx512", true)]
    #[case::a_cpu_with_it("cpr-vmm", "avx", false)]
    #[case::a_kvm_with_it("cpr-vmm", "TSC-deadline mode of the LAPIC's timer", false)]
    #[case::ours_has_it("cpr-vmm", "pvclock", false)]
    #[case::another_has_it_with_kvm("qemu", "pvclock", false)]
    #[case::not_listed("cpr-vmm", "a second sun", false)]
    #[case::part_of_the_words("cpr-vmm", "an interrupt in service", false)]
    fn it_lacks_where_it_may(#[case] vmm: &str, #[case] what: &str, #[case] may: bool) {
        let judged = HostLacks::embedded().unwrap().judge_with(what, facts(vmm));
        assert_eq!(judged.is_ok(), may, "{judged:?}");
    }

    #[test]
    fn it_depends_on_the_kvm() {
        let (all, ours, other) = (HostLacks::embedded().unwrap(), facts("cpr-vmm"), facts("qemu"));
        let elsewhere = all.judge_with(SERVICE, Facts { has_module: &|_| false, ..ours });
        assert!(elsewhere.unwrap_err().ends_with("lists it, but not for this host and VMM"));
        assert_eq!(all.judge_with("pvclock", Facts { uses_kvm: false, ..other }), Ok(()));
    }

    #[test]
    fn each_has_a_reason() {
        let text = "[[lack]]\nwhat = \"x\"\non = { vmm = \"qemu\" }\nreason = \"\"\n";
        let error = HostLacks::parse(text).err().unwrap().to_string();
        assert!(error.contains("\"x\" has no reason"), "{error}");
    }
}
