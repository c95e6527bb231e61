//! Reads and writes on non-blocking sockets, each with a deadline.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, getsockopt, sockopt,
};
use nix::unistd::geteuid;

use super::wire_error::WireError;

/// Waits until `fd` is ready for `events`, and fails with `late` at the deadline.
pub fn wait(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    late: impl FnOnce() -> WireError,
    until: Instant,
) -> Result<(), WireError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        // Rounded up: the last millisecond would be spent in a loop otherwise.
        let left = PollTimeout::try_from(left + Duration::from_millis(1));
        match poll(&mut [PollFd::new(fd, events)], left.unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(WireError::System { call: "poll", errno }),
        }
    }
}

/// Writes all of `bytes`.
pub fn write_all(
    fd: BorrowedFd<'_>,
    mut bytes: &[u8],
    what: &'static str,
    until: Instant,
) -> Result<(), WireError> {
    while !bytes.is_empty() {
        // A peer that has left must not raise SIGPIPE.
        match socket::send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::EAGAIN) => {
                wait(fd, PollFlags::POLLOUT, || WireError::Unread(what), until)?;
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(WireError::Left(what)),
            Err(errno) => return Err(WireError::System { call: "send", errno }),
        }
    }
    Ok(())
}

/// A socket, read as a stream. Its errors hold a [`WireError`].
pub struct TimedReader<'a> {
    /// The socket.
    pub fd: BorrowedFd<'a>,
    /// What is read, for errors.
    pub what: &'static str,
    /// The deadline.
    pub until: Instant,
}

impl Read for TimedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match socket::recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(received) => return Ok(received),
                Err(Errno::EAGAIN) => {
                    let late = || WireError::Deadline(self.what);
                    wait(self.fd, PollFlags::POLLIN, late, self.until).map_err(io::Error::other)?;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => {
                    return Err(io::Error::other(WireError::Closed(self.what)));
                }
                Err(errno) => {
                    return Err(io::Error::other(WireError::System { call: "recv", errno }));
                }
            }
        }
    }
}

/// Connects to the socket at `path`, without blocking. Its owner must be this user or root: the
/// path may have been prepared by others.
pub fn connect(path: &Path) -> Result<OwnedFd, WireError> {
    let failed = |errno| WireError::Connect { path: path.to_owned(), errno };
    let address = UnixAddr::new(path).map_err(failed)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    socket::connect(fd.as_raw_fd(), &address).map_err(failed)?;
    let peer = getsockopt(&fd, sockopt::PeerCredentials).map_err(failed)?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return Err(WireError::Foreign { path: path.to_owned(), uid: peer.uid() });
    }
    Ok(fd)
}

/// Makes a descriptor non-blocking.
pub fn set_nonblocking(fd: &impl AsFd) -> Result<(), WireError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let error = |errno| WireError::System { call: "fcntl", errno };
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(error)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).map(drop).map_err(error)
}
