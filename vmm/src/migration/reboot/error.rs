//! Why a guest cannot be saved for a later process, or continued by one.

use std::io;
use std::path::PathBuf;

use crate::devices::serial::HostError;
use crate::machine::MachineError;
use crate::memory::{RamError, Stamp};
use crate::migration::channel::ChannelError;
use crate::migration::cpr::headroom::NoRoom;
use crate::migration::cpr::plan::Refused;
use crate::state::SectionError;

/// Errors of a save. The guest is again as it was before.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// The guest's state forbids it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The channel is not a file.
    #[error("cannot save the guest to {0}: a later process reads the state; use file:PATH")]
    NoFile(&'static str),
    /// The channel's file failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A resource is too small.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The machine could not be paused or saved.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The RAM file cannot be dated.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// RAM cannot be read.
    #[error("cannot read guest RAM for its fingerprint: {0}")]
    Sample(#[from] vm_memory::GuestMemoryError),
    /// The RAM file cannot be written to its disk.
    #[error("cannot write guest RAM to the disk of its file: fsync: {0}")]
    Sync(io::Error),
    /// Nothing guards the guest meanwhile.
    #[error("cannot save the guest: nothing guards it; this is a bug in the VMM")]
    Unguarded,
}

/// Errors from continuing a guest that was saved. Its state and its RAM file are unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RebootLoadError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// The file cannot be read.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The state was saved in another mode.
    #[error(
        "cannot load file:{}: {source}: it was not saved in mode cpr-reboot", .path.display()
    )]
    OtherMode {
        /// The file.
        path: PathBuf,
        /// What is missing.
        source: SectionError,
    },
    /// The RAM file was modified since the save.
    #[error(
        "cannot load file:{}: the RAM file's time of modification is {found}, at the save it was \
         {saved}: the guest has run since, or it is another guest's; a copy must keep the time \
         (cp -p)",
        .path.display()
    )]
    Modified {
        /// The file.
        path: PathBuf,
        /// The RAM file's time of modification.
        found: Stamp,
        /// That at the save.
        saved: Stamp,
    },
    /// The RAM file's content is another one.
    #[error(
        "cannot load file:{}: the content of the RAM file is not what it was when this state was \
         saved: it is damaged, or another guest's",
        .path.display()
    )]
    Differs {
        /// The file.
        path: PathBuf,
    },
    /// RAM cannot be read.
    #[error("cannot read the RAM file: {0}")]
    Sample(#[from] vm_memory::GuestMemoryError),
    /// The RAM file cannot be examined, or the guest not claimed.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The state does not fit the machine.
    #[error("cannot load file:{}: {source}", .path.display())]
    Machine {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MachineError,
    },
    /// The serial port's backend cannot be opened.
    #[error(transparent)]
    Serial(#[from] HostError),
}
