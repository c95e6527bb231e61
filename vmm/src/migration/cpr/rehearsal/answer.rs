//! The protocol between the two processes of a rehearsal, and the child's side of it.
//!
//! On a stream socket, each message is its length in 4 bytes, little-endian, then CBOR. The old VMM
//! has written its [`Request`] before the child starts. The child sends its [`Description`] first,
//! then one [`Word`] after another. VMMs that do not know this protocol write no request, and send
//! nothing after their description.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockaddrLike, UnixAddr, getpeername, recv};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::description::Description;
use super::super::named_fds::NamedFd;
use super::super::variables::{REHEARSAL, REHEARSAL_MARK};
use crate::logging;

/// Maximum size of a reply, in bytes.
pub const MAX_ANSWER: usize = 64 << 10;
/// Size of a message's length field, in bytes.
pub const HEADER: usize = 4;
/// Maximum nesting depth of CBOR.
const MAX_DEPTH: usize = 16;
/// How many generations up to search for the VMM that rehearses.
const GENERATIONS: usize = 64;

/// The request of a VMM that rehearses.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The descriptors that an update would hand over: each of these numbers is open.
    #[serde(default)]
    pub fds: Vec<NamedFd>,
}

/// A progress message of a VMM that tries to take over.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// The step that it tries next.
    Step(String),
    /// Why that step failed.
    Failed(String),
    /// Every step succeeded.
    Done(Needs),
}

/// The resources that taking over needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Peak number of descriptors.
    #[serde(default)]
    pub descriptors: u64,
    /// Address space in KiB.
    #[serde(default)]
    pub address_space_kib: u64,
}

/// Errors from an invalid message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message exceeds the maximum size.
    #[error("more than {MAX_ANSWER} bytes")]
    TooLong,
    /// The message cannot be decoded.
    #[error("cannot decode {0} bytes")]
    Bytes(usize),
}

/// Encodes a message with its length.
pub fn frame(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    ciborium::into_writer(message, &mut bytes)
        .expect("writing to memory cannot fail and no message has a type CBOR lacks");
    let length = (bytes.len() - HEADER) as u32;
    bytes[..HEADER].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Returns the body of the first message in `bytes`, if it has arrived completely.
pub fn next(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let Some((length, body)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_ANSWER {
        return Err(Malformed::TooLong);
    }
    Ok(body.get(..length))
}

/// Decodes the body of a message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    ciborium::de::from_reader_with_recursion_limit(body, MAX_DEPTH)
        .map_err(|_| Malformed::Bytes(body.len()))
}

/// The child's end of the socket.
#[derive(Debug)]
pub struct Answering {
    socket: UnixStream,
}

/// The error of a rehearsal that cannot be answered.
#[derive(Debug, thiserror::Error)]
#[error("cannot answer the rehearsal requested by {REHEARSAL}={value}: {source}")]
pub struct AnswerError {
    value: String,
    source: io::Error,
}

impl Answering {
    /// Returns the rehearsal that the environment requests, if there is one.
    ///
    /// A variable left from an earlier rehearsal requests none, and is removed.
    ///
    /// # Safety
    /// The process has one thread.
    pub unsafe fn asked() -> Option<Result<Self, AnswerError>> {
        let value = std::env::var_os(REHEARSAL)?.to_string_lossy().into_owned();
        let number: Option<RawFd> = value.parse().ok().filter(|number| *number > 2);
        let socket = number.filter(|number| is_unnamed_socket(*number));
        if socket.is_none() && !is_rehearsed() {
            logging::say(format_args!(
                "cpr-vmm: {REHEARSAL}={value} is ignored: not a rehearsal socket; unset it"
            ));
            // SAFETY: there is one thread: the caller's promise.
            unsafe {
                std::env::remove_var(REHEARSAL);
                std::env::remove_var(REHEARSAL_MARK);
            }
            return None;
        }
        let socket = socket.ok_or(io::Error::from_raw_os_error(libc::EBADF)).and_then(|number| {
            // SAFETY: it is open; the process owns nothing yet.
            unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
        });
        let socket = socket.map(|socket| Self { socket: socket.into() });
        Some(socket.map_err(|source| AnswerError { value, source }))
    }

    /// Reads the request for more than a description. A VMM that does not know such requests sends
    /// none.
    pub fn request(&mut self) -> io::Result<Option<Request>> {
        let bytes = read_some(&self.socket)?;
        let body = next(&bytes).map_err(io::Error::other)?;
        body.map(decode).transpose().map_err(io::Error::other)
    }

    /// Sends a message.
    pub fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.socket.write_all(&frame(message))
    }

    /// Sends the description of this VMM.
    pub fn introduce(&mut self, description: &Description) -> io::Result<()> {
        self.send(description)
    }
}

/// Reads what has already arrived.
fn read_some(socket: &UnixStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() <= MAX_ANSWER {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::EAGAIN) => break,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(bytes)
}

/// Returns true if the number is an unnamed Unix socket, like one end of a socket pair.
fn is_unnamed_socket(number: RawFd) -> bool {
    getpeername::<UnixAddr>(number)
        .is_ok_and(|peer| peer.family() == Some(AddressFamily::Unix) && peer.path().is_none())
}

/// Returns true if the VMM whose mark is in the environment is an ancestor of this process.
fn is_rehearsed() -> bool {
    let mark = std::env::var(REHEARSAL_MARK).unwrap_or_default();
    let Some(vmm) = mark.split('.').next().and_then(|pid| pid.parse::<i32>().ok()) else {
        return false;
    };
    let parent_of = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let own = std::process::id() as i32;
    std::iter::successors(Some(own), parent_of).skip(1).take(GENERATIONS).any(|pid| pid == vmm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_follow_one_another() {
        let words = [Word::Step("a".to_owned()), Word::Done(Needs::default())];
        let bytes: Vec<u8> = words.iter().flat_map(frame).collect();
        let first = next(&bytes).unwrap().unwrap();
        assert_eq!(decode::<Word>(first).unwrap(), words[0]);
        let rest = &bytes[HEADER + first.len()..];
        assert_eq!(decode::<Word>(next(rest).unwrap().unwrap()).unwrap(), words[1]);
        assert_eq!(next(&rest[..rest.len() - 1]), Ok(None));
    }

    #[test]
    fn reads_request_if_present() {
        let (mut vmm, child) = UnixStream::pair().unwrap();
        let mut child = Answering { socket: child };
        assert_eq!(child.request().unwrap(), None);
        let request = Request { fds: vec![NamedFd { name: "kvm".to_owned(), id: 0, fd: 7 }] };
        vmm.write_all(&frame(&request)).unwrap();
        assert_eq!(child.request().unwrap(), Some(request));
    }

    #[test]
    fn accepts_only_one_end_of_a_socket_pair() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(is_unnamed_socket(one.as_raw_fd()));
        assert!(!is_unnamed_socket(std::fs::File::open("/dev/null").unwrap().as_raw_fd()));
        assert!(!is_unnamed_socket(9999));
    }
}
