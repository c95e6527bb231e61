//! Errors of a channel, and the limits that they name.

use std::path::PathBuf;

use nix::errno::Errno;

use crate::state::EnvelopeError;

/// Maximum size of a message, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;
/// Maximum number of descriptors in one message.
pub const MAX_FDS: usize = 8;

/// Errors of a channel.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// There is no listener.
    #[error(
        "cannot connect to unix:{path}: {}; start the new VMM with --incoming for this channel",
        .errno.desc()
    )]
    Connect {
        /// The path.
        path: PathBuf,
        /// The cause.
        errno: Errno,
    },
    /// The listener belongs to another user.
    #[error("cannot use unix:{path}: user {uid} listens there, and could read the guest's memory")]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The user's ID.
        uid: u32,
    },
    /// The peer closed the connection.
    #[error("the other VMM closed the connection before it sent {0}")]
    Closed(&'static str),
    /// The peer did not answer in time.
    #[error("the other VMM did not send {0} in time; raise x-cpr-exec-deadline if it is slow")]
    Deadline(&'static str),
    /// The peer left before something could be sent.
    #[error("cannot send {0}: the other VMM closed the connection")]
    Left(&'static str),
    /// The peer did not read in time.
    #[error("cannot send {0}: the other VMM did not read it in time")]
    Unread(&'static str),
    /// The connection ended in the middle of something.
    #[error("the connection ended after {received} of {expected} bytes")]
    Truncated {
        /// Bytes received.
        received: usize,
        /// Bytes announced.
        expected: usize,
    },
    /// The frame is invalid.
    #[error("the other end does not speak this protocol: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The frame is too long.
    #[error("the other VMM announced a message of {0} bytes, more than the {MAX_BYTES} allowed")]
    TooLong(u64),
    /// The message cannot be decoded.
    #[error("the other VMM sent an invalid message: {0}")]
    Decode(String),
    /// The descriptors do not match the names.
    #[error("the other VMM named {announced} descriptors and sent {received}")]
    Descriptors {
        /// The number of names.
        announced: usize,
        /// The number of descriptors.
        received: usize,
    },
    /// There are too many descriptors.
    #[error("the other VMM sent {0} descriptors at once, more than the {MAX_FDS} allowed")]
    TooManyDescriptors(usize),
    /// A name is listed twice.
    #[error("the other VMM sent two descriptors called {0}")]
    Twice(String),
    /// A descriptor is missing.
    #[error("the other VMM did not send the descriptor {0}")]
    Missing(String),
    /// The message is not the expected one.
    #[error("the other VMM sent {found} instead of {expected}")]
    Unexpected {
        /// The expected message.
        expected: &'static str,
        /// The message that came.
        found: &'static str,
    },
    /// The peer does not continue.
    #[error("the other VMM refused: {0}")]
    Refused(String),
    /// A system call failed.
    #[error("{call} on a channel: {}", .errno.desc())]
    System {
        /// The system call.
        call: &'static str,
        /// The cause.
        errno: Errno,
    },
}

/// The longest reason of a peer that is repeated, in characters.
const MAX_REASON: usize = 1000;

impl WireError {
    /// Returns the error of a peer that does not continue and says why, in one line.
    pub fn refused(why: &str) -> Self {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        Self::Refused(why.chars().take(MAX_REASON).map(printable).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_a_peer_is_one_short_line() {
        assert_eq!(
            WireError::refused("a\nb\x1b[31m").to_string(),
            "the other VMM refused: a b [31m"
        );
        assert!(WireError::refused(&"x".repeat(1 << 20)).to_string().len() < 1100);
    }
}
