//! Errors from starting a VMM.

use std::path::PathBuf;

use super::incoming::LoadError;
use crate::boot::ImageError;
use crate::devices::serial::HostError;
use crate::logging::LogError;
use crate::machine::MachineError;
use crate::memory::RamError;
use crate::migration::cpr::safeguard::SafeguardError;
use crate::migration::cpr::take_over::TakeOverError;
use crate::migration::normal::NormalLoadError;
use crate::migration::reboot::RebootLoadError;
use crate::migration::transfer::ReceiveError;
use crate::pid_file::PidFileError;
use crate::qmp::RestoreError;
use crate::unix_listener::BindError;

/// Errors from starting a VMM.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A fail point was hit.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// The state that was handed over across exec could not be adopted.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The log could not be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The PID file could not be written.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// The signal handlers could not be installed.
    #[error("cannot install signal handlers: {0}")]
    Signals(std::io::Error),
    /// The QMP socket could not be created.
    #[error("--qmp: {0}")]
    Qmp(#[from] BindError),
    /// The QMP server could not be restored.
    #[error(transparent)]
    QmpRestore(#[from] RestoreError),
    /// Guest RAM could not be created or adopted.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The boot image could not be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The serial port's backend could not be opened.
    #[error(transparent)]
    Serial(#[from] HostError),
    /// The machine could not be created.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The keeper could not be started.
    #[error("--keeper on: {0}")]
    Safeguard(#[from] SafeguardError),
    /// The saved state could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The RAM of a stranded guest could not be opened.
    #[error("--incoming-ram: cannot open {path}: {source}")]
    OpenRam {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The guest is not stranded: it runs in another process.
    #[error(
        "--incoming-ram: cannot take over the guest in {0}: another process runs it; only the RAM \
         that a failed update left behind can be taken over"
    )]
    RamInUse(PathBuf),
    /// A RAM block was not handed over.
    #[error("RAM block {0} was not handed over: its descriptor is not in the CPR state")]
    NoRam(String),
    /// `--incoming` was given, but there is no guest to take over.
    #[error(
        "--incoming needs the guest's RAM, which an update (cpr-exec) hands over, but this process \
         was not started by one: for a guest that was saved (cpr-reboot), use --memory \
         SIZE,file=PATH; for one that a failed update left behind, --incoming file:PATH with \
         --incoming-ram"
    )]
    NothingIncoming,
    /// This process was executed by an update, but waits for a transfer.
    #[error(
        "this process was started by an update (cpr-exec), but its --incoming options are for \
         cpr-transfer: use --incoming file:PATH alone"
    )]
    TransferAfterExec,
    /// The guest cannot be received.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// A guest cannot be loaded with its RAM.
    #[error(transparent)]
    Normal(#[from] NormalLoadError),
    /// A saved guest cannot be continued.
    #[error(transparent)]
    Reboot(#[from] RebootLoadError),
    /// There is a guest to take over, but `--incoming` was not given.
    #[error("this process was started by an update (cpr-exec), but --incoming is missing")]
    IncomingMissing,
}
