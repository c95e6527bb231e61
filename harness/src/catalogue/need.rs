//! What a host must do for a class of bugs to show, where no guest can find it out.

use std::fs;

use serde::Deserialize;

use crate::run::verdict::HOST_LACKS;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Real mode is run as virtual-8086 mode.
    Vm86,
}

impl Need {
    /// Why this host does not meet it, in the words of an ignored case.
    pub fn unmet(self) -> Option<String> {
        let Self::Vm86 = self;
        // There is no ioctl that asks for it; only Intel's KVM does it, and says so here.
        let says = fs::read_to_string("/sys/module/kvm_intel/parameters/unrestricted_guest");
        match says.as_deref().map(str::trim) {
            Ok("N") => None,
            _ => Some(format!(
                "{HOST_LACKS}real mode as virtual-8086 mode (VMX without unrestricted guest)"
            )),
        }
    }
}
