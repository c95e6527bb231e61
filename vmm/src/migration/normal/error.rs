//! Why a guest cannot be migrated with its RAM, or loaded with it.

use std::io;
use std::path::PathBuf;

use super::copier::CopyError;
use super::peer::PeerError;
use super::ram_stream::RamStreamError;
use crate::devices::serial::HostError;
use crate::machine::MachineError;
use crate::memory::RamError;
use crate::migration::channel::ChannelError;
use crate::migration::cpr::headroom::NoRoom;
use crate::migration::cpr::plan::Refused;
use crate::migration::transfer::WireError;
use crate::private_file::PrivateFileError;
use crate::state::SectionError;

/// Errors of the old process. The guest is again as it was before, but after [`Self::Unconfirmed`].
#[derive(Debug, thiserror::Error)]
pub enum NormalError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// The guest's state forbids it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The channel is unsupported.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The socket failed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The other process failed, or refused.
    #[error("cannot migrate the guest: {0}")]
    Wire(#[from] WireError),
    /// The other process cannot run this guest.
    #[error("cannot migrate the guest: the new VMM {0}")]
    Differs(String),
    /// RAM cannot be copied.
    #[error("cannot migrate the guest: {0}")]
    Copy(#[from] CopyError),
    /// The thread that copies RAM cannot be started.
    #[error("cannot start the thread that copies guest RAM: {0}")]
    Thread(io::Error),
    /// The file cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A resource is too small.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The machine could not be paused or saved.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The commit point cannot be created.
    #[error("cannot create the page with the commit point: {0}")]
    Page(io::Error),
    /// The copy of the state for the keeper is outdated.
    #[error("cannot migrate the guest: its keeper does not know that")]
    Stale,
    /// This process is about to end.
    #[error("cannot migrate the guest: this process was asked to end")]
    AskedToEnd,
    /// This process panicked.
    #[error(
        "the migration crashed; the VM keeps running: it panicked: {0}; this is a bug in the VMM"
    )]
    Panicked(String),
    /// Nothing guards the guest meanwhile.
    #[error("cannot migrate the guest: nothing guards it; this is a bug in the VMM")]
    Unguarded,
    /// The guest was given up, and the other process may not know.
    #[error(
        "the new VMM has the guest, but did not confirm that it runs it ({0}): the guest is stopped \
         here; if it does not run there, continue it here with cont"
    )]
    Unconfirmed(WireError),
}

/// Errors of the new process, which does not have the guest, but for [`Self::Unsettled`].
#[derive(Debug, thiserror::Error)]
pub enum NormalLoadError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// The channel is unsupported.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The socket failed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A connection cannot be accepted.
    #[error("cannot accept the old VMM's connection: {0}")]
    Accept(io::Error),
    /// The other process failed, or refused.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// RAM cannot be received.
    #[error(transparent)]
    RamStream(#[from] RamStreamError),
    /// The thread that receives RAM failed.
    #[error("the thread that receives guest RAM failed: {0}")]
    Thread(io::Error),
    /// The state cannot be decoded.
    #[error("cannot load the state of the guest: {0}")]
    Section(#[from] SectionError),
    /// The state is not the one that was announced.
    #[error("cannot load the state of the guest: it is not the one that the old VMM announced")]
    OtherState,
    /// The guest has other RAM.
    #[error("cannot load the guest: it has {found} bytes of RAM, the command line says {expected}")]
    OtherSize {
        /// Bytes of RAM in the guest.
        found: u64,
        /// Bytes of RAM on the command line.
        expected: u64,
    },
    /// The file cannot be read.
    #[error("cannot read file:{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is damaged.
    #[error("cannot load file:{path}: {why}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The file is of a guest with other RAM.
    #[error(
        "cannot load file:{path}: it has {found} bytes of RAM, the command line says {expected}"
    )]
    OtherRam {
        /// The file.
        path: PathBuf,
        /// Bytes of RAM in the file.
        found: u64,
        /// Bytes of RAM on the command line.
        expected: u64,
    },
    /// RAM cannot be written.
    #[error("cannot load file:{path} into guest RAM: {source}")]
    Memory {
        /// The file.
        path: PathBuf,
        /// Why.
        source: vm_memory::GuestMemoryError,
    },
    /// The file is not a snapshot.
    #[error("cannot load file:{0}: it has no guest RAM in it: it was not written in mode normal")]
    NoSnapshot(PathBuf),
    /// RAM cannot be claimed.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The state does not fit the machine.
    #[error("cannot load the state of the guest: {0}")]
    Machine(#[from] MachineError),
    /// The serial port's backend cannot be opened.
    #[error(transparent)]
    Serial(#[from] HostError),
    /// This process panicked.
    #[error("loading the guest crashed: it panicked: {0}; this is a bug in the VMM")]
    Panicked(String),
    /// Everything is loaded, and the old process did not say whether it gave the guest up.
    #[error(
        "the guest is loaded, but the old VMM did not say that it has given it up ({0}): the guest \
         is stopped here; if it does not run there, continue it here with cont"
    )]
    Unsettled(WireError),
}

/// Errors from writing a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be created or put in place.
    #[error("cannot open the migration channel file:{path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: PrivateFileError,
    },
    /// The file cannot be written.
    #[error("cannot write the migration channel file:{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}
