//! Descriptors that cross the cpr channel: by name, never by number.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::wire_error::WireError;

/// Descriptors to send, borrowed from their owners, in the order of their names.
#[derive(Debug, Default)]
pub struct CrossingFds<'a> {
    fds: Vec<(String, BorrowedFd<'a>)>,
}

impl<'a> CrossingFds<'a> {
    /// Adds a descriptor.
    pub fn add(&mut self, name: impl Into<String>, fd: BorrowedFd<'a>) {
        self.fds.push((name.into(), fd));
    }

    /// Returns the names, for the message.
    pub fn names(&self) -> Vec<String> {
        self.fds.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Returns the numbers, for the system call.
    pub fn numbers(&self) -> Vec<RawFd> {
        self.fds.iter().map(|(_, fd)| fd.as_raw_fd()).collect()
    }
}

/// Descriptors that were received, until their new owners take them by name.
#[derive(Debug, Default)]
pub struct ReceivedFds {
    fds: Vec<(String, OwnedFd)>,
}

impl ReceivedFds {
    /// Pairs the descriptors of a message with the names in it.
    pub fn pair(names: &[String], fds: Vec<OwnedFd>) -> Result<Self, WireError> {
        if names.len() != fds.len() {
            let (announced, received) = (names.len(), fds.len());
            return Err(WireError::Descriptors { announced, received });
        }
        for (at, name) in names.iter().enumerate() {
            if names[..at].contains(name) {
                return Err(WireError::Twice(name.clone()));
            }
        }
        Ok(Self { fds: names.iter().cloned().zip(fds).collect() })
    }

    /// Hands the descriptor called `name` to its new owner.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.fds.iter().position(|(known, _)| known == name)?;
        Some(self.fds.swap_remove(at).1)
    }

    /// Returns the names of the descriptors that were not taken.
    pub fn leftover(&self) -> Vec<&str> {
        self.fds.iter().map(|(name, _)| name.as_str()).collect()
    }
}
