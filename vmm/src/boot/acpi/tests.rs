use std::collections::BTreeMap;

use rstest::rstest;

use super::*;
use crate::memory::{MemoryConfig, PageKind, RamBlock};

fn ram() -> RamBlock {
    let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
    RamBlock::create(memory).unwrap()
}

fn given(cpus: u8) -> Given<'static> {
    Given { cmdline: "", cpus, pci: false }
}

fn bytes(memory: &GuestMemory, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Reads the table at `at`, of the length in its header.
fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
    assert!((ACPI_START..EXTENDED_START).contains(&at), "{at:#x}");
    let length = number(&bytes(memory, at + 4, 4)) as usize;
    bytes(memory, at, length)
}

fn assert_sums_to_zero(what: &str, bytes: &[u8]) {
    assert_eq!(bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{what}");
}

/// Finds all tables as a guest does, from a search for the RSDP on.
fn tables(memory: &GuestMemory) -> BTreeMap<String, Vec<u8>> {
    let at = (0xe_0000..0x10_0000).step_by(16).find(|at| bytes(memory, *at, 8) == b"RSD PTR ");
    let rsdp = bytes(memory, at.unwrap(), 36);
    assert_sums_to_zero("version 1 of the RSDP", &rsdp[..20]);
    assert_sums_to_zero("RSDP", &rsdp);
    let xsdt = table(memory, number(&rsdp[24..32]));
    assert_sums_to_zero("XSDT", &xsdt);
    let listed = xsdt[36..].chunks(8).map(|at| table(memory, number(at)));
    let mut all: BTreeMap<_, _> =
        listed.map(|table| (String::from_utf8_lossy(&table[..4]).into_owned(), table)).collect();
    let fadt = &all["FACP"];
    let (facs, dsdt) = (number(&fadt[36..40]), number(&fadt[40..44]));
    assert_eq!((facs % 64, dsdt), (0, number(&fadt[140..148])));
    assert_eq!(table(memory, facs).len(), 64);
    all.insert("DSDT".to_owned(), table(memory, dsdt));
    all.iter().for_each(|(name, table)| assert_sums_to_zero(name, table));
    all
}

#[test]
fn guest_finds_all_tables() {
    let ram = ram();
    let rsdp = write(ram.memory(), &Taken::default(), given(64)).unwrap();
    assert_eq!(rsdp, Some(ACPI_START));
    assert_eq!(tables(ram.memory()).keys().collect::<Vec<_>>(), ["APIC", "DSDT", "FACP"]);
}

#[test]
fn kernel_in_the_bios_area_is_not_overwritten() {
    let ram = ram();
    let mut taken = Taken::default();
    taken.add(0xf_ffff..0x20_0000);
    assert_eq!(write(ram.memory(), &taken, given(1)).unwrap(), None);
    assert_eq!(bytes(ram.memory(), ACPI_START, 0x2_0000), [0; 0x2_0000]);
}

#[test]
fn madt_lists_every_vcpu_and_the_wiring_of_interrupts() {
    let ram = ram();
    write(ram.memory(), &Taken::default(), given(3)).unwrap();
    let madt = &tables(ram.memory())["APIC"];
    assert_eq!((number(&madt[36..40]), number(&madt[40..44])), (0xfee0_0000, 1));
    let mut structures = Vec::new();
    let mut rest = &madt[44..];
    while let [kind, length, ..] = rest {
        let (one, others) = rest.split_at(usize::from(*length));
        structures.push((*kind, &one[2..]));
        rest = others;
    }
    assert_eq!(
        structures,
        [
            (0, &[0, 0, 1, 0, 0, 0][..]),
            (0, &[1, 1, 1, 0, 0, 0]),
            (0, &[2, 2, 1, 0, 0, 0]),
            (1, &[0, 0, 0x00, 0x00, 0xc0, 0xfe, 0, 0, 0, 0]),
            (2, &[0, 9, 9, 0, 0, 0, 0b1101, 0]),
            (4, &[0xff, 0, 0, 1]),
        ]
    );
}

/// Offsets: ACPI 6.5, table 5.9.
#[test]
fn fadt_names_the_registers_for_power_button_power_off_and_reset() {
    let ram = ram();
    write(ram.memory(), &Taken::default(), given(1)).unwrap();
    let fadt = &tables(ram.memory())["FACP"];
    let field = |at: usize, length: usize| number(&fadt[at..at + length]);
    assert_eq!(fadt.len(), 276);
    assert_eq!((field(46, 2), field(48, 4)), (9, 0), "the SCI, no SMI command port");
    assert_eq!((field(56, 4), field(88, 1)), (0x600, 4), "the events");
    assert_eq!((field(64, 4), field(89, 1)), (0x604, 2), "the control register");
    let flags = field(112, 4);
    for (bit, value) in [(0, 1), (4, 0), (5, 1), (6, 1), (10, 1), (20, 0)] {
        assert_eq!(flags >> bit & 1, value, "flag {bit}");
    }
    assert_eq!(field(108, 1), 0x32, "the century");
    assert_eq!(field(109, 2), 0b101, "serial port and clock, but no keyboard or VGA");
    for (at, bits, port) in [(116, 8, 0x64), (148, 32, 0x600), (172, 16, 0x604)] {
        assert_eq!((field(at, 1), field(at + 1, 1), field(at + 4, 8)), (1, bits, port), "{at}");
    }
    assert_eq!(field(128, 1), 0xfe, "the reset value");
}

/// Disassembled once with ACPICA's `iasl -d`; any change must be, too.
#[rstest]
#[case::without_pci(false)]
#[case::with_pci(true)]
fn dsdt_is_the_reviewed_one(#[case] pci: bool) {
    let ram = ram();
    write(ram.memory(), &Taken::default(), Given { pci, ..given(1) }).unwrap();
    let dsdt = &tables(ram.memory())["DSDT"];
    let lines: Vec<_> = dsdt[36..].chunks(16).map(|line| format!("{line:02x?}")).collect();
    if let Some(folder) = std::env::var_os("CPR_DUMP_ACPI") {
        for (name, table) in tables(ram.memory()) {
            std::fs::write(std::path::Path::new(&folder).join(name), table).unwrap();
        }
    }
    let name = if pci { "dsdt_with_pci" } else { "dsdt_is_the_reviewed_one" };
    insta::assert_snapshot!(name, lines.join("\n"));
}

/// PCI Firmware Specification 3.3, table 4-3.
#[test]
fn mcfg_names_the_configuration_space_of_bus_0() {
    let ram = ram();
    write(ram.memory(), &Taken::default(), Given { pci: true, ..given(1) }).unwrap();
    let mcfg = &tables(ram.memory())["MCFG"];
    let mut entry = PCI_ECAM.to_le_bytes().to_vec();
    entry.extend([0; 8]);
    assert_eq!(mcfg[44..], entry);
}
