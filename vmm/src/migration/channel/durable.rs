//! A state file that survives a crash of the host once it is written.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{ChannelError, OutgoingFile};
use crate::private_file::Retraction;
use crate::state::Envelope;
use crate::switch::Switch;

/// An [`OutgoingFile`] that is on disk, with its name, when [`DurableFile::write`] returns.
#[derive(Debug)]
pub struct DurableFile {
    file: OutgoingFile,
    directory: File,
    reserved: u64,
}

impl DurableFile {
    /// Opens the file, as [`OutgoingFile::open`] does, and reserves room for `bytes` of state.
    pub fn open(path: PathBuf, follow_symlinks: Switch, bytes: u64) -> Result<Self, ChannelError> {
        let file = OutgoingFile::open(path.clone(), follow_symlinks)?;
        let directory = file.0.open_directory();
        let directory = directory.map_err(|source| ChannelError::Sync { path, source })?;
        let file = Self { file, directory, reserved: bytes };
        // An existing file must not change yet.
        if !file.file.0.is_in_place() {
            file.reserve()?;
        }
        Ok(file)
    }

    /// See [`OutgoingFile::clear_target`].
    pub fn clear_target(&self) -> Result<(), ChannelError> {
        self.file.clear_target()?;
        if self.file.0.is_in_place() {
            self.reserve()?;
        }
        Ok(())
    }

    fn reserve(&self) -> Result<(), ChannelError> {
        match fallocate(self.file.0.file(), FallocateFlags::empty(), 0, self.reserved as i64) {
            // Not every file system can. Then a lack of room shows when the state is written.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(errno) => Err(ChannelError::Reserve {
                path: self.file.path().to_owned(),
                bytes: self.reserved,
                source: errno.into(),
            }),
        }
    }

    /// See [`OutgoingFile::retraction`].
    pub fn retraction(&self) -> &Retraction {
        self.file.retraction()
    }

    /// Writes an encoded state as the whole content of the file. It is on disk before the file gets
    /// its name, and the name when this returns.
    pub fn write(&mut self, state: &[u8]) -> Result<(), ChannelError> {
        self.file.fill(state, Envelope::max_bytes(), true)?;
        self.synced(self.file.0.file().sync_all())?;
        self.file.put_in_place()?;
        self.synced(self.directory.sync_all())
    }

    fn synced(&self, result: io::Result<()>) -> Result<(), ChannelError> {
        result.map_err(|source| ChannelError::Sync { path: self.file.path().to_owned(), source })
    }

    /// Keeps the file in place.
    pub fn keep(self) {
        self.file.keep();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::state::{STATE_VERSION, SavedState};

    fn state() -> Vec<u8> {
        let mut state = SavedState::default();
        state.put("answer", 0, 1, &42_u8);
        state.encode(STATE_VERSION).0
    }

    #[test]
    fn reserved_room_is_returned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut file = DurableFile::open(path.clone(), Switch::Off, 1 << 20).unwrap();
        assert!(!path.exists());
        file.clear_target().unwrap();
        file.write(&state()).unwrap();
        file.keep();
        super::super::read(&path).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), state().len() as u64);
        assert!(meta.blocks() * 512 <= 8192, "{} blocks", meta.blocks());
    }

    #[test]
    fn state_may_need_more_than_is_reserved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut file = DurableFile::open(path.clone(), Switch::Off, 1).unwrap();
        file.write(&state()).unwrap();
        file.keep();
        super::super::read(&path).unwrap();
    }

    #[test]
    fn too_little_room_is_refused_before_anything_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(&path, "old").unwrap();
        let error = DurableFile::open(path.clone(), Switch::Off, 1 << 60).unwrap_err();
        assert!(matches!(error, ChannelError::Reserve { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
