//! Guest RAM: where it comes from, where the guest sees it, and how KVM is told.

mod backing;
pub mod claim;
pub mod layout;
mod ram_block;

pub use backing::BackingError;
pub use ram_block::{PC_RAM, RamBlock, RamBlockInfo, RamError};
/// Guest RAM as mapped in this process.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
