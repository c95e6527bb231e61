//! What every kernel is given: command line, initial RAM disk and memory map.

use std::fs::File;
use std::io::Seek;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::BootError;
use super::placement::Taken;
use crate::memory::GuestMemory;
use crate::memory::layout::{
    ACPI_START, CMDLINE, CMDLINE_MAX, CONVENTIONAL_END, EXTENDED_START, LOW_RAM_END,
};

/// The types of the memory map's entries, as of the BIOS call E820.
pub(super) const E820_RAM: u32 = 1;
pub(super) const E820_RESERVED: u32 = 2;

/// Guest RAM that holds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Guest-physical address.
    pub(super) start: u64,
    /// Bytes.
    pub(super) size: u64,
}

/// An entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapEntry {
    /// Guest-physical address.
    pub(super) start: u64,
    /// Bytes.
    pub(super) size: u64,
    /// [`E820_RAM`] or another type.
    pub(super) kind: u32,
}

/// Returns where the RAM below 4 GiB ends.
pub(super) fn low_end(memory: &GuestMemory) -> u64 {
    memory.iter().next().map_or(0, |low| low.len()).min(LOW_RAM_END)
}

/// Places something of `size` bytes, at `usual` if that is free.
pub(super) fn place(
    memory: &GuestMemory,
    taken: &mut Taken,
    what: &'static str,
    usual: u64,
    size: u64,
) -> Result<u64, BootError> {
    let end = low_end(memory);
    taken.place(usual, size, end).ok_or(BootError::NoRoom { what, size, end })
}

/// Places and writes the command line, with a NUL at its end; returns its address.
pub(super) fn load_cmdline(
    memory: &GuestMemory,
    cmdline: &str,
    taken: &mut Taken,
) -> Result<u64, BootError> {
    if cmdline.len() >= CMDLINE_MAX || cmdline.contains('\0') {
        return Err(BootError::Cmdline);
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    let at = place(memory, taken, "the command line", CMDLINE, bytes.len() as u64)?;
    memory
        .write_slice(&bytes, GuestAddress(at))
        .map_err(|source| BootError::Write { what: "the command line", source })?;
    Ok(at)
}

/// Loads the initial RAM disk as high as possible below `limit`, an address that the kernel sets.
pub(super) fn load_initrd(
    memory: &GuestMemory,
    initrd: &File,
    taken: &mut Taken,
    limit: u64,
) -> Result<Piece, BootError> {
    let size = initrd.metadata().map_err(BootError::Read)?.len();
    let end = low_end(memory);
    let start = taken.place_high(size, end.min(limit)).ok_or(match limit < end {
        true => BootError::InitrdLimit { size, end: limit },
        false => BootError::Initrd { size, end },
    })?;
    let mut file = initrd.try_clone().map_err(BootError::Read)?;
    file.rewind().map_err(BootError::Read)?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, size as usize)
        .map_err(|source| BootError::Write { what: "the initrd", source })?;
    Ok(Piece { start, size })
}

/// Returns the guest's memory map.
pub(super) fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    let ram = |start, end: u64| MapEntry { start, size: end - start, kind: E820_RAM };
    let acpi = EXTENDED_START - ACPI_START;
    let mut map = vec![
        ram(0, CONVENTIONAL_END),
        MapEntry { start: ACPI_START, size: acpi, kind: E820_RESERVED },
        ram(EXTENDED_START, low_end(memory)),
    ];
    for high in memory.iter().skip(1) {
        map.push(ram(high.start_addr().0, high.start_addr().0 + high.len()));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    fn ram(size: u64) -> RamBlock {
        RamBlock::create(MemoryConfig { size, share: true, pages: PageKind::Small }).unwrap()
    }

    #[test]
    fn memory_map_excludes_the_holes() {
        let ram = ram(4 << 30);
        let map = memory_map(ram.memory());
        let map: Vec<_> = map.iter().map(|e| (e.start, e.start + e.size, e.kind)).collect();
        assert_eq!(
            map,
            [
                (0, 0xa_0000, E820_RAM),
                (0xe_0000, 0x10_0000, E820_RESERVED),
                (0x10_0000, 3 << 30, E820_RAM),
                (4 << 30, 5 << 30, E820_RAM),
            ]
        );
    }

    #[test]
    fn the_command_line_is_bounded() {
        let ram = ram(8 << 20);
        let load = |cmdline: &str| load_cmdline(ram.memory(), cmdline, &mut Taken::default());
        assert!(load(&"x".repeat(CMDLINE_MAX - 1)).is_ok());
        assert!(load(&"x".repeat(CMDLINE_MAX)).is_err());
        assert!(load("a\0b").is_err());
    }
}
