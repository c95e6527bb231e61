//! The devices behind PCI: which there are, where they are, and their saved states.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_allocator::{AddressAllocator, AllocPolicy};

use super::DeviceOption;
use super::pci::{INTX_LINES, Intx, IntxLines, LAST_SLOT, PciBus, PciFunction, PciHostState};
use super::virtio::{
    BAR_SIZE, FunctionConfig, Rng, VirtioDevice, VirtioPci, VirtioState, VirtioStateError, Wiring,
};
use crate::memory::GuestMemory;
use crate::memory::layout::{PCI_MEMORY, PCI_MEMORY_SIZE};

/// Errors from creating devices.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There are more devices than slots.
    #[error("{0} devices are too many: there is room for {LAST_SLOT}")]
    TooMany(usize),
    /// A device cannot have a thread.
    #[error("cannot start the thread of {device}: {source}")]
    Worker {
        /// The device.
        device: String,
        /// Why not.
        source: io::Error,
    },
    /// The saved state of a device is invalid.
    #[error(transparent)]
    State(#[from] VirtioStateError),
}

/// The saved states of everything behind PCI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciState {
    /// The host bridge.
    pub host: PciHostState,
    /// Each function, with its slot.
    pub functions: Vec<(u8, VirtioState)>,
}

impl PciState {
    /// Returns the states of what is behind `bus`.
    pub fn of(bus: &PciBus) -> Self {
        let function = |function: &Arc<dyn PciFunction>| (function.slot(), function.state());
        Self { host: bus.host_state(), functions: bus.functions().iter().map(function).collect() }
    }
}

/// Returns each device with its slot.
pub fn slots(devices: &[DeviceOption]) -> impl Iterator<Item = (u8, &DeviceOption)> {
    (1..).zip(devices)
}

/// Returns the section that has the state of such a device.
pub fn section(device: &DeviceOption) -> &'static str {
    create(device).state().section()
}

fn create(device: &DeviceOption) -> Box<dyn VirtioDevice> {
    match device {
        DeviceOption::VirtioRng(limit) => Box::new(Rng::new(*limit)),
    }
}

/// Creates the bus with `devices`, as after power-on or as they were saved; `None` if there are no
/// devices.
pub fn assemble(
    devices: &[DeviceOption],
    vm: &Arc<VmFd>,
    memory: &GuestMemory,
    state: Option<PciState>,
) -> Result<Option<PciBus>, DeviceError> {
    if devices.is_empty() {
        return Ok(None);
    }
    if devices.len() > LAST_SLOT.into() {
        return Err(DeviceError::TooMany(devices.len()));
    }
    let PciState { host, functions: mut saved } = state.unwrap_or_default();
    let mut addresses = AddressAllocator::new(PCI_MEMORY, PCI_MEMORY_SIZE)
        .expect("the range is neither empty nor too long");
    let lines = IntxLines::new(vm.clone());
    let mut functions: Vec<Arc<dyn PciFunction>> = Vec::new();
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
        functions.push(Arc::new(VirtioPci::new(at, create(device), wiring, state)?));
    }
    Ok(Some(PciBus::new(host, functions)))
}
