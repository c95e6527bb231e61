//! Writes to a descriptor without ever waiting for its reader.
//!
//! Standard error is shared with the parent process: setting `O_NONBLOCK` would affect it too.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};

/// Where lines go.
#[derive(Debug)]
pub enum Sink {
    /// Standard error.
    Stderr,
    /// A file of the VMM's own.
    File(Arc<File>),
}

impl Sink {
    /// Returns the descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            // SAFETY: this process never closes it; if it is closed anyway, a write gives EBADF.
            Self::Stderr => unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) },
            Self::File(file) => file.as_fd(),
        }
    }

    /// Writes as much of `bytes` as is accepted at once; `EAGAIN` if nothing is.
    pub fn write_now(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let fd = self.fd();
        if is_regular(fd) {
            return write(fd, bytes);
        }
        match write_nowait(fd, bytes) {
            // The kernel does not support the flag for this kind of file.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {}
            result => return result,
        }
        if !is_writable(fd) {
            return Err(Errno::EAGAIN);
        }
        // A writable pipe has room for at least this much.
        write(fd, &bytes[..bytes.len().min(libc::PIPE_BUF)])
    }

    /// Waits up to `limit` until something can be written.
    pub fn await_room(&self, limit: PollTimeout) {
        let _ = poll(&mut [PollFd::new(self.fd(), PollFlags::POLLOUT)], limit);
    }
}

/// Returns whether `fd` is a regular file, which has no reader to wait for.
fn is_regular(fd: BorrowedFd<'_>) -> bool {
    fstat(fd)
        .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG)
}

fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel reads `bytes.len()` bytes of a slice.
    let written = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    Errno::result(written).map(|n| n as usize)
}

/// Writes as if the descriptor were non-blocking, for this call only.
fn write_nowait(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    const CURRENT: libc::off_t = -1;
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel reads one part, which is a slice, and changes nothing of it.
    let written = unsafe { libc::pwritev2(fd.as_raw_fd(), &part, 1, CURRENT, libc::RWF_NOWAIT) };
    Errno::result(written).map(|n| n as usize)
}
