//! The descriptors of KVM's objects, for an audit that makes its own ioctls.

use std::os::fd::{AsRawFd, RawFd};

use super::Machine;

/// Of a machine; they are open as long as it is not taken apart.
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
    /// `None` where there is no VM.
    pub fn kvm_fds(&self) -> Option<KvmFds> {
        let part = self.kvm_part.as_ref()?;
        let vcpus = part.vcpus.iter().map(|vcpu| vcpu.shared().fd()).collect();
        Some(KvmFds { kvm: self.kvm.as_raw_fd(), vm: part.vm.as_raw_fd(), vcpus })
    }
}
