//! Entry by the 64-bit Linux boot protocol: a bzImage.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use kvm_bindings::{kvm_regs, kvm_sregs};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{ByteValued, GuestAddress};

use super::long_mode::{LongMode, TABLES_SIZE};
use super::parts::{self, Piece};
use super::placement::Taken;
use super::{BootError, BootImage, Given, acpi};
use crate::memory::GuestMemory;
use crate::memory::layout::ZERO_PAGE;

/// Where the setup header begins, in the file and in the zero page.
const HEADER: u64 = 0x1f1;
/// Its bytes up to the end of the jump instruction, whose offset says where it ends.
const HEADER_START: usize = 0x202 - 0x1f1;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Linux 3.8: the first version with `xloadflags`.
const MIN_PROTOCOL: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// Where the 64-bit entry is, from the start of the loaded kernel.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

/// Where the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinuxEntry {
    entry: u64,
    zero_page: u64,
    mode: LongMode,
}

/// Whether the kernel is a bzImage, by its magic number.
pub(super) fn is_bzimage(kernel: &File) -> io::Result<bool> {
    Ok(read_header(kernel)?.is_some_and(|header| header.header == MAGIC))
}

/// Puts kernel, initrd, command line and zero page into guest RAM.
pub(super) fn load(
    memory: &GuestMemory,
    image: &BootImage,
    given: Given<'_>,
) -> Result<LinuxEntry, BootError> {
    let header = read_header(image.kernel()).map_err(BootError::Read)?.unwrap_or_default();
    let length = image.kernel().metadata().map_err(BootError::Read)?.len();
    check(&header, length, given.cmdline)?;
    let mut taken = Taken::default();
    let kernel = kernel_at(memory, &header, length)?;
    taken.add(kernel.start..kernel.start + kernel.size);
    let mut file = image.kernel().try_clone().map_err(BootError::Read)?;
    BzImage::load(memory, Some(GuestAddress(kernel.start)), &mut file, None)
        .map_err(BootError::BzImage)?;
    let initrd_end = u64::from(header.initrd_addr_max) + 1;
    let initrd = match image.initrd() {
        Some(initrd) => Some(parts::load_initrd(memory, initrd, &mut taken, initrd_end)?),
        None => None,
    };
    let what = "the zero page and page tables";
    let zero_page = parts::place(memory, &mut taken, what, ZERO_PAGE, PAGE + TABLES_SIZE)?;
    let mode = LongMode::write(memory, zero_page + PAGE)?;
    let cmdline_at = parts::load_cmdline(memory, given.cmdline, &mut taken)?;
    let mut params = zero_page_content(memory, header, cmdline_at, initrd);
    params.acpi_rsdp_addr = acpi::write(memory, &taken, given)?.unwrap_or(0);
    let params = BootParams::new(&params, GuestAddress(zero_page));
    LinuxBootConfigurator::write_bootparams(&params, memory)
        .map_err(|source| BootError::Params { what: "the zero page", source })?;
    Ok(LinuxEntry { entry: kernel.start + ENTRY_64, zero_page, mode })
}

/// Reads the setup header, without the code that follows it; `None` if the file is too short.
fn read_header(kernel: &File) -> io::Result<Option<setup_header>> {
    let mut kernel = kernel.try_clone()?;
    kernel.seek(SeekFrom::Start(HEADER))?;
    let mut header = setup_header::default();
    let bytes = header.as_mut_slice();
    match kernel.read_exact(bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let end = HEADER_START + usize::from(bytes[HEADER_START - 1]);
    if let Some(code) = bytes.get_mut(end..) {
        code.fill(0);
    }
    Ok(Some(header))
}

fn setup_bytes(header: &setup_header) -> u64 {
    // Zero means four, for old kernels.
    let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    (u64::from(sectors) + 1) * SECTOR
}

fn check(header: &setup_header, length: u64, cmdline: &str) -> Result<(), BootError> {
    let version = header.version;
    if version < MIN_PROTOCOL {
        return Err(BootError::OldProtocol { version });
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(BootError::ZImage);
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry);
    }
    // `syssize` counts units of 16 bytes.
    let needed = setup_bytes(header) + u64::from(header.syssize) * 16;
    if length < needed {
        return Err(BootError::Truncated { actual: length, needed });
    }
    let limit = header.cmdline_size;
    if cmdline.len() > limit as usize {
        return Err(BootError::CmdlineSize { length: cmdline.len(), limit });
    }
    Ok(())
}

/// Returns where to load the kernel: at its preferred address, because it moves itself there if it is
/// loaded lower. It needs `init_size` bytes from there on.
fn kernel_at(memory: &GuestMemory, header: &setup_header, length: u64) -> Result<Piece, BootError> {
    let start = header.pref_address;
    let size = u64::from(header.init_size).max(length - setup_bytes(header));
    let end = parts::low_end(memory);
    match start.checked_add(size) {
        Some(last) if last <= end => Ok(Piece { start, size }),
        _ => Err(BootError::Room { start, size, end }),
    }
}

fn zero_page_content(
    memory: &GuestMemory,
    mut header: setup_header,
    cmdline: u64,
    initrd: Option<Piece>,
) -> boot_params {
    header.type_of_loader = LOADER_UNDEFINED;
    // All are below 4 GiB: in low RAM.
    header.cmd_line_ptr = cmdline as u32;
    if let Some(Piece { start, size }) = initrd {
        header.ramdisk_image = start as u32;
        header.ramdisk_size = size as u32;
    }
    let mut params = boot_params { hdr: header, ..Default::default() };
    let map = parts::memory_map(memory);
    params.e820_entries = map.len() as u8;
    for (place, entry) in params.e820_table.iter_mut().zip(map) {
        *place = boot_e820_entry { addr: entry.start, size: entry.size, r#type: entry.kind };
    }
    params
}

impl LinuxEntry {
    /// General registers at the entry: RSI points to the zero page, interrupts are disabled.
    pub(super) fn regs(self) -> kvm_regs {
        // Bit 1 of RFLAGS is always set (SDM vol. 1, 3.4.3).
        kvm_regs { rip: self.entry, rsi: self.zero_page, rflags: 2, ..Default::default() }
    }

    /// Turns the registers of a vCPU after reset into 64-bit mode.
    pub(super) fn sregs(self, reset: &kvm_sregs) -> kvm_sregs {
        self.mode.sregs(reset)
    }
}

#[cfg(test)]
mod tests;
