//! Errors of the host that the harness runs on.

use std::fs;
use std::path::{Path, PathBuf};

use crate::kernels::KernelError;

/// The machine does not let the harness do its work. This is not a verdict on the VMM.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another run is writing to a case's folder.
    #[error("the evidence folder {0} is in use by another run")]
    InUse(PathBuf),
    /// A path that must be sent over QMP is not valid UTF-8.
    #[error("{0} is not valid UTF-8; choose another folder")]
    NotUtf8(PathBuf),
    /// The VMM could not be started at all.
    #[error("cannot start the VMM {path}: {source}")]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file system could not be mounted.
    #[error("cannot mount on {path}: {source}")]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        #[source]
        source: nix::errno::Errno,
    },
    /// The kernel of a Linux guest was not found.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A limit of the VMM could not be set.
    #[error(transparent)]
    Rlimit(#[from] RlimitError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl EnvironmentError {
    /// Returns a function for `map_err` that reports the failed operation `what` on `path`.
    pub fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

/// A resource limit could not be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set the limit `{name}` of the VMM: {}", std::io::Error::from(*.source))]
pub struct RlimitError {
    /// The kernel's name for the limit.
    pub name: &'static str,
    /// The cause.
    pub source: rustix::io::Errno,
}

/// Creates a folder unless it exists, but not its parents: a removed case folder must not come
/// back.
pub fn make_folder(path: &Path) -> Result<(), EnvironmentError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(EnvironmentError::file("create", path)(e))
        }
        _ => Ok(()),
    }
}
