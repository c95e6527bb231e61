//! Booting the guest: the boot image and its entry point.

mod acpi;
mod error;
mod image;
mod linux;
mod long_mode;
mod parts;
mod placement;
mod pvh;
mod segments;

use kvm_bindings::{kvm_regs, kvm_sregs};

pub use error::BootError;
pub use image::{BootImage, ImageError};
#[cfg(test)]
pub(crate) use pvh::tests::kernel;

use crate::memory::GuestMemory;

/// Where the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// At the entry that a PVH note names.
    Pvh(pvh::PvhEntry),
    /// At the 64-bit entry of a bzImage.
    Linux(linux::LinuxEntry),
}

/// What a guest is given besides kernel and initrd.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Its command line.
    pub cmdline: &'a str,
    /// Number of vCPUs, which the ACPI tables list.
    pub cpus: u8,
    /// Whether there is PCI.
    pub pci: bool,
}

/// Puts the guest and what it is given into RAM, by the boot protocol of its kernel.
pub fn load(memory: &GuestMemory, image: &BootImage, given: Given<'_>) -> Result<Entry, BootError> {
    let kernel = image.kernel();
    if pvh::is_elf(kernel).map_err(BootError::Read)? {
        pvh::load(memory, image, given).map(Entry::Pvh)
    } else if linux::is_bzimage(kernel).map_err(BootError::Read)? {
        linux::load(memory, image, given).map(Entry::Linux)
    } else {
        Err(BootError::Format)
    }
}

impl Entry {
    /// The general registers of the boot processor.
    pub fn regs(self) -> kvm_regs {
        match self {
            Self::Pvh(entry) => entry.regs(),
            Self::Linux(entry) => entry.regs(),
        }
    }

    /// Its special registers, from those after reset.
    pub fn sregs(self, reset: &kvm_sregs) -> kvm_sregs {
        match self {
            Self::Pvh(entry) => entry.sregs(reset),
            Self::Linux(entry) => entry.sregs(reset),
        }
    }
}
