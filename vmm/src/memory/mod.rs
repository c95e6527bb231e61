//! Guest RAM: its files, its guest-physical layout, and its registration with KVM.

mod backing;
pub mod claim;
mod config;
pub mod layout;
mod ram_block;

pub use backing::BackingError;
pub use config::{MemoryConfig, MemoryConfigError, PageKind};
pub use ram_block::{PC_RAM, RamBlock, RamBlockInfo, RamError};
/// Guest RAM as mapped in this process.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
