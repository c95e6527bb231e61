//! Saving and restoring a whole machine.

use std::time::Instant;

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::order::Step;
use super::{Machine, MachineError, VCPU_DEADLINE, assembly, kvm};
use crate::devices::DevicesState;
use crate::devices::serial::SerialHost;
use crate::memory::RamBlockInfo;
use crate::state::{SavedState, SectionError};
use crate::vcpu::{Answer, VcpuState};

pub(super) const MACHINE: (&str, u32) = ("machine", 1);
pub(super) const PLATFORM: (&str, u32) = ("platform", 1);
pub(super) const DEVICES: (&str, u32) = ("devices", 2);
pub(super) const VCPU: (&str, u32) = ("vcpu", 1);

/// The sections that this binary writes and loads.
pub const LOADABLE_SECTIONS: [(&str, u32); 4] = [MACHINE, PLATFORM, DEVICES, VCPU];

/// What a machine consists of: a state loads only into the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inventory {
    pub(super) cpus: u8,
    ram_blocks: Vec<RamBlockInfo>,
}

impl std::fmt::Display for Inventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} vCPUs", self.cpus)?;
        for block in &self.ram_blocks {
            write!(f, ", RAM block {} of {} bytes", block.name, block.size)?;
        }
        Ok(())
    }
}

/// The chips of the board that are in KVM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PlatformState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl PlatformState {
    pub(super) fn save(vm: &VmFd) -> Result<Self, MachineError> {
        let chip = |chip_id| -> Result<kvm_irqchip, MachineError> {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(kvm("KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        Ok(Self {
            // First: it is the moment at which the guest's time stands still.
            clock: vm.get_clock().map_err(kvm("KVM_GET_CLOCK"))?,
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: vm.get_pit2().map_err(kvm("KVM_GET_PIT2"))?,
        })
    }

    pub(super) fn set_irqchip(&self, vm: &VmFd) -> Result<(), MachineError> {
        for chip in [&self.pic_master, &self.pic_slave, &self.ioapic] {
            if planted!(ForgetSlavePic) && chip.chip_id == KVM_IRQCHIP_PIC_SLAVE
                || planted!(ForgetIoapic) && chip.chip_id == KVM_IRQCHIP_IOAPIC
            {
                continue;
            }
            vm.set_irqchip(chip).map_err(kvm("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }

    pub(super) fn set_pit(&self, vm: &VmFd) -> Result<(), MachineError> {
        if planted!(ForgetPit) {
            return Ok(());
        }
        vm.set_pit2(&self.pit).map_err(kvm("KVM_SET_PIT2"))
    }

    pub(super) fn set_clock(&self, vm: &VmFd) -> Result<(), MachineError> {
        // With the real time of the save KVM adds what has passed since, so the guest's clock
        // counts the blackout. The other flags say how the clock was read: setting it uses none of
        // them, and KVM before 5.16 refuses them.
        let flags = self.clock.flags & KVM_CLOCK_REALTIME;
        let flags = if planted!(ClockStandsStill) { 0 } else { flags };
        let clock = kvm_clock_data { flags, ..self.clock };
        vm.set_clock(&clock).map_err(kvm("KVM_SET_CLOCK"))
    }
}

/// A saved state, taken apart and found to fit.
pub struct RestoredState {
    pub(super) devices: DevicesState,
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) platform: PlatformState,
}

impl RestoredState {
    /// What is left of a saved state without its inventory.
    pub(super) fn take(mut state: SavedState, cpus: u8) -> Result<Self, SectionError> {
        let mut vcpus = Vec::new();
        for index in 0..cpus {
            vcpus.push(state.take(VCPU.0, index.into(), VCPU.1)?);
        }
        let platform = state.take(PLATFORM.0, 0, PLATFORM.1)?;
        let devices = state.take(DEVICES.0, 0, DEVICES.1)?;
        state.finish()?;
        Ok(Self { devices, vcpus, platform })
    }
}

impl Machine {
    fn inventory(&self) -> Inventory {
        Inventory { cpus: self.config.cpus, ram_blocks: vec![self.ram.info()] }
    }

    /// The state of everything but RAM. The vCPUs must be paused.
    ///
    /// vCPUs come first and devices last: reading a vCPU's state may still move an interrupt, and
    /// no device changes by itself while the vCPUs stand still.
    pub fn save(&self) -> Result<SavedState, MachineError> {
        let part = self.kvm_part.as_ref().ok_or(MachineError::NoKernel)?;
        let until = Instant::now() + VCPU_DEADLINE;
        let saving: Vec<Answer<VcpuState>> =
            part.vcpus.iter().map(|vcpu| vcpu.request_save()).collect();
        let mut state = SavedState::default();
        state.put(MACHINE.0, 0, MACHINE.1, &self.inventory());
        for (index, vcpu) in (0..).zip(saving) {
            state.put(VCPU.0, index, VCPU.1, &vcpu.wait(until)?);
        }
        state.put(PLATFORM.0, 0, PLATFORM.1, &PlatformState::save(&part.vm)?);
        let devices = part.bus.state();
        #[cfg(feature = "failpoints")]
        let devices = self.early_devices.borrow_mut().take().unwrap_or(devices);
        state.put(DEVICES.0, 0, DEVICES.1, &devices);
        Ok(state)
    }

    /// Takes a saved state apart; an error names what does not fit this machine.
    pub fn examine(&self, mut state: SavedState) -> Result<RestoredState, MachineError> {
        let saved: Inventory = state.take(MACHINE.0, 0, MACHINE.1)?;
        let described = self.inventory();
        if saved != described {
            let (saved, described) = (saved.to_string(), described.to_string());
            return Err(MachineError::Other { saved, described });
        }
        Ok(RestoredState::take(state, self.config.cpus)?)
    }

    /// Assembles the machine as it was saved, and says so `before` each step; the vCPUs wait for
    /// [`Machine::resume`].
    pub fn restore(
        &mut self,
        host: SerialHost,
        state: RestoredState,
        before: &mut dyn FnMut(Step),
    ) -> Result<(), MachineError> {
        self.kvm_part = Some(assembly::restored(self, host, state, before)?);
        Ok(())
    }
}
