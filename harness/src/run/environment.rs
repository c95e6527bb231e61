//! What the harness itself needs of this machine and does not get.

use std::path::PathBuf;

/// The machine does not let the harness do its work; no verdict on the VMM.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A case's folder is being written by another run.
    #[error("the evidence folder {0} is in use by another run")]
    InUse(PathBuf),
    /// A path that has to go over QMP is no UTF-8.
    #[error("{0} is no UTF-8; choose another folder")]
    NotUtf8(PathBuf),
    /// The VMM could not be started at all.
    #[error("cannot start the VMM {path}: {source}")]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file system could not be mounted.
    #[error("cannot mount something on {path}: {source}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: nix::errno::Errno,
    },
    /// A limit of the VMM could not be set.
    #[error(transparent)]
    Rlimit(#[from] RlimitError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl EnvironmentError {
    /// For `map_err`: `what` was tried on `path`.
    pub fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

/// A limit could not be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set the limit `{name}` of the VMM: {}", std::io::Error::from(*.source))]
pub struct RlimitError {
    /// What the kernel calls it.
    pub name: &'static str,
    /// Why not.
    pub source: nix::errno::Errno,
}
