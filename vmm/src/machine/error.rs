//! Errors of a machine.

use crate::boot::{BootError, ImageError};
use crate::devices::DeviceError;
use crate::devices::serial::{HostError, SerialError};
use crate::memory::RamError;
use crate::state::SectionError;
use crate::vcpu::{CpuidError, PauseError, StateError};

/// A VMM reads only versions of the saved state that cannot hold what the guest has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reads no version of section {section} that holds {used}, which this guest has used")]
pub struct TooOld {
    pub(super) section: &'static str,
    pub(super) used: &'static str,
}

/// Errors from assembling, saving or restoring a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A fail point injected an error.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// KVM is missing, or a KVM call failed.
    #[error("{what}: {source}")]
    Kvm {
        /// The call.
        what: &'static str,
        /// Why it failed.
        source: kvm_ioctls::Error,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// This host's KVM lacks something.
    #[error("this host's KVM does not offer {0}")]
    Capability(&'static str),
    /// Guest RAM could not be set up.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The boot image could not be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The guest could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The host's side of the serial port could not be opened.
    #[error(transparent)]
    SerialHost(#[from] HostError),
    /// The guest's side of the serial port could not be set up.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A device behind PCI could not be set up.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A vCPU's CPUID could not be set.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// A vCPU's state could not be saved or restored.
    #[error(transparent)]
    Vcpu(#[from] StateError),
    /// A vCPU request failed.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// The saved state could not be decoded.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// The saved state is that of another machine.
    #[error("the saved state is of a machine with {saved}, the command line describes {described}")]
    Other {
        /// The machine that was saved.
        saved: String,
        /// The machine on the command line.
        described: String,
    },
    /// The guest of an older VMM, whose state does not say whether it has the test device, uses it.
    #[error("the saved state is of a guest that has used the test device: add --test-device on")]
    TestDevice,
    /// The VMM that is to load the state reads only versions that would lose some of it.
    #[error("the new VMM {0}")]
    TooOld(#[from] TooOld),
    /// There is nothing to boot from.
    #[error("cannot start the guest: --kernel is missing")]
    NoKernel,
}
