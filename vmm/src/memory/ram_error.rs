//! Errors from setting up guest RAM.

use vm_memory::mmap::MmapRegionError;

use super::backing::BackingError;
use super::file::RamFileError;

/// Errors from setting up guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The file for it could not be created.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The file on the command line could not be opened.
    #[error(transparent)]
    File(#[from] RamFileError),
    /// It could not be mapped.
    #[error("cannot map {size} bytes at offset {offset} of RAM block {block}: {source}")]
    Map {
        /// The RAM block.
        block: String,
        /// Bytes.
        size: u64,
        /// Offset in the block.
        offset: u64,
        /// The underlying error.
        source: MmapRegionError,
    },
    /// KVM rejected a memslot.
    #[error("cannot register memslot {slot} at {start:#x} with KVM: {source}")]
    Memslot {
        /// The memslot.
        slot: u32,
        /// Guest-physical address.
        start: u64,
        /// The underlying error.
        source: kvm_ioctls::Error,
    },
    /// KVM does not return a dirty log.
    #[error("cannot get the dirty log of memslot {slot} from KVM: {source}")]
    DirtyLog {
        /// The memslot.
        slot: u32,
        /// The underlying error.
        source: kvm_ioctls::Error,
    },
    /// The descriptor that came over exec is not the RAM the command line describes.
    #[error(
        "RAM block {block} that was handed over has {found} bytes, the command line says {expected}"
    )]
    Handed {
        /// The RAM block.
        block: String,
        /// Bytes of the file.
        found: u64,
        /// Bytes asked for.
        expected: u64,
    },
    /// Another process runs the guest.
    #[error("cannot lock RAM block {block}: another process runs its guest")]
    InUse {
        /// The RAM block.
        block: String,
    },
    /// The right to run the guest cannot be claimed.
    #[error("cannot lock RAM block {block}: {source}")]
    Lock {
        /// The RAM block.
        block: String,
        /// The underlying error.
        source: std::io::Error,
    },
    /// Its file's time of modification cannot be read or set.
    #[error("cannot date the file of RAM block {block}: {source}")]
    Stamp {
        /// The RAM block.
        block: String,
        /// The underlying error.
        source: std::io::Error,
    },
    /// The descriptor that came over exec cannot be examined.
    #[error("cannot examine the descriptor of RAM block {block}: {source}")]
    Examine {
        /// The RAM block.
        block: String,
        /// The underlying error.
        source: std::io::Error,
    },
}
