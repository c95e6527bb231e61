//! Saving and restoring a whole machine.

use std::time::Instant;

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::order::{self, Part};
use super::{Machine, MachineError, TooOld, VCPU_DEADLINE, kvm};
use crate::constraint::in_order;
use crate::devices::{
    BoardState, DeviceOption, DevicesState, DevicesState1, PciDevices, PciState, PortBus,
    TestPortState,
};
use crate::memory::RamBlockInfo;
use crate::state::{Formats, KnownSection, SavedState, SectionError, exact};
use crate::vcpu::{Answer, VcpuState};

pub(super) const MACHINE: (&str, u32) = ("machine", 1);
pub(super) const PLATFORM: (&str, u32) = ("platform", 1);
/// Version 1: [`DevicesState1`].
pub(super) const DEVICES: (&str, u32) = ("devices", 2);
pub(super) const VCPU: (&str, u32) = ("vcpu", 1);
/// Older VMMs neither have these devices nor write this section.
pub(super) const BOARD: (&str, u32) = ("board", 1);

/// Only machines with devices behind PCI have this section and those below it.
pub(super) const PCI: (&str, u32) = ("pci", 1);
/// One for each device, with its slot as the instance.
pub(super) const VIRTIO_RNG: (&str, u32) = ("virtio-rng", 1);

/// The sections that this binary writes and loads.
pub const SECTIONS: [KnownSection; 7] = [
    only(MACHINE),
    only(PLATFORM),
    KnownSection { oldest: 1, ..only(DEVICES) },
    only(VCPU),
    KnownSection { optional: true, ..only(BOARD) },
    KnownSection { optional: true, ..only(PCI) },
    KnownSection { optional: true, ..only(VIRTIO_RNG) },
];

const fn only((name, version): (&'static str, u32)) -> KnownSection {
    KnownSection { name, oldest: version, newest: version, optional: false }
}

/// What a machine consists of. A state loads only into a machine with the same inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inventory {
    pub(super) cpus: u8,
    ram_blocks: Vec<RamBlockInfo>,
    /// `None` in states of older VMMs, which always have the test device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    test_device: Option<bool>,
    /// Whether there is a section for the board's devices; `None` in states of older VMMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) board: Option<bool>,
    /// The devices behind PCI, in the order of their slots; states of older VMMs have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) devices: Vec<String>,
}

impl Inventory {
    /// Whether a state of this machine loads into the machine that is `described`.
    fn fits(&self, described: &Self) -> bool {
        let test_device = self.test_device.or(described.test_device);
        let board = self.board.or(described.board);
        Self { test_device, board, ..self.clone() } == *described
    }
}

impl std::fmt::Display for Inventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} vCPUs", self.cpus)?;
        for block in &self.ram_blocks {
            write!(f, ", RAM block {} of {} bytes", block.name, block.size)?;
        }
        match self.test_device {
            Some(true) => write!(f, ", the test device (--test-device on)")?,
            Some(false) => write!(f, ", no test device (--test-device off)")?,
            None => {}
        }
        self.devices.iter().try_for_each(|device| write!(f, ", --device {device}"))
    }
}

/// The state of the board's chips that are in KVM.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct PlatformState {
    #[serde(with = "exact")]
    pic_master: kvm_irqchip,
    #[serde(with = "exact")]
    pic_slave: kvm_irqchip,
    #[serde(with = "exact")]
    ioapic: kvm_irqchip,
    #[serde(with = "exact")]
    pit: kvm_pit_state2,
    #[serde(with = "exact")]
    clock: kvm_clock_data,
}

impl PlatformState {
    /// Builds the state from its parts; `chips` are both PICs and the IOAPIC.
    pub(super) fn of(chips: [kvm_irqchip; 3], pit: kvm_pit_state2, clock: kvm_clock_data) -> Self {
        let [pic_master, pic_slave, ioapic] = chips;
        Self { pic_master, pic_slave, ioapic, pit, clock }
    }

    /// Saves everything of a VM whose vCPUs have not run.
    pub(super) fn save(vm: &VmFd) -> Result<Self, MachineError> {
        let mut state = Self::default();
        order::SAVE.into_iter().try_for_each(|part| state.save_part(vm, part))?;
        Ok(state)
    }

    /// Saves the chips of `part`.
    fn save_part(&mut self, vm: &VmFd, part: Part) -> Result<(), MachineError> {
        let read = |chip: &mut kvm_irqchip, chip_id| {
            *chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(chip).map_err(kvm("KVM_GET_IRQCHIP"))
        };
        match part {
            Part::Ioapic => read(&mut self.ioapic, KVM_IRQCHIP_IOAPIC)?,
            Part::Pics => {
                read(&mut self.pic_master, KVM_IRQCHIP_PIC_MASTER)?;
                read(&mut self.pic_slave, KVM_IRQCHIP_PIC_SLAVE)?;
            }
            Part::Pit => self.pit = vm.get_pit2().map_err(kvm("KVM_GET_PIT2"))?,
            Part::Clock => self.clock = vm.get_clock().map_err(kvm("KVM_GET_CLOCK"))?,
            Part::Vcpus | Part::Devices => {}
        }
        Ok(())
    }

    pub(super) fn set_irqchip(&self, vm: &VmFd) -> Result<(), MachineError> {
        for chip in [&self.pic_master, &self.pic_slave, &self.ioapic] {
            vm.set_irqchip(chip).map_err(kvm("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }

    pub(super) fn set_pit(&self, vm: &VmFd) -> Result<(), MachineError> {
        vm.set_pit2(&self.pit).map_err(kvm("KVM_SET_PIT2"))
    }

    pub(super) fn set_clock(&self, vm: &VmFd) -> Result<(), MachineError> {
        // Given the real time of the save, KVM adds the time since then, so the guest's clock
        // counts the blackout. The other flags say how the clock was read: setting it uses none of
        // them, and KVM before 5.16 rejects them.
        let flags = self.clock.flags & KVM_CLOCK_REALTIME;
        let clock = kvm_clock_data { flags, ..self.clock };
        for _ in 0..CLOCK_TRIES {
            vm.set_clock(&clock).map_err(kvm("KVM_SET_CLOCK"))?;
            let now = vm.get_clock().map_err(kvm("KVM_GET_CLOCK"))?;
            match clock_error_ns(&clock, &now) {
                // KVM looks at the host's clocks one after the other (`kvm_vm_ioctl_set_clock` in
                // x86.c): a host that takes the CPU away in between makes the guest's clock step.
                Some(error) if error > CLOCK_ERROR_NS => tracing::info!(error, "clock_set_again"),
                _ => break,
            }
        }
        Ok(())
    }
}

/// How often to set the clock until it is right.
const CLOCK_TRIES: u32 = 5;
/// How far the clock may step, in nanoseconds.
const CLOCK_ERROR_NS: u64 = 20_000;

/// Returns by how much the clock has stepped from `saved` to `now`, against the host's real time, in
/// nanoseconds; `None` if KVM does not tell that time.
fn clock_error_ns(saved: &kvm_clock_data, now: &kvm_clock_data) -> Option<u64> {
    let tells = |clock: &kvm_clock_data| clock.flags & KVM_CLOCK_REALTIME != 0;
    let since = |then: u64, now: u64| i128::from(now) - i128::from(then);
    let step = since(saved.clock, now.clock) - since(saved.realtime, now.realtime);
    (tells(saved) && tells(now)).then(|| step.unsigned_abs().try_into().unwrap_or(u64::MAX))
}

/// A saved state, decoded and found to fit the machine.
#[derive(Debug)]
pub struct RestoredState {
    pub(super) devices: DevicesState,
    pub(super) board: BoardState,
    pub(super) pci: PciState,
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) platform: PlatformState,
}

impl RestoredState {
    /// Decodes a saved state whose inventory has already been taken.
    pub(super) fn take(mut state: SavedState, saved: &Inventory) -> Result<Self, SectionError> {
        let mut vcpus = Vec::new();
        for index in 0..saved.cpus {
            vcpus.push(state.take(VCPU.0, index.into(), VCPU.1)?);
        }
        let platform = state.take(PLATFORM.0, 0, PLATFORM.1)?;
        let devices = match state.version(DEVICES.0, 0) {
            Some(1) => state.take::<DevicesState1>(DEVICES.0, 0, 1)?.into(),
            _ => state.take(DEVICES.0, 0, DEVICES.1)?,
        };
        // In a machine that had none of these devices, they are as after power-on.
        let board = match saved.board {
            None => BoardState::default(),
            Some(_) => state.take(BOARD.0, 0, BOARD.1)?,
        };
        let pci = take_pci(&mut state, saved)?;
        state.finish()?;
        Ok(Self { devices, board, pci, vcpus, platform })
    }
}

impl RestoredState {
    /// Adds `growth` to each vCPU's TSC offset, and returns whether there are offsets. Otherwise
    /// the saved state has the TSC itself, or the host does not let it be set.
    pub fn grow_tsc_offsets(&mut self, growth: u64) -> bool {
        self.vcpus.iter_mut().map(|vcpu| vcpu.grow_tsc_offset(growth)).fold(false, |a, b| a | b)
    }
}

/// Takes the states of everything behind PCI.
fn take_pci(state: &mut SavedState, saved: &Inventory) -> Result<PciState, SectionError> {
    let mut pci = PciState::default();
    if saved.devices.is_empty() {
        return Ok(pci);
    }
    pci.host = state.take(PCI.0, 0, PCI.1)?;
    for (slot, name) in (1..).zip(&saved.devices) {
        let device: DeviceOption =
            name.parse().map_err(|_| SectionError::Unknown(format!("{name}.{slot}")))?;
        pci.devices.push((slot, state.take(device.kind(), slot.into(), VIRTIO_RNG.1)?));
    }
    Ok(pci)
}

/// The state of the devices that are not in KVM.
struct Devices {
    devices: DevicesState,
    board: BoardState,
    pci: Option<PciState>,
}

impl Devices {
    fn of(bus: &PortBus) -> Self {
        let pci = bus.pci().map(PciDevices::state);
        Self { devices: bus.state(), board: bus.board_state(), pci }
    }

    /// Adds the sections in the versions of `formats`, unless those lose something.
    fn put(&self, to: &mut SavedState, formats: &Formats) -> Result<(), TooOld> {
        let Self { devices, board, pci } = self;
        match formats.section(DEVICES.0) {
            Some(1) => {
                let used = "the sequences of the test device";
                let older = DevicesState1::of(devices);
                let older = older.ok_or(TooOld { section: DEVICES.0, used })?;
                to.put(DEVICES.0, 0, 1, &older);
            }
            _ => to.put(DEVICES.0, 0, DEVICES.1, devices),
        }
        match formats.section(BOARD.0) {
            Some(version) => to.put(BOARD.0, 0, version, board),
            None if board.is_unused() => {}
            None => {
                let used = "the power button or the real-time clock";
                return Err(TooOld { section: BOARD.0, used });
            }
        }
        let Some(PciState { host, devices }) = pci else { return Ok(()) };
        let version = |section| {
            let used = "a device behind PCI";
            formats.section(section).ok_or(TooOld { section, used })
        };
        to.put(PCI.0, 0, version(PCI.0)?, host);
        for (slot, device) in devices {
            let section = device.device.section();
            to.put(section, (*slot).into(), version(section)?, device);
        }
        Ok(())
    }
}

impl Machine {
    fn inventory(&self) -> Inventory {
        let Machine { config, ram, .. } = self;
        let (cpus, test_device) = (config.cpus, Some(config.test_device));
        let devices = config.devices.iter().map(|device| device.kind().to_owned()).collect();
        Inventory { cpus, ram_blocks: vec![ram.info()], test_device, board: Some(true), devices }
    }

    /// Saves everything but RAM, in the order of [`order::SAVE`], in the versions of `formats`. The
    /// vCPUs must be paused.
    pub fn save(&self, formats: &Formats) -> Result<SavedState, MachineError> {
        let kvm_part = self.kvm_part.as_ref().ok_or(MachineError::NoKernel)?;
        let until = Instant::now() + VCPU_DEADLINE;
        let mut state = SavedState::default();
        let has_board = formats.section(BOARD.0).is_some();
        let inventory = Inventory { board: has_board.then_some(true), ..self.inventory() };
        state.put(MACHINE.0, 0, MACHINE.1, &inventory);
        let mut platform = PlatformState::default();
        let mut devices = None;
        for part in in_order(order::SAVE, &order::SAVE_CONSTRAINTS) {
            match part {
                Part::Vcpus => {
                    let saving: Vec<Answer<VcpuState>> =
                        kvm_part.vcpus.iter().map(|vcpu| vcpu.request_save()).collect();
                    for (index, vcpu) in (0..).zip(saving) {
                        state.put(VCPU.0, index, VCPU.1, &vcpu.wait(until)?);
                    }
                }
                Part::Devices => devices = Some(Devices::of(&kvm_part.bus)),
                of_platform => platform.save_part(&kvm_part.vm, of_platform)?,
            }
        }
        let devices = devices.expect("a part of SAVE");
        #[cfg(feature = "failpoints")]
        let devices = match self.early_devices.borrow_mut().take() {
            Some(early) => Devices { devices: early, ..devices },
            None => devices,
        };
        state.put(PLATFORM.0, 0, PLATFORM.1, &platform);
        devices.put(&mut state, formats)?;
        Ok(state)
    }

    /// Checks whether `formats` can hold what the guest, which may be running, has done so far.
    pub fn check_formats(&self, formats: &Formats) -> Result<(), TooOld> {
        match self.bus() {
            Some(bus) => Devices::of(bus).put(&mut SavedState::default(), formats),
            None => Ok(()),
        }
    }

    /// Decodes a saved state and checks that it fits this machine; an error names what does not.
    pub fn examine(&self, mut state: SavedState) -> Result<RestoredState, MachineError> {
        let saved: Inventory = state.take(MACHINE.0, 0, MACHINE.1)?;
        let described = self.inventory();
        if !saved.fits(&described) {
            let (saved, described) = (saved.to_string(), described.to_string());
            return Err(MachineError::Other { saved, described });
        }
        let state = RestoredState::take(state, &saved)?;
        let used = state.devices.test_port != TestPortState::default();
        if used && !self.config.test_device {
            return Err(MachineError::TestDevice);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests;
