//! The host bridge: configuration space behind ports and behind memory (ECAM), and which function
//! decodes an address.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 3.2.2.3.2; PCI Express Base Specification 6.0,
//! chapter 7.2.2.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::LAST_SLOT;
use super::config_space::{ConfigSpace, Identity};
use crate::devices::shadow::{Access, Shadow};
use crate::memory::layout::{PCI_ECAM, PCI_ECAM_SIZE};

/// The port of the address register.
pub const ADDRESS: u16 = 0xcf8;
/// The first and the last port of the data register.
pub const DATA: u16 = 0xcfc;
/// See [`DATA`].
pub const DATA_LAST: u16 = 0xcff;
/// The first port of both, and how many they have.
pub const CONFIG_PORTS: (u16, u8) = (ADDRESS, (DATA_LAST - ADDRESS + 1) as u8);
const ENABLE: u32 = 1 << 31;
/// Bytes of a function's space in the ECAM.
const ECAM_FUNCTION: u64 = 1 << 12;
/// Functions of a device, and devices of a bus.
const FUNCTIONS: u64 = 8;

/// The host bridge itself, in slot 0: QEMU's generic one.
const BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: [0x06, 0x00, 0x00],
    subsystem: 0x1100,
};

/// A function behind the host bridge.
pub trait PciFunction: std::fmt::Debug + Send + Sync {
    /// Its device number.
    fn slot(&self) -> u8;

    /// Reads its configuration space, `size` bytes at a time until `data` is full.
    fn read_config(&self, at: usize, size: usize, data: &mut [u8], access: &Access);

    /// Writes to its configuration space.
    fn write_config(&self, at: usize, data: &[u8], access: &Access);

    /// Returns the guest-physical addresses that it decodes: the first, and how many.
    fn decoded(&self) -> Option<(u64, u64)>;

    /// Reads memory that it decodes.
    fn read_memory(&self, offset: u64, data: &mut [u8], access: &Access);

    /// Writes to memory that it decodes.
    fn write_memory(&self, offset: u64, data: &[u8], access: &Access);
}

/// The state of the host bridge; the default is that after power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    /// The address register.
    address: u32,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A register of the host bridge.
    AddressRegister,
    /// The configuration space of the function in a slot, which may be empty.
    Config {
        /// The slot; `None`: no bus, device and function of this machine.
        slot: Option<u8>,
        /// The offset there.
        at: usize,
    },
    /// Memory that the function with this index decodes.
    Memory {
        /// Its index.
        function: usize,
        /// The offset in what it decodes.
        offset: u64,
    },
}

/// The host bridge and what is behind it.
#[derive(Debug)]
pub struct PciBus {
    state: Mutex<PciHostState>,
    shadow: Shadow,
    bridge: ConfigSpace,
    functions: Vec<Arc<dyn PciFunction>>,
}

impl PciBus {
    /// Creates the bus with `functions`, each in a slot of its own.
    pub fn new(state: PciHostState, functions: Vec<Arc<dyn PciFunction>>) -> Self {
        debug_assert!(functions.iter().all(|f| (1..=LAST_SLOT).contains(&f.slot())));
        Self {
            state: Mutex::new(state),
            shadow: Shadow::default(),
            bridge: ConfigSpace::new(BRIDGE),
            functions,
        }
    }

    fn lock(&self) -> MutexGuard<'_, PciHostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state of the host bridge.
    pub fn host_state(&self) -> PciHostState {
        self.lock().clone()
    }

    /// The copy of the host bridge's state.
    pub fn host_shadow(&self) -> &Shadow {
        &self.shadow
    }

    /// Enables or disables the copy of the host bridge's state.
    pub fn enable_shadow(&self, enabled: bool) {
        let state = self.lock();
        match enabled {
            true => self.shadow.enable(&*state),
            false => self.shadow.disable(),
        }
    }

    /// Returns where an access to `port` goes; `None` if it is not for this bus.
    pub fn port(&self, port: u16, size: usize) -> Option<Place> {
        match (port, size) {
            (ADDRESS, 4) => Some(Place::AddressRegister),
            (DATA..=DATA_LAST, _) => {
                let address = self.lock().address;
                let at = (address & 0xfc) as usize + usize::from(port - DATA);
                let [_, function, bus, _] = address.to_le_bytes();
                let slot = (address & ENABLE != 0 && bus == 0 && function % 8 == 0)
                    .then_some(function / 8);
                Some(Place::Config { slot, at })
            }
            _ => None,
        }
    }

    /// Returns where an access to memory at `address` goes; `None` if it is not for this bus.
    pub fn memory(&self, address: u64) -> Option<Place> {
        if let PCI_ECAM..PCI_ECAM_END = address {
            let offset = address - PCI_ECAM;
            let function = offset / ECAM_FUNCTION;
            let slot = function.is_multiple_of(FUNCTIONS).then_some((function / FUNCTIONS) as u8);
            return Some(Place::Config { slot, at: (offset % ECAM_FUNCTION) as usize });
        }
        self.functions.iter().enumerate().find_map(|(function, decoding)| {
            let (start, size) = decoding.decoded()?;
            let offset = address.checked_sub(start).filter(|offset| *offset < size)?;
            Some(Place::Memory { function, offset })
        })
    }

    fn function(&self, slot: Option<u8>) -> Option<&Arc<dyn PciFunction>> {
        self.functions.iter().find(|function| Some(function.slot()) == slot)
    }

    /// Handles guest reads of `size` bytes each until `data`, which is all ones, is full.
    pub fn read(&self, place: Place, size: usize, data: &mut [u8], access: &Access) {
        match place {
            Place::AddressRegister => {
                let address = self.lock().address.to_le_bytes();
                data.chunks_exact_mut(size).for_each(|item| item.copy_from_slice(&address));
            }
            Place::Config { slot: Some(0), at } => {
                data.chunks_exact_mut(size).for_each(|item| self.bridge.read(at, item));
            }
            Place::Config { slot, at } => {
                if let Some(function) = self.function(slot) {
                    function.read_config(at, size, data, access);
                }
            }
            Place::Memory { function, offset } => {
                self.functions[function].read_memory(offset, data, access);
            }
        }
    }

    /// Handles a guest write.
    pub fn write(&self, place: Place, data: &[u8], access: &Access) {
        match place {
            Place::AddressRegister => {
                let Ok(bytes) = data.try_into() else { return };
                let mut state = self.lock();
                state.address = u32::from_le_bytes(bytes);
                self.shadow.publish(|| &*state, Some(access));
            }
            // Nothing in the host bridge's own space can be changed.
            Place::Config { slot, at } => {
                if let Some(function) = self.function(slot) {
                    function.write_config(at, data, access);
                }
            }
            Place::Memory { function, offset } => {
                self.functions[function].write_memory(offset, data, access);
            }
        }
    }
}

/// One past the last address of the ECAM.
const PCI_ECAM_END: u64 = PCI_ECAM + PCI_ECAM_SIZE;

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> PciBus {
        PciBus::new(PciHostState::default(), Vec::new())
    }

    fn config(bus: &PciBus, address: u32, port: u16) -> Option<Place> {
        let access = Access::default();
        bus.write(Place::AddressRegister, &address.to_le_bytes(), &access);
        bus.port(port, 1)
    }

    #[test]
    fn both_ways_lead_to_the_same_register() {
        let bus = bus();
        let place = Place::Config { slot: Some(3), at: 0x12 };
        assert_eq!(config(&bus, 0x8000_1810, DATA + 2), Some(place));
        assert_eq!(bus.memory(PCI_ECAM + (3 << 15) + 0x12), Some(place));
        let nowhere = Place::Config { slot: None, at: 0x10 };
        for address in [0x0000_1810, 0x8000_1910, 0x8001_1810] {
            assert_eq!(config(&bus, address, DATA), Some(nowhere), "{address:#x}");
        }
        assert_eq!(bus.memory(PCI_ECAM_END), None);
        assert_eq!(bus.port(ADDRESS, 1), None);
    }

    #[test]
    fn only_existing_functions_answer() {
        let (bus, access) = (bus(), Access::default());
        let id = |slot| {
            let mut id = [0xff; 4];
            bus.read(Place::Config { slot, at: 0 }, 4, &mut id, &access);
            id
        };
        assert_eq!(id(Some(0)), [0x36, 0x1b, 8, 0]);
        assert_eq!([id(Some(1)), id(None)], [[0xff; 4]; 2]);
        bus.write(Place::Config { slot: Some(0), at: 0 }, &[1; 4], &access);
        assert_eq!(id(Some(0)), [0x36, 0x1b, 8, 0]);
        let mut address = [0; 8];
        bus.write(Place::AddressRegister, &[1, 2, 3, 4], &access);
        bus.read(Place::AddressRegister, 4, &mut address, &access);
        assert_eq!(address, [1, 2, 3, 4, 1, 2, 3, 4]);
    }
}
