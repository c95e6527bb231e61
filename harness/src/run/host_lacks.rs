//! The features that a guest may find missing on a host: `scenarios/host-lacks.toml`. Any other
//! missing feature is a failure of the VMM.

use serde::Deserialize;

use crate::backend::Backend;
use crate::observe::host_condition::{HostCondition, HostFacts};
use crate::scenario::{ScenarioError, tree};

/// The file's content when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/host-lacks.toml");
const NAME: &str = "host-lacks.toml";

/// The name of the check that reports a feature missing that must not be.
pub const CHECK: &str = "available";

/// A feature that a host may lack.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lack {
    /// The feature, as the guest names it.
    what: String,
    /// Where it may be missing.
    on: On,
    /// Why it may be missing.
    reason: String,
}

/// Where a feature may be missing; everywhere else a missing feature is a regression of the VMM.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum On {
    /// On such a host.
    Host(HostCondition),
    /// With this VMM.
    Vmm(String),
    /// With this VMM, where it does not use KVM.
    VmmWithoutKvm(String),
}

/// Facts about this host and the VMM on it.
#[derive(Clone, Copy)]
struct Facts<'a> {
    vmm: &'a str,
    uses_kvm: bool,
    host: HostFacts<'a>,
}

/// All features that may be missing.
pub struct HostLacks(Vec<Lack>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    lack: Vec<Lack>,
}

impl HostLacks {
    /// Parses the embedded file.
    pub fn embedded() -> Result<Self, ScenarioError> {
        Self::parse(EMBEDDED)
    }

    fn parse(text: &str) -> Result<Self, ScenarioError> {
        let file: File = tree::from_str(NAME, text)?;
        match file.lack.iter().find(|lack| lack.reason.trim().is_empty()) {
            Some(lack) => {
                let message = format!("\"{}\" has no reason", lack.what);
                Err(ScenarioError::sense(NAME, message))
            }
            None => Ok(Self(file.lack)),
        }
    }

    /// Checks that a guest of `vmm` may find `what` missing on this host; the error says why not.
    pub fn judge(&self, vmm: &dyn Backend, what: &str) -> Result<(), String> {
        HostFacts::with(|host| {
            let facts = Facts { vmm: vmm.name(), uses_kvm: vmm.uses_kvm(), host };
            self.judge_with(what, facts)
        })
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
        Err(format!("the guest lacks {what:?}, and {why}"))
    }
}

impl On {
    fn holds(&self, facts: Facts<'_>) -> bool {
        match self {
            Self::Host(condition) => condition.holds(facts.host),
            Self::Vmm(name) => facts.vmm == name,
            Self::VmmWithoutKvm(name) => facts.vmm == name && !facts.uses_kvm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const DEVICE: &str = "the test device of cpr-vmm";
    const SERVICE: &str =
        "an interrupt in service (the LAPIC ends each by itself when it is delivered)";

    fn facts(vmm: &str) -> Facts<'_> {
        let has_module = &|name: &str| name == "kvm_pvm";
        let host = HostFacts { has_module, cpu_flags: &["fpu", "avx"], kvm_has: &|_| true };
        Facts { vmm, uses_kvm: true, host }
    }

    #[rstest]
    #[case::required_device("cpr-vmm", DEVICE, false)]
    #[case::device_of_another_vmm("qemu", DEVICE, true)]
    #[case::emulating_kvm("cpr-vmm", SERVICE, true)]
    #[case::cpu_without_flag("cpr-vmm", "avx512", true)]
    #[case::cpu_with_flag("cpr-vmm", "avx", false)]
    #[case::kvm_with_extension("cpr-vmm", "TSC-deadline mode of the LAPIC's timer", false)]
    #[case::required_pvclock("cpr-vmm", "pvclock", false)]
    #[case::another_vmm_with_kvm("qemu", "pvclock", false)]
    #[case::not_listed("cpr-vmm", "a second sun", false)]
    #[case::partial_name("cpr-vmm", "an interrupt in service", false)]
    fn may_lack_only_what_is_listed(#[case] vmm: &str, #[case] what: &str, #[case] may: bool) {
        let judged = HostLacks::embedded().unwrap().judge_with(what, facts(vmm));
        assert_eq!(judged.is_ok(), may, "{judged:?}");
    }

    #[test]
    fn depends_on_kvm() {
        let (all, ours, other) = (HostLacks::embedded().unwrap(), facts("cpr-vmm"), facts("qemu"));
        let host = HostFacts { has_module: &|_| false, ..ours.host };
        let elsewhere = all.judge_with(SERVICE, Facts { host, ..ours });
        assert!(elsewhere.unwrap_err().ends_with("lists it, but not for this host and VMM"));
        assert_eq!(all.judge_with("pvclock", Facts { uses_kvm: false, ..other }), Ok(()));
    }

    #[test]
    fn rejects_a_missing_reason() {
        let text = "[[lack]]\nwhat = \"x\"\non = { vmm = \"qemu\" }\nreason = \" \"\n";
        let error = HostLacks::parse(text).err().unwrap().to_string();
        assert!(error.contains("\"x\" has no reason"), "{error}");
    }
}
