//! The frames of the cpr channel: an envelope (magic, version, length, checksum) with one message,
//! and its descriptors beside the first byte.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::fds::{CrossingFds, ReceivedFds};
use super::message::Message;
use super::timed_io;
use super::wire_error::{MAX_BYTES, MAX_FDS, WireError};
use crate::state::{ENVELOPE_HEADER, Envelope};

/// The version of the messages.
const VERSION: u32 = 1;
const ENVELOPE: Envelope = Envelope { magic: *b"CPRXFER\n", version: VERSION };
/// How long a peer may take to accept a refusal.
const REFUSAL: Duration = Duration::from_millis(10);
/// Maximum nesting depth of CBOR.
const MAX_DEPTH: usize = 32;
/// The most descriptors that the kernel passes at once (`SCM_MAX_FD`).
const KERNEL_FDS: usize = 253;

/// A message with its descriptors.
#[derive(Debug)]
pub struct Frame {
    /// The message.
    pub message: Message,
    /// Its descriptors.
    pub fds: ReceivedFds,
}

impl Frame {
    /// Returns the error of a frame that is not the `expected` one.
    pub fn unexpected(self, expected: &'static str) -> WireError {
        match self.message {
            Message::Refused(why) => WireError::refused(&why),
            other => WireError::Unexpected { expected, found: other.name() },
        }
    }
}

/// A connection of the cpr channel. Its socket is non-blocking.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// Uses a connected socket.
    pub fn new(socket: OwnedFd) -> Result<Self, WireError> {
        timed_io::set_nonblocking(&socket)?;
        Ok(Self { socket, input: Vec::new(), fds: Vec::new() })
    }

    /// Sends a message with its descriptors. If the peer has left and said why, that is the error.
    pub fn send(
        &mut self,
        message: &Message,
        fds: &CrossingFds<'_>,
        until: Instant,
    ) -> Result<(), WireError> {
        let mut body = Vec::new();
        ciborium::into_writer(message, &mut body)
            .expect("writing to memory cannot fail and messages have no type CBOR lacks");
        let bytes = ENVELOPE.seal(&body).0;
        match self.send_bytes(&bytes, &fds.numbers(), message.name(), until) {
            Err(error @ WireError::Left(what)) => match self.try_receive(what) {
                Ok(Some(Frame { message: Message::Refused(why), .. })) => {
                    Err(WireError::refused(&why))
                }
                _ => Err(error),
            },
            sent => sent,
        }
    }

    /// Tells the peer why this process does not continue, if it still listens.
    pub fn refuse(&mut self, why: &str) {
        let refused = Message::Refused(why.to_owned());
        let _ = self.send(&refused, &CrossingFds::default(), Instant::now() + REFUSAL);
    }

    fn send_bytes(
        &self,
        bytes: &[u8],
        fds: &[RawFd],
        what: &'static str,
        until: Instant,
    ) -> Result<(), WireError> {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[] as &[_] } else { &rights };
        let (part, number) = ([IoSlice::new(bytes)], self.socket.as_raw_fd());
        let sent = loop {
            match sendmsg::<()>(number, &part, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => break sent,
                Err(Errno::EAGAIN) => {
                    let late = || WireError::Unread(what);
                    timed_io::wait(self.as_fd(), PollFlags::POLLOUT, late, until)?;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(WireError::Left(what)),
                Err(errno) => return Err(WireError::System { call: "sendmsg", errno }),
            }
        };
        timed_io::write_all(self.as_fd(), &bytes[sent..], what, until)
    }

    /// Waits for a message; `what` names it in errors.
    pub fn receive(&mut self, what: &'static str, until: Instant) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = self.try_receive(what)? {
                return Ok(frame);
            }
            let late = || WireError::Deadline(what);
            timed_io::wait(self.as_fd(), PollFlags::POLLIN, late, until)?;
        }
    }

    /// Returns a message if the whole of it has arrived. Reads nothing beyond its end, where the
    /// next one's descriptors are.
    pub fn try_receive(&mut self, what: &'static str) -> Result<Option<Frame>, WireError> {
        loop {
            let expected = self.expected()?;
            if self.input.len() == expected {
                return self.take_frame().map(Some);
            }
            match self.read_up_to(expected) {
                Ok(0) if self.input.is_empty() => return Err(WireError::Closed(what)),
                Ok(0) => {
                    return Err(WireError::Truncated { received: self.input.len(), expected });
                }
                Ok(_) if self.fds.len() > MAX_FDS => {
                    return Err(WireError::TooManyDescriptors(self.fds.len()));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ECONNRESET) => return Err(WireError::Closed(what)),
                Err(errno) => return Err(WireError::System { call: "recvmsg", errno }),
            }
        }
    }

    /// Returns the length of the frame, as far as it is known.
    fn expected(&self) -> Result<usize, WireError> {
        if self.input.len() < ENVELOPE_HEADER {
            return Ok(ENVELOPE_HEADER);
        }
        match ENVELOPE.announced(&self.input)? {
            announced if announced > MAX_BYTES => Err(WireError::TooLong(announced)),
            announced => Ok(ENVELOPE_HEADER + announced as usize),
        }
    }

    fn read_up_to(&mut self, expected: usize) -> Result<usize, Errno> {
        let before = self.input.len();
        self.input.resize(expected, 0);
        let mut space = cmsg_space!([RawFd; KERNEL_FDS]);
        let mut part = [IoSliceMut::new(&mut self.input[before..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let result = recvmsg::<()>(self.socket.as_raw_fd(), &mut part, Some(&mut space), flags)
            .and_then(|message| {
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(numbers) = control {
                        // SAFETY: the kernel has just opened them for this process.
                        let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
                        self.fds.extend(numbers.into_iter().map(own));
                    }
                }
                Ok(message.bytes)
            });
        if result == Err(Errno::ENOBUFS) {
            close_installed(&space);
        }
        self.input.truncate(before + *result.as_ref().unwrap_or(&0));
        result
    }

    fn take_frame(&mut self) -> Result<Frame, WireError> {
        let (bytes, fds) = (std::mem::take(&mut self.input), std::mem::take(&mut self.fds));
        let (mut body, _) = ENVELOPE.open(&bytes)?;
        let message: Message = ciborium::de::from_reader_with_recursion_limit(&mut body, MAX_DEPTH)
            .map_err(|error| WireError::Decode(error.to_string()))?;
        if !body.is_empty() {
            return Err(WireError::Decode(format!("{} bytes follow it", body.len())));
        }
        let fds = ReceivedFds::pair(message.descriptors(), fds)?;
        Ok(Frame { message, fds })
    }
}

/// Closes the descriptors of a message that did not all fit below `RLIMIT_NOFILE`: the kernel has
/// opened some of them. `control` is its buffer for control messages.
fn close_installed(control: &[u8]) {
    // SAFETY: the buffer is longer than a header, which may have any bytes.
    let header: libc::cmsghdr = unsafe { std::ptr::read_unaligned(control.as_ptr().cast()) };
    // SAFETY: a computation.
    let start = unsafe { libc::CMSG_LEN(0) } as usize;
    let end = control.len().min(header.cmsg_len);
    let kind = (header.cmsg_level, header.cmsg_type);
    if kind != (libc::SOL_SOCKET, libc::SCM_RIGHTS) || end < start {
        return;
    }
    for number in control[start..end].as_chunks().0 {
        // SAFETY: the kernel has just opened it for this process, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(*number)) });
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
