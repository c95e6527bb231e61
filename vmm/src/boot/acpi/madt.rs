//! The MADT: one LAPIC for each vCPU, the IOAPIC, and how interrupts are wired to it.

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use zerocopy::IntoBytes;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::devices::power;

/// Bytes up to the first structure: the header, the LAPICs' address, flags.
const HEADER: u32 = 44;
const REVISION: u8 = 5;
const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
/// There are two PICs as well.
const PCAT_COMPAT: u32 = 1;
/// Structure types and their lengths.
const SOURCE_OVERRIDE: [u8; 2] = [2, 10];
const LAPIC_NMI: [u8; 2] = [4, 6];
const ISA: u8 = 0;
const ACTIVE_HIGH: u8 = 0b01;
const LEVEL_TRIGGERED: u8 = 0b11 << 2;
const ALL_CPUS: u8 = 0xff;

/// Returns the table. A LAPIC's ID is the index of its vCPU.
///
/// Interrupt n of the PICs is input n of the IOAPIC (KVM's default routing), edge-triggered and
/// active-high unless an override says otherwise: so IRQ 0 needs none, unlike on a PC.
pub(super) fn table(cpus: u8) -> Sdt {
    let mut table = Sdt::new(*b"APIC", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.write_u32(36, LAPIC);
    table.write_u32(40, PCAT_COMPAT);
    for index in 0..cpus {
        let lapic = ProcessorLocalApic::new(index, index, EnabledStatus::Enabled);
        table.append_slice(lapic.as_bytes());
    }
    table.append_slice(IoApic::new(0, IOAPIC, 0).as_bytes());
    let mut sci = [SOURCE_OVERRIDE, [ISA, power::IRQ as u8]].concat();
    sci.extend(power::IRQ.to_le_bytes());
    sci.extend([ACTIVE_HIGH | LEVEL_TRIGGERED, 0]);
    table.append_slice(&sci);
    // LINT1, with the bus's polarity and trigger mode.
    table.append_slice(&[LAPIC_NMI, [ALL_CPUS, 0], [0, 1]].concat());
    table
}
