//! The ACPI tables, in the BIOS area below 1 MiB: what a guest cannot find out otherwise about CPUs,
//! interrupts, the serial port, the power button, power-off and reset.
//!
//! Source: ACPI specification 6.5, chapter 5.2. The machine has the fixed registers of a PC. On a
//! hardware-reduced machine, without them, Linux uses neither PIC nor PIT.

mod dsdt;
mod fadt;
mod madt;
mod pci;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use super::placement::Taken;
use super::{BootError, Given};
use crate::memory::GuestMemory;
use crate::memory::layout::{ACPI_START, EXTENDED_START, PCI_ECAM};

const OEM_ID: [u8; 6] = *b"CPRVMM";
const OEM_TABLE_ID: [u8; 8] = *b"CPRVMM  ";
const OEM_REVISION: u32 = 1;
/// The FACS must be aligned to this (ACPI 5.2.10).
const ALIGNMENT: u64 = 64;

/// Writes the tables for what is `given`; returns the address of the RSDP, or `None` if the kernel was
/// loaded there.
pub(super) fn write(
    memory: &GuestMemory,
    taken: &Taken,
    given: Given<'_>,
) -> Result<Option<u64>, BootError> {
    if !taken.is_free(&(ACPI_START..EXTENDED_START)) {
        tracing::warn!(start = ACPI_START, "no_acpi_tables: the kernel is loaded there");
        return Ok(None);
    }
    let mut tables = Tables { memory, next: ACPI_START + ALIGNMENT };
    let facs = tables.put(&FACS::new())?;
    let dsdt = tables.put(&dsdt::table(given.pci))?;
    let fadt = tables.put(&fadt::table(facs, dsdt))?;
    let madt = tables.put(&madt::table(given.cpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    [fadt, madt].into_iter().for_each(|table| xsdt.add_entry(table));
    if given.pci {
        xsdt.add_entry(tables.put(&mcfg())?);
    }
    let xsdt = tables.put(&xsdt)?;
    tables.next = ACPI_START;
    tables.put(&Rsdp::new(OEM_ID, xsdt)).map(Some)
}

/// Returns the MCFG: where the configuration space of PCI bus 0 is.
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(PCI_ECAM, 0, 0, 0);
    mcfg
}

struct Tables<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Tables<'_> {
    /// Writes a table behind the last one; returns its address.
    fn put(&mut self, table: &dyn Aml) -> Result<u64, BootError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        self.next = (at + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        debug_assert!(self.next <= EXTENDED_START);
        self.memory
            .write_slice(&bytes, GuestAddress(at))
            .map_err(|source| BootError::Write { what: "the ACPI tables", source })?;
        Ok(at)
    }
}

#[cfg(test)]
mod tests;
