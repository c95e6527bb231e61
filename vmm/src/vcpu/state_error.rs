//! What can go wrong when a vCPU is saved or restored.

/// Errors from saving or restoring a vCPU's state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A fail point injected an error.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// An ioctl failed.
    #[error("vCPU {vcpu}: {call}: {source}")]
    Ioctl {
        /// The vCPU.
        vcpu: u8,
        /// The ioctl.
        call: &'static str,
        /// The underlying error.
        source: kvm_ioctls::Error,
    },
    /// `KVM_GET_MSRS` or `KVM_SET_MSRS` stopped early.
    #[error("vCPU {vcpu}: {call} stopped at MSR {msr:#x} ({done} of {all} done)")]
    Msr {
        /// The vCPU.
        vcpu: u8,
        /// The ioctl.
        call: &'static str,
        /// The MSR it stopped at.
        msr: u32,
        /// Number of MSRs before it.
        done: usize,
        /// Total number of MSRs.
        all: usize,
    },
    /// The saved XSAVE area is larger or smaller than this host's.
    #[error("vCPU {vcpu}: the saved XSAVE area has {found} bytes, this host's KVM has {expected}")]
    XsaveSize {
        /// The vCPU.
        vcpu: u8,
        /// Bytes saved.
        found: usize,
        /// Bytes of this host.
        expected: usize,
    },
    /// The saved state needs something this host's KVM does not offer.
    #[error("vCPU {vcpu}: the saved state has {what}, which this host's KVM does not offer")]
    Unsupported {
        /// The vCPU.
        vcpu: u8,
        /// What is missing.
        what: &'static str,
    },
    /// There are more entries of a kind than KVM accepts.
    #[error("vCPU {vcpu}: {count} {what} are more than KVM accepts")]
    TooMany {
        /// The vCPU.
        vcpu: u8,
        /// The kind of entry.
        what: &'static str,
        /// Number of entries.
        count: usize,
    },
}
