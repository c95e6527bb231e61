//! The descriptors of KVM's objects, for an audit that makes its own ioctls.

use std::os::fd::{AsRawFd, RawFd};

use super::Machine;

/// The descriptors of a machine, which are open until it is torn down.
#[derive(Debug)]
pub struct KvmFds {
    /// `/dev/kvm`.
    pub kvm: RawFd,
    /// The VM.
    pub vm: RawFd,
    /// Its vCPUs.
    pub vcpus: Vec<RawFd>,
}

impl Machine {
    /// Returns the descriptors; `None` if there is no VM.
    pub fn kvm_fds(&self) -> Option<KvmFds> {
        let part = self.kvm_part.as_ref()?;
        let vcpus = part.vcpus.iter().map(|vcpu| vcpu.shared().fd()).collect();
        Some(KvmFds { kvm: self.kvm.as_raw_fd(), vm: part.vm.as_raw_fd(), vcpus })
    }
}
