//! The main channel, over which the saved state passes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use super::error::{ReceiveError, TransferError};
use super::timed_io::{self, TimedReader};
use super::wire_error::WireError;
use crate::config::MainChannel;
use crate::migration::channel::{self, ChannelError, OutgoingFile};
use crate::private_file::Retraction;
use crate::state::{Fingerprint, FrameError, SavedState, SectionError};
use crate::switch::Switch;
use crate::unix_listener::{BindError, Listener};

const STATE: &str = "the saved state";

/// The old process's end.
#[derive(Debug)]
pub enum OutgoingMain {
    /// A file.
    File(Box<OutgoingFile>),
    /// A socket that is not connected yet.
    Path(PathBuf),
    /// A connected socket.
    Socket(OwnedFd),
}

impl OutgoingMain {
    /// Opens the file of `channel`; nothing at its path changes yet.
    pub fn open(channel: MainChannel, follow_symlinks: Switch) -> Result<Self, ChannelError> {
        Ok(match channel {
            MainChannel::File(path) => {
                Self::File(Box::new(OutgoingFile::open(path, follow_symlinks)?))
            }
            MainChannel::Unix(path) => Self::Path(path),
        })
    }

    /// Connects the socket, or makes way for the file, while the guest runs.
    pub fn connect(self) -> Result<Self, TransferError> {
        Ok(match self {
            Self::Path(path) => Self::Socket(timed_io::connect(&path)?),
            Self::File(file) => {
                file.clear_target()?;
                Self::File(file)
            }
            connected => connected,
        })
    }

    /// Returns how to remove the state again.
    pub fn retraction(&self) -> Option<Retraction> {
        match self {
            Self::File(file) => Some(file.retraction().clone()),
            _ => None,
        }
    }

    /// Writes the state to the file, before the new process learns about it.
    pub fn write_file(&mut self, state: &[u8]) -> Result<(), ChannelError> {
        match self {
            Self::File(file) => file.write(state),
            _ => Ok(()),
        }
    }

    /// Sends the state over the socket, while the new process reads it.
    pub fn send(&self, state: &[u8], until: Instant) -> Result<(), WireError> {
        match self {
            Self::Socket(socket) => timed_io::write_all(socket.as_fd(), state, STATE, until),
            _ => Ok(()),
        }
    }

    /// Keeps the file, once the new process has the guest.
    pub fn keep(self) {
        if let Self::File(file) = self {
            file.keep();
        }
    }
}

/// The new process's end.
#[derive(Debug)]
pub enum IncomingMain {
    /// A file.
    File(PathBuf),
    /// A listening socket.
    Socket(Listener),
}

impl IncomingMain {
    /// Listens on the channel's socket.
    pub fn listen(channel: MainChannel) -> Result<Self, BindError> {
        Ok(match channel {
            MainChannel::File(path) => Self::File(path),
            MainChannel::Unix(path) => Self::Socket(Listener::bind(&path)?),
        })
    }

    /// Closes connections that an earlier attempt has left in the queue.
    pub fn forget_earlier_connections(&self) {
        if let Self::Socket(listener) = self {
            while let Ok(Some(_)) = listener.accept() {}
        }
    }

    /// Reads the state, which must have this fingerprint.
    pub fn read(&self, expected: Fingerprint, until: Instant) -> Result<SavedState, ReceiveError> {
        let (state, found) = match self {
            Self::File(path) => channel::read(path)?,
            Self::Socket(listener) => read_socket(listener, until)?,
        };
        match found == expected {
            true => Ok(state),
            false => Err(ReceiveError::OtherState),
        }
    }
}

fn read_socket(
    listener: &Listener,
    until: Instant,
) -> Result<(SavedState, Fingerprint), ReceiveError> {
    let accepted = listener.accept();
    let accepted = accepted.map_err(|error| WireError::System {
        call: "accept",
        errno: nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)),
    })?;
    // The old process connects before it offers the guest.
    let socket = accepted.ok_or(WireError::Closed(STATE))?;
    timed_io::set_nonblocking(&socket)?;
    let mut stream = TimedReader { fd: socket.as_fd(), what: STATE, until };
    SavedState::read(&mut stream).map_err(|error| match error {
        SectionError::Frames(FrameError::Read(error)) => ReceiveError::from(of_stream(error)),
        source => ChannelError::Content { path: listener.path().to_owned(), source }.into(),
    })
}

/// Returns the error that a [`TimedReader`] has wrapped.
fn of_stream(error: io::Error) -> WireError {
    let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let wrapped = error.into_inner().and_then(|inner| inner.downcast::<WireError>().ok());
    wrapped.map_or(WireError::System { call: "recv", errno }, |wire| *wire)
}
