//! The error of reading `/proc`.

use std::io;
use std::path::PathBuf;

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
}
