//! Guest RAM: its files, its guest-physical layout, and its registration with KVM.

mod allocate;
mod backing;
pub mod claim;
mod config;
mod dma_log;
mod file;
pub mod layout;
mod page_set;
mod ram_block;
mod ram_error;
mod sample;
mod stamp;
mod userfault;
mod view;

pub use backing::BackingError;
pub use config::{MemoryConfig, MemoryConfigError, MemoryOption, PageKind};
use dma_log::RegionLog;
pub use file::RamFileError;
pub use page_set::{PAGE, PageSet, ZEROS, runs};
pub use ram_block::{PC_RAM, RamBlock, RamBlockInfo};
pub use ram_error::RamError;
pub use stamp::Stamp;
pub use userfault::Userfault;
pub use view::RamView;
/// Guest RAM as mapped in this process.
pub type GuestMemory = vm_memory::GuestMemoryMmap<RegionLog>;
