//! A file with a guest's RAM and state.
//!
//! | offset | content |
//! |---|---|
//! | 0 | the header, in an envelope: where the rest is |
//! | 1 MiB | RAM as it is, with holes where it is zero |
//! | after that | the saved state |
//!
//! Everything is on disk before the file gets its name.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{NormalLoadError, SnapshotError};
use super::holes::next_data;
use crate::memory::{RamBlock, RamBlockInfo, RamView};
use crate::private_file::{PrivateFile, Retraction};
use crate::state::{ENVELOPE_HEADER, Envelope, SavedState};
use crate::switch::Switch;

const ENVELOPE: Envelope = Envelope { magic: *b"CPRSNAP\n", version: 1 };
/// Where RAM begins.
const RAM: u64 = 1 << 20;
/// Maximum bytes of a header's body.
const MAX_HEADER: u64 = 64 << 10;
/// Bytes to read at once.
const CHUNK: u64 = 1 << 20;
const TRUNCATED: &str = "it was truncated while it was read";

/// Where things are in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    ram: RamBlockInfo,
    ram_offset: u64,
    state_offset: u64,
    state_bytes: u64,
}

/// A snapshot that is being written. Until it is finished, what is at its path stays, unless this
/// process cannot replace it.
#[derive(Debug)]
pub struct OutgoingSnapshot {
    file: PrivateFile,
    ram: RamBlockInfo,
    finished: bool,
}

impl OutgoingSnapshot {
    /// Creates a file for `path`. What is there stays as it is, unless this process cannot replace
    /// it: then it is emptied.
    pub fn create(path: PathBuf, follow: Switch, ram: &RamBlock) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Open { path: path.clone(), source };
        let file = PrivateFile::open(path.clone(), follow).map_err(failed)?;
        if file.is_in_place() {
            file.clear_target().map_err(failed)?;
        }
        let write = |source| SnapshotError::Write { path: path.clone(), source };
        file.file().set_len(RAM + ram.size()).map_err(write)?;
        Ok(Self { file, ram: ram.info(), finished: false })
    }

    /// Returns the file, for RAM, and where that begins.
    pub fn ram(&self) -> io::Result<(File, u64)> {
        Ok((self.file.file().try_clone()?, RAM))
    }

    /// Returns the [`Retraction`], which undoes the write without this object.
    pub fn retraction(&self) -> &Retraction {
        self.file.retraction()
    }

    /// Writes the state, now that RAM is complete, and gives the file its name.
    pub fn finish(&mut self, state: &[u8]) -> Result<(), SnapshotError> {
        let path = self.file.path().to_owned();
        let header = Header {
            ram: self.ram.clone(),
            ram_offset: RAM,
            state_offset: RAM + self.ram.size,
            state_bytes: state.len() as u64,
        };
        let written = self.write(&header, state);
        written.map_err(|source| SnapshotError::Write { path: path.clone(), source })?;
        // Last: until now, an earlier snapshot is still there.
        let placed = self.file.clear_target().and_then(|()| self.file.put_in_place());
        placed.map_err(|source| SnapshotError::Open { path: path.clone(), source })?;
        self.finished = true;
        let named = self.file.open_directory().and_then(|directory| directory.sync_all());
        named.map_err(|source| SnapshotError::Write { path, source })
    }

    fn write(&self, header: &Header, state: &[u8]) -> io::Result<()> {
        let mut body = Vec::new();
        ciborium::into_writer(header, &mut body)
            .expect("writing to memory cannot fail and the header has no type CBOR lacks");
        let file = self.file.file();
        file.write_all_at(state, header.state_offset)?;
        file.write_all_at(&ENVELOPE.seal(&body).0, 0)?;
        file.sync_all()
    }

    /// Keeps the file in place if it is whole: what was there before is gone by then.
    pub fn keep(self) {
        if self.finished {
            self.file.keep();
        }
    }
}

/// A snapshot to load.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    path: PathBuf,
    header: Header,
}

impl Snapshot {
    /// Opens the snapshot at `path`; `None` if the file is something else.
    pub fn open(path: &Path) -> Result<Option<Self>, NormalLoadError> {
        let failed = |source| NormalLoadError::Read { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let mut start = [0; ENVELOPE_HEADER];
        match file.read_exact_at(&mut start, 0) {
            Ok(()) if start[..8] == ENVELOPE.magic => {}
            _ => return Ok(None),
        }
        let invalid = |why: String| NormalLoadError::Invalid { path: path.to_owned(), why };
        let body = ENVELOPE.announced(&start).map_err(|error| invalid(error.to_string()))?;
        if body > MAX_HEADER {
            return Err(invalid(format!("its header has {body} bytes")));
        }
        let mut bytes = vec![0; ENVELOPE_HEADER + body as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let (body, _) = ENVELOPE.open(&bytes).map_err(|error| invalid(error.to_string()))?;
        let header: Header =
            ciborium::from_reader(body).map_err(|error| invalid(error.to_string()))?;
        let length = file.metadata().map_err(failed)?.len();
        let expected = header.state_offset.checked_add(header.state_bytes);
        let ram_end = header.ram_offset.checked_add(header.ram.size);
        if expected != Some(length) || ram_end.is_none_or(|end| end > header.state_offset) {
            return Err(invalid(format!(
                "it has {length} bytes, which its header does not expect"
            )));
        }
        if header.state_bytes > Envelope::max_bytes() {
            return Err(invalid(format!("its state has {} bytes", header.state_bytes)));
        }
        Ok(Some(Self { file, path: path.to_owned(), header }))
    }

    /// Checks that it is of a guest with this RAM.
    pub fn check_ram(&self, ram: &RamBlock) -> Result<(), NormalLoadError> {
        match self.header.ram == ram.info() {
            true => Ok(()),
            false => Err(NormalLoadError::OtherRam {
                path: self.path.clone(),
                found: self.header.ram.size,
                expected: ram.size(),
            }),
        }
    }

    /// Reads the saved state.
    pub fn state(&self) -> Result<SavedState, NormalLoadError> {
        let mut bytes = vec![0; self.header.state_bytes as usize];
        let read = self.file.read_exact_at(&mut bytes, self.header.state_offset);
        read.map_err(|source| NormalLoadError::Read { path: self.path.clone(), source })?;
        let decoded = SavedState::decode(&bytes);
        let path = || self.path.clone();
        decoded
            .map(|(state, _)| state)
            .map_err(|error| NormalLoadError::Invalid { path: path(), why: error.to_string() })
    }

    /// Returns its RAM, to be read later.
    pub fn ram(&self) -> io::Result<SnapshotRam> {
        Ok(SnapshotRam {
            file: self.file.try_clone()?,
            path: self.path.clone(),
            start: self.header.ram_offset,
            size: self.header.ram.size,
        })
    }

    /// Reads RAM. If `ram` is `fresh`, it has zeros only, and holes are left out.
    pub fn load_ram(&self, ram: &RamView, fresh: bool) -> Result<(), NormalLoadError> {
        let failed = |source| NormalLoadError::Read { path: self.path.clone(), source };
        let from = self.ram().map_err(failed)?;
        let pieces = match fresh {
            true => from.pieces(CHUNK).map_err(failed)?,
            false => (0..from.size).step_by(CHUNK as usize).collect(),
        };
        let mut buffer = vec![0; CHUNK as usize];
        for at in pieces {
            let piece = &mut buffer[..CHUNK.min(from.size - at) as usize];
            from.read(at, piece).map_err(failed)?;
            let written = match fresh {
                true => ram.write_to_zeros(at, piece),
                false => ram.write(at, piece),
            };
            written
                .map_err(|source| NormalLoadError::Memory { path: self.path.clone(), source })?;
        }
        Ok(())
    }
}

/// The RAM in a snapshot.
#[derive(Debug)]
pub struct SnapshotRam {
    file: File,
    path: PathBuf,
    start: u64,
    size: u64,
}

impl SnapshotRam {
    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads at `offset` in RAM.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, self.start + offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other(TRUNCATED),
            _ => error,
        })
    }

    /// Returns the offsets, multiples of `length`, of all pieces of this length that have data.
    pub fn pieces(&self, length: u64) -> io::Result<BTreeSet<u64>> {
        let end = self.start + self.size;
        let (mut pieces, mut at) = (BTreeSet::new(), self.start);
        while at < end {
            let data = next_data(&self.file, at)?;
            if data.start < end {
                let first = (data.start - self.start) / length * length;
                pieces.extend((first..data.end.min(end) - self.start).step_by(length as usize));
            }
            at = data.end;
        }
        // The end of a file that was truncated meanwhile looks like a hole.
        match self.file.metadata()?.len() < end {
            true => Err(io::Error::other(TRUNCATED)),
            false => Ok(pieces),
        }
    }
}
