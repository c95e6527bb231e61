//! Entry by the x86/HVM direct boot ABI ("PVH"): an ELF file whose Xen note names a 32-bit entry.
//!
//! Source: Xen `docs/misc/pvh.pandoc`, `xen/include/public/arch-x86/hvm/start_info.h`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::BootImage;
use super::placement::Taken;
use crate::memory::GuestMemory;
use crate::memory::layout::{
    CMDLINE, CMDLINE_MAX, CONVENTIONAL_END, EXTENDED_START, LOW_RAM_END, PVH_MEMMAP, PVH_MODULES,
    PVH_START_INFO, PVH_START_INFO_SIZE,
};

const START_INFO_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const START_INFO_VERSION: u32 = 1;
const E820_RAM: u32 = 1;
const PAGE: u64 = 4096;

/// Errors from loading the guest.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel is not an ELF file, or does not fit.
    #[error("the kernel is not an ELF file that fits in guest RAM: {0}")]
    Elf(linux_loader::loader::Error),
    /// A part of the kernel lies outside of RAM.
    #[error("the kernel's segment of {size:#x} bytes at {start:#x} does not fit in guest RAM")]
    Segment {
        /// Guest-physical address.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// The kernel has no PVH entry.
    #[error("the kernel has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY)")]
    NoEntry,
    /// The command line is too long or has a NUL.
    #[error("the guest's command line has a NUL or more than {} bytes", CMDLINE_MAX - 1)]
    Cmdline,
    /// A boot structure does not fit beside the kernel.
    #[error(
        "cannot place {what} of {size} bytes in guest RAM: the kernel leaves no room for it below {end:#x}"
    )]
    NoRoom {
        /// The structure.
        what: &'static str,
        /// Bytes.
        size: u64,
        /// End of low RAM.
        end: u64,
    },
    /// The initial RAM disk does not fit.
    #[error("the initrd of {size} bytes does not fit beside the kernel between 1 MiB and {end:#x}")]
    Initrd {
        /// Bytes.
        size: u64,
        /// End of low RAM.
        end: u64,
    },
    /// Guest memory could not be written.
    #[error("cannot write {what} into guest RAM: {source}")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// The underlying error.
        source: vm_memory::GuestMemoryError,
    },
    /// The start info could not be written.
    #[error("cannot write the PVH start info into guest RAM: {0}")]
    StartInfo(linux_loader::configurator::Error),
    /// An image file could not be read.
    #[error("cannot read the boot image: {0}")]
    Read(io::Error),
}

/// Where the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvhEntry {
    entry: GuestAddress,
    start_info: u64,
}

/// Puts kernel, initrd, command line and start info into guest RAM.
pub fn load(memory: &GuestMemory, image: &BootImage, cmdline: &str) -> Result<PvhEntry, BootError> {
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
        Some(initrd) => Some(load_initrd(memory, initrd, &mut taken)?),
        None => None,
    };
    let end = low_end(memory);
    let mut place = |what, usual, size| {
        taken.place(usual, size, end).ok_or(BootError::NoRoom { what, size, end })
    };
    let start_info = place("the PVH start info", PVH_START_INFO, PVH_START_INFO_SIZE)?;
    let cmdline_at = place("the command line", CMDLINE, cmdline.len() as u64 + 1)?;
    write_cmdline(memory, cmdline, cmdline_at)?;
    write_start_info(memory, start_info, cmdline_at, module)?;
    Ok(PvhEntry { entry, start_info })
}

fn load_elf(memory: &GuestMemory, kernel: &File) -> Result<KernelLoaderResult, BootError> {
    let mut kernel = kernel.try_clone().map_err(BootError::Read)?;
    Elf::load(memory, None, &mut kernel, None).map_err(BootError::Elf)
}

/// Returns the kernel's segments to load; none if it is not a complete ELF file, which the loader
/// reports.
fn segments(kernel: &File) -> io::Result<Vec<Elf64_Phdr>> {
    let mut kernel = kernel.try_clone()?;
    kernel.rewind()?;
    let mut header = Elf64_Ehdr::default();
    let is_elf = kernel.read_exact(header.as_mut_slice()).is_ok()
        && header.e_ident[..4] == *b"\x7fELF"
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

fn low_end(memory: &GuestMemory) -> u64 {
    memory.iter().next().map_or(0, |low| low.len()).min(LOW_RAM_END)
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

fn write_cmdline(memory: &GuestMemory, cmdline: &str, at: u64) -> Result<(), BootError> {
    if cmdline.len() >= CMDLINE_MAX || cmdline.contains('\0') {
        return Err(BootError::Cmdline);
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(at))
        .map_err(|source| BootError::Write { what: "the command line", source })
}

fn load_initrd(
    memory: &GuestMemory,
    initrd: &File,
    taken: &mut Taken,
) -> Result<hvm_modlist_entry, BootError> {
    let size = initrd.metadata().map_err(BootError::Read)?.len();
    let end = low_end(memory);
    let start = taken.place_high(size, end).ok_or(BootError::Initrd { size, end })?;
    let mut file = initrd.try_clone().map_err(BootError::Read)?;
    file.rewind().map_err(BootError::Read)?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, size as usize)
        .map_err(|source| BootError::Write { what: "the initrd", source })?;
    Ok(hvm_modlist_entry { paddr: start, size, ..Default::default() })
}

fn write_start_info(
    memory: &GuestMemory,
    start_info: u64,
    cmdline: u64,
    module: Option<hvm_modlist_entry>,
) -> Result<(), BootError> {
    let map = memory_map(memory);
    let (modules, memmap) = (start_info + PVH_MODULES, start_info + PVH_MEMMAP);
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        nr_modules: module.iter().len() as u32,
        modlist_paddr: if module.is_some() { modules } else { 0 },
        cmdline_paddr: cmdline,
        memmap_paddr: memmap,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(start_info));
    params.set_sections(&map, GuestAddress(memmap));
    if let Some(module) = module {
        params.set_modules(&[module], GuestAddress(modules));
    }
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(BootError::StartInfo)
}

fn memory_map(memory: &GuestMemory) -> Vec<hvm_memmap_table_entry> {
    let ram = |addr, end: u64| hvm_memmap_table_entry {
        addr,
        size: end - addr,
        type_: E820_RAM,
        reserved: 0,
    };
    let mut map = vec![ram(0, CONVENTIONAL_END), ram(EXTENDED_START, low_end(memory))];
    for high in memory.iter().skip(1) {
        map.push(ram(high.start_addr().0, high.start_addr().0 + high.len()));
    }
    map
}

impl PvhEntry {
    /// General registers at the entry: EBX points to the start info, the rest is zero.
    pub fn regs(self) -> kvm_regs {
        // Bit 1 of RFLAGS is always set (SDM vol. 1, 3.4.3).
        kvm_regs { rip: self.entry.0, rbx: self.start_info, rflags: 2, ..Default::default() }
    }

    /// Turns the registers of a vCPU after reset into 32-bit protected mode with flat segments,
    /// paging off.
    pub fn sregs(self, reset: &kvm_sregs) -> kvm_sregs {
        let flat = |selector, type_| kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_,
            present: 1,
            dpl: 0,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
            avl: 0,
            unusable: 0,
            padding: 0,
        };
        // SDM vol. 3, 3.4.5.1: 0xb is execute/read accessed, 0x3 read/write accessed.
        let (code, data) = (flat(0x8, 0xb), flat(0x10, 0x3));
        // SDM vol. 3, 8.2.2: a busy 32-bit TSS, of the 104 bytes it has at least.
        let tss =
            kvm_segment { limit: 0x67, selector: 0x18, type_: 0xb, s: 0, db: 0, g: 0, ..data };
        kvm_sregs {
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: tss,
            cr0: CR0_PE | CR0_ET,
            cr4: 0,
            efer: 0,
            ..*reset
        }
    }
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;

#[cfg(test)]
pub(crate) mod tests;
