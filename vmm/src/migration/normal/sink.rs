//! Where copied RAM goes: to the other process's socket, or to a file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::ram_stream::{HEADER, Kind, MAX_DATA, Record};
use crate::migration::transfer::{WireError, timed_io};

/// How long the other process may read nothing.
const STALLED: Duration = Duration::from_secs(10);
const RAM: &str = "guest RAM";

/// Errors from writing RAM.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Over a socket.
    #[error(transparent)]
    Socket(#[from] WireError),
    /// To a file.
    #[error("cannot write guest RAM to the file: {0}")]
    File(#[from] io::Error),
}

/// Where copied RAM goes.
#[derive(Debug)]
pub enum Sink {
    /// A socket, as `ram_stream` describes.
    Socket(SocketSink),
    /// A file.
    File(FileSink),
}

/// A socket.
#[derive(Debug)]
pub struct SocketSink {
    socket: OwnedFd,
    /// A record: written with its header at once.
    record: Vec<u8>,
}

/// A file.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    /// Where RAM begins.
    start: u64,
    /// Nothing was written yet: pages of zeros are holes.
    fresh: bool,
}

impl Sink {
    /// RAM goes over a socket that does not block.
    pub fn socket(socket: OwnedFd) -> Self {
        Self::Socket(SocketSink { socket, record: Vec::with_capacity(HEADER + MAX_DATA as usize) })
    }

    /// RAM goes to an empty file, from `start` on.
    pub fn file(file: File, start: u64) -> Self {
        Self::File(FileSink { file, start, fresh: true })
    }

    /// Returns the socket, if it is one.
    pub fn socket_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket(sink) => Some(sink.socket.as_fd()),
            Self::File(_) => None,
        }
    }

    /// Writes the content of pages, at most [`MAX_DATA`] bytes, and returns how many bytes it took.
    pub fn data(&mut self, offset: u64, data: &[u8]) -> Result<u64, SinkError> {
        match self {
            Self::Socket(sink) => {
                sink.send(Record { offset, length: data.len() as u32, kind: Kind::Data }, data)
            }
            Self::File(sink) => {
                sink.file.write_all_at(data, sink.start + offset)?;
                Ok(data.len() as u64)
            }
        }
    }

    /// Writes pages of zeros.
    pub fn zeros(&mut self, offset: u64, length: u64) -> Result<u64, SinkError> {
        match self {
            Self::Socket(sink) => {
                sink.send(Record { offset, length: length as u32, kind: Kind::Zeros }, &[])
            }
            Self::File(FileSink { fresh: true, .. }) => Ok(0),
            Self::File(sink) => {
                sink.file.write_all_at(&vec![0; length as usize], sink.start + offset)?;
                Ok(length)
            }
        }
    }

    /// Tells the other process that this one is alive.
    pub fn idle(&mut self) -> Result<(), SinkError> {
        match self {
            Self::Socket(sink) => sink.send(Record::mark(Kind::Idle), &[]).map(drop),
            Self::File(_) => Ok(()),
        }
    }

    /// Ends a pass over RAM.
    pub fn end_pass(&mut self) {
        if let Self::File(sink) = self {
            sink.fresh = false;
        }
    }

    /// Ends the copy.
    pub fn end(&mut self) -> Result<(), SinkError> {
        match self {
            Self::Socket(sink) => sink.send(Record::mark(Kind::End), &[]).map(drop),
            Self::File(sink) => Ok(sink.file.sync_data()?),
        }
    }
}

impl SocketSink {
    fn send(&mut self, record: Record, data: &[u8]) -> Result<u64, SinkError> {
        self.record.clear();
        self.record.extend_from_slice(&record.to_bytes());
        self.record.extend_from_slice(data);
        let until = Instant::now() + STALLED;
        timed_io::write_all(self.socket.as_fd(), &self.record, RAM, until)?;
        Ok(self.record.len() as u64)
    }
}
