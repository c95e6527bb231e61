//! Entry by the x86/HVM direct boot ABI ("PVH"): an ELF file whose Xen note names a 32-bit entry.
//!
//! Source: Xen `docs/misc/pvh.pandoc`, `xen/include/public/arch-x86/hvm/start_info.h`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use kvm_bindings::{kvm_regs, kvm_sregs};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use super::parts::{self, MapEntry, Piece};
use super::placement::Taken;
use super::segments::{CR0_ET, CR0_PE, flat};
use super::{BootError, BootImage, Given, acpi};
use crate::memory::GuestMemory;
use crate::memory::layout::{PVH_MEMMAP, PVH_MODULES, PVH_START_INFO, PVH_START_INFO_SIZE};

const MAGIC: &[u8; 4] = b"\x7fELF";
const START_INFO: &str = "the PVH start info";
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const START_INFO_VERSION: u32 = 1;
const PAGE: u64 = 4096;

/// Where the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvhEntry {
    entry: GuestAddress,
    start_info: u64,
}

/// Puts kernel, initrd, command line and start info into guest RAM.
pub(super) fn load(
    memory: &GuestMemory,
    image: &BootImage,
    given: Given<'_>,
) -> Result<PvhEntry, BootError> {
    // The loader does not clear .bss, and after a reset RAM is dirty.
    let segments = segments(image.kernel()).map_err(BootError::Read)?;
    let mut taken = Taken::default();
    for segment in &segments {
        taken.add(clear_tail(memory, segment)?);
    }
    let loaded = load_elf(memory, image.kernel())?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoEntry);
    };
    let module = match image.initrd() {
        Some(initrd) => Some(parts::load_initrd(memory, initrd, &mut taken, u64::MAX)?),
        None => None,
    };
    let (usual, size) = (PVH_START_INFO, PVH_START_INFO_SIZE);
    let start_info = parts::place(memory, &mut taken, START_INFO, usual, size)?;
    let cmdline = parts::load_cmdline(memory, given.cmdline, &mut taken)?;
    let rsdp = acpi::write(memory, &taken, given)?;
    write_start_info(memory, start_info, cmdline, rsdp, module)?;
    Ok(PvhEntry { entry, start_info })
}

fn load_elf(memory: &GuestMemory, kernel: &File) -> Result<KernelLoaderResult, BootError> {
    let mut kernel = kernel.try_clone().map_err(BootError::Read)?;
    Elf::load(memory, None, &mut kernel, None).map_err(BootError::Elf)
}

/// Whether the kernel is an ELF file, by its magic number.
pub(super) fn is_elf(kernel: &File) -> io::Result<bool> {
    let mut kernel = kernel.try_clone()?;
    kernel.rewind()?;
    let mut magic = [0; MAGIC.len()];
    Ok(kernel.read_exact(&mut magic).is_ok() && magic == *MAGIC)
}

/// Returns the kernel's segments to load; none if it is not a complete ELF file, which the loader
/// reports.
fn segments(kernel: &File) -> io::Result<Vec<Elf64_Phdr>> {
    let mut kernel = kernel.try_clone()?;
    kernel.rewind()?;
    let mut header = Elf64_Ehdr::default();
    let is_elf = kernel.read_exact(header.as_mut_slice()).is_ok()
        && header.e_ident.starts_with(MAGIC)
        && usize::from(header.e_phentsize) == size_of::<Elf64_Phdr>();
    let mut segments = Vec::new();
    if !is_elf || kernel.seek(SeekFrom::Start(header.e_phoff)).is_err() {
        return Ok(segments);
    }
    for _ in 0..header.e_phnum {
        let mut segment = Elf64_Phdr::default();
        if kernel.read_exact(segment.as_mut_slice()).is_err() {
            return Ok(Vec::new());
        }
        segments.push(segment);
    }
    segments.retain(|segment| segment.p_type == PT_LOAD && segment.p_memsz > 0);
    Ok(segments)
}

/// Clears the memory of `segment` that is not in the file; returns the range of the segment.
fn clear_tail(memory: &GuestMemory, segment: &Elf64_Phdr) -> Result<Range<u64>, BootError> {
    // The loader copies what is in the file, even if that is more.
    let (start, size) = (segment.p_paddr, segment.p_memsz.max(segment.p_filesz));
    if !memory.check_range(GuestAddress(start), size as usize) {
        return Err(BootError::Segment { start, size });
    }
    let end = start + size;
    zero(memory, start.saturating_add(segment.p_filesz), end)?;
    Ok(start..end)
}

fn zero(memory: &GuestMemory, start: u64, end: u64) -> Result<(), BootError> {
    let zeros = [0; PAGE as usize];
    let mut at = start;
    while at < end {
        let length = (end - at).min(PAGE);
        memory
            .write_slice(&zeros[..length as usize], GuestAddress(at))
            .map_err(|source| BootError::Write { what: "the kernel's .bss", source })?;
        at += length;
    }
    Ok(())
}

fn write_start_info(
    memory: &GuestMemory,
    start_info: u64,
    cmdline: u64,
    rsdp: Option<u64>,
    initrd: Option<Piece>,
) -> Result<(), BootError> {
    let module = initrd.map(|initrd| hvm_modlist_entry {
        paddr: initrd.start,
        size: initrd.size,
        ..Default::default()
    });
    let map: Vec<_> = parts::memory_map(memory).into_iter().map(memmap_entry).collect();
    let (modules, memmap) = (start_info + PVH_MODULES, start_info + PVH_MEMMAP);
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        nr_modules: module.iter().len() as u32,
        modlist_paddr: if module.is_some() { modules } else { 0 },
        cmdline_paddr: cmdline,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: memmap,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(start_info));
    params.set_sections(&map, GuestAddress(memmap));
    if let Some(module) = module {
        params.set_modules(&[module], GuestAddress(modules));
    }
    PvhBootConfigurator::write_bootparams(&params, memory)
        .map_err(|source| BootError::Params { what: START_INFO, source })
}

fn memmap_entry(entry: MapEntry) -> hvm_memmap_table_entry {
    hvm_memmap_table_entry { addr: entry.start, size: entry.size, type_: entry.kind, reserved: 0 }
}

impl PvhEntry {
    /// General registers at the entry: EBX points to the start info, the rest is zero.
    pub(super) fn regs(self) -> kvm_regs {
        // Bit 1 of RFLAGS is always set (SDM vol. 1, 3.4.3).
        kvm_regs { rip: self.entry.0, rbx: self.start_info, rflags: 2, ..Default::default() }
    }

    /// Turns the registers of a vCPU after reset into 32-bit protected mode with flat segments,
    /// paging off.
    pub(super) fn sregs(self, reset: &kvm_sregs) -> kvm_sregs {
        kvm_sregs { cr0: CR0_PE | CR0_ET, cr4: 0, efer: 0, ..flat(0x8, 0x10, reset) }
    }
}

#[cfg(test)]
pub(crate) mod tests;
