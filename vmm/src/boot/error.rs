//! Errors from loading the guest.

use std::io;

use crate::memory::layout::CMDLINE_MAX;

/// Errors from loading the guest.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel has neither magic number.
    #[error(
        "the kernel is neither an ELF file nor a bzImage: use a vmlinux with a PVH entry note, or an x86-64 bzImage"
    )]
    Format,
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
    /// The bzImage is of an old protocol.
    #[error(
        "cannot boot the bzImage: its boot protocol is {}.{:02}, at least 2.12 is needed (Linux 3.8)",
        version >> 8,
        version & 0xff
    )]
    OldProtocol {
        /// Major and minor number.
        version: u16,
    },
    /// The bzImage is for 32-bit CPUs.
    #[error(
        "cannot boot the bzImage: it has no 64-bit entry (XLF_KERNEL_64); use an x86-64 kernel"
    )]
    No64BitEntry,
    /// The kernel is loaded below 1 MiB.
    #[error("cannot boot the kernel: it is a zImage, which is loaded below 1 MiB; use a bzImage")]
    ZImage,
    /// The bzImage is shorter than its header says.
    #[error(
        "cannot boot the bzImage: its file has {actual} of the {needed} bytes that its header announces"
    )]
    Truncated {
        /// Bytes of the file.
        actual: u64,
        /// Bytes that the header announces.
        needed: u64,
    },
    /// The bzImage could not be loaded.
    #[error("cannot load the bzImage: {0}")]
    BzImage(linux_loader::loader::Error),
    /// The bzImage does not fit where it unpacks itself.
    #[error(
        "the kernel needs {size:#x} bytes at {start:#x}, but guest RAM there ends at {end:#x}: increase --memory"
    )]
    Room {
        /// Guest-physical address.
        start: u64,
        /// Bytes.
        size: u64,
        /// End of low RAM.
        end: u64,
    },
    /// The command line is too long for this bzImage.
    #[error(
        "the guest's command line has {length} bytes, this kernel accepts {limit} (cmdline_size): shorten --cmdline"
    )]
    CmdlineSize {
        /// Bytes without the NUL.
        length: usize,
        /// Most bytes without the NUL.
        limit: u32,
    },
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
    /// The initial RAM disk does not fit where the kernel can find it.
    #[error(
        "the initrd of {size} bytes does not fit beside the kernel below {end:#x}, the most this kernel accepts (initrd_addr_max)"
    )]
    InitrdLimit {
        /// Bytes.
        size: u64,
        /// One past the last address that the kernel accepts.
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
    /// The start info or the zero page could not be written.
    #[error("cannot write {what} into guest RAM: {source}")]
    Params {
        /// What was to be written.
        what: &'static str,
        /// The underlying error.
        source: linux_loader::configurator::Error,
    },
    /// An image file could not be read.
    #[error("cannot read the boot image: {0}")]
    Read(io::Error),
}
