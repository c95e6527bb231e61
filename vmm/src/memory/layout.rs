//! Guest-physical addresses.

/// End of low RAM: the rest of the first 4 GiB belongs to devices (LAPIC, IOAPIC, PCI, BIOS).
pub const LOW_RAM_END: u64 = 3 << 30;
/// Start of the RAM that did not fit below [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 4 << 30;
/// `hvm_start_info` of a PVH boot, module list and memory map, unless the kernel is there.
pub const PVH_START_INFO: u64 = 0x6000;
/// Bytes of all three.
pub const PVH_START_INFO_SIZE: u64 = 0x1000;
/// Offset of the module list from the start info.
pub const PVH_MODULES: u64 = 0x100;
/// Offset of the memory map from the start info.
pub const PVH_MEMMAP: u64 = 0x200;
/// Zero page of a bzImage, followed by GDT and page tables, unless the kernel is there.
pub const ZERO_PAGE: u64 = 0x6000;
/// The guest's command line, NUL-terminated, unless the kernel is there.
pub const CMDLINE: u64 = 0x1_0000;
/// Maximum bytes of the command line, including its NUL.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// End of the memory below 1 MiB that a PC may use; the EBDA, VGA and ROMs follow.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// Start of the ACPI tables: of the BIOS area, every 16 bytes of which a guest searches for them.
pub const ACPI_START: u64 = 0xe_0000;
/// Where PC ROMs end and extended memory begins.
pub const EXTENDED_START: u64 = 0x10_0000;
/// The configuration space of PCI bus 0 (ECAM).
pub const PCI_ECAM: u64 = 0xe000_0000;
/// Its bytes: 32 devices of 8 functions, 4 KiB each.
pub const PCI_ECAM_SIZE: u64 = 1 << 20;
/// The memory that BARs of PCI functions are placed in.
pub const PCI_MEMORY: u64 = 0xf000_0000;
/// Its bytes.
pub const PCI_MEMORY_SIZE: u64 = 0x0e00_0000;
/// Three pages that KVM needs for real mode on Intel without unrestricted guest.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page that KVM needs there for the identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// One contiguous piece of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Offset in the RAM block.
    pub offset: u64,
}

/// Returns the regions of a RAM block of `size` bytes, around the hole below 4 GiB.
pub fn regions(size: u64) -> Vec<Region> {
    let low = size.min(LOW_RAM_END);
    let mut regions = vec![Region { start: 0, size: low, offset: 0 }];
    if size > low {
        regions.push(Region { start: HIGH_RAM_START, size: size - low, offset: low });
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_up_to_3_gib_is_one_region() {
        assert_eq!(regions(LOW_RAM_END), [Region { start: 0, size: LOW_RAM_END, offset: 0 }]);
    }

    #[test]
    fn ram_above_3_gib_continues_at_4_gib() {
        assert_eq!(
            regions(5 << 30),
            [
                Region { start: 0, size: 3 << 30, offset: 0 },
                Region { start: 4 << 30, size: 2 << 30, offset: 3 << 30 },
            ]
        );
    }
}
