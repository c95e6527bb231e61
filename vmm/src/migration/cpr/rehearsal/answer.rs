//! What the two processes of a rehearsal tell each other, and the child's side of it.
//!
//! On a stream socket: the length of each message in 4 bytes, little-endian, then CBOR. The old VMM
//! has written its [`Request`] before the child starts. The child sends its [`Description`] first,
//! then one [`Word`] after the other. VMMs that know nothing of this ask nothing, and send nothing
//! after their description.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockaddrLike, UnixAddr, getpeername, recv};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::description::Description;
use super::super::named_fds::NamedFd;
use super::family::MARK_NAME;
use crate::logging;

/// The environment variable with the number of the socket to answer on.
pub const ENV_NAME: &str = "CPR_REHEARSAL";
/// Most bytes of an answer.
pub const MAX_ANSWER: usize = 64 << 10;
/// Bytes of a message's length.
pub const HEADER: usize = 4;
/// Deepest nesting of CBOR that is followed.
const MAX_DEPTH: usize = 16;
/// How many generations up the VMM may be that rehearses.
const GENERATIONS: usize = 64;

/// What a VMM that rehearses asks for.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What an update would hand over: something is open under each of these numbers.
    #[serde(default)]
    pub fds: Vec<NamedFd>,
}

/// What a VMM says while it tries to take over.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// What it tries next.
    Step(String),
    /// Why that failed.
    Failed(String),
    /// Everything works.
    Done(Needs),
}

/// What taking over needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Descriptors, at most at a time.
    #[serde(default)]
    pub descriptors: u64,
    /// Address space.
    #[serde(default)]
    pub address_space_kib: u64,
}

/// A message that no VMM sends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There is no end of it.
    #[error("more than {MAX_ANSWER} bytes")]
    TooLong,
    /// It means nothing.
    #[error("{0} bytes that are no description of a machine")]
    Bytes(usize),
}

/// A message as it is sent.
pub fn frame(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    ciborium::into_writer(message, &mut bytes)
        .expect("writing to memory cannot fail and no message has a type CBOR lacks");
    let length = (bytes.len() - HEADER) as u32;
    bytes[..HEADER].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// The first message of `bytes`, if all of it has come.
pub fn next(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let Some((length, body)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_ANSWER {
        return Err(Malformed::TooLong);
    }
    Ok(body.get(..length))
}

/// What a message says.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    ciborium::de::from_reader_with_recursion_limit(body, MAX_DEPTH)
        .map_err(|_| Malformed::Bytes(body.len()))
}

/// The child's end.
#[derive(Debug)]
pub struct Answering {
    socket: UnixStream,
}

/// Why a rehearsal cannot be answered.
#[derive(Debug, thiserror::Error)]
#[error("cannot answer the rehearsal that {ENV_NAME}={value} asks for: {source}")]
pub struct AnswerError {
    value: String,
    source: io::Error,
}

impl Answering {
    /// The rehearsal that the environment asks for, if there is one.
    ///
    /// A variable that is left from an earlier rehearsal asks for none, and is removed.
    ///
    /// # Safety
    /// The process has one thread.
    pub unsafe fn asked() -> Option<Result<Self, AnswerError>> {
        let value = std::env::var_os(ENV_NAME)?.to_string_lossy().into_owned();
        let number: Option<RawFd> = value.parse().ok().filter(|number| *number > 2);
        let socket = number.filter(|number| is_unnamed_socket(*number));
        if socket.is_none() && !is_rehearsed() {
            logging::say(format_args!(
                "cpr-vmm: {ENV_NAME}={value} is ignored: it names no socket of a rehearsal; unset it"
            ));
            // SAFETY: there is one thread: the caller's promise.
            unsafe {
                std::env::remove_var(ENV_NAME);
                std::env::remove_var(MARK_NAME);
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

    /// What is asked for besides a description. Nothing: by a VMM that knows of nothing else.
    pub fn request(&mut self) -> io::Result<Option<Request>> {
        let bytes = read_some(&self.socket)?;
        let body = next(&bytes).map_err(io::Error::other)?;
        body.map(decode).transpose().map_err(io::Error::other)
    }

    /// Sends a message.
    pub fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.socket.write_all(&frame(message))
    }

    /// Says who this is.
    pub fn introduce(&mut self, description: &Description) -> io::Result<()> {
        self.send(description)
    }
}

/// All that is there already.
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

/// As one end of a socket pair is.
fn is_unnamed_socket(number: RawFd) -> bool {
    getpeername::<UnixAddr>(number)
        .is_ok_and(|peer| peer.family() == Some(AddressFamily::Unix) && peer.path().is_none())
}

/// True if the VMM whose mark is in the environment is an ancestor of this process.
fn is_rehearsed() -> bool {
    let mark = std::env::var(MARK_NAME).unwrap_or_default();
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
    fn a_request_is_read_if_there_is_one() {
        let (mut vmm, child) = UnixStream::pair().unwrap();
        let mut child = Answering { socket: child };
        assert_eq!(child.request().unwrap(), None);
        let request = Request { fds: vec![NamedFd { name: "kvm".to_owned(), id: 0, fd: 7 }] };
        vmm.write_all(&frame(&request)).unwrap();
        assert_eq!(child.request().unwrap(), Some(request));
    }

    #[test]
    fn only_an_end_of_a_pair_is_a_rehearsals() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(is_unnamed_socket(one.as_raw_fd()));
        assert!(!is_unnamed_socket(std::fs::File::open("/dev/null").unwrap().as_raw_fd()));
        assert!(!is_unnamed_socket(9999));
    }
}
