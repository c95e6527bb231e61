//! Entry in 64-bit mode: a GDT and page tables that map the first 4 GiB to themselves.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use super::segments::{CR0_ET, CR0_PE, flat};
use crate::memory::GuestMemory;

/// Bytes of the tables: a page for the GDT, one for each of PML4 and PDPT, four page directories.
pub(super) const TABLES_SIZE: u64 = 7 * PAGE;

const PAGE: u64 = 4096;
/// The selectors that Linux calls `__BOOT_CS` and `__BOOT_DS`, their descriptors in the GDT: flat
/// 64-bit code that can be read, flat data that can be written (SDM vol. 3, 3.4.5).
const CODE: (u16, u64) = (0x10, 0x00af_9b00_0000_ffff);
const DATA: (u16, u64) = (0x18, 0x00cf_9300_0000_ffff);
const GDT: [u64; 4] = [0, 0, CODE.1, DATA.1];

const PRESENT_WRITABLE: u64 = 0b11;
/// In a page directory: a page of 2 MiB.
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
const DIRECTORIES: u64 = 4;

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// The tables in guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LongMode {
    tables: u64,
}

impl LongMode {
    /// Writes the tables to `at`, which is page-aligned and below 4 GiB.
    pub(super) fn write(memory: &GuestMemory, at: u64) -> Result<Self, BootError> {
        let [pdpt, directories] = [2, 3].map(|page| at + page * PAGE);
        let mut words = GDT.to_vec();
        words.resize(ENTRIES as usize, 0);
        words.push(pdpt | PRESENT_WRITABLE);
        words.resize(2 * ENTRIES as usize, 0);
        words.extend((0..DIRECTORIES).map(|n| (directories + n * PAGE) | PRESENT_WRITABLE));
        words.resize(3 * ENTRIES as usize, 0);
        words.extend((0..DIRECTORIES * ENTRIES).map(|n| n << 21 | LARGE | PRESENT_WRITABLE));
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        memory
            .write_slice(&bytes, GuestAddress(at))
            .map_err(|source| BootError::Write { what: "the page tables", source })?;
        Ok(Self { tables: at })
    }

    /// Turns the registers of a vCPU after reset into 64-bit mode.
    pub(super) fn sregs(self, reset: &kvm_sregs) -> kvm_sregs {
        let flat = flat(CODE.0, DATA.0, reset);
        let limit = size_of_val(&GDT) as u16 - 1;
        kvm_sregs {
            cs: kvm_segment { l: 1, db: 0, ..flat.cs },
            gdt: kvm_dtable { base: self.tables, limit, ..Default::default() },
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: self.tables + PAGE,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..flat
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    /// Walks the page tables as a CPU does.
    fn translate(memory: &GuestMemory, cr3: u64, address: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30, 21] {
            let at = table + (address >> shift & 0x1ff) * 8;
            let entry: u64 = memory.read_obj(GuestAddress(at)).unwrap();
            if entry & PRESENT_WRITABLE != PRESENT_WRITABLE {
                return None;
            }
            if entry & LARGE != 0 {
                return (shift == 21).then_some((entry & !0xfff) + (address & 0x1f_ffff));
            }
            table = entry & !0xfff;
        }
        None
    }

    #[test]
    fn first_4_gib_are_mapped_to_themselves() {
        let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
        let ram = RamBlock::create(memory).unwrap();
        let dirty = vec![0xff; TABLES_SIZE as usize];
        ram.memory().write_slice(&dirty, GuestAddress(0x7000)).unwrap();
        let sregs = LongMode::write(ram.memory(), 0x7000).unwrap().sregs(&kvm_sregs::default());
        for address in [0, 0x7123, 0x3f_ffff, 1 << 30, (3 << 30) + 1, (4 << 30) - 1] {
            assert_eq!(translate(ram.memory(), sregs.cr3, address), Some(address), "{address:#x}");
        }
        assert_eq!(translate(ram.memory(), sregs.cr3, 4 << 30), None);
        assert_eq!(translate(ram.memory(), sregs.cr3, 1 << 39), None);
        for (selector, segment) in [(CODE, sregs.cs), (DATA, sregs.ss)] {
            let at = sregs.gdt.base + u64::from(segment.selector);
            assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(at)).unwrap(), selector.1);
        }
        assert_eq!(sregs.gdt.limit, DATA.0 + 7);
    }
}
