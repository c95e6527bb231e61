//! The DSDT: devices that the other tables do not list, and how to power off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, pci};
use crate::devices::{power, rtc, serial};

/// Bytes of a table's header.
const HEADER: u32 = 36;
/// With it, AML's integers have 64 bits.
const REVISION: u8 = 2;

/// Returns the table, with the host bridge if there is `pci`.
pub(super) fn table(pci: bool) -> Sdt {
    let mut aml = Vec::new();
    let serial =
        IsaDevice { path: "COM1", id: "PNP0501", ports: (serial::BASE, 8), interrupt: serial::IRQ };
    let clock =
        IsaDevice { path: "RTC_", id: "PNP0B00", ports: (rtc::INDEX, 2), interrupt: rtc::IRQ };
    Scope::new("\\_SB_".into(), vec![&serial, &clock]).to_aml_bytes(&mut aml);
    if pci {
        pci::append(&mut aml);
    }
    let off = power::SLEEP_TYPE_OFF;
    let states = Package::new(vec![&off, &ZERO, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &states).to_aml_bytes(&mut aml);
    let mut table = Sdt::new(*b"DSDT", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    table
}

/// A device behind ports, with an interrupt of its own.
struct IsaDevice {
    path: &'static str,
    /// Its EISA ID.
    id: &'static str,
    /// First port and number of ports.
    ports: (u16, u8),
    interrupt: u32,
}

impl Aml for IsaDevice {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (first, count) = self.ports;
        let ports = IO::new(first, first, 1, count);
        let interrupt = Interrupt::new(true, true, false, false, self.interrupt);
        let id = EISAName::new(self.id);
        Device::new(
            self.path.into(),
            vec![
                &Name::new("_HID".into(), &id),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
            ],
        )
        .to_aml_bytes(sink);
    }
}
