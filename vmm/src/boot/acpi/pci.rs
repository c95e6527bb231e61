//! The host bridge of PCI: its windows, where interrupts go, and its configuration space in memory
//! (PCI Firmware Specification 3.3, chapter 4).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, PackageBuilder,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use crate::devices::pci::{CONFIG_PORTS, INTX_LINES, Intx, LAST_SLOT};
use crate::memory::layout::{PCI_ECAM, PCI_ECAM_SIZE, PCI_MEMORY, PCI_MEMORY_SIZE};

/// An address that means all functions of a device, in its low half.
const ALL_FUNCTIONS: u32 = 0xffff;
/// INTA of a device.
const PIN: u8 = 0;

/// Adds the host bridge, and reserves its configuration space.
pub(super) fn append(aml: &mut Vec<u8>) {
    Scope::new("\\_SB_".into(), vec![&HostBridge, &ConfigurationSpace]).to_aml_bytes(aml);
}

struct HostBridge;

impl Aml for HostBridge {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (first, count) = CONFIG_PORTS;
        let ports = IO::new(first, first, 1, count);
        let bus = AddressSpace::<u16>::new_bus_number(0, 0);
        let (start, end) = (PCI_MEMORY as u32, (PCI_MEMORY + PCI_MEMORY_SIZE - 1) as u32);
        let cacheable = AddressSpaceCacheable::NotCacheable;
        let memory = AddressSpace::<u32>::new_memory(cacheable, true, start, end, None);
        Device::new(
            "PCI0".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
                &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
                &Name::new("_SEG".into(), &ZERO),
                &Name::new("_BBN".into(), &ZERO),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&bus, &ports, &memory])),
                &Name::new("_PRT".into(), &routing()),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Reserves the ECAM, which a guest does not use otherwise.
struct ConfigurationSpace;

impl Aml for ConfigurationSpace {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let memory = Memory32Fixed::new(true, PCI_ECAM as u32, PCI_ECAM_SIZE as u32);
        Device::new(
            "ECAM".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&memory])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Returns which input of the IOAPIC INTA of each slot goes to.
fn routing() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 1..=LAST_SLOT {
        let mut entry = PackageBuilder::new();
        entry.add_element(&(u32::from(slot) << 16 | ALL_FUNCTIONS));
        entry.add_element(&PIN);
        entry.add_element(&ZERO);
        entry.add_element(&INTX_LINES[Intx::index(slot)]);
        table.add_element(&entry);
    }
    table
}
