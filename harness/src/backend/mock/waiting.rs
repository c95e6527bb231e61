//! An update of the mock that waits for its other process.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// An update that waits for its other process.
pub enum Waiting {
    /// In the old process: the connection to the new one, which builds the VM, and the path of its
    /// main channel.
    Old(UnixStream, String),
    /// In the new process: the main channel on which the old one will connect.
    New(UnixListener),
}

impl Waiting {
    /// What is readable once the other process has acted.
    pub fn source(&self) -> BorrowedFd<'_> {
        match self {
            Self::Old(stream, _) => stream.as_fd(),
            Self::New(listener) => listener.as_fd(),
        }
    }
}
