//! The migration channel: where device and vCPU state goes.

mod durable;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cpr_qmp::address::MigrationAddress;

use crate::private_file::{PrivateFile, PrivateFileError, Retraction};
use crate::state::{Envelope, Fingerprint, SavedState, SectionError};
use crate::switch::Switch;
pub use durable::DurableFile;

/// Errors from migration channels.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The channel needs a reader at its other end, so it cannot take the whole state before exec.
    #[error(
        "cpr-exec needs a channel that takes the whole state before exec: {kind} has a reader at \
         its other end that exec would wait for; use file:PATH"
    )]
    Kind {
        /// The kind of channel that was requested.
        kind: &'static str,
    },
    /// The file channel has an offset.
    #[error("a file channel with an offset ({0}) is not supported yet: use file:PATH")]
    Offset(u64),
    /// The file channel refers to an fd set.
    #[error("an fd set ({0}) is not supported yet as a file channel: use file:PATH")]
    FdSet(String),
    /// The file cannot be opened.
    #[error("cannot open the migration channel file:{path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: PrivateFileError,
    },
    /// The existing file cannot be replaced, or the new one cannot be moved into place.
    #[error("cannot replace the migration channel file:{path}: {source}")]
    Replace {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: PrivateFileError,
    },
    /// The path is not a regular file.
    #[error("cannot use {path} as the migration channel: it is not a regular file")]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write {bytes} bytes of state to the migration channel file:{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Size of the whole state, in bytes.
        bytes: usize,
        /// The cause.
        source: io::Error,
    },
    /// There is no room for the state.
    #[error("cannot reserve {bytes} bytes for the migration channel file:{path}: {source}")]
    Reserve {
        /// The file.
        path: PathBuf,
        /// Bytes.
        bytes: u64,
        /// The cause.
        source: io::Error,
    },
    /// The file or its directory cannot be written to disk.
    #[error("cannot write the migration channel file:{path} to its disk: {source}")]
    Sync {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the saved state from file:{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The state exceeds the maximum size that can be read back.
    #[error(
        "cannot write {bytes} bytes of state to the migration channel file:{path}: at most {limit} \
         can be read back"
    )]
    StateTooLarge {
        /// The file.
        path: PathBuf,
        /// Size of the whole state, in bytes.
        bytes: u64,
        /// Maximum size of a state, in bytes.
        limit: u64,
    },
    /// The file is larger than the maximum state.
    #[error("file:{path} has {bytes} bytes, more than any saved state")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Size of the file, in bytes.
        bytes: u64,
    },
    /// The content of the file is not a valid saved state.
    #[error("cannot load file:{path}: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: SectionError,
    },
}

/// Returns the path of the file that `address` names.
pub fn file_path(address: &MigrationAddress) -> Result<PathBuf, ChannelError> {
    match address {
        MigrationAddress::File(file) if file.filename.starts_with("/dev/fdset/") => {
            Err(ChannelError::FdSet(file.filename.clone()))
        }
        MigrationAddress::File(file) if file.offset != 0 => Err(ChannelError::Offset(file.offset)),
        MigrationAddress::File(file) => Ok(PathBuf::from(&file.filename)),
        other => Err(ChannelError::Kind { kind: other.kind() }),
    }
}

/// A file that a saved state is written to. Dropped before [`OutgoingFile::keep`], it leaves no
/// state behind that could be mistaken for a valid one.
#[derive(Debug)]
pub struct OutgoingFile(PrivateFile);

impl OutgoingFile {
    /// Creates a file for `path` (mode 0600) or opens the existing one; nothing at the path changes
    /// yet.
    pub fn open(path: PathBuf, follow_symlinks: Switch) -> Result<Self, ChannelError> {
        match PrivateFile::open(path.clone(), follow_symlinks) {
            Ok(file) => Ok(Self(file)),
            Err(PrivateFileError::NotRegular) => Err(ChannelError::NotRegular { path }),
            Err(source) => Err(ChannelError::Open { path, source }),
        }
    }

    /// Removes or empties what is at the path. Call this while the guest still runs: it takes
    /// longer than writing the state.
    pub fn clear_target(&self) -> Result<(), ChannelError> {
        let path = || self.path().to_owned();
        self.0.clear_target().map_err(|source| ChannelError::Replace { path: path(), source })
    }

    /// Returns the descriptors of the file and its directory.
    pub fn fds(&self) -> [RawFd; 2] {
        self.0.fds()
    }

    /// Returns the [`Retraction`], which undoes the write without this object.
    pub fn retraction(&self) -> &Retraction {
        self.0.retraction()
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes an encoded state as the whole content of the file.
    pub fn write(&mut self, state: &[u8]) -> Result<(), ChannelError> {
        self.write_within(state, Envelope::max_bytes())
    }

    fn write_within(&mut self, bytes: &[u8], limit: u64) -> Result<(), ChannelError> {
        self.fill(bytes, limit, false)?;
        self.put_in_place()
    }

    /// Writes the content; `reserved`: the file may be longer.
    fn fill(&mut self, bytes: &[u8], limit: u64, reserved: bool) -> Result<(), ChannelError> {
        let path = || self.path().to_owned();
        let length = bytes.len();
        if length as u64 > limit {
            return Err(ChannelError::StateTooLarge { path: path(), bytes: length as u64, limit });
        }
        let failed = |source| ChannelError::Write { path: path(), bytes: length, source };
        #[cfg(feature = "failpoints")]
        let bytes = &bytes[..crate::failpoints::written(crate::failpoints::Point::Channel, length)];
        let mut file = self.0.file();
        file.write_all(bytes).map_err(failed)?;
        if reserved {
            let end = file.stream_position().map_err(failed)?;
            file.set_len(end).map_err(failed)?;
        }
        // Detects a file system that drops data while the guest can still be resumed here.
        let written = file.metadata().map_err(failed)?.len();
        if written != length as u64 {
            let short = io::Error::other(format!("the file has {written} bytes after the write"));
            return Err(failed(short));
        }
        #[cfg(feature = "failpoints")]
        crate::failpoints::seam::channel_written(file);
        Ok(())
    }

    fn put_in_place(&mut self) -> Result<(), ChannelError> {
        let path = self.path().to_owned();
        self.0.put_in_place().map_err(|source| ChannelError::Replace { path, source })
    }

    /// Keeps the file in place.
    pub fn keep(self) {
        self.0.keep();
    }
}

/// Reads a saved state from a file.
pub fn read(path: &Path) -> Result<(SavedState, Fingerprint), ChannelError> {
    let read_error = |source| ChannelError::Read { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(read_error)?;
    let meta = file.metadata().map_err(read_error)?;
    if !meta.is_file() {
        return Err(ChannelError::NotRegular { path: path.to_owned() });
    }
    read_open(&file, path)
}

/// Reads a saved state from an open file, called `path` in errors.
pub fn read_open(file: &File, path: &Path) -> Result<(SavedState, Fingerprint), ChannelError> {
    let read_error = |source| ChannelError::Read { path: path.to_owned(), source };
    let meta = file.metadata().map_err(read_error)?;
    if meta.len() > Envelope::max_bytes() {
        return Err(ChannelError::TooLarge { path: path.to_owned(), bytes: meta.len() });
    }
    // At offset 0: earlier writes may have moved the descriptor's own offset.
    let mut bytes = vec![0; meta.len() as usize];
    file.read_exact_at(&mut bytes, 0).map_err(read_error)?;
    SavedState::decode(&bytes)
        .map_err(|source| ChannelError::Content { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::STATE_VERSION;

    fn state() -> SavedState {
        let mut state = SavedState::default();
        state.put("answer", 0, 1, &42_u8);
        state
    }

    fn open(path: &Path) -> OutgoingFile {
        OutgoingFile::open(path.to_owned(), Switch::Off).unwrap()
    }

    #[test]
    fn written_state_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut file = open(&path);
        let (bytes, written) = state().encode(STATE_VERSION);
        file.write(&bytes).unwrap();
        file.keep();
        let (mut state, read) = read(&path).unwrap();
        assert_eq!(read, written);
        assert_eq!(state.take::<u8>("answer", 0, 1).unwrap(), 42);
    }

    #[test]
    fn dropped_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        open(&path).write(&state().encode(STATE_VERSION).0).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn existing_file_is_replaced_only_by_a_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(&path, "old").unwrap();
        drop(open(&path));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let mut file = open(&path);
        file.clear_target().unwrap();
        file.write(&state().encode(STATE_VERSION).0).unwrap();
        super::read(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn replacing_a_longer_file_leaves_no_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(&path, vec![1; 1 << 16]).unwrap();
        let mut file = open(&path);
        file.clear_target().unwrap();
        file.write(&state().encode(STATE_VERSION).0).unwrap();
        file.keep();
        read(&path).unwrap();
    }

    #[test]
    fn rejects_state_too_large_to_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = open(&dir.path().join("state"));
        assert!(matches!(
            file.write_within(&[0; 11], 10),
            Err(ChannelError::StateTooLarge { bytes: 11, limit: 10, .. })
        ));
        assert_eq!(file.0.file().metadata().unwrap().len(), 0);
        file.write_within(&[0; 10], 10).unwrap();
    }

    #[test]
    fn devices_and_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            OutgoingFile::open("/dev/null".into(), Switch::Off),
            Err(ChannelError::NotRegular { .. })
        ));
        assert!(matches!(
            OutgoingFile::open(dir.path().to_owned(), Switch::Off),
            Err(ChannelError::Open { .. })
        ));
        assert!(matches!(read(dir.path()), Err(ChannelError::NotRegular { .. })));
    }

    #[test]
    fn other_kinds_are_refused_with_the_reason() {
        let refused = |uri: &str| {
            let address = MigrationAddress::from_arguments(Some(uri), None).unwrap();
            file_path(&address).unwrap_err().to_string()
        };
        let uris = [
            "tcp:localhost:1",
            "unix:/s",
            "exec:cat",
            "fd:7",
            "file:/f,offset=0x10",
            "file:/dev/fdset/1",
        ];
        insta::assert_debug_snapshot!(uris.map(refused));
    }
}
