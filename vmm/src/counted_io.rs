//! Socket I/O whose byte counts survive the death of this process: `sendmmsg` and `recvmmsg` write
//! the number of bytes into our memory before they return, and a killed process dies only after
//! that.
//!
//! Counts the bytes transferred since the newest copy of the state that they belong to, which does
//! not include them: that of a device (see [`Shadow`](crate::devices::shadow::Shadow)) or of the
//! QMP server.

use std::cell::UnsafeCell;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::errno::Errno;

/// Maximum number of send calls between two copies.
const CALLS: usize = 16;
/// Placeholder that the kernel replaces when a call has sent or received something.
const NOTHING: u32 = u32::MAX;

struct Call {
    header: libc::mmsghdr,
    part: libc::iovec,
}

struct Inner {
    sends: [Call; CALLS],
    receive: Call,
    received: Box<[u8]>,
}

/// The counters that the kernel writes for one socket.
pub struct CountedIo {
    /// Generation of the newest copy; 0 while there is none.
    generation: AtomicU64,
    /// Generation of the copy that the recorded calls follow.
    of: AtomicU64,
    used: AtomicUsize,
    inner: UnsafeCell<Box<Inner>>,
}

// SAFETY: only the socket's owner, or a holder of its owner's lock, uses it; others read it only
// when no such thread exists any more.
unsafe impl Sync for CountedIo {}
// SAFETY: as above; the pointers in it lead into itself, or to data that lives for a call.
unsafe impl Send for CountedIo {}

impl std::fmt::Debug for CountedIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExactIo").finish_non_exhaustive()
    }
}

/// The bytes transferred since the newest copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transferred<'a> {
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: &'a [u8],
}

impl CountedIo {
    /// Creates counters for a socket from which at most `most` bytes are received at once.
    pub fn new(most: usize) -> Self {
        // SAFETY: all-zero is a valid value of these structures.
        let call = || unsafe { std::mem::zeroed::<Call>() };
        let inner = Box::new(Inner {
            sends: std::array::from_fn(|_| call()),
            receive: call(),
            received: vec![0; most].into(),
        });
        Self {
            generation: AtomicU64::new(0),
            of: AtomicU64::new(0),
            used: AtomicUsize::new(0),
            inner: UnsafeCell::new(inner),
        }
    }
}

impl CountedIo {
    /// Records that a new copy was made, or with 0 that none exists any more. Only for the socket's
    /// owner.
    pub fn copied(&self, generation: u64) {
        self.generation.store(generation, Ordering::Release);
    }

    /// Sends as much as the socket accepts without blocking.
    pub fn send(&self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let inner = self.begin();
        let used = self.used.load(Ordering::Relaxed);
        if used == CALLS {
            // The next copy makes room.
            return Err(Errno::EAGAIN);
        }
        self.used.store(used + 1, Ordering::Relaxed);
        let call = inner.sends[used].prepare(part);
        // SAFETY: one message, whose parts live for the call.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), call, 1, flags) };
        Errno::result(sent)?;
        // SAFETY: the kernel has written it.
        Ok(unsafe { (*call).msg_len } as usize)
    }

    /// Receives at most `room` bytes without blocking.
    pub fn receive(&self, socket: BorrowedFd<'_>, room: usize) -> Result<Vec<u8>, Errno> {
        let inner = self.begin();
        let Inner { receive, received, .. } = inner;
        if receive.header.msg_len != NOTHING {
            return Err(Errno::EAGAIN);
        }
        let part = libc::iovec {
            iov_base: received.as_mut_ptr().cast(),
            iov_len: room.min(received.len()),
        };
        let call = receive.prepare(part);
        let no_timeout = std::ptr::null_mut();
        // SAFETY: one message, whose parts live for the call.
        let once = || unsafe {
            let flags = libc::MSG_DONTWAIT;
            Errno::result(libc::recvmmsg(socket.as_raw_fd(), call, 1, flags, no_timeout))
        };
        // Unlike `recv`, it reports a pending error first, and only once, even if there is data to
        // receive: a peer that closes the connection may leave both.
        once().or_else(|errno| match errno {
            Errno::EAGAIN | Errno::EINTR => Err(errno),
            _ => once(),
        })?;
        // SAFETY: the kernel has written it.
        let length = unsafe { (*call).msg_len } as usize;
        Ok(received[..length.min(received.len())].to_vec())
    }

    /// Clears the records of an older copy before a transfer.
    #[allow(clippy::mut_from_ref)]
    fn begin(&self) -> &mut Inner {
        // SAFETY: the caller is the socket's owner, and the result ends before it calls again.
        let inner = unsafe { &mut *self.inner.get() };
        let now = self.generation.load(Ordering::Acquire);
        if now == 0 || self.of.load(Ordering::Relaxed) != now {
            for call in inner.sends.iter_mut().chain([&mut inner.receive]) {
                call.header.msg_len = NOTHING;
            }
            self.used.store(0, Ordering::Relaxed);
            self.of.store(now, Ordering::Release);
        }
        inner
    }

    /// Returns whether any transfer was tried since the newest copy. Only for the socket's owner.
    pub fn was_used(&self) -> bool {
        let now = self.generation.load(Ordering::Relaxed);
        // SAFETY: the caller is the socket's owner.
        let received = unsafe { &*self.inner.get() }.receive.header.msg_len != NOTHING;
        now != 0
            && self.of.load(Ordering::Relaxed) == now
            && (self.used.load(Ordering::Relaxed) > 0 || received)
    }

    /// Returns the bytes transferred since the copy `generation`. Async-signal-safe.
    ///
    /// # Safety
    /// No thread that could send or receive may be running.
    pub unsafe fn went(&self, generation: u64) -> Transferred<'_> {
        if self.of.load(Ordering::Acquire) != generation {
            return Transferred::default();
        }
        // SAFETY: no thread writes it: the caller's promise. The kernel wrote the counters.
        let inner = unsafe { &*self.inner.get() };
        let length = |call: &Call| match call.header.msg_len {
            NOTHING => 0,
            length => length,
        };
        let sent = inner.sends.iter().map(|call| u64::from(length(call))).sum();
        let received = length(&inner.receive) as usize;
        Transferred { sent, received: &inner.received[..received.min(inner.received.len())] }
    }
}

impl Call {
    fn prepare(&mut self, part: libc::iovec) -> *mut libc::mmsghdr {
        self.part = part;
        self.header.msg_hdr.msg_iov = &raw mut self.part;
        self.header.msg_hdr.msg_iovlen = 1;
        self.header.msg_len = NOTHING;
        &raw mut self.header
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn went(io: &CountedIo, generation: u64) -> (u64, Vec<u8>) {
        // SAFETY: there is one thread.
        let Transferred { sent, received } = unsafe { io.went(generation) };
        (sent, received.to_vec())
    }

    #[test]
    fn traffic_is_counted_until_next_copy() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let io = CountedIo::new(64);
        io.copied(7);
        assert_eq!(went(&io, 7), (0, vec![]));
        assert_eq!(io.send(ours.as_fd(), b"abc"), Ok(3));
        assert_eq!(io.send(ours.as_fd(), b"d"), Ok(1));
        theirs.write_all(b"xyz").unwrap();
        assert_eq!(io.receive(ours.as_fd(), 2), Ok(b"xy".to_vec()));
        assert_eq!(io.receive(ours.as_fd(), 2), Err(Errno::EAGAIN));
        assert_eq!(went(&io, 7), (4, b"xy".to_vec()));
        assert_eq!(went(&io, 8), (0, vec![]));
        io.copied(8);
        assert_eq!(went(&io, 8), (0, vec![]));
        assert_eq!(io.receive(ours.as_fd(), 2), Ok(b"z".to_vec()));
        assert_eq!(went(&io, 8), (0, b"z".to_vec()));
        let mut seen = [0; 4];
        theirs.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"abcd");
    }

    #[test]
    fn calls_without_data_count_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let io = CountedIo::new(64);
        io.copied(1);
        assert_eq!(io.receive(ours.as_fd(), 2), Err(Errno::EAGAIN));
        drop(theirs);
        assert_eq!(io.send(ours.as_fd(), b"a"), Err(Errno::EPIPE));
        assert_eq!(io.receive(ours.as_fd(), 2), Ok(vec![]));
        assert_eq!(went(&io, 1), (0, vec![]));
    }

    #[test]
    fn data_sent_before_close_is_received() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let io = CountedIo::new(64);
        io.send(ours.as_fd(), b"which it does not read").unwrap();
        theirs.write_all(b"last words").unwrap();
        drop(theirs);
        assert_eq!(io.receive(ours.as_fd(), 64), Ok(b"last words".to_vec()));
        assert_eq!(io.receive(ours.as_fd(), 64), Ok(vec![]));
    }

    #[test]
    fn calls_are_unlimited_without_copy() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let io = CountedIo::new(64);
        for _ in 0..=CALLS {
            assert_eq!(io.send(ours.as_fd(), b"a"), Ok(1));
        }
        io.copied(1);
        for _ in 0..CALLS {
            assert_eq!(io.send(ours.as_fd(), b"a"), Ok(1));
        }
        assert_eq!(io.send(ours.as_fd(), b"a"), Err(Errno::EAGAIN));
    }
}
