//! The error of reading `/proc`.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// A file that could not be read, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct ProcError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl ProcError {
    /// Creates the error for `path`.
    pub fn new(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self { path: path.into(), source }
    }

    /// Creates the error for `path`, which was read and parsed.
    pub fn parsing(path: impl Into<PathBuf>, error: procfs::ProcError) -> Self {
        let source = match error {
            procfs::ProcError::PermissionDenied(_) => Errno::EACCES.into(),
            procfs::ProcError::NotFound(_) => Errno::ENOENT.into(),
            procfs::ProcError::Io(error, _) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        };
        Self::new(path, source)
    }
}
