//! Why a transfer fails.

use std::io;

use super::wire_error::WireError;
use crate::devices::serial::HostError;
use crate::machine::MachineError;
use crate::memory::RamError;
use crate::migration::channel::ChannelError;
use crate::unix_listener::BindError;

/// Errors of a transfer in the old process. The guest is again as it was before.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// There is no cpr channel.
    #[error("missing 'cpr' migration channel")]
    NoCprChannel,
    /// The cpr channel cannot pass descriptors.
    #[error("cannot use {0} as the cpr channel: descriptors only pass a unix socket with a path")]
    CprChannel(&'static str),
    /// The main channel is of an unsupported kind.
    #[error("cannot use {0} as the main channel of cpr-transfer: use unix:PATH or file:PATH")]
    MainChannel(&'static str),
    /// The channel's file failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A channel failed.
    #[error("cannot transfer the guest: {0}")]
    Wire(#[from] WireError),
    /// The arguments of the new process describe another machine.
    #[error("cannot transfer the guest: the new VMM {0}; start it with this machine's arguments")]
    Differs(String),
    /// The page with the commit point cannot be created.
    #[error("cannot transfer the guest: cannot create a memfd for the commit point: {0}")]
    Page(io::Error),
    /// There is no safeguard, which holds the commit point.
    #[error("cannot transfer the guest: nothing guards it; this is a bug in the VMM")]
    Unguarded,
    /// The state from which the guest would be continued is not up to date.
    #[error(
        "cannot transfer the guest: it could not be continued if this process died; see the log"
    )]
    Stale,
    /// This process panicked.
    #[error("cannot transfer the guest: this VMM panicked: {0}; this is a bug in it")]
    Panicked(String),
    /// RAM has no descriptor.
    #[error("cannot transfer the guest: RAM block {0} has no descriptor")]
    PrivateRam(&'static str),
    /// The machine could not be paused or saved.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The new process reports that it runs the guest without having claimed it.
    #[error("cannot transfer the guest: the new VMM did not claim it; this is a bug in that VMM")]
    Unclaimed,
    /// A termination signal arrived.
    #[error("the VMM received a termination signal")]
    AskedToEnd,
    /// The keeper with the commit point is gone.
    #[error("cannot transfer the guest: the keeper ended; try again")]
    KeeperEnded,
}

/// Errors of a transfer in the new process, which has not run the guest.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// A channel's socket cannot be created.
    #[error("--incoming: {0}")]
    Listen(#[from] BindError),
    /// No connection can be accepted.
    #[error("--incoming: cannot accept a connection on the cpr channel: {0}")]
    Accept(io::Error),
    /// RAM is private.
    #[error("--incoming: cpr-transfer needs shared RAM: remove share=off from --memory")]
    PrivateRam,
    /// A channel failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The RAM cannot be adopted.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The page with the commit point cannot be adopted.
    #[error("cannot map the page with the commit point: {0}")]
    Page(io::Error),
    /// The saved state cannot be read.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The main channel holds the state of another transfer.
    #[error("the main channel holds a state that is not this guest's")]
    OtherState,
    /// The serial port's backend cannot be opened.
    #[error(transparent)]
    Serial(#[from] HostError),
    /// The machine cannot be built or restored.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A termination signal arrived.
    #[error("the VMM received a termination signal")]
    AskedToEnd,
    /// The state from which the guest would be continued is not up to date.
    #[error("the guest could not be continued here if this process died; see its log")]
    Stale,
    /// A panic, before the guest was claimed.
    #[error("it panicked: {0}; this is a bug in the VMM")]
    Panicked(String),
    /// The old process has taken the guest back.
    #[error("the old VMM has taken it back, or its keeper continues it")]
    TakenBack,
}
