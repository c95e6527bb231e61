//! An interrupt line that the host triggers through a descriptor (`KVM_IRQFD`), for tests: what
//! fires during the handover stays in the descriptor until a VM takes it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use kvm_bindings::{KVM_IRQFD_FLAG_DEASSIGN, kvm_irqfd};
use kvm_ioctls::VmFd;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The line, which no device uses.
pub const LINE: u32 = 6;
/// The name of its descriptor.
pub const NAME: &str = "test.irqfd";

mod ioctls {
    use kvm_bindings::{KVMIO, kvm_irqfd};
    nix::ioctl_write_ptr!(kvm_irqfd, KVMIO, 0x76, kvm_irqfd);
}

/// The host's side of the descriptor.
#[derive(Debug)]
pub struct Irqfd(OwnedFd);

impl Irqfd {
    /// Adopts `fd` if one was handed over, else creates one.
    pub fn open(fd: Option<OwnedFd>) -> Result<Self, Errno> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(fd.map_or_else(|| EventFd::from_value_and_flags(0, flags).map(Into::into), Ok)?))
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Registers the irqfd with `vm`: what fires, or has already fired, is an edge on the line.
    pub(super) fn connect(&self, vm: &VmFd) -> Result<(), Errno> {
        match self.set(vm, 0) {
            Err(Errno::EBUSY) => Ok(()),
            result => result,
        }
    }

    /// Unregisters the irqfd, so that another VM can have it.
    pub(super) fn disconnect(&self, vm: &VmFd) -> Result<(), Errno> {
        self.set(vm, KVM_IRQFD_FLAG_DEASSIGN)
    }

    fn set(&self, vm: &VmFd, flags: u32) -> Result<(), Errno> {
        let fd = self.0.as_raw_fd() as u32;
        let irqfd = kvm_irqfd { fd, gsi: LINE, flags, ..Default::default() };
        // SAFETY: the descriptor is a VM's; the structure is the one the ioctl reads.
        unsafe { ioctls::kvm_irqfd(vm.as_raw_fd(), &irqfd) }.map(drop)
    }

    /// Triggers the line.
    pub fn fire(&self) -> Result<(), Errno> {
        nix::unistd::write(&self.0, &1_u64.to_ne_bytes()).map(drop)
    }
}
