//! Host features that a class of bugs requires and that no guest can detect.

use std::fs;

use serde::Deserialize;

use crate::run::verdict::HOST_LACKS;

/// A host feature required for a bug to have an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// KVM runs real mode as virtual-8086 mode.
    Vm86,
}

impl Need {
    /// Returns why this host lacks it, as the reason of an ignored case.
    pub fn unmet(self) -> Option<String> {
        let Self::Vm86 = self;
        // No ioctl reports it; only KVM on Intel does it, and shows it in this parameter.
        let says = fs::read_to_string("/sys/module/kvm_intel/parameters/unrestricted_guest");
        match says.as_deref().map(str::trim) {
            Ok("N") => None,
            _ => Some(format!(
                "{HOST_LACKS}real mode as virtual-8086 mode (VMX without unrestricted guest)"
            )),
        }
    }
}
