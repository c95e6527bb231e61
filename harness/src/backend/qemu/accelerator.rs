//! What executes the guest's instructions.

use std::fmt;
use std::str::FromStr;

const KVM: &str = "kvm";
const TCG: &str = "tcg";

/// An accelerator of QEMU, with its options: the value of `-accel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accelerator(String);

/// An error for a value that names neither accelerator.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown accelerator {0:?}: expected kvm or tcg, which QEMU's options may follow, as in tcg,thread=single"
)]
pub struct UnknownAccelerator(String);

impl Accelerator {
    /// Whether it is the kernel, with KVM; else it is QEMU's own emulation.
    pub fn is_kvm(&self) -> bool {
        self.name() == KVM
    }

    /// The CPU model with the most features.
    pub(super) fn cpu(&self) -> &'static str {
        if self.is_kvm() { "host" } else { "max" }
    }

    fn name(&self) -> &str {
        self.0.split(',').next().unwrap_or_default()
    }
}

impl Default for Accelerator {
    fn default() -> Self {
        Self(KVM.to_owned())
    }
}

impl FromStr for Accelerator {
    type Err = UnknownAccelerator;

    fn from_str(text: &str) -> Result<Self, UnknownAccelerator> {
        let accelerator = Self(text.to_owned());
        match accelerator.name() {
            KVM | TCG => Ok(accelerator),
            _ => Err(UnknownAccelerator(text.to_owned())),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("kvm", true, "host")]
    #[case("kvm,dirty-ring-size=4096", true, "host")]
    #[case("tcg", false, "max")]
    #[case("tcg,thread=single", false, "max")]
    fn options_follow_the_name(#[case] text: &str, #[case] kvm: bool, #[case] cpu: &str) {
        let accelerator: Accelerator = text.parse().unwrap();
        assert_eq!((accelerator.is_kvm(), accelerator.cpu()), (kvm, cpu));
        assert_eq!(accelerator.to_string(), text);
    }

    #[rstest]
    #[case("")]
    #[case("hvf")]
    #[case("kvm:tcg")]
    #[case(",thread=single")]
    fn rejects_other_accelerators(#[case] text: &str) {
        assert_eq!(text.parse::<Accelerator>(), Err(UnknownAccelerator(text.to_owned())));
    }
}
