//! The standard input and output as the host's side of the serial port.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use nix::poll::PollFlags;

use super::is_ready;

/// Two descriptors that this process shares with others, which do not expect `O_NONBLOCK` on them.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) input: BorrowedFd<'static>,
    pub(super) output: BorrowedFd<'static>,
    /// Nothing more can be read.
    pub(super) ended: bool,
}

impl Stdio {
    pub(super) fn new() -> Self {
        // SAFETY: this program closes neither.
        let [input, output] = [0, 1].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
        Self { input, output, ended: false }
    }

    /// Reads without std's buffer, whose content an exec would lose and `poll` would not see.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || !is_ready(self.input, PollFlags::POLLIN) {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(nix::unistd::read(self.input, buffer)?)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !is_ready(self.output, PollFlags::POLLOUT) {
            return Err(ErrorKind::WouldBlock.into());
        }
        // A ready pipe takes this much without blocking, a terminal a single character.
        let most =
            if nix::unistd::isatty(self.output).unwrap_or(false) { 1 } else { libc::PIPE_BUF };
        Ok(nix::unistd::write(self.output, &bytes[..bytes.len().min(most)])?)
    }
}
