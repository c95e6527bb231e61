//! What the host sends to the vCPUs, whether they run or are paused.

use std::time::Instant;

#[cfg(feature = "failpoints")]
use kvm_bindings::kvm_msi;

#[cfg(feature = "failpoints")]
use super::kvm;
use super::{Machine, MachineError, VCPU_DEADLINE};
use crate::vcpu::VcpuHandle;

impl Machine {
    /// Sends an NMI to every vCPU, as QEMU's `inject-nmi` does on a PC.
    pub fn inject_nmi(&self) -> Result<(), MachineError> {
        if self.vcpus().is_empty() {
            return Err(MachineError::NoKernel);
        }
        let until = Instant::now() + VCPU_DEADLINE;
        let sending: Vec<_> = self.vcpus().iter().map(VcpuHandle::request_nmi).collect();
        sending.into_iter().try_for_each(|vcpu| Ok(vcpu.wait(until)?))
    }

    /// Sends INIT and then a start-up IPI for `page` to vCPU `cpu`, as another vCPU would, without
    /// waiting for a response to either.
    #[cfg(feature = "failpoints")]
    pub fn start_vcpu_at(&self, cpu: u8, page: u8) -> Result<(), MachineError> {
        const INIT: u32 = 0x500;
        const STARTUP: u32 = 0x600;
        let part = self.kvm_part.as_ref().ok_or(MachineError::NoKernel)?;
        for data in [INIT, STARTUP | u32::from(page)] {
            let address_lo = 0xfee0_0000 | u32::from(cpu) << 12;
            let msi = kvm_msi { address_lo, data, ..Default::default() };
            part.vm.signal_msi(msi).map_err(kvm("KVM_SIGNAL_MSI"))?;
        }
        Ok(())
    }

    /// The interrupt line that is triggered through a descriptor.
    #[cfg(feature = "failpoints")]
    pub fn irqfd(&self) -> &super::irqfd::Irqfd {
        &self.irqfd
    }

    /// Connects that line to the VM.
    pub fn connect_irqfd(&self) {
        #[cfg(feature = "failpoints")]
        if let Some(part) = &self.kvm_part
            && let Err(error) = self.irqfd.connect(&part.vm)
        {
            tracing::warn!(%error, "irqfd_not_connected");
        }
    }

    /// Disconnects that line, which keeps what fires for the next VM.
    pub fn disconnect_irqfd(&self) {
        #[cfg(feature = "failpoints")]
        if let Some(part) = &self.kvm_part
            && let Err(error) = self.irqfd.disconnect(&part.vm)
        {
            tracing::warn!(%error, "irqfd_not_disconnected");
        }
    }
}
