//! What executes a lab's instructions.

use std::fs::{self, File};
use std::path::Path;

use clap::ValueEnum;

/// The choice of what executes a lab's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// The host's CPU if its KVM supports nested virtualization, else QEMU's emulation.
    #[default]
    Auto,
    /// The host's CPU: needs KVM with nested virtualization.
    Kvm,
    /// QEMU's emulation, 20 to 60 times slower.
    Tcg,
}

/// What executes a lab's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's CPU.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Choice {
    /// Decides on this host.
    pub fn decide(self) -> Accelerator {
        match self {
            Self::Kvm => Accelerator::Kvm,
            Self::Tcg => Accelerator::Tcg,
            Self::Auto => automatic(Path::new("/dev/kvm"), Path::new("/sys/module")),
        }
    }
}

/// A lab needs KVM inside: kernel mode on the CPU, and nested virtualization.
fn automatic(device: &Path, modules: &Path) -> Accelerator {
    let nested = ["kvm_intel", "kvm_amd"].iter().any(|module| {
        let parameter = modules.join(module).join("parameters/nested");
        fs::read_to_string(parameter).is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    });
    let usable = || File::options().read(true).write(true).open(device).is_ok();
    if nested && usable() { Accelerator::Kvm } else { Accelerator::Tcg }
}

impl Accelerator {
    /// How many CPUs a lab has unless the user says otherwise. TCG runs them in turn, so that more than
    /// one gain nothing, and with two it delivered some interrupts twice to the VMs of a lab.
    pub fn usual_cpus(self) -> u32 {
        match self {
            Self::Kvm => 2,
            Self::Tcg => 1,
        }
    }

    /// How it is described.
    pub fn title(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "emulated (TCG)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::nested("kvm_amd", "1\n", true, Accelerator::Kvm)]
    #[case::nested_intel("kvm_intel", "Y\n", true, Accelerator::Kvm)]
    #[case::not_nested("kvm_intel", "N\n", true, Accelerator::Tcg)]
    #[case::another_module("kvm_pvm", "Y\n", true, Accelerator::Tcg)]
    #[case::no_device("kvm_amd", "1\n", false, Accelerator::Tcg)]
    fn kvm_is_used_only_if_it_nests(
        #[case] module: &str,
        #[case] nested: &str,
        #[case] device: bool,
        #[case] decided: Accelerator,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let parameters = folder.path().join(module).join("parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::write(parameters.join("nested"), nested).unwrap();
        let kvm = folder.path().join("kvm");
        if device {
            fs::write(&kvm, "").unwrap();
        }
        assert_eq!(automatic(&kvm, folder.path()), decided);
    }
}
