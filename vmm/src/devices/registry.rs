//! The devices behind PCI: which there are, where they are, and their saved states.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_allocator::{AddressAllocator, AllocPolicy};

use super::DeviceOption;
use super::pci::{INTX_LINES, Intx, IntxLines, LAST_SLOT, PciBus, PciFunction, PciHostState};
use super::shadow::Shadow;
use super::virtio::{
    BAR_SIZE, FunctionConfig, Rng, VirtioDevice, VirtioError, VirtioPci, VirtioState, Wiring,
};
use crate::memory::GuestMemory;
use crate::memory::layout::{PCI_MEMORY, PCI_MEMORY_SIZE};

/// Errors from creating devices.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There are more devices than slots.
    #[error("{0} devices are too many: there is room for {LAST_SLOT}")]
    TooMany(usize),
    /// A virtio device cannot be created.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
}

/// The saved states of everything behind PCI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciState {
    /// The host bridge.
    pub host: PciHostState,
    /// Each device, with its slot.
    pub devices: Vec<(u8, VirtioState)>,
}

/// The host bridge, and the devices behind it.
#[derive(Debug)]
pub struct PciDevices {
    bus: PciBus,
    devices: Vec<Arc<VirtioPci>>,
}

impl PciDevices {
    /// The host bridge.
    pub fn bus(&self) -> &PciBus {
        &self.bus
    }

    /// Lets the devices access RAM and raise interrupts on their own.
    pub fn start(&self) {
        self.devices.iter().for_each(|device| device.start());
    }

    /// Stops that. Requests in flight stay as they are.
    pub fn quiesce(&self) {
        self.devices.iter().for_each(|device| device.quiesce());
    }

    /// Whether the thread of any device is accessing RAM. Async-signal-safe.
    pub fn are_active(&self) -> bool {
        self.devices.iter().any(|device| device.is_active())
    }

    /// Sets the interrupt lines again, after KVM's chips were restored.
    pub fn renew_lines(&self) {
        self.devices.iter().for_each(|device| device.renew_line());
    }

    /// Returns all states. The devices must be quiet, or the states are only good for a look.
    pub fn state(&self) -> PciState {
        let devices = self.devices.iter().map(|device| (device.slot(), device.state()));
        PciState { host: self.bus.host_state(), devices: devices.collect() }
    }

    /// Enables or disables the copies of all states.
    pub fn enable_shadows(&self, enabled: bool) {
        self.bus.enable_shadow(enabled);
        self.devices.iter().for_each(|device| device.enable_shadow(enabled));
    }

    /// The copies of the devices' states, with their slots.
    pub fn shadows(&self) -> impl Iterator<Item = (u8, &Shadow)> {
        self.devices.iter().map(|device| (device.slot(), device.shadow()))
    }
}

/// Returns each device with its slot.
pub fn slots(devices: &[DeviceOption]) -> impl Iterator<Item = (u8, &DeviceOption)> {
    (1..).zip(devices)
}

fn create(device: &DeviceOption) -> Box<dyn VirtioDevice> {
    match device {
        DeviceOption::VirtioRng(limit) => Box::new(Rng::new(*limit)),
    }
}

/// Creates `devices` and their bus, as after power-on or as they were saved; `None` if there are no
/// devices.
pub fn assemble(
    devices: &[DeviceOption],
    vm: &Arc<VmFd>,
    memory: &GuestMemory,
    state: Option<PciState>,
) -> Result<Option<PciDevices>, DeviceError> {
    if devices.is_empty() {
        return Ok(None);
    }
    if devices.len() > LAST_SLOT.into() {
        return Err(DeviceError::TooMany(devices.len()));
    }
    let PciState { host, devices: mut saved } = state.unwrap_or_default();
    let mut addresses = AddressAllocator::new(PCI_MEMORY, PCI_MEMORY_SIZE)
        .expect("the range is neither empty nor too long");
    let lines = IntxLines::new(vm.clone());
    let mut created = Vec::new();
    for (slot, device) in slots(devices) {
        let bar = addresses
            .allocate(BAR_SIZE, BAR_SIZE, AllocPolicy::FirstMatch)
            .expect("there is room for the BARs of all slots");
        let line = INTX_LINES[Intx::index(slot)] as u8;
        let at = FunctionConfig { slot, bar: bar.start() as u32, line };
        let intx = Intx::new(lines.clone(), slot);
        let wiring = Wiring { vm: vm.clone(), intx, memory: memory.clone() };
        let state = saved.iter().position(|(of, _)| *of == slot);
        let state = state.map(|index| saved.swap_remove(index).1);
        created.push(Arc::new(VirtioPci::new(at, create(device), wiring, state)?));
    }
    let functions = created.iter().map(|device| device.clone() as Arc<dyn PciFunction>).collect();
    Ok(Some(PciDevices { bus: PciBus::new(host, functions), devices: created }))
}
